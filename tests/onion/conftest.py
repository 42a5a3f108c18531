"""The `serve` fixture: an application behind the real HTTP server, asked over a socketpair.

    def test_something(serve):
        site = serve(app)
        answer = site.get("/path")
        assert answer.status == 200

Client and server ride on one loop, each waiting in the other's turns. At its end a site must hold
no connection and no unclosed task, nothing may have escaped to the reactor or asyncio, and the
error log may hold no [error] that the test did not take with `site.errors()`.
"""

import asyncio
import gc
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import pytest

from prefork import Application
from prefork.config.schema import Limits, Timeouts
from prefork.event.bridge import ReactorLoop
from prefork.event.executor import Executor
from prefork.event.reactor import Reactor
from prefork.http.server import HttpServer
from prefork.log import ErrorLog, LogFile

PATIENCE = 20.0  # seconds a wait may take on a loaded machine; nothing waits that long when well


@dataclass
class Answer:
    """A response as h11 understood it."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    whole: bool = False  # it came to its end

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.get_all(name)
        assert len(values) <= 1, f"{name} twice: {values}"
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode()


class Site:
    """One application being served. Made by the `serve` fixture."""

    def __init__(
        self, app: Application, log_path: Path, limits: dict[str, int], threads: int
    ) -> None:
        self.app = app
        self.reactor = Reactor()
        self.escaped: list[BaseException] = []
        self.reactor.on_error = lambda error, _where: self.escaped.append(error)
        self.loop = ReactorLoop(self.reactor)
        self.loop.set_exception_handler(self._unhandled)
        self.executor = Executor(self.loop, threads)
        self._log_path = log_path
        self._log_file = LogFile(str(log_path))
        self._log_file.open()
        log = ErrorLog(self._log_file, "info")
        self.server = HttpServer(
            loop=self.loop,
            handler=app.callback(executor=self.executor, error_log=log),
            timeouts=Timeouts(),
            limits=Limits(**limits),
            error_log=log,
        )
        self._taken = 0  # characters of the log the test has looked at

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.escaped.append(context.get("exception") or RuntimeError(context["message"]))

    def connect(self) -> socket.socket:
        """A client's end, non-blocking; the server has accepted the other."""
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        self.server.accept(theirs, "", None)  # type: ignore[arg-type]  # no listener is needed
        return ours

    def run(self, wait: Awaitable[Any]) -> Any:
        """Turn the loop until `wait` is done."""

        async def bounded() -> Any:
            async with asyncio.timeout(PATIENCE):
                return await wait

        return self.loop.run_until_complete(bounded())

    def until(self, condition: Callable[[], object]) -> None:
        """Turn the loop until `condition()` is true."""

        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.run(wait())

    async def _exchange(self, data: bytes, method: str) -> Answer:
        sock = self.connect()
        try:
            await self.loop.sock_sendall(sock, data)
            judge = h11.Connection(h11.CLIENT)
            judge.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
            judge.send(h11.EndOfMessage())
            answer = Answer()
            while True:
                try:
                    event = judge.next_event()
                except h11.RemoteProtocolError:
                    if not judge.trailing_data[1]:
                        raise
                    return answer  # cut before or in the middle of the answer
                if event is h11.NEED_DATA:
                    judge.receive_data(await self._receive(sock))
                elif isinstance(event, h11.Response):
                    answer.status = event.status_code
                    answer.headers = [(k.decode(), v.decode("latin-1")) for k, v in event.headers]
                elif isinstance(event, h11.Data):
                    answer.body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    answer.whole = True
                    return answer
                elif isinstance(event, h11.ConnectionClosed):
                    return answer
        finally:
            sock.close()

    async def _receive(self, sock: socket.socket) -> bytes:
        try:
            return await self.loop.sock_recv(sock, 65536)
        except ConnectionResetError:
            return b""

    def ask_raw(self, data: bytes, method: str = "GET") -> Answer:
        """Send `data` on a connection of its own, and the first answer to it."""
        return self.run(self._exchange(data, method))  # type: ignore[no-any-return]

    def ask(
        self, method: str, path: str = "/", fields: dict[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        return self.run(self.asking(method, path, fields, body))  # type: ignore[no-any-return]

    def asking(
        self, method: str, path: str = "/", fields: dict[str, str] | None = None, body: bytes = b""
    ) -> Awaitable[Answer]:
        """`ask` as something to await, for several at once."""
        lines = {"Host": "example.org:8000", **(fields or {})}
        if body:
            lines["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        data = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body
        return self._exchange(data, method)

    def get(self, path: str = "/", fields: dict[str, str] | None = None) -> Answer:
        return self.ask("GET", path, fields)

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def errors(self) -> str:
        """What the log holds since the last look; what is in it is no longer unexpected."""
        log = self.log
        new, self._taken = log[self._taken :], len(log)
        return new

    def close(self) -> None:
        try:
            self.server.abort()
            self.until(lambda: not self._handlers())
            # A coroutine that nobody awaited warns when it is collected: here, not in another test.
            gc.collect()
            assert self.server.connections == 0
            assert self.server.requests_running == 0
            if self.escaped:
                raise self.escaped[0]
            assert not re.search(r"\[(error|crit|alert|emerg)\]", self.log[self._taken :]), self.log
        finally:
            self.run(self.loop.shutdown_default_executor())
            self.server.close()
            self.loop.close()
            self.reactor.close()
            self._log_file.close()

    def _handlers(self) -> list[Any]:
        return [task for task in asyncio.all_tasks(self.loop) if task.get_name() == "exchange"]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """See the head of this file."""
    sites: list[Site] = []

    def make(app: Application, *, limits: dict[str, int] | None = None, threads: int = 4) -> Site:
        sites.append(Site(app, tmp_path / f"error-{len(sites)}.log", limits or {}, threads))
        return sites[-1]

    yield make
    for one in sites:
        one.close()
