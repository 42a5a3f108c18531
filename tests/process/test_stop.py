"""The end of a whole server: nobody who was connected before it is lost, and it always ends."""

import contextlib
import http.client
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefork.scoreboard import Scoreboard, SlotState
from tests.conftest import SLOW, can_bind

if TYPE_CHECKING:
    from tests.conftest import Daemons, Server

# Blocks its worker, as much code does: connections pile up in the accept queue.
SLUGGISH = """
import asyncio, time
from prefork import Application

app = Application()

@app.use
async def serve(ctx, next):
    if ctx.path == "/block":
        time.sleep(0.3)
    elif ctx.path == "/hang":
        time.sleep(60)
    elif ctx.path == "/wait":
        await asyncio.sleep(0.3)
    elif ctx.path == "/slow":
        await asyncio.sleep(4)
    ctx.body = "served"
"""


def short_and_long(few: int, many: int) -> pytest.MarkDecorator:
    """`few` in the suite, `many` in the stress form."""
    long = pytest.param(many, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])
    return pytest.mark.parametrize("turns", [few, long])


class Crowd:
    """Connections at a steady rate whatever the server does, each with one request.

    `early` were established before `stop_at`, `late` after; each is its outcome: a status line, or
    the name of the error.
    """

    def __init__(self, address: tuple[str, int] | str, path: str, rate: float = 40.0) -> None:
        self.stop_at = float("inf")
        self.early: list[str] = []
        self.late: list[str] = []
        self._address = address
        self._request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        self._rate = rate
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clock = threading.Thread(target=self._arrive, daemon=True)

    def __enter__(self) -> "Crowd":
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._clock.join(SLOW)
        for thread in self._threads:
            thread.join(60)

    def _arrive(self) -> None:
        while not self._over.wait(1 / self._rate):
            thread = threading.Thread(target=self._ask, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _ask(self) -> None:
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        with socket.socket(family) as client:
            client.settimeout(60)
            outcomes = self.late
            try:
                client.connect(self._address)
                if time.monotonic() < self.stop_at:
                    outcomes = self.early
                client.sendall(self._request)
                outcomes.append(read_all(client).partition(b"\r\n")[0].decode() or "closed")
            except OSError as error:
                outcomes.append(type(error).__name__)


def read_all(client: socket.socket) -> bytes:
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data


def read_until(client: socket.socket, what: bytes) -> None:
    data = b""
    while what not in data:
        piece = client.recv(65536)
        assert piece, data
        data += piece


def get(client: socket.socket, path: str) -> None:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def states(server: "Server") -> list[int]:
    board = Scoreboard.attach_pid(server.pid)
    try:
        slots = [board.slot(index) for index in range(min(8, board.slots))]
        return [slot.state for slot in slots if slot.pid or slot.state]
    finally:
        board.close()


# The accept queue


@short_and_long(1, 50)
@pytest.mark.parametrize(
    ("path", "number", "config"),
    [
        ("/block", signal.SIGQUIT, {"workers": 2}),
        ("/wait", signal.SIGQUIT, {"workers": 2}),
        ("/block", signal.SIGTERM, {"workers": 2, "on_term": "graceful"}),
        ("/block", signal.SIGQUIT, {"workers": 1}),
        ("/block", signal.SIGQUIT, {"workers": 2, "preload": True}),
        ("/block", signal.SIGQUIT, {"master_process": False}),
        ("/wait", signal.SIGTERM, {"master_process": False, "on_term": "graceful"}),
    ],
)
def test_who_was_connected_is_served(
    daemon: "Daemons", path: str, number: int, config: dict[str, object], turns: int
) -> None:
    """40 connections a second, 300 ms each: more than comes through, so the queue fills."""
    server = daemon(app=SLUGGISH, start=False, timeouts={"graceful": 60}, **config)
    for _ in range(turns):
        since = len(server.log)
        server.start(ready=False)
        server.wait_for("ready on ", since=since)
        with Crowd(("127.0.0.1", server.port), path) as crowd:
            time.sleep(1.0)
            crowd.stop_at = time.monotonic()
            server.send(number)
            time.sleep(0.5)
        assert server.wait(60) == 0
        assert len(crowd.early) > 10
        assert set(crowd.early) == {"HTTP/1.1 200 OK"}, server.account()
        assert set(crowd.late) <= {"HTTP/1.1 200 OK", "ConnectionRefusedError"}, server.account()


def test_a_unix_socket_refuses_at_once(daemon: "Daemons") -> None:
    server = daemon(app=SLUGGISH, start=False)
    path = str(server.directory / "app.sock")
    server.write_config(listen=[f"127.0.0.1:{server.port}", f"unix:{path}"], workers=2)
    server.start()
    with Crowd(path, "/block") as crowd:
        time.sleep(1.0)
        crowd.stop_at = time.monotonic()
        server.send(signal.SIGQUIT)
        time.sleep(0.5)
    assert server.wait(60) == 0
    assert set(crowd.early) == {"HTTP/1.1 200 OK"}
    assert set(crowd.late) <= {"HTTP/1.1 200 OK", "ConnectionRefusedError", "FileNotFoundError"}
    assert not Path(path).exists()


def test_the_last_answer_says_so(daemon: "Daemons") -> None:
    server = daemon(app=SLUGGISH)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(5)]
        for client in clients:
            get(client, "/block")
        time.sleep(0.1)
        server.send(signal.SIGQUIT)
        answers = [read_all(client) for client in clients]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    # The signal waits, too, for the first ones, which block the worker.
    assert b"\r\nConnection: close\r\n" in answers[-1]
    assert server.wait() == 0


