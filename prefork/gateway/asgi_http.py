"""One HTTP request as ASGI 3 sees it: the scope, `receive` and `send` (ASGI HTTP 2.5).

The usual response is two messages in the handler's first step. The first is kept, so that head and
body go out in one `exchange.reply`, and so that an error between the two still has its answer.

What applications get wrong is an error at their own `send`, with a text that says what was expected
there. Once the client has left, `send` raises ClientDisconnectedError, an OSError, and `receive`
gives `http.disconnect`. It gives that also to a client which closed its side and may still read:
nothing tells the two apart before something is sent, and an answer is still sent to both.

A worker that drains lets responses run to their end, for a download has one. A stream of events
(`text/event-stream`) has none, and its client comes back by itself: the response is completed,
`receive` gives `http.disconnect` and the next `send` raises. Starlette's handler does neither while
no event comes, and is cancelled soon. What else has no end is cancelled when timeouts.graceful is
nearly over, like every handler.
"""

import asyncio
import os
import stat
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from prefork.errors import PeerError
from prefork.gateway.asgi_fields import lines_of
from prefork.gateway.failure import request_text
from prefork.http.body import NO_BODY
from prefork.http.exchange import LAST_SECONDS
from prefork.http.headers import KnownLines

if TYPE_CHECKING:
    from prefork.http.exchange import Exchange
    from prefork.log import ErrorLog

Message = dict[str, Any]

# A stream that never has to wait for its client gives way to others after so many bytes.
BURST: Final = 512 * 1024

_COMPLETE: Final = "the body is complete"
_FILE: Final = "a file is being sent"
_TEXT: Final = b"Content-Type: text/plain; charset=utf-8\r\n"
_DISCONNECT: Final = "http.disconnect"
_known_line: Final = KnownLines().__getitem__
# Servers fill in empty dicts: only the names mean anything.
EXTENSIONS: Final[dict[str, dict[str, Any]]] = {
    "http.response.early_hint": {},
    "http.response.pathsend": {},
    "http.response.trailers": {},
    "http.response.zerocopysend": {},
}


class ClientDisconnectedError(ConnectionResetError):
    """What `send` raises when nobody is left to send to."""


def http_scope(exchange: "Exchange", state: dict[str, Any], root_path: str) -> dict[str, Any]:
    """The scope of one request; everything in it that can be changed is its own.

    `root_path` is what a proxy has taken off the path. ASGI wants it back: "PATH_INFO can be
    derived by stripping root_path from path" (HTTP & WebSocket format, "WSGI Compatibility").
    """
    raw_path, _, query = exchange.raw_target.partition(b"?")
    block = exchange.head[len(exchange.request_line) + 2 : -4]
    headers = list(map(_known_line, block.split(b"\r\n"))) if block else []
    if raw_path[:1] != b"/":
        # RFC 9112 section 3.2.2: the Host of an absolute target takes the place of the field.
        raw_path = exchange.raw_path
        if exchange.host:
            headers = [field for field in headers if field[0] != b"host"]
            headers.insert(0, (b"host", exchange.host.encode()))
    path = raw_path.decode("ascii") if 0x25 not in raw_path else exchange.path  # "%"
    if root_path and raw_path != b"*":  # the server as a whole is nowhere below it
        path = root_path + path
        raw_path = encoded(root_path) + raw_path
    connection = exchange.connection
    port = connection.peer_port
    server: tuple[str, int | None] = connection.local_address()
    if not port:  # no client of a UNIX socket has a port
        server = (server[0], None)
    client = (connection.peer, port) if port else None
    if exchange.forwarded is not None:
        client, server = _forwarded(exchange, headers)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": exchange.version,
        "method": exchange.method,
        "scheme": exchange.scheme,
        "path": path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": root_path,
        "headers": headers,
        "client": client,
        "server": server,
        "state": state.copy(),
        "extensions": EXTENSIONS.copy(),
    }


