"""WebSocket on an HTTP/1.1 connection: RFC 6455, by the sans-I/O protocol of `websockets`.

The library reads and writes frames; the handshake's answer, the connection, deadlines and
back-pressure are ours. This module is imported when a worker sees its first upgrade.

Back-pressure: messages that came and were not taken are bounded, beyond that the connection is not
read, nor is it while the pongs that a client asked for are not taken; `send` waits for a slow
client as a response body does. Life: a client that has been silent
for timeouts.ping is asked, and one that has said nothing for timeouts.pong more is gone.
"""

import asyncio
import logging
import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.headers import parse_subprotocol
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from prefork.event.deadlines import Deadlines
from prefork.http.exchange import LAST_SECONDS

if TYPE_CHECKING:
    from prefork.http.exchange import Exchange
    from prefork.http.server import HttpServer

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
NO_CODE: Final = 1005  # the close frame had none
ABNORMAL: Final = 1006  # there was no close frame
INVALID_DATA: Final = 1007
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012

# What has come and was not taken by the handler, before the connection is no longer read.
HIGH_WATER: Final = 64 * 1024
LOW_WATER: Final = 16 * 1024
MESSAGE_COST: Final = 256  # bytes that an empty message takes, too
# Packed bytes become up to a thousand times as many: so few are unpacked at once, and one looks
# again whether there is room.
UNPACKED_AT_ONCE: Final = 4 * 1024
# A client that does not answer our close is cut after so long.
CLOSE_SECONDS: Final = 5.0

_CONT, _TEXT, _BINARY, _CLOSE = Opcode.CONT, Opcode.TEXT, Opcode.BINARY, Opcode.CLOSE
# The windows of zlib at their default cost 300 KiB a connection; so it is 36, and 5 % less packed.
_DEFLATE: Final = (
    ServerPerMessageDeflateFactory(
        server_max_window_bits=12,
        client_max_window_bits=12,
        compress_settings={"memLevel": 5},
    ),
)
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_log: Final = logging.getLogger("prefork.websocket")
_log.setLevel(logging.WARNING)  # the library would tell of each close


class HandshakeError(Exception):
    """The request is no proper handshake; `status` and `str()` are the answer to it."""

    def __init__(self, status: int, text: str, fields: bytes) -> None:
        super().__init__(text)
        self.status = status
        self.fields = fields


