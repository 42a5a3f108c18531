"""The `wire` fixture: the real server on loopback sockets, turned by hand, and h11 as the judge.

    def test_something(wire):
        w = wire(handler, timeouts={"head": 10}, limits={"body": 1000})
        client = w.connect()
        client.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        answer = client.answer()
        assert answer.status == 200

Server and client share one thread: every wait of the client turns the server's loop, so nothing
depends on how fast a machine is, and deadlines expire when the test moves the clock
(`w.clock.advance(11)`). Without a handler requests are kept in `w.seen` and their bodies echoed.

At its end each wire is asserted to hold no connection and no deadline, to have let no exception
reach the reactor or asyncio, and to have logged no [error] that the test did not declare by
`w.expect("regex")`.
"""

import asyncio
import contextlib
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import pytest

from prefork.config.schema import Limits, Timeouts
from prefork.event.bridge import ReactorLoop
from prefork.event.reactor import Reactor
from prefork.http.exchange import Exchange, Handler
from prefork.http.server import HttpServer
from prefork.log import ErrorLog, LogFile

PATIENCE = 20.0  # seconds a wait may take on a loaded machine; nothing waits that long when well
SPIN = 2000  # turns in which a loop with nothing new to do must have come to rest
TIMEOUTS = {"head": 10.0, "body": 30.0, "keep_alive": 75.0, "keep_alive_min": 1.0, "send": 30.0}


class Clock:
    """The reactor's time, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Seen:
    """A request as the handler saw it."""

    method: str
    target: str
    version: str
    host: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    trailers: list[tuple[bytes, bytes]]


@dataclass
class Answer:
    """A response as h11 understood it."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    complete: bool = False
    size: int = 0  # bytes of head and body on the wire

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.get_all(name)
        assert len(values) <= 1, f"{name} twice: {values}"
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        return "close" in (self.get("connection") or "").lower()