@cache  # an application has one
def encoded(root_path: str) -> bytes:
    """As it stands in a URL (RFC 3986 section 3.3)."""
    return quote(root_path, safe="/!$&'()*+,;=:@").encode()


def _forwarded(
    exchange: "Exchange", headers: list[tuple[bytes, bytes]]
) -> tuple[tuple[str, int] | None, tuple[str, int | None]]:
    """`client` and `server` as trusted proxies tell them; their host takes the place of Host."""
    peer, forwarded = exchange.peer, exchange.forwarded
    if forwarded is not None and forwarded.host:
        headers[:] = [field for field in headers if field[0] != b"host"]
        headers.insert(0, (b"host", forwarded.host.encode()))
    server = exchange.local
    return None if peer == "unix:" else (peer, exchange.peer_port), (server[0], server[1] or None)


class HttpTalk:
    """`receive` and `send` of one request."""

    __slots__ = (
        "_burst",
        "_cancellation",
        "_drained",
        "_fields",
        "_length",
        "_log",
        "_over",
        "_received",
        "_refused",
        "_status",
        "_trailers",
        "_woken",
        "exchange",
        "told",
    )

    _burst: int
    _cancellation: asyncio.TimerHandle  # once it is drained
    _fields: bytes
    _length: int | None  # as declared
    _trailers: bytes | None  # as collected; None: none are to come

    def __init__(self, exchange: "Exchange", log: "ErrorLog") -> None:
        # What only some need is set when they need it: this is the hot path.
        self.exchange = exchange
        self._log = log
        self._status = 0  # as started; the head may not be written yet
        self._received = False  # the request was received whole
        self._drained = False  # the worker leaves, and this is a stream of events
        self._refused = False  # we answered the request in the application's place
        self._over = ""  # why no more of the body may come now
        self._woken: asyncio.Event | None = None
        self.told = False  # the application has heard that the client left

    # receive

    async def receive(self) -> Message:
        exchange = self.exchange
        if self._received or exchange.finished:
            return await self._disconnect()
        body = exchange.body
        if body is NO_BODY:
            self._received = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if body.at_end:
            self._received = True
            return {"type": "http.request", "body": body.take(), "more_body": False}
        try:
            data = await body.read_some()
        except PeerError as error:
            self._refuse(error)
            return await self._disconnect()
        except ConnectionError:
            self._received = True
            return await self._disconnect()
        if body.exhausted:
            self._received = True
            return {"type": "http.request", "body": data, "more_body": False}
        return {"type": "http.request", "body": data, "more_body": True}

    def _refuse(self, error: PeerError) -> None:
        """Answer a body that cannot be read in the application's place, which can only lose it."""
        exchange = self.exchange
        self._received = self._refused = True
        self._log.info(
            f"client sent an invalid request body: {error.reason}, {request_text(exchange)}",
            connection=exchange.connection_number,
        )
        if exchange.head_sent:
            exchange.abort()
        elif not exchange.finished:
            exchange.reply(error.status, _TEXT, f"{error.reason}\n".encode())
        self._wake()

    async def _disconnect(self) -> Message:
        """Wait until there is nothing more to be received or sent."""
        exchange = self.exchange
        if not self._is_over():
            if self._woken is None:
                self._woken = asyncio.Event()
                exchange.on_client_left = self._wake
            await self._woken.wait()
        self.told = True
        return {"type": _DISCONNECT}

    def _is_over(self) -> bool:
        exchange = self.exchange
        return exchange.finished or exchange.client_left or exchange.body.failed or self._drained

    def _drain(self) -> None:
        self._drained = True
        if self.exchange.client_gone or self._over:
            self._wake()  # a file is sent to its end first, and trailers may come
        else:
            self._end()
        self._cancel_soon()

    def _cancel_soon(self) -> None:
        loop = self.exchange.server.loop
        self._cancellation = loop.call_later(LAST_SECONDS, self._cancel)

    def _cancel(self) -> None:
        # Also one that listens: Falcon's does, and goes on to wait for its next event.
        task = self._handler()
        if task is not None:
            task.cancel("the worker leaves")

    def _handler(self) -> "asyncio.Task[None] | None":
        return self.exchange.task

    def _wake(self) -> None:
        if self._woken is not None:
            self._woken.set()

    # send

    async def send(self, message: Message) -> None:
        kind = message["type"]
        exchange = self.exchange
        if kind == "http.response.body":
            if self._status and not exchange.head_sent and not message.get("more_body"):
                body = message.get("body", b"")
                length = self._length
                if (
                    body.__class__ is bytes
                    and (length == len(body) if length is not None else exchange.method != "HEAD")
                    and self._trailers is None
                ):
                    exchange.reply(self._status, self._fields, body)
                    if self._woken is not None:
                        self._woken.set()
                    return
            await self._send_body(message)
        elif kind == "http.response.start":
            if self._status or exchange.head_sent:
                raise self._out_of_order(kind)
            if exchange.connection.client_gone:
                raise self._nobody()
            self._fields, self._length, close = lines_of(message.get("headers", ()))
            if close:
                exchange.close_after()
            self._trailers = b"" if message.get("trailers") else None
            status = message.get("status")
            if status.__class__ is not int or not 200 <= status <= 999:
                status = _status_of(status)
            self._status = status
        else:
            await self._send_other(kind, message)

    async def _send_body(self, message: Message) -> None:
        self._expect_body("http.response.body")
        exchange = self.exchange
        body = message.get("body", b"")
        if not isinstance(body, bytes):
            if not isinstance(body, bytearray | memoryview):
                raise TypeError(f"the body in http.response.body is bytes, not {_type(body)}")
            body = bytes(body)
        more = bool(message.get("more_body"))
        if not exchange.head_sent:
            self._begin(None if more or self._trailers is not None else len(body))
        exchange.write(body)
        await self._after(len(body), more)

    def _expect_body(self, kind: str) -> None:
        """Raise unless a piece of the body may come now."""
        exchange = self.exchange
        if exchange.client_gone or self._drained:
            raise self._nobody()
        if not self._status or exchange.finished or self._over:
            raise self._out_of_order(kind)

    def _begin(self, size: int | None) -> None:
        """Write the head; `size`: what is to come is known, and is all."""
        exchange = self.exchange
        length = self._length
        bodiless = exchange.method == "HEAD" or self._status in (204, 304)
        if length is not None and size is not None and size != length and not bodiless:
            raise RuntimeError(
                f"the body has {size} bytes and the declared Content-Length is {length}"
            )
        if self._trailers is not None:
            length = None  # RFC 9112 section 7.1.2: only a chunked body has trailers
        elif length is None and not (bodiless and not size):
            length = size
        exchange.start(self._status, self._fields, length)
        if length is None and self._fields.find(b"text/event-stream") >= 0:
            exchange.on_drain(self._drain)
            if self._drained:
                raise self._nobody()

    async def _after(self, size: int, more: bool) -> None:
        """A piece of `size` bytes was written: go on, wait for the client, or end."""
        exchange = self.exchange
        if self._drained or (not more and self._trailers is None):
            self._end()
            return
        try:
            await exchange.drain()
        except ConnectionError:
            raise self._nobody() from None
        try:
            self._burst += size
        except AttributeError:
            self._burst = size
        if self._burst >= BURST:
            self._burst = 0
            await asyncio.sleep(0)
        if not more:
            self._over = _COMPLETE

    def _end(self, trailers: bytes = b"") -> None:
        try:
            self.exchange.end(trailers)
        finally:
            self._wake()

    async def _send_other(self, kind: str, message: Message) -> None:
        exchange = self.exchange
        if kind == "http.response.trailers":
            await self._send_trailers(message)
        elif kind == "http.response.pathsend":
            self._expect_body(kind)
            if exchange.head_sent:
                raise self._out_of_order(kind)
            await self._send_path(message["path"])
        elif kind == "http.response.zerocopysend":
            self._expect_body(kind)
            await self._send_open_file(message)
        elif kind == "http.response.early_hint":
            if exchange.client_gone:
                raise self._nobody()
            if self._status or exchange.head_sent:
                raise self._out_of_order(kind)
            links, _, _ = lines_of([(b"Link", link) for link in message.get("links", ())])
            exchange.inform(103, links)
        else:
            raise RuntimeError(
                f"unknown ASGI message {kind!r}: prefork knows http.response.start and .body, and"
                f" {', '.join(EXTENSIONS)}"
            )

    async def _send_trailers(self, message: Message) -> None:
        exchange = self.exchange
        if exchange.client_gone:
            raise self._nobody()
        if self._trailers is None or self._over is not _COMPLETE or exchange.finished:
            raise self._out_of_order("http.response.trailers")
        lines, _, _ = lines_of(message.get("headers", ()))
        self._trailers += lines
        if not message.get("more_trailers"):
            self._end(self._trailers)

    # Files

    async def _send_path(self, path: str) -> None:
        # Opened on the loop, as nginx does: on a local disk that takes 10 microseconds and a
        # thread 50. O_NONBLOCK, because opening a FIFO that nobody writes would stop the worker.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"http.response.pathsend: {path!r} is not a regular file")
            self._begin(found.st_size)
            await self._send_range(fd, 0, found.st_size, more=False)
        finally:
            os.close(fd)

    async def _send_open_file(self, message: Message) -> None:
        file = message["file"]
        fd = file.fileno()
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("http.response.zerocopysend: the file is not a regular file")
        given = message.get("offset")
        offset = os.lseek(fd, 0, os.SEEK_CUR) if given is None else int(given)
        count = message.get("count")
        if offset < 0 or (count is not None and count < 0):
            raise ValueError("http.response.zerocopysend: offset and count are not negative")
        left = max(0, found.st_size - offset)
        size = left if count is None else min(int(count), left)
        more = bool(message.get("more_body"))
        if not self.exchange.head_sent:
            self._begin(None if more else size)
        await self._send_range(fd, offset, size, more=more)
        if given is None:
            os.lseek(fd, offset + size, os.SEEK_SET)  # it was read as far as that

    async def _send_range(self, fd: int, offset: int, size: int, *, more: bool) -> None:
        # What another task sends meanwhile would end up in the middle of the file.
        self._over = _FILE
        try:
            await self.exchange.send_file(fd, offset, size)
        except ConnectionAbortedError:
            raise  # the file shrank: nobody has left
        except ConnectionError:
            raise self._nobody() from None
        finally:
            self._over = ""
        await self._after(size, more)

    # What goes wrong

    def _nobody(self) -> ClientDisconnectedError:
        self.told = True
        if self._drained:
            self._cancellation.cancel()  # it knows, and may be tidying up
        return ClientDisconnectedError(
            "the worker leaves, and the stream has ended"
            if self._drained
            else "the client has left"
        )

    def _out_of_order(self, kind: str) -> Exception:
        exchange = self.exchange
        if exchange.client_gone or self._refused or self._drained:
            return self._nobody()
        if exchange.finished:
            where = "the response is complete"
        elif not self._status:
            where = "http.response.start comes first"
        elif kind == "http.response.start":
            where = "the response was started already"
        elif kind == "http.response.early_hint":
            where = "early hints come before http.response.start"
        elif kind == "http.response.trailers":
            where = (
                "http.response.start did not announce trailers"
                if self._trailers is None
                else "the body comes first"
            )
        elif self._over:
            where = self._over
        else:
            where = "the body has begun already"
        return RuntimeError(f"ASGI message {kind!r} is not expected now: {where}")

    @property
    def started(self) -> bool:
        return bool(self._status)


def _status_of(status: object) -> int:
    """An int, but of a class of its own (`http.HTTPStatus`). Raises ValueError for all else."""
    if not isinstance(status, int) or not 200 <= status <= 999:
        raise ValueError(f"http.response.start: status is an int from 200 to 999, not {status!r}")
    return int(status)


def _type(value: object) -> str:
    return type(value).__name__