class WebSocketClosedError(ConnectionResetError):
    """The WebSocket has closed; with the code and the reason, of whichever side closed it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the WebSocket is closed: {code}{' ' if reason else ''}{reason}")
        self.code = code
        self.reason = reason


class Keepalive:
    """The deadlines of all WebSockets of one server."""

    def __init__(self, server: "HttpServer") -> None:
        reactor, timeouts = server.reactor, server.timeouts
        self.reactor = reactor
        self.pings = bool(timeouts.ping)
        self.silent: Deadlines[WebSocket] = Deadlines(reactor, timeouts.ping, WebSocket.ask)
        self.asked: Deadlines[WebSocket] = Deadlines(reactor, timeouts.pong, WebSocket.no_answer)
        self.closing: Deadlines[WebSocket] = Deadlines(reactor, CLOSE_SECONDS, WebSocket.cut)


class WebSocket:
    """One WebSocket, from the request that asks for it to its close.

    Made of an exchange whose `upgrade` is "websocket". Raises HandshakeError.
    """

    def __init__(self, exchange: "Exchange") -> None:
        self.exchange = exchange
        self.connection = exchange.connection
        server = exchange.server
        if server.websockets is None:
            server.websockets = Keepalive(server)
        self._keepalive: Keepalive = server.websockets
        self._loop = server.loop
        request = Request(
            exchange.target,
            Headers(exchange.headers.items()),
            exchange.method,
            f"HTTP/{exchange.version}",
        )
        self._handshake = ServerProtocol(extensions=_DEFLATE, logger=_log)
        answer = self._handshake.accept(request)
        if answer.status_code != 101:
            allow = answer.headers.get("Allow")
            fields = b"Sec-WebSocket-Version: 13\r\n"
            if allow is not None:
                fields += b"Allow: %b\r\n" % allow.encode()
            raise HandshakeError(answer.status_code, (answer.body or b"").decode(), fields)
        self._answer = answer.headers
        self._limit = server.limits.message
        self._frames: ServerProtocol
        self.accepted = False
        self.code = 0  # of the close; 0 while the WebSocket is open
        self.reason = ""
        self.closed_by_us = False
        self._told = False  # the handler has heard that it is closed, or is through with it
        self.inbox: deque[str | bytes] = deque()  # what has come; for `next_message` to take
        self._size = 0  # of the inbox
        self._parts = bytearray()  # of a message in fragments
        self._text = False  # and what it will be
        self._paused = False  # the inbox is full
        self._choked = False  # the client does not take its pongs
        self._unread = b""  # what came with the bytes at which that was so
        self._heard = float("-inf")  # when it was last touched among the silent ones
        self._waiter: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        if exchange.client_left:
            self.code = ABNORMAL
        exchange.on_client_left = self._lost

    @property
    def subprotocols(self) -> list[str]:
        """What the client offers, in its order."""
        offered: list[str] = []
        for value in self.exchange.headers.get_all("Sec-WebSocket-Protocol"):
            try:
                offered += parse_subprotocol(value)
            except InvalidHandshake:
                continue
        return offered

    def accept(self, subprotocol: str | None = None, fields: bytes = b"") -> None:
        """Answer the handshake; `fields` are checked header lines.

        Raises ValueError for a subprotocol that is no token, WebSocketClosedError.
        """
        if self.accepted:
            raise RuntimeError("the WebSocket is accepted already")
        self._check_open()
        head = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
        for name in ("Sec-WebSocket-Accept", "Sec-WebSocket-Extensions"):
            if name in self._answer:
                head += f"{name}: {self._answer[name]}\r\n".encode()
        if subprotocol is not None:
            if not _TOKEN(subprotocol):
                raise ValueError(f"a subprotocol is a token, not {subprotocol!r}")
            head += f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode()
        self._frames = ServerProtocol(state=State.OPEN, max_size=self._limit, logger=_log)
        self._frames.extensions = self._handshake.extensions
        del self._handshake, self._answer  # a WebSocket is long, and may be one of many
        self.accepted = True
        if self._keepalive.pings:
            self._keepalive.silent.touch(self)
        self.exchange.switch(head + fields, self.data_received)
        # Only now: a worker that drains already closes at once, which is no news before the 101.
        self.exchange.on_drain(self._drain)

    def denied(self) -> None:
        """The request was answered as an ordinary one: there is nothing to receive."""
        if not self.code:
            self._closed(ABNORMAL, "")

    def _check_open(self) -> None:
        if self.code or self.connection.client_gone:
            raise self._closed_error()

    # Messages

    async def receive(self) -> str | bytes:
        """The next message. Raises WebSocketClosedError when there is none any more."""
        while not (self.inbox or self.code):
            await self.arrival()
        return self.next_message()

    def next_message(self) -> str | bytes:
        """The next message of those that have come. Raises WebSocketClosedError."""
        if not self.inbox:
            raise self._closed_error()
        message = self.inbox.popleft()
        self._size -= len(message) + MESSAGE_COST
        if self._paused and self._size < LOW_WATER:
            self._paused = False
            self._read_on()
        return message

    def arrival(self) -> "asyncio.Future[None]":
        """What is done when there is something new. Raises RuntimeError where another waits."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            raise RuntimeError("two tasks read one WebSocket")
        self._waiter = waiter = asyncio.Future(loop=self._loop)
        return waiter

    def __aiter__(self) -> "WebSocket":
        return self

    async def __anext__(self) -> str | bytes:
        """Messages until the WebSocket closes, by whichever side."""
        try:
            return await self.receive()
        except WebSocketClosedError:
            raise StopAsyncIteration from None

    async def send(self, message: str | bytes) -> None:
        """Send a message, and wait while the client is slow. Raises WebSocketClosedError."""
        self.post(message)
        await self.drain()

    def post(self, message: str | bytes) -> None:
        """Send a message before the process sleeps. Raises WebSocketClosedError."""
        if self.code:
            raise self._closed_error()
        frames = self._frames
        if isinstance(message, str):
            frames.send_text(message.encode())
        else:
            frames.send_binary(message)
        for data in frames.data_to_send():  # a frame
            self.connection.write(data)

    async def drain(self) -> None:
        """Wait while the client is slow. Raises WebSocketClosedError."""
        try:
            await self.connection.drain()
        except ConnectionError:
            raise self._closed_error() from None

    def _closed_error(self) -> WebSocketClosedError:
        self._told = True
        return WebSocketClosedError(self.code or ABNORMAL, self.reason)

    def _write(self) -> bool:
        """Send what the protocol has to say; whether that was anything."""
        pieces = self._frames.data_to_send()
        if not pieces:
            return False
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if data:
            self.connection.write(data)
        if not pieces[-1]:  # SEND_EOF
            self._end()
        return True

    def _end(self) -> None:
        self._keepalive.closing.discard(self)
        server = self.exchange.server
        if server.timeouts.abandoned and not self.exchange.finished:
            # A connection that lingers does not tell HTTP of its end.
            server.abandoned.touch(self.exchange)  # type: ignore[arg-type]  # there is only HTTP/1
        # A client that has not closed may be sending: a reset would overtake our close frame.
        self.connection.close_soon(linger=not self.exchange.client_left and not self._both)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    # From the connection

    def data_received(self, data: bytes) -> None:
        """Take the frames in `data`, for as long as there is room for what they hold."""
        keepalive = self._keepalive
        if keepalive.pings and not self.code:
            # To the second is near enough, and cheaper where there are many messages.
            now = keepalive.reactor.now
            if now - self._heard >= 1.0 or self in keepalive.asked.since:
                self._heard = now
                keepalive.silent.touch(self)
                keepalive.asked.discard(self)
        frames = self._frames
        if frames.extensions:
            for at in range(0, len(data), UNPACKED_AT_ONCE):
                if self._paused or self._choked:
                    self._unread += data[at:]
                    break
                frames.receive_data(data[at : at + UNPACKED_AT_ONCE])
                self._take_frames()
        else:
            frames.receive_data(data)
            self._take_frames()
        if self._paused or self._choked:
            # It is the handler now who takes its time, or timeouts.send runs; and a pong could not
            # be read.
            self.connection.pause_reading()
            self._keepalive.silent.discard(self)
        if frames.parser_exc is not None and not self.code:
            close = frames.close_sent
            self._closed(close.code if close else ABNORMAL, close.reason if close else "")

    def _take_frames(self) -> None:
        """Take what has come, answer pings and the like, and stop where a client takes no answer.

        The usual frame is a message that is whole, and has no answer.
        """
        frames = self._frames
        answers = frames.parser_exc is not None
        events: list[Any] = frames.events_received()  # past the handshake there are only frames
        for frame in events:
            opcode = frame.opcode
            if frame.fin and (opcode is _BINARY or opcode is _TEXT):
                self._text = opcode is _TEXT
                self._message(frame.data)
            else:
                self._frame(frame)
                answers = True
        connection = self.connection
        if (answers or self.code) and self._write() and connection.out.size > HIGH_WATER:
            connection.flush()
            if connection.out.size > HIGH_WATER and not connection.closing:
                self._choked = True
                connection.on_room = self._room

    def _room(self) -> None:
        self._choked = False
        self._read_on()

    def _read_on(self) -> None:
        """Where there is room again, take what has come meanwhile, and what comes."""
        if self._paused or self._choked:
            return
        unread, self._unread = self._unread, b""
        if unread:
            self.data_received(unread)
        if not (self._paused or self._choked):
            self.connection.resume_reading()
            if self._keepalive.pings and not self.code:
                self._keepalive.silent.touch(self)

    def _frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is _TEXT or opcode is _BINARY:
            self._text = opcode is _TEXT
            if frame.fin:
                self._message(frame.data)
            else:
                self._parts += frame.data
        elif opcode is _CONT:
            self._parts += frame.data
            if frame.fin:
                data, self._parts = self._parts, bytearray()
                self._message(data)
        elif opcode is _CLOSE:
            close = self._frames.close_rcvd
            assert close is not None
            self._closed(int(close.code), close.reason)

    def _message(self, data: Any) -> None:
        if self.code:
            return  # we have closed: what still comes is for nobody
        message: str | bytes
        if not self._text:
            message = data if data.__class__ is bytes else bytes(data)
        else:
            try:
                message = str(data, "utf-8")
            except UnicodeDecodeError as error:
                # RFC 6455 section 8.1.
                self._frames.fail(INVALID_DATA, f"{error.reason} at position {error.start}")
                self._closed(INVALID_DATA, "the text is not UTF-8")
                return
        self.inbox.append(message)
        self._size += len(message) + MESSAGE_COST
        if self._size > HIGH_WATER:
            self._paused = True
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _lost(self) -> None:
        """The client has closed its side of the connection, or it is broken."""
        if not self.code:
            self._closed(ABNORMAL, "")
        self._keepalive.closing.discard(self)
        if self.accepted:
            self._end()

    @property
    def _both(self) -> bool:
        """Have both sides sent their close frames?"""
        return self._frames.close_rcvd is not None

    def _closed(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        keepalive = self._keepalive
        keepalive.silent.discard(self)
        keepalive.asked.discard(self)
        if self.accepted and not self.connection.closing:
            keepalive.closing.touch(self)
        self._wake()
        if self._paused or self._choked:
            self._paused = self._choked = False
            self.connection.on_room = None
            self._read_on()  # for the answer to our close

    # The end

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Begin to close. Raises ValueError for a code that cannot be sent."""
        if self.code:
            return
        try:
            self._frames.send_close(code, reason)
        except Exception as error:
            raise ValueError(f"a WebSocket cannot be closed with {code}: {error}") from None
        self.closed_by_us = True
        self.inbox.clear()
        self._size = 0
        self._closed(code, reason)
        self._write()

    async def wait_closed(self) -> None:
        """Wait until both sides have closed; CLOSE_SECONDS at most."""
        self._told = True
        if not (self.connection.closing or self.connection.client_gone):
            self._ended = self._loop.create_future()
            await self._ended

    def _drain(self) -> None:
        # RFC 6455 section 7.4.1, and the registry's 1012: the client may come back at once.
        self.close(GOING_AWAY if self.exchange.stopping else SERVICE_RESTART)
        self._loop.call_later(LAST_SECONDS, self._cancel)

    def _cancel(self) -> None:
        # A handler that only sends has nothing to send for now. Who has heard may be tidying up.
        task = self.exchange.task
        if task is not None and not self._told:
            task.cancel("the worker leaves")

    def ask(self) -> None:
        """Nothing has come for a while: a ping, which a living client answers."""
        if self.connection.out.size:
            # It would wait behind what the client has not taken yet, for which timeouts.send runs.
            self._keepalive.silent.touch(self)
            return
        self._frames.send_ping(b"")
        self._write()
        self._keepalive.asked.touch(self)

    def no_answer(self) -> None:
        """It has not answered; it will not read our close, but a slow one may."""
        self.exchange.server.error_log.info(
            f"WebSocket client has not answered a ping, client: {self.exchange.peer}",
            connection=self.exchange.connection_number,
        )
        self._frames.fail(INTERNAL_ERROR, "keepalive ping timeout")
        self._closed(ABNORMAL, "keepalive ping timeout")
        self._write()

    def cut(self) -> None:
        """The client does not close its side."""
        self.connection.abort()