def test_the_limit_of_connections_holds_in_the_queue_too(daemon: "Daemons") -> None:
    server = daemon(app=SLUGGISH, limits={"connections": 2})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        for client in clients:
            get(client, "/wait")
        time.sleep(0.1)
        server.send(signal.SIGQUIT)
        for client in clients:
            assert read_all(client).startswith(b"HTTP/1.1 200 ")
    assert server.wait() == 0
    assert "(limits.connections): accepting no more" in server.log


def test_a_hung_worker_does_not_hold_the_others_up(daemon: "Daemons") -> None:
    server = daemon(app=SLUGGISH, workers=2, timeouts={"graceful": 3})
    with server.connect() as hung:
        get(hung, "/hang")
        time.sleep(0.3)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(4)]
            for client in clients:
                get(client, "/block")
            server.send(signal.SIGQUIT)
            for client in clients:
                assert read_all(client).startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0
    assert "has not left within 3 s (timeouts.graceful): SIGTERM" in server.log


def test_a_master_that_is_killed_loses_nobody_who_waits(daemon: "Daemons") -> None:
    """Its workers are the last owners then; the port is free at once, whatever they still do."""
    server = daemon(app=SLUGGISH, timeouts={"graceful": 60})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        for client in clients:
            get(client, "/block")
        slow = stack.enter_context(server.connect())
        get(slow, "/slow")
        time.sleep(0.1)
        server.exit_code = -signal.SIGKILL
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        for client in clients:
            assert read_all(client).startswith(b"HTTP/1.1 200 ")
        deadline = time.monotonic() + 2.5
        while not can_bind(server.port) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert can_bind(server.port)
        assert read_all(slow).startswith(b"HTTP/1.1 200 ")
    server.pid_path.unlink()


def test_a_fast_stop_is_fast(daemon: "Daemons") -> None:
    server = daemon(app=SLUGGISH)
    with Crowd(("127.0.0.1", server.port), "/block"):
        time.sleep(1.0)
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 5


def test_a_socket_that_another_process_has_is_left_alone(daemon: "Daemons") -> None:
    """Its holder, as systemd, goes on letting clients in when we are gone."""
    server = daemon(app=SLUGGISH, start=False)
    with socket.create_server(("127.0.0.1", server.port), backlog=16) as holder:
        server.write_config(listen=[f"fd:{holder.fileno()}"])
        start_with(server, holder)
        assert server.get().status == 200
        assert server.stop() == 0
        with server.connect() as late:
            holder.settimeout(SLOW)
            taken, _ = holder.accept()
            with taken:
                late.sendall(b"x")
                assert taken.recv(1) == b"x"


def start_with(server: "Server", holder: socket.socket) -> None:
    import subprocess
    import sys

    with (server.directory / "stderr.txt").open("ab") as err:
        server.process = subprocess.Popen(
            [sys.executable, "-m", "prefork", "start", "-c", "conf.yaml"],
            cwd=server.directory,
            stdin=subprocess.DEVNULL,
            stderr=err,
            pass_fds=[holder.fileno()],
            start_new_session=True,
        )
    server.pid = server.process.pid
    server.wait_for("ready on ")