class Client:
    """A raw TCP client that turns the server whenever it waits."""

    def __init__(self, wire: "Wire", sock: socket.socket) -> None:
        self.wire = wire
        self.sock = sock
        self.reset = False  # the server's RST has come
        self._rest = b""
        sock.setblocking(False)

    def send(self, data: bytes) -> None:
        """Send all of `data`; what a server that has closed no longer takes is dropped."""
        view = memoryview(data)
        end = time.monotonic() + PATIENCE
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                assert time.monotonic() < end, "the server does not read"
                self.wire.turn()
            except (BrokenPipeError, ConnectionResetError):
                self.reset = True
                return

    def send_pieces(self, data: bytes, *cuts: int) -> None:
        """Send `data` cut at these offsets, each piece in a segment and a turn of its own."""
        for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
            self.send(data[begin:end])
            self.wire.settle()

    def send_bytewise(self, data: bytes) -> None:
        self.send_pieces(data, *range(1, len(data)))

    def push(self, data: bytes) -> int:
        """Send until the server takes no more; returns how much it and the kernel took."""
        sent = 0
        while sent < len(data):
            try:
                sent += self.sock.send(data[sent : sent + 65536])
            except BlockingIOError:
                self.wire.settle()
                if not select.select([], [self.sock], [], 0.05)[1]:
                    return sent
        return sent

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def cut(self) -> None:
        """Leave by RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def receive(self) -> bytes:
        """What comes next; b"" at the end of the stream."""
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self.sock.recv(65536)
            except BlockingIOError:
                pass
            except ConnectionResetError:
                self.reset = True
                return b""
            assert time.monotonic() < end, f"nothing came\n{self.wire.log}"
            if not self.wire.turn():
                select.select([self.sock], [], [], 0.001)

    def answer(self, method: str = "GET") -> Answer:
        """The next response to a request of that method, parsed by h11."""
        judge = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        judge.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        judge.send(h11.EndOfMessage())
        answer = Answer()
        body = []
        while True:
            try:
                event = judge.next_event()
            except h11.RemoteProtocolError as error:
                # The end of the stream, in the middle of a message or before it.
                if "closed connection" in str(error) or "ConnectionClosed" in str(error):
                    break
                raise
            if event is h11.NEED_DATA:
                data = self.receive()
                answer.size += len(data)
                judge.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                answer.interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.headers = _text(event.headers)
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                answer.trailers = _text(event.headers)
                answer.complete = True
                break
            elif isinstance(event, h11.ConnectionClosed):
                break
        answer.body = b"".join(body)
        self._rest = judge.trailing_data[0]
        answer.size -= len(self._rest)
        return answer

    def get(self, path: str = "/", fields: str = "") -> Answer:
        """Ask for `path` and wait for the answer; the connection stays open."""
        self.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode())
        return self.answer()

    def assert_closed(self) -> None:
        """The server has closed, in order, and sent nothing more."""
        assert self.receive() == b""
        assert not self.reset

    def assert_silent(self) -> None:
        """The connection is open and nothing has come."""
        self.wire.settle()
        assert self._rest == b""
        with pytest.raises(BlockingIOError):
            self.sock.recv(1)


def _text(headers: Any) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


class Wire:
    """One server. Made by the `wire` fixture."""

    def __init__(
        self,
        log_path: Path,
        handler: Handler | None,
        timeouts: dict[str, float],
        limits: dict[str, int],
        trust: tuple[str, ...] = (),
    ) -> None:
        self.clock = Clock()
        self.reactor = Reactor(clock=self.clock)
        self.escaped: list[BaseException] = []
        self.reactor.on_error = lambda error, _where: self.escaped.append(error)
        self.loop = ReactorLoop(self.reactor)
        self.loop.set_exception_handler(self._unhandled)
        self.seen: list[Seen] = []
        self._log_path = log_path
        self._log_file = LogFile(str(log_path))
        self._log_file.open()
        self._expected: list[str] = []
        self.timeouts = Timeouts(**{**TIMEOUTS, **timeouts})
        self.limits = Limits(**limits)
        self.server = HttpServer(
            loop=self.loop,
            handler=handler or self.echo,
            timeouts=self.timeouts,
            limits=self.limits,
            error_log=ErrorLog(self._log_file, "info"),
            trust=trust,
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.clients: list[Client] = []

    async def echo(self, exchange: Exchange) -> None:
        """The handler of those who bring none."""
        body = await exchange.body.read()
        self.seen.append(
            Seen(
                exchange.method,
                exchange.target,
                exchange.version,
                exchange.host,
                exchange.headers.raw,
                body,
                exchange.body.trailers.raw,
            )
        )
        exchange.reply(200, b"Content-Type: application/octet-stream\r\n", body)

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.escaped.append(context.get("exception") or RuntimeError(context["message"]))

    def connect(self, *, narrow: bool = False) -> Client:
        """A connection that the server has accepted; `narrow`: the kernel keeps only a few KiB."""
        sock = socket.socket()
        with contextlib.ExitStack() as stack:
            listener = self._listener
            if narrow:
                # Before it is connected: afterwards the window is promised already.
                listener = stack.enter_context(socket.socket())
                for one in (sock, listener):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
                listener.bind(("127.0.0.1", 0))
                listener.listen()
            sock.connect(listener.getsockname())
            accepted, address = listener.accept()
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(self, sock)
        self.clients.append(client)
        # The listener is only there to be handed on.
        self.server.accept(accepted, address, None)  # type: ignore[arg-type]
        return client

    def ask(self, data: bytes, method: str = "GET") -> tuple[Client, Answer]:
        """Send `data` on a connection of its own; the client and the first answer."""
        client = self.connect()
        client.send(data)
        return client, client.answer(method)

    def turn(self) -> bool:
        """One turn of the loop that does not sleep; whether there was anything to do."""
        busy = self.busy()
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        return busy

    def busy(self) -> bool:
        queued: Any = self.loop._ready  # type: ignore[attr-defined]
        return bool(queued or self.server.pool.unsent or self.reactor.poller.poll(0))

    def settle(self) -> None:
        """Turn until nothing is left to do; a loop that never rests fails the test."""
        for _ in range(SPIN):
            if not self.turn() and not self.busy():
                return
        pytest.fail(f"the loop does not come to rest\n{self.log}")

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Turn until `condition()` is true."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"it did not happen\n{self.log}"
            if not self.turn():
                time.sleep(0.0005)

    def pass_time(self, seconds: float) -> None:
        """Let `seconds` pass and what is due then happen."""
        self.settle()
        self.clock.advance(seconds)
        self.settle()
        self.turn()
        self.settle()

    def expect(self, pattern: str) -> None:
        """Declare an [error] that the test provokes."""
        self._expected.append(pattern)

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def close(self) -> None:
        try:
            for client in self.clients:
                client.close()
            self.settle()
            self.server.abort()
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.settle()
            self._assert_clean()
        finally:
            self.server.close()
            self.loop.close()
            self.reactor.close()
            self._listener.close()
            self._log_file.close()

    def _assert_clean(self) -> None:
        server = self.server
        if self.escaped:
            raise self.escaped[0]
        assert server.connections == 0
        assert server.requests_running == 0
        for deadlines in (server.fresh, server.heads, server.idle, server.bodies):
            assert len(deadlines) == 0
        assert len(server.pool.sending) == 0
        assert len(server.pool.lingering) == 0
        for line in self.log.splitlines():
            if re.search(r"\[(error|crit|alert|emerg)\]", line):
                known = any(re.search(pattern, line) for pattern in self._expected)
                assert known, f"unexpected: {line}\n{self.log}"


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Callable[..., Wire]]:
    """See the head of this file."""
    wires: list[Wire] = []

    def make(
        handler: Handler | None = None,
        *,
        timeouts: dict[str, float] | None = None,
        limits: dict[str, int] | None = None,
        trust: tuple[str, ...] = (),
    ) -> Wire:
        path = tmp_path / f"error-{len(wires)}.log"
        wires.append(Wire(path, handler, timeouts or {}, limits or {}, trust))
        return wires[-1]

    yield make
    for one in wires:
        one.close()
