"""`refork_after`: a worker that has served for a while is what the others are forked from."""

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server

# Its cache says in which process each entry was made.
APPLICATION = """
import os
import threading

from prefork import Application

app = Application()
CACHE = {}
STARTED = []


@app.on_startup
def start():
    STARTED.append(os.getpid())


@app.on_shutdown
async def stop():
    STARTED.append("stopped")


@app.use
async def serve(ctx, next):
    made_by = CACHE.setdefault("entry", os.getpid())
    ctx.body = f"{os.getpid()} {os.getppid()} {made_by} {STARTED}"
"""


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    except OSError:
        return ""  # it has left


def molds(server: "Server") -> list[int]:
    return [pid for pid in server.pids() if title(pid).startswith("prefork: mold")]


def workers(server: "Server") -> list[int]:
    return [pid for pid in server.pids() if title(pid).startswith("prefork: worker")]


def test_a_warm_worker_becomes_the_mold_and_nobody_notices(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(app=APPLICATION, workers=3, preload=True, refork_after=[100, 100000])
    (first,) = molds(server)
    before = workers(server)
    with load(server) as client:
        server.wait_for(r"worker \d \d+ is the mold of generation 1 now: 3 workers")
        server.wait_for("all workers come from mold")
        server.wait_for(lambda: first not in server.pids())
        client.wait_more(100)
    assert not client.failures
    (second,) = molds(server)
    assert second in before
    assert title(second).startswith("prefork: mold gen 1 refork 1 (")
    assert len(workers(server)) == 3
    assert set(workers(server)).isdisjoint(before)
    pid, parent, made_by, started = server.get("/").text.split(maxsplit=3)
    assert int(pid) in workers(server)
    assert int(parent) == server.pid
    assert int(made_by) == second  # what it had cached when it was a worker
    assert started == f"[{second}, 'stopped', {pid}]"
    # Never fewer than three that serve, and never more than one above.
    assert "no worker" not in server.log


def test_generation_by_generation(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True, refork_after=[30, 60])
    with load(server) as client:
        server.wait_for(lambda: server.log.count("all workers come from mold") >= 3, timeout=60)
        client.wait_more(20)
    assert not client.failures


def test_by_default_nobody_is_promoted(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True)
    before = server.pids()
    with load(server) as client:
        client.wait_more(300)
    assert server.pids() == before


REFUSALS = {
    "a thread that goes on": (
        """
@app.on_startup
def spoil():
    threading.Thread(target=poll, name="poller", daemon=True).start()


def poll():
    threading.Event().wait()
""",
        r'cannot become a mold: thread "poller" \(.*application\.py',
    ),
    "a hook that fails": (
        """
@app.on_shutdown
def spoil():
    raise RuntimeError("not twice")
""",
        "on_shutdown failed",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_worker_that_cannot_be_a_mold_leaves_the_old_one(
    daemon: "Daemons", load: "type[Load]", name: str
) -> None:
    source, said = REFUSALS[name]
    server = daemon(app=APPLICATION + source, workers=2, preload=True, refork_after=[50])
    server.expect("on_shutdown failed|Traceback")
    before = molds(server)
    with load(server) as client:
        server.wait_for(said)
        server.wait_for("not tried again before the next reload")
        client.wait_more(200)
    assert not client.failures
    assert molds(server) == before
    server.wait_for(lambda: len(workers(server)) == 2)
    assert server.log.count("it becomes the next mold") == 1


def test_a_promotion_that_takes_too_long_is_given_up(daemon: "Daemons", load: "type[Load]") -> None:
    source = """
import time

@app.on_shutdown
def spoil():
    time.sleep(600)
"""
    server = daemon(
        app=APPLICATION + source,
        workers=2,
        preload=True,
        refork_after=[50],
        timeouts={"graceful": 1},
    )
    server.expect("exited on signal 9|has not left")
    before = molds(server)
    with load(server) as client:
        server.wait_for("not tried again before the next reload")
        client.wait_more(50)
    assert not client.failures
    assert molds(server) == before
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_an_application_can_refuse(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(
        app=APPLICATION + "\napp.refork = False\n", workers=2, preload=True, refork_after=[20]
    )
    before = server.pids()
    with load(server) as client:
        client.wait_more(200)
    assert server.pids() == before


def test_the_new_mold_dies_and_the_old_one_goes_on(daemon: "Daemons", load: "type[Load]") -> None:
    # Slow to start, so that there is time to kill the new mold while the old one is there.
    source = APPLICATION + "\n@app.on_startup\ndef slow():\n    import time\n    time.sleep(1)\n"
    server = daemon(app=source, workers=3, preload=True, refork_after=[100])
    server.expect("exited on signal 9")
    (first,) = molds(server)
    with load(server) as client:
        server.wait_for(r"is the mold of generation 1 now")
        # Not by the title, which a worker that is just being made shares with its mold.
        second = int(re.findall(r"(\d+) is the mold of generation 1 now", server.log)[-1])
        server.send(signal.SIGKILL, second)
        server.wait_for("the new mold has died; the mold there was stays")
        client.wait_more(50)
    assert not client.failures
    server.wait_for(lambda: molds(server) == [first])


def test_a_reload_ends_a_refork(daemon: "Daemons", load: "type[Load]") -> None:
    source = APPLICATION + "\n@app.on_startup\ndef slow():\n    import time\n    time.sleep(1)\n"
    server = daemon(app=source, workers=2, preload=True, refork_after=[50, 100000])
    with load(server) as client:
        server.wait_for(r"is the mold of generation 1 now")
        assert server.cli("reload").returncode == 0
        server.wait_for(lambda: len(server.pids()) == 3)
        client.wait_more(20)
    assert not client.failures
    (mold,) = molds(server)
    assert title(mold).startswith("prefork: mold gen 2 ")