def test_an_upgrade_shuts_nobody_out(daemon: "Daemons") -> None:
    """The old master leaves while the new one lives: the socket is not its alone."""
    server = daemon(app=SLUGGISH, workers=2)
    old = server.pid
    since = len(server.log)
    server.send(signal.SIGUSR2)
    server.wait_for(r"the new master \d+ is ready", since=since)
    server.pid = server.written_pid
    server.send(signal.SIGQUIT, old)
    assert server.process is not None
    assert server.process.wait(SLOW) == 0
    with Crowd(("127.0.0.1", server.port), "/wait") as crowd:
        time.sleep(1.0)
    assert set(crowd.late) | set(crowd.early) == {"HTTP/1.1 200 OK"}
    # What the old one has bound is the new one's alone by now.
    with Crowd(("127.0.0.1", server.port), "/block") as crowd:
        time.sleep(1.0)
        crowd.stop_at = time.monotonic()
        server.send(signal.SIGQUIT)
        time.sleep(0.5)
    assert set(crowd.early) == {"HTTP/1.1 200 OK"}, server.account()
    assert set(crowd.late) <= {"HTTP/1.1 200 OK", "ConnectionRefusedError"}, server.account()


# Lame duck


@pytest.mark.parametrize("config", [{"workers": 2}, {"master_process": False}])
def test_drain_delay(daemon: "Daemons", config: dict[str, object]) -> None:
    app = SLUGGISH.replace(
        'if ctx.path == "/block":',
        'if ctx.path == "/ready":\n        ctx.status = 503 if ctx.stopping else 200\n'
        '    elif ctx.path == "/block":',
    )
    server = daemon(app=app, drain_delay=1.5, **config)
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SLOW)
    kept.request("GET", "/")
    answer = kept.getresponse()
    answer.read()
    assert not answer.will_close
    assert server.get("/ready").status == 200
    began = time.monotonic()
    server.send(signal.SIGQUIT)
    server.wait_for(r"accepting for another 1\.5 s \(drain_delay\)")
    server.wait_for(lambda: set(states(server)) == {SlotState.QUIESCING})
    assert server.get("/ready").status == 503
    kept.request("GET", "/")
    answer = kept.getresponse()
    answer.read()
    assert answer.status == 200
    assert answer.will_close
    assert server.get("/wait").status == 200
    assert time.monotonic() - began < 1.5
    assert server.wait() == 0
    assert time.monotonic() - began > 1.4
    with pytest.raises(ConnectionRefusedError):
        server.connect()


@pytest.mark.parametrize("config", [{"workers": 2}, {"master_process": False}])
def test_a_second_quit_cuts_the_delay_short(daemon: "Daemons", config: dict[str, object]) -> None:
    server = daemon(app=SLUGGISH, drain_delay=60, **config)
    server.send(signal.SIGQUIT)
    server.wait_for("accepting for another 60 s")
    server.send(signal.SIGQUIT)
    assert server.wait() == 0
    assert "QUIT again: drain_delay is cut short" in server.log


def test_a_worker_that_dies_in_the_delay_comes_back(daemon: "Daemons") -> None:
    server = daemon(app=SLUGGISH, workers=2, drain_delay=60)
    server.send(signal.SIGQUIT)
    server.wait_for("accepting for another 60 s")
    since = len(server.log)
    server.expect("exited on signal 9")
    server.send(signal.SIGKILL, server.pids()[0])
    server.wait_for(r"start worker \d", since=since)
    server.wait_for(lambda: states(server) == [SlotState.QUIESCING] * 2)
    assert server.get().status == 200
    server.send(signal.SIGQUIT)
    assert server.wait() == 0


@pytest.mark.parametrize("command", [("scale", "+1"), ("reload",)])
def test_what_asks_for_more_is_refused(daemon: "Daemons", command: tuple[str, ...]) -> None:
    server = daemon(app=SLUGGISH, drain_delay=60)
    server.send(signal.SIGQUIT)
    server.wait_for("accepting for another 60 s")
    done = server.cli(*command)
    assert done.returncode == 1
    assert "the server is shutting down" in done.stderr
    assert server.stop() == 0


# Streams

STREAMS = """
import asyncio, time
from prefork import Application

app = Application()

@app.use
async def serve(ctx, next):
    name = ctx.path
    over = asyncio.Event()
    if name == "/told":
        ctx.on_drain(over.set)
    async def events():
        try:
            yield "data: begun\\n\\n"
            while not over.is_set():
                try:
                    await asyncio.sleep(0.05)
                except asyncio.CancelledError:
                    if name != "/deaf":
                        raise
            yield "data: ended\\n\\n"
        finally:
            print("finally", name, flush=True)
    def in_a_thread():
        try:
            while True:
                yield "data: begun\\n\\n"
                time.sleep(0.05)
        finally:
            print("finally", name, flush=True)
    ctx.type = "text/event-stream"
    ctx.body = in_a_thread() if name == "/thread" else events()
"""


