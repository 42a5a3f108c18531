"""A worker that crashes again and again comes back less and less often, and alone."""

import signal
import time
from typing import TYPE_CHECKING

from prefork.scoreboard import Scoreboard

if TYPE_CHECKING:
    from tests.conftest import Daemons

# The first worker to boot is well, the others die a third of a second later.
ONE_IS_WELL = """
import asyncio, os
from prefork import Application

app = Application()

@app.on_startup
async def decide():
    try:
        os.mkdir("well")
    except FileExistsError:
        with open("boots", "a") as file:
            file.write(".")
        asyncio.get_running_loop().call_later(0.3, os._exit, 7)

@app.use
async def serve(ctx, next):
    ctx.body = "served"
"""


def test_a_crash_loop_costs_its_own_slot_only(daemon: "Daemons") -> None:
    server = daemon(app=ONE_IS_WELL, workers=2)
    server.get()
    time.sleep(5)
    assert 2 <= len((server.directory / "boots").read_text()) <= 6  # at 0, 0.3, 1.5, 3.7 s or so
    assert server.log.count("exited with code 7") >= 2
    for _ in range(5):
        assert server.get().text == "served"
    survivors = set(server.pids())
    server.write_app(ONE_IS_WELL.replace("0.3, os._exit", "3600, os._exit"))
    server.wait_for(lambda: len(server.pids()) == 2)
    time.sleep(1)
    assert len(survivors & set(server.pids())) == 1
    assert server.get().text == "served"


def test_the_back_off_of_one_slot(daemon: "Daemons") -> None:
    """It is told in the scoreboard, and its neighbour serves on."""
    server = daemon(workers=2, backoff={"first": "5s", "forget_after": "1s"})
    first, second = server.pids()
    server.expect("exited on signal 9")
    server.send(signal.SIGKILL, first)
    server.wait_for(lambda: server.log.count("start worker 1 ") == 2)
    server.wait_for(lambda: len(server.pids()) == 2)
    board = Scoreboard.attach_pid(server.pid)
    try:
        slot = board.slot(0)
        server.wait_for(lambda: slot.ready_ns and slot.crashes == 1)
        server.send(signal.SIGKILL, slot.pid)
        server.wait_for(r"worker 1 comes back in [45]\.\d s, after 2 crashes \(backoff\)")
        server.wait_for(lambda: slot.crashes == 2 and slot.comes_back_ns > time.time_ns())
        assert server.pids() == [second]
        assert server.get().status == 200
        server.wait_for(lambda: server.log.count("start worker 1 ") == 3)
        server.wait_for(lambda: slot.comes_back_ns == 0)
        server.wait_for(lambda: slot.crashes == 0)  # after it has lived for a while
    finally:
        board.close()
