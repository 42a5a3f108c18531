"""The response side of an HTTP/1.1 exchange: RFC 9112, and who may have a body by RFC 9110."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prefork.http.dates import date_field
from prefork.http.exchange import Exchange

if TYPE_CHECKING:
    from prefork.http.h1.protocol import H1Protocol
    from prefork.http.server import HttpServer

# Joining head and body costs a copy, sending them as two vectors costs a call: even at this size.
JOIN_BELOW: Final = 32 * 1024

_BODILESS: Final = frozenset({204, 304})
_CLIENT_GONE: Final = 499  # nginx's word in the log for a client that left before its answer began
_CLOSE: Final = b"Connection: close\r\n"
_KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"
_LENGTHS: Final = tuple(b"Content-Length: %d\r\n\r\n" % n for n in range(1024))


class H1Exchange(Exchange):
    """One request on an HTTP/1.x connection. At most one at a time is open on each."""

    _left: int = 0  # of the declared length
    _chunked: bool = False
    _sized: bool = False  # the length was declared
    _suppressed: bool = False  # HEAD, 204, 304: what is written goes nowhere
    usual: bool = False  # HTTP/1.1, not HEAD, and no body: the quick way for most replies

    def __init__(
        self,
        protocol: "H1Protocol",
        method: str,
        raw_target: bytes,
        request_line: bytes,
        head: bytes,
        lower: bytes,
        host: str,
        keep_alive: bool,
        started: float,
    ) -> None:
        self._protocol = protocol
        self.connection = protocol.connection
        self.method = method
        self.raw_target = raw_target
        self.request_line = request_line
        self.head = head
        self.lower = lower
        self.host = host
        self.keep_alive = keep_alive
        self.started = started

    @property
    def client_left(self) -> bool:
        return self.connection.client_gone or self._protocol.saw_eof

    @property
    def server(self) -> "HttpServer":
        return self._protocol.server

    @property
    def draining(self) -> bool:
        return self._protocol.server.closing

    @property
    def stopping(self) -> bool:
        return self._protocol.server.stopping

    def on_drain(self, fn: Callable[[], None]) -> None:
        self._protocol.server.on_drain(self, fn)

    def close_after(self) -> None:
        self.keep_alive = False

    def reply(self, status: int, fields: bytes, body: bytes) -> None:
        if self.head_sent:
            raise RuntimeError("the response has begun already")
        self.head_sent = True
        self.status = status
        protocol = self._protocol
        size = len(body)
        start = None
        if (
            self.keep_alive
            and not protocol.leaving
            and (self.usual or (self.body.at_end and self.version == "1.1"))
        ):
            # Nothing to say about the connection. Special statuses are not in there.
            start = protocol.server.usual_heads.get(status)
        if start is None:
            self._begin(status, fields, size)
            if body and not self._suppressed:
                self.bytes_sent = size
                self.connection.write(body)
        else:
            length = _LENGTHS[size] if size < 1024 else b"Content-Length: %d\r\n\r\n" % size
            connection = self.connection
            if size >= JOIN_BELOW or connection.out.size or connection.client_gone:
                self._in_pieces(start + fields + length, body)
            elif self.usual or self.method != "HEAD":
                self.bytes_sent = size
                # Connection.write, written out.
                data = b"".join((start, fields, length, body))
                out = connection.out
                out.pieces.append(data)
                out.size = len(data)
                connection.pool.unsent.append(connection)
            else:
                connection.write(start + fields + length)
        self.finished = True
        protocol.exchange_finished(self)

    def _in_pieces(self, head: bytes, body: bytes) -> None:
        """A body that is not worth a copy, or one behind what has not been sent yet."""
        connection = self.connection
        if connection.client_gone:
            self.status = _CLIENT_GONE
        connection.write(head)
        if self.method != "HEAD":
            self.bytes_sent = len(body)
            connection.write(body)

    def switch(self, fields: bytes, receiver: Callable[[bytes], None]) -> None:
        if self.head_sent or not self.upgrade:
            raise RuntimeError("there is nothing to change to another protocol")
        self.head_sent = True
        self.status = 101
        self.keep_alive = False
        self.connection.write(b"%b%b\r\n" % (self.server.status_head(101), fields))
        self._protocol.switch(self, receiver)

    def start(self, status: int, fields: bytes, length: int | None) -> None:
        if self.head_sent:
            raise RuntimeError("the response has begun already")
        self.head_sent = True
        self.status = status
        self._begin(status, fields, length)

    def _begin(self, status: int, fields: bytes, length: int | None) -> None:
        """Write the head with the framing that this status, method and version allow."""
        if status < 200:
            self.head_sent = False
            self.status = 0
            raise RuntimeError(f"{status} is an interim status: use inform()")
        protocol = self._protocol
        if self.connection.client_gone:
            self.status = _CLIENT_GONE
        if self.reason is None:
            start = protocol.server.status_heads.get(status) or protocol.server.status_head(status)
        else:
            start = b"HTTP/1.1 %d %b\r\n%b" % (status, self.reason, date_field())
        parts = [start, fields]
        # RFC 9110 sections 6.4.1, 8.6: 204 and 304 have no content and 204 no Content-Length.
        bodiless = status in _BODILESS
        self._suppressed = bodiless or self.method == "HEAD"
        if length is not None:
            self._left = length
            if not bodiless:
                parts.append(b"Content-Length: %d\r\n" % length)
        elif not bodiless:
            # RFC 9112 section 6.1: no Transfer-Encoding to a client that is not known to be 1.1.
            if self.version == "1.1":
                parts.append(b"Transfer-Encoding: chunked\r\n")
                self._chunked = not self._suppressed
            elif not self._suppressed:
                self.keep_alive = False
        if self.keep_alive and not protocol.may_keep_alive(self):
            self.keep_alive = False
        if not self.keep_alive:
            parts.append(_CLOSE)
        elif self.version == "1.0":
            parts.append(_KEEP_ALIVE)
        parts.append(b"\r\n")
        self.connection.write(b"".join(parts))
        self._sized = length is not None

    def write(self, data: bytes) -> None:
        if not self.head_sent or self.finished:
            raise RuntimeError("no response is open")
        size = len(data)
        if not size:
            return  # an empty chunk would end the body
        if self._sized:
            if size > self._left:
                raise RuntimeError("more body than the declared Content-Length")
            self._left -= size
        if self._suppressed:
            return
        self.bytes_sent += size
        write = self.connection.write
        if self._chunked:
            if size < JOIN_BELOW:
                write(b"%x\r\n%b\r\n" % (size, data))
            else:
                write(b"%x\r\n" % size)
                write(data)
                write(b"\r\n")
        else:
            write(data)

    async def drain(self) -> None:
        await self.connection.drain()

    async def send_file(self, fd: int, offset: int, count: int) -> None:
        if not self.head_sent or self.finished:
            raise RuntimeError("no response is open")
        if self._sized:
            if count > self._left:
                raise RuntimeError("more body than the declared Content-Length")
            self._left -= count
        if self._suppressed or not count:
            return
        if self._chunked:
            self.connection.write(b"%x\r\n" % count)
        sent = await self.connection.send_file(fd, offset, count)
        self.bytes_sent += sent
        if sent < count:
            # The file shrank under us; the promised bytes do not exist.
            self.abort()
            raise ConnectionAbortedError("the file became shorter while it was sent")
        if self._chunked:
            self.connection.write(b"\r\n")

    def end(self, trailers: bytes = b"") -> None:
        if not self.head_sent:
            raise RuntimeError("no response is open")
        if self.finished:
            return
        if self._sized and self._left and not self._suppressed:
            self.abort()
            raise RuntimeError(f"the body ended {self._left} bytes short of its Content-Length")
        if self._chunked:
            self.connection.write(b"0\r\n%b\r\n" % trailers)
        self.finished = True
        self._protocol.exchange_finished(self)

    def inform(self, status: int, fields: bytes = b"") -> None:
        if not 102 <= status <= 199:
            raise ValueError(f"{status} is not an interim status of the application's")
        # RFC 9110 section 15.2: "A server MUST NOT send a 1xx response to an HTTP/1.0 client".
        if self.version == "1.1" and not self.head_sent:
            head = self._protocol.server.status_line(status)
            self.connection.write(b"%b%b\r\n" % (head, fields))

    def abort(self) -> None:
        if not self.finished:
            self.finished = True
            # Where only the end of the connection tells that of the body, an orderly one would
            # make the half a whole.
            delimited = self._sized or self._chunked or self._suppressed
            self.connection.abort(reset=self.head_sent and not delimited)
            self._protocol.exchange_finished(self)
