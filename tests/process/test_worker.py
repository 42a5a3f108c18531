"""A worker's start and leave: hooks, logging, threads, the connections that are open."""

import http.client
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemons

HOOKS = """
import asyncio, logging, os, time
from prefork import Application

app = Application()

@app.on_startup
async def up():
    logging.getLogger("shop").warning("opening")

@app.on_shutdown
async def down():
    logging.getLogger("shop").warning("closing")
    await asyncio.sleep(float(os.environ.get("DOWN", 0)))
    logging.getLogger("shop").warning("closed")

@app.use
async def serve(ctx, next):
    if ctx.path == "/thread":
        await ctx.run(time.sleep, 60)
    if ctx.path == "/short":
        await ctx.run(int)
    ctx.body = "served"
"""


def test_hooks_run_and_records_go_to_the_error_log(daemon: "Daemons") -> None:
    server = daemon(app=HOOKS, workers=2)
    assert len(re.findall(r"\[warn\] \d+#0: shop: opening", server.log)) == 2
    assert server.get().text == "served"
    assert server.stop() == 0
    assert server.log.count("shop: closing") == server.log.count("shop: closed") == 2


def test_hooks_have_the_time_that_the_drain_leaves(daemon: "Daemons") -> None:
    server = daemon(app=HOOKS, timeouts={"graceful": 2}, environment={"DOWN": "60"})
    began = time.monotonic()
    assert server.stop() == 0
    assert 1.5 < time.monotonic() - began < 6
    assert re.search(r"on_shutdown has not ended within (1\.9|2\.0) s", server.log)


def test_term_ends_the_hooks_of_a_quit(daemon: "Daemons") -> None:
    server = daemon(app=HOOKS, environment={"DOWN": "20"})
    server.send(signal.SIGQUIT)
    server.wait_for("shop: closing")
    began = time.monotonic()
    assert server.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 3
    assert "SIGKILL" not in server.log


def test_a_fast_stop_gives_hooks_a_second(daemon: "Daemons") -> None:
    server = daemon(app=HOOKS, environment={"DOWN": "20"})
    began = time.monotonic()
    assert server.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 3.1
    assert "on_shutdown has not ended within 1.0 s" in server.log


EXITS = """
import asyncio, sys
from prefork import Application, quick

app = Application()

async def leave_later():
    await asyncio.sleep(0.01)
    sys.exit(3)

@app.use
async def serve(ctx, next):
    if ctx.path == "/wait":
        await asyncio.sleep(1)
    if ctx.path == "/first":
        exit()
    if ctx.path == "/later":
        await leave_later()
    if ctx.path == "/interrupt":
        await asyncio.sleep(0.01)
        raise KeyboardInterrupt
    if ctx.path == "/thread":
        await ctx.run(sys.exit, 3)
    if ctx.path == "/task":
        await asyncio.create_task(leave_later())
    if ctx.path == "/forgotten":
        app.forgotten = asyncio.create_task(leave_later())
        await asyncio.sleep(0.05)
    if ctx.path == "/stream":
        ctx.body = stream()
        return
    if ctx.path == "/plain":
        return await next()
    ctx.body = "served"

@app.use
def plain(ctx, next):
    sys.exit(3)

async def stream():
    yield b"half"
    await asyncio.sleep(0.01)
    sys.exit(3)
"""


def test_what_looks_like_an_exit_ends_the_request_alone(daemon: "Daemons") -> None:
    server = daemon(app=EXITS)
    (worker,) = server.pids()
    server.expect(r"KeyboardInterrupt|an exit\(\) in a task|never retrieved")
    with server.connect() as other:
        other.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.get("/interrupt").status == 500
        server.wait_for("the application raised KeyboardInterrupt")
        assert server.get("/forgotten").text == "served"
        server.wait_for(r"an exit\(\) in a task does not end the worker: SystemExit\(3\)")
        assert other.recv(4096).endswith(b"served")
    assert server.pids() == [worker]
    assert server.stop() == 0


@pytest.mark.parametrize("path", ["/first", "/later", "/thread", "/task", "/plain", "/stream"])
def test_an_exit_in_a_request_replaces_its_worker(daemon: "Daemons", path: str) -> None:
    """Gracefully: the other requests of that worker are served to their end."""
    server = daemon(app=EXITS)
    (worker,) = server.pids()
    server.expect(r"SystemExit|an exit\(\) in a task|never retrieved")
    with server.connect() as other:
        other.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        if path == "/stream":
            with pytest.raises(http.client.IncompleteRead):
                server.get(path)
        else:
            assert server.get(path).status == 500
        server.wait_for(r"the application called exit\(\): SystemExit\((3|None)\), client: ")
        assert 'application.py"' in server.log
        server.wait_for(r"worker 1 is replaced: the application called exit\(\)")
        assert other.recv(4096).endswith(b"served")
    server.wait_for(lambda: worker not in server.pids())
    assert server.get("/").text == "served"
    assert server.stop() == 0