def test_a_stream_that_listens_ends_at_once(daemon: "Daemons") -> None:
    server = daemon(app=STREAMS, timeouts={"graceful": 60})
    with server.connect() as client:
        get(client, "/told")
        read_until(client, b"begun")
        began = time.monotonic()
        server.send(signal.SIGQUIT)
        assert read_all(client).endswith(b"data: ended\n\n\r\n0\r\n\r\n")
        assert server.wait() == 0
        assert time.monotonic() - began < 15
    assert "finally /told" in server.stdout


@pytest.mark.parametrize("config", [{}, {"master_process": False}])
def test_a_stream_that_does_not_is_cancelled_and_cut(
    daemon: "Daemons", config: dict[str, object]
) -> None:
    server = daemon(app=STREAMS, timeouts={"graceful": 2}, **config)
    with server.connect() as client:
        get(client, "/endless?x=1")
        read_until(client, b"begun")
        began = time.monotonic()
        server.send(signal.SIGQUIT)
        rest = b""
        with contextlib.suppress(ConnectionResetError):
            rest = read_all(client)
        assert b"0\r\n\r\n" not in rest  # half a stream does not look like a whole one
        assert server.wait() == 0
        assert 1.5 < time.monotonic() - began < 10
    assert "finally /endless" in server.stdout
    assert re.search(
        r'cancelled after \d+\.\d s: client: 127\.0\.0\.1, request: "GET /endless\?x=1 HTTP/1\.1"',
        server.log,
    )
    assert "connections cut" not in server.log


def test_a_stream_made_in_threads_is_cut_too(daemon: "Daemons") -> None:
    server = daemon(app=STREAMS, timeouts={"graceful": 2})
    with server.connect() as client:
        get(client, "/thread")
        read_until(client, b"begun")
        began = time.monotonic()
        server.send(signal.SIGQUIT)
        with contextlib.suppress(ConnectionResetError):
            assert not read_all(client).endswith(b"0\r\n\r\n")
        assert server.wait() == 0
        assert time.monotonic() - began < 10
    assert "finally /thread" in server.stdout


def test_one_that_does_not_even_mind_that_is_cut(daemon: "Daemons") -> None:
    server = daemon(app=STREAMS, timeouts={"graceful": 1})
    with server.connect() as client:
        get(client, "/deaf")
        read_until(client, b"begun")
        server.send(signal.SIGQUIT)
        with contextlib.suppress(ConnectionResetError):
            read_all(client)
        assert server.wait() == 0
    assert "shutdown timed out after 1 s: 1 connections cut" in server.log
    assert re.search(r'cut after \d\.\d s: .*"GET /deaf HTTP/1\.1"', server.log)


def test_a_reload_ends_streams_too(daemon: "Daemons") -> None:
    server = daemon(app=STREAMS, timeouts={"graceful": 60})
    with server.connect() as client:
        get(client, "/told")
        read_until(client, b"begun")
        server.send(signal.SIGHUP)
        assert read_all(client).endswith(b"data: ended\n\n\r\n0\r\n\r\n")


# Handlers that go on after their answer

BACKGROUND = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        open("events", "a").write("shutdown ")
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answered"})
    how = "cancelled "
    try:
        await asyncio.sleep(float(scope["path"][1:]))
        how = "worked "
    finally:
        open("events", "a").write(how)
"""


@pytest.mark.parametrize("config", [{}, {"master_process": False}])
def test_background_tasks_end_before_the_worker(
    daemon: "Daemons", config: dict[str, object]
) -> None:
    """They were cut when the last connection was gone, though there was time left for them."""
    server = daemon(app=BACKGROUND, **config)
    assert server.get("/0.5").text == "answered"
    assert server.stop() == 0
    assert (server.directory / "events").read_text() == "worked shutdown "


def test_a_reload_lets_background_tasks_end(daemon: "Daemons") -> None:
    server = daemon(app=BACKGROUND)
    assert server.get("/0.5").text == "answered"
    server.send(signal.SIGHUP)
    server.wait_for("reconfigured")
    server.wait_for(r"worker 1 \d+ exited with code 0")
    assert (server.directory / "events").read_text() == "worked shutdown "


def test_a_background_task_without_end_is_cancelled(daemon: "Daemons") -> None:
    server = daemon(app=BACKGROUND, timeouts={"graceful": 1})
    assert server.get("/60").text == "answered"
    assert server.stop() == 0
    assert (server.directory / "events").read_text() == "cancelled shutdown "
    assert "what still runs is cancelled" in server.log
    assert "timed out" not in server.log
