"""The lifespan through the real server: what it runs, what it refuses, what it says."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

Daemon = Callable[..., Any]

HEAD = """
import asyncio, os, sys

async def answer(send, text):
    data = text.encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(data)).encode())]})
    await send({"type": "http.response.body", "body": data})
"""

WHOLE = (
    HEAD
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["pid"] = os.getpid()
        scope["state"]["seen"] = []
        await asyncio.sleep(0.05)
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        open(f"down-{os.getpid()}", "w").close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    state = scope["state"]
    state["seen"].append(1)
    state["mine"] = 1
    await answer(send, f"{state['pid']} {os.getpid()} {len(state['seen'])} {sorted(state)}")
"""
)

UNAWARE = (
    HEAD
    + """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await answer(send, "served")
"""
)

BLIND = (
    HEAD
    + """
async def app(scope, receive, send):
    await receive()
    await answer(send, "served")
"""
)

BROKEN = (
    HEAD
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        raise LookupError("no database")
    await answer(send, "served")
"""
)

FAILED = (
    HEAD
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the database is away"})
        return
"""
)

EXITS = (
    HEAD
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        sys.exit(3)
"""
)

CANCELS = (
    HEAD
    + """
async def app(scope, receive, send):
    await receive()
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task
"""
)

SILENT = (
    HEAD
    + """
async def app(scope, receive, send):
    await asyncio.Event().wait()
"""
)


def test_it_runs_in_each_worker_and_its_state_is_shared(daemon: Daemon) -> None:
    server = daemon(app=WHOLE, workers=2)
    assert "ASGI 3" in server.log
    pids = set(server.pids())
    for number in range(1, 4):
        owner, pid, seen, keys = server.get("/").text.split(" ", 3)
        assert owner == pid
        assert int(pid) in pids
        assert keys == "['mine', 'pid', 'seen']"
        assert int(seen) <= number
    assert server.stop() == 0
    assert {int(path.name[5:]) for path in server.directory.glob("down-*")} == pids


def test_a_fast_stop_shuts_down_too(daemon: Daemon) -> None:
    server = daemon(app=WHOLE)
    (pid,) = server.pids()
    assert server.stop(signal.SIGTERM) == 0
    assert (server.directory / f"down-{pid}").exists()


def test_it_can_be_turned_off(daemon: Daemon) -> None:
    server = daemon(app=WHOLE, lifespan="off")
    server.expect("KeyError: 'seen'|Traceback")
    assert server.get("/").status == 500


@pytest.mark.parametrize("source", [UNAWARE, BLIND])
def test_auto_serves_what_knows_no_lifespan(daemon: Daemon, source: str) -> None:
    server = daemon(app=source)
    assert server.get("/").text == "served"
    assert "[warn]" not in server.log


def test_auto_serves_what_breaks_in_it_and_says_so(daemon: Daemon) -> None:
    server = daemon(app=BROKEN)
    assert server.get("/").text == "served"
    assert "[warn]" in server.log
    assert "with `on` this is a failed boot" in server.log
    assert "LookupError: no database" in server.log


@pytest.mark.parametrize(
    ("source", "mode", "said"),
    [
        (FAILED, "auto", ["its start-up failed: the database is away"]),
        (FAILED, "on", ["its start-up failed: the database is away"]),
        (EXITS, "auto", ["it raised in its lifespan", "SystemExit: 3", "application.py"]),
        (BROKEN, "on", ["it raised in its lifespan", "LookupError: no database", "application.py"]),
        (UNAWARE, "on", ["it raised in its lifespan", "AssertionError", "application.py"]),
        (CANCELS, "auto", ["it raised in its lifespan", "CancelledError", "application.py"]),
        (SILENT, "auto", ["timeouts.boot"]),
    ],
)
def test_a_failed_start_is_a_failed_boot(
    daemon: Daemon, source: str, mode: str, said: list[str]
) -> None:
    boot = 1.0 if source is SILENT else 60.0
    server = daemon(app=source, lifespan=mode, timeouts={"boot": boot}, ready=False)
    server.expect(".")
    assert server.wait(60.0) != 0
    server.exit_code = server.process.returncode
    for text in said:
        assert text in server.log
    if source is not SILENT:  # the stack of a hung boot is shown whole
        assert "prefork/" not in server.log.replace(str(server.directory), "")


SHUTDOWN = (
    HEAD
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        %s
    await answer(send, "served")
"""
)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("await receive(); raise LookupError('boom')", "it raised in its lifespan"),
        (
            "await receive(); await send({'type': 'lifespan.shutdown.failed', 'message': 'gone'});"
            " return",
            "its shut-down failed: gone",
        ),
        ("await receive(); await asyncio.Event().wait()", "has not ended within"),
        ("await receive(); sys.exit(4)", "it raised in its lifespan"),
        ("await receive(); raise asyncio.CancelledError", "it raised in its lifespan"),
        ("raise LookupError('early')", "the application's lifespan ended by an error"),
        ("return", "exit"),
    ],
)
def test_a_shutdown_that_goes_wrong_is_told_and_the_worker_leaves(
    daemon: Daemon, rest: str, said: str
) -> None:
    server = daemon(app=SHUTDOWN % rest, timeouts={"graceful": 1.0})
    server.expect("lifespan|shut-down|LookupError|SystemExit|CancelledError|Traceback")
    assert server.get("/").text == "served"
    assert server.stop() == 0
    assert said in server.log


CALLS_EXIT = (
    HEAD
    + """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/exit":
        sys.exit(3)
    await answer(send, str(os.getpid()))
"""
)


def test_exit_in_a_request_is_answered_and_its_worker_replaced(daemon: Daemon) -> None:
    server = daemon(app=CALLS_EXIT)
    server.expect("called exit|Traceback")
    before = server.get("/").text
    assert server.get("/exit").status == 500
    server.wait_for(lambda: server.get("/").text != before)
    assert "the application called exit()" in server.log
    assert 'request: "GET /exit HTTP/1.1"' in server.log


GOES_ON = (
    HEAD
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await answer(send, "served")
    try:
        await asyncio.sleep(0.3 if scope["path"] == "/work" else 60)
    finally:
        open("done", "w").close()
"""
)


@pytest.mark.parametrize("path", ["/work", "/long"])
def test_a_worker_waits_for_what_goes_on_behind_an_answer(daemon: Daemon, path: str) -> None:
    """Until timeouts.graceful is nearly over; then it is cancelled."""
    server = daemon(app=GOES_ON, timeouts={"graceful": 2.0 if path == "/long" else 30.0})
    assert server.get(path).text == "served"
    assert server.stop() == 0
    assert (server.directory / "done").exists()
    assert "timed out" not in server.log