def test_an_exit_in_a_hook(daemon: "Daemons") -> None:
    server = daemon(app=HOOKS + "\n@app.on_shutdown\ndef leave():\n    raise SystemExit(3)\n")
    server.expect("on_shutdown failed")
    assert server.stop() == 0
    assert "shop: closed" in server.log  # the others run all the same
    server = daemon(app=HOOKS + "\n@app.on_startup\ndef leave():\n    exit(3)\n", start=False)
    server.exit_code = 1
    server.expect("")
    server.start(ready=False)
    assert server.wait() == 1
    assert "on_startup failed" in server.stderr
    assert "SystemExit: 3" in server.stderr


def test_a_signal_wakes_an_idle_worker(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    first, second = server.pids()
    server.send(signal.SIGUSR1, first)
    server.wait_for(rf"{first}#0: reopening logs", timeout=3)
    server.send(signal.SIGTERM, first)
    server.wait_for(rf"worker 1 {first} exited with code 0", timeout=3)
    server.send(signal.SIGQUIT, second)
    server.wait_for(rf"worker 2 {second} exited with code 0", timeout=3)
    server.wait_for(lambda: len(server.pids()) == 2)


def test_a_log_that_cannot_be_reopened_is_told_and_the_old_one_kept(daemon: "Daemons") -> None:
    server = daemon()
    (worker,) = server.pids()
    log = server.directory / "access.log"
    log.rename(server.directory / "access.log.1")
    log.mkdir()
    server.expect(r"access\.log\" failed \(21: Is a directory\)")
    server.send(signal.SIGUSR1, worker)
    server.wait_for(rf'\[emerg\] {worker}#0: open\(\) "{log}" failed \(21: Is a directory\)')
    server.get("/after")
    rotated = server.directory / "access.log.1"
    server.wait_for(lambda: "/after" in rotated.read_text())


def test_signals_meant_for_the_master_pass_a_worker_by(daemon: "Daemons") -> None:
    server = daemon()
    (worker,) = server.pids()
    for number in (signal.SIGINT, signal.SIGWINCH, signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN):
        server.send(number, worker)
    # A signal is taken before whatever comes after it: who answers now has survived them.
    assert server.get().text.split()[0] == str(worker)
    assert server.pids() == [worker]


def test_a_busy_thread_does_not_hold_the_stop_up(daemon: "Daemons") -> None:
    server = daemon(app=HOOKS, timeouts={"graceful": 1})
    with server.connect() as client:
        client.sendall(b"GET /thread HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
    assert "cancelled after " in server.log
    assert 'request: "GET /thread HTTP/1.1"' in server.log
    assert "a thread of ctx.run is still busy" in server.log


def test_a_thread_that_is_idle_is_not_called_busy(daemon: "Daemons") -> None:
    server = daemon(app=HOOKS)
    assert server.get("/short").text == "served"
    assert server.stop(signal.SIGTERM) == 0
    assert "a thread" not in server.log


def test_an_idle_connection_is_left_its_minimum(daemon: "Daemons") -> None:
    """A client that is just about to send its next request gets it answered (keep_alive_min)."""
    server = daemon(app=HOOKS, timeouts={"keep_alive_min": 1})
    with server.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096).endswith(b"served")
        server.send(signal.SIGQUIT)
        server.wait_for("gracefully shutting down")
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = client.recv(4096)
        assert answer.endswith(b"served")
        assert b"connection: close" in answer.lower()
        assert client.recv(4096) == b""
    assert server.wait() == 0


def test_an_idle_connection_is_closed_after_it(daemon: "Daemons") -> None:
    server = daemon(app=HOOKS, timeouts={"keep_alive_min": 0.5})
    with server.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(4096)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 4
        assert client.recv(4096) == b""


def test_what_is_not_an_application_is_refused(daemon: "Daemons") -> None:
    server = daemon(app="def app():\n    pass\n", start=False)
    server.exit_code = 1
    server.expect("")
    server.start(ready=False)
    assert server.wait() == 1
    assert "it is a function that needs no arguments, which looks like a factory: to call it" in (
        server.stderr
    )


def test_a_full_disk_costs_log_lines_and_nothing_else(daemon: "Daemons") -> None:
    server = daemon(workers=1, log={"access": {"path": "/dev/full", "flush": 0.05}})
    server.expect(r"\[alert\].*write\(\) to \"/dev/full\" failed \(28: ")
    assert server.get("/").status == 200
    server.wait_for("lines are lost")
    assert server.get("/").status == 200


def test_processes_that_an_application_forks_can_be_ended(daemon: "Daemons") -> None:
    """They had the worker's handlers: terminate() did nothing, and join() waited for ever."""
    app = """
import multiprocessing
import time

def app(environ, start_response):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    child.start()
    child.terminate()
    child.join()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(child.exitcode).encode()]
"""
    server = daemon(app=app, workers=1, preload=True)
    before = server.pids()
    assert server.get("/").body == b"-15"
    assert server.get("/").body == b"-15"
    assert server.pids() == before
