"""Workers are replaced by requests, age and memory: nobody notices, and never one is missing."""

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefork.scoreboard import Scoreboard, SlotState

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server

# A third of a second to boot, and a way to eat memory.
SLOW_BOOT = """
import asyncio, os, time
from prefork import Application

time.sleep(0.3)
app = Application()
eaten = []

@app.use
async def serve(ctx, next):
    if ctx.path == "/eat":
        eaten.append(os.urandom(1 << 20) * 8)
    elif ctx.path == "/sleep":
        await asyncio.sleep(1)
    elif ctx.path == "/endless":
        await asyncio.sleep(60)
    ctx.body = str(os.getpid())
"""


class Watch:
    """Samples the scoreboard while the block runs: the fewest that were ready, the most there."""

    def __init__(self, server: "Server") -> None:
        self.fewest = 1000
        self.most = 0
        self._board = Scoreboard.attach_pid(server.pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        self._board.close()

    def _look(self) -> None:
        while not self._over.wait(0.002):
            states = [slot.state for slot in self._board.used()]
            self.fewest = min(self.fewest, states.count(SlotState.READY))
            self.most = max(self.most, sum(state != SlotState.DEAD for state in states))


def replaced(server: "Server") -> int:
    return server.log.count("takes the place of")


@pytest.mark.parametrize(
    "goal", [4, pytest.param(60, marks=[pytest.mark.stress, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("preload", [False, True])
def test_by_requests_and_nobody_notices(
    daemon: "Daemons", load: "type[Load]", goal: int, preload: bool
) -> None:
    server = daemon(
        app=SLOW_BOOT,
        workers=2,
        preload=preload,
        recycle={"max_requests": 100, "min_lifetime": 0, "jitter": "20%"},
    )
    with load(server, threads=8) as client, Watch(server) as watch:
        while replaced(server) < goal and not client.failures:
            client.wait_more(50)
    assert not client.failures, server.account()
    assert watch.fewest >= 2
    assert watch.most <= 4  # two that serve, one that boots or one that leaves
    assert "requests (recycle.max_requests)" in server.log


def test_by_age_of_a_server_that_idles(daemon: "Daemons") -> None:
    server = daemon(app=SLOW_BOOT, workers=2, recycle={"max_age": "1s", "min_lifetime": 0})
    with Watch(server) as watch:
        server.wait_for(lambda: replaced(server) >= 2)
    assert watch.fewest >= 2
    assert "worker 1 is replaced: 1 s old (recycle.max_age)" in server.log


def test_by_memory(daemon: "Daemons") -> None:
    server = daemon(app=SLOW_BOOT, recycle={"max_memory": "96MiB", "min_lifetime": 0})
    (first,) = server.pids()
    served = {first}
    deadline = time.monotonic() + 60
    while served == {first} and time.monotonic() < deadline:
        if "is replaced" not in server.log:
            server.get("/eat")
        answer = server.get("/")
        assert answer.status == 200
        served.add(int(answer.text))
        time.sleep(0.1)
    assert served > {first}
    assert "MiB of memory, more than the 96 MiB of recycle.max_memory" in server.log


def test_nobody_is_woken_to_be_measured(daemon: "Daemons") -> None:
    server = daemon(app=SLOW_BOOT, recycle={"max_memory": "1MiB", "min_lifetime": "1h"})
    (worker,) = server.pids()
    assert server.get().status == 200
    time.sleep(1.5)
    before = [context_switches(server.pid), context_switches(worker)]
    time.sleep(3)
    assert [context_switches(server.pid), context_switches(worker)] == before


def context_switches(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.rpartition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_a_worker_lives_for_a_while(daemon: "Daemons") -> None:
    server = daemon(app=SLOW_BOOT, recycle={"max_requests": 1, "min_lifetime": "2s"})
    began = time.monotonic()
    for _ in range(20):
        assert server.get().status == 200
    assert "is replaced" not in server.log
    server.wait_for("worker 1 is replaced")
    assert time.monotonic() - began > 1.0


def test_a_replacement_that_cannot_boot_costs_nothing(daemon: "Daemons") -> None:
    server = daemon(
        app=SLOW_BOOT,
        workers=2,
        recycle={"max_requests": 5, "min_lifetime": 0},
        backoff={"first": "200ms"},
    )
    before = set(server.pids())
    server.write_app("raise RuntimeError('out of coffee')\n")
    server.expect("failed to start|serves on, its replacement failed")
    for _ in range(40):
        assert server.get().status == 200
    server.wait_for("serves on, its replacement failed: .*; the next attempt comes in 0.[12] s")
    server.wait_for(lambda: server.log.count("serves on, its replacement failed") >= 3)
    assert before <= set(server.pids())
    server.write_app(SLOW_BOOT)
    server.wait_for(lambda: replaced(server) >= 2)
    assert server.get().status == 200
    assert server.log.count("Traceback") == 1


def test_a_worker_that_dies_while_its_replacement_boots(daemon: "Daemons") -> None:
    """Its row is filled again at once; when the replacement is ready, one of the two goes."""
    server = daemon(
        app=SLOW_BOOT.replace("0.3", "1"), recycle={"max_requests": 5, "min_lifetime": 0}
    )
    (first,) = server.pids()
    for _ in range(5):
        server.get()
    server.wait_for("worker 1 is replaced")
    server.expect("exited on signal 9")
    server.send(signal.SIGKILL, first)
    server.wait_for("takes the place of worker 1")
    server.wait_for(lambda: len(server.pids()) == 1)
    assert server.get().status == 200


def test_a_reload_supersedes_it(daemon: "Daemons") -> None:
    server = daemon(
        app=SLOW_BOOT.replace("0.3", "1"),
        workers=2,
        recycle={"max_requests": 5, "min_lifetime": 0},
    )
    for _ in range(12):
        server.get()
    server.wait_for("is replaced")
    server.send(signal.SIGHUP)
    server.wait_for("reconfigured: generation 1 -> 2")
    server.wait_for(lambda: len(server.pids()) == 2)
    assert replaced(server) == 0


def test_one_that_is_slow_to_leave_delays_the_next(daemon: "Daemons") -> None:
    server = daemon(
        app=SLOW_BOOT,
        workers=2,
        recycle={"max_requests": 2, "min_lifetime": 0, "jitter": "0%"},
        timeouts={"graceful": 3},
    )
    clients = [server.connect() for _ in range(2)]
    for client in clients:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
    with Watch(server) as watch:
        for _ in range(20):
            assert server.get().status == 200
        server.wait_for(lambda: replaced(server) == 2, timeout=60)
    assert watch.fewest >= 2
    assert watch.most <= 4
    for client in clients:
        client.close()


def test_a_stop_in_the_middle(daemon: "Daemons") -> None:
    server = daemon(
        app=SLOW_BOOT.replace("0.3", "1"), recycle={"max_requests": 1, "min_lifetime": 0}
    )
    server.get()
    server.wait_for("worker 1 is replaced: 1 requests")
    assert server.stop() == 0
