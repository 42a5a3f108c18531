"""`threads: 0`: a WSGI application in the worker's own thread, one request at a time.

It runs when the whole body has come, and what it answers is the reactor's to send: no client, slow
as it may be, ever holds the worker. The usual request ends in one call, without a Task: environ,
application, reply. Only bodies that have yet to come, and answers in several pieces, become
coroutines; there each `next()` is called while the client has room for what it gives.

The application is a synchronous one and must find itself in such a world. asyncio's running loop
is hidden from it (Django's ORM refuses to work where there is one, `asyncio.run` does as well), and
a Task that calls it is left for that time. Context variables are the request's own.
"""

import asyncio
import io
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from prefork.gateway.failure import answer_failure, described, log_failure, request_text
from prefork.gateway.input import collect
from prefork.gateway.start import ApplicationError, Start, bodiless, octets, pieces_of
from prefork.gateway.transmitter import Transmitter
from prefork.gateway.wsgifile import FileWrapper, Region
from prefork.http.body import NO_BODY, WholeBody

if TYPE_CHECKING:
    from prefork.event.bridge import ReactorLoop
    from prefork.gateway.environ import Environ, Environs
    from prefork.http.exchange import Exchange
    from prefork.log import ErrorLog

T = TypeVar("T")

# What a stream that is always ready may take of a turn before the others have theirs.
TURN: Final = 0.001
# A block that was made in less may wait for the next one, see `Transmitter`.
FAST: Final = 0.0005
BLOCK: Final = 16 * 1024
# Answers are sent at the end of a turn, unless that takes more than this.
LATE: Final = 0.005
LONG: Final = "the body is longer than its Content-Length"
_END: Final = object()
_NOTHING: Final[Any] = iter(())


class Inline:
    """Handles exchanges by calling `application` on the loop."""

    def __init__(
        self,
        application: Callable[..., Any],
        environs: "Environs",
        loop: "ReactorLoop",
        error_log: "ErrorLog",
        on_exit: Callable[[], None],
        transmitter: Transmitter,
    ) -> None:
        self.application = application
        self.environs = environs
        self.loop = loop
        self.selector = loop.selector
        self.reactor = loop.reactor
        self.error_log = error_log
        self.on_exit = on_exit
        self.context = copy_context()
        self.transmitter = transmitter

    def handle(self, exchange: "Exchange") -> Coroutine[Any, Any, None] | None:
        """Answer, or return what is left to be done."""
        if exchange.started - self.reactor.now > LATE:
            # Answers of this turn must not wait for this request, which may take as long again.
            exchange.connection.pool.flush()
        body = exchange.body
        if not body.at_end:
            self.loop.show()
            return self._collect(exchange)
        environ = self.environs.make(exchange)
        if body.__class__ is WholeBody:
            environ["wsgi.input"] = io.BytesIO(body.take())
        elif body is not NO_BODY:
            if body.failed:
                self.loop.show()
                return self._collect(exchange)
            data = body.take()
            give_body(environ, io.BytesIO(data), len(data))
        start = InlineStart(exchange, self.transmitter)
        context = self.context.copy()
        try:
            if self.selector.hidden or self.loop.hide():
                result = context.run(self.application, environ, start.start_response)
            else:
                result = self.call(context, self.application, environ, start.start_response)
            if result.__class__ is list and len(result) == 1 and not start.begun:
                # The usual: one piece, and nothing to close.
                piece = result[0]
                if (
                    piece.__class__ is bytes
                    and start.status
                    and start.reason is None
                    and (start.length is None or start.length == len(piece))
                    and exchange.method != "HEAD"
                ):
                    exchange.reply(start.status, start.fields, piece)
                    return None
        except BaseException as error:
            self.failed(exchange, error)
            return None
        rest = Answer(self, exchange, start, context, result).begin()
        if rest is not None:
            self.loop.show()
        return rest

    async def _collect(self, exchange: "Exchange") -> None:
        file, size = await collect(exchange.body)
        with file:
            await self.serve(exchange, file, size)

    async def serve(self, exchange: "Exchange", file: IO[bytes], size: int) -> None:
        """Answer a request whose body is `file`."""
        environ = self.environs.make(exchange)
        give_body(environ, file, size)
        start = InlineStart(exchange, self.transmitter)
        context = self.context.copy()
        try:
            result = self.call(context, self.application, environ, start.start_response)
        except BaseException as error:
            self.failed(exchange, error)
            return
        rest = Answer(self, exchange, start, context, result).begin()
        if rest is not None:
            await rest

    def call(self, context: Context, fn: Callable[..., T], *args: Any) -> T:
        """`fn(*args)` as if there were no loop, in `context`."""
        if self.selector.hidden:
            return context.run(fn, *args)
        loop = self.loop
        task = asyncio.current_task(loop)
        if task is not None:
            asyncio._leave_task(loop, task)
        asyncio._set_running_loop(None)
        try:
            return context.run(fn, *args)
        finally:
            asyncio._set_running_loop(loop)
            if task is not None:
                asyncio._enter_task(loop, task)

    def failed(self, exchange: "Exchange", error: BaseException) -> None:
        self.transmitter.release()
        log_failure(self.error_log, exchange, error)
        if isinstance(error, SystemExit):
            self.on_exit()
        answer_failure(exchange, error)


def give_body(environ: "Environ", file: IO[bytes], size: int) -> None:
    """A body that has come whole has a length, also when its client has not said it."""
    environ["wsgi.input"] = file
    environ["CONTENT_LENGTH"] = str(size)
    environ.pop("HTTP_TRANSFER_ENCODING", None)


class InlineStart(Start):
    """`write()` sends what it is given as far as there is room; nobody waits for the client."""

    __slots__ = ("exchange", "transmitter")

    def __init__(self, exchange: "Exchange", transmitter: Transmitter) -> None:
        self.exchange = exchange
        self.transmitter = transmitter
        self.status = 0
        self.begun = False

    def write(self, data: bytes) -> None:
        data = octets(data)
        self.transmitter.release()
        if not self.begun:
            self.begin()
        self.exchange.write(data)
        connection = self.exchange.connection
        connection.flush()
        if connection.out.size:
            self.transmitter.hold(connection)

    def begin(self) -> None:
        self.begun = True
        self.exchange.reason = self.reason
        self.exchange.start(self.status, self.fields, self.length)


class Answer:
    """What an application returned, on its way to the client."""

    __slots__ = ("_context", "_exchange", "_inline", "_iterator", "_result", "_sent", "_start")

    def __init__(
        self,
        inline: Inline,
        exchange: "Exchange",
        start: InlineStart,
        context: Context,
        result: Any,
    ) -> None:
        self._inline = inline
        self._exchange = exchange
        self._start = start
        self._context = context
        self._result = result
        self._iterator: Any = None
        self._sent = 0  # by iteration; write() counts for itself

    def begin(self) -> Coroutine[Any, Any, None] | None:
        """Answer at once if that can be, and return the rest as a coroutine if not."""
        exchange, start = self._exchange, self._start
        result = self._result
        if start.begun:
            start.transmitter.release()
        try:
            if result.__class__ is FileWrapper and not start.begun:
                region = result.region()
                if region is not None:
                    start.check()
                    return self._send_file(region)
            if isinstance(result, list | tuple):
                piece = b"".join(map(octets, result))
                self._iterator = _NOTHING
            else:
                piece = self._held(self._first)
            start.check()
            at_end = not piece or self._iterator is _NOTHING
            if (
                start.length is None
                and at_end
                and not start.begun
                and (piece or exchange.method != "HEAD")
            ):
                start.length = len(piece)
            if start.begun or start.reason is not None or exchange.method == "HEAD":
                return self._stream(piece)
            length = start.length
            if length != len(piece) and not bodiless(start.status):
                if length is None or not at_end or len(piece) > length:
                    return self._stream(piece)
                raise ApplicationError(short(len(piece), length))
            exchange.reply(start.status, start.fields, piece)
            start.begun = True
            if self._iterator is not _NOTHING:
                # PEP 3333 lets no block wait for the application's next step.
                exchange.connection.flush()
                self._held(self._finish)
        except BaseException as error:
            self._inline.failed(exchange, error)
        self._close()
        return None

    def _held(self, step: Callable[[], Any]) -> Any:
        """A step of the application, while what was written goes on being sent."""
        inline, connection = self._inline, self._exchange.connection
        if connection.out.size:
            inline.transmitter.hold(connection)
        try:
            return inline.call(self._context, step)
        finally:
            inline.transmitter.release()

    # Called with the loop hidden

    def _first(self) -> bytes:
        """The first piece that is not empty; b"" when there is none."""
        self._iterator = pieces_of(self._result)
        for piece in self._iterator:
            if piece.__class__ is not bytes:
                piece = octets(piece)
            if piece:
                return piece
        return b""

    def _next(self) -> Any:
        piece = next(self._iterator, _END)
        if piece.__class__ is not bytes and piece is not _END:
            piece = octets(piece)
        return piece

    def _finish(self) -> None:
        """Run to its end what has given all it may."""
        for piece in self._iterator:
            if octets(piece):
                raise ApplicationError(LONG)

    # In a Task

    async def _stream(self, piece: Any) -> None:
        inline, exchange, start = self._inline, self._exchange, self._start
        connection = exchange.connection
        now = monotonic()
        until = now + TURN
        # A first block that is small may be all that there is for a while: an event, a progress.
        fast = len(piece) >= BLOCK and now - exchange.started < FAST
        try:
            if not start.begun:
                start.begin()
            if exchange.method == "HEAD":
                piece = _END  # nobody will see the rest
            while piece is not _END:
                if piece:
                    self._write(piece)
                    if not fast:
                        connection.flush()
                    await exchange.drain()
                if now >= until:
                    await asyncio.sleep(0)
                    now = monotonic()
                    until = now + TURN
                began = now
                piece = self._held(self._next)
                now = monotonic()
                fast = now - began < FAST
            check_length(exchange, start)
            exchange.end()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            inline.failed(exchange, error)
        finally:
            self._close()

    def _write(self, piece: bytes) -> None:
        length = self._start.length
        if length is not None and self._sent + len(piece) > length:
            self._exchange.write(piece[: length - self._sent])
            self._exchange.end()
            raise ApplicationError(LONG)
        self._sent += len(piece)
        self._exchange.write(piece)

    async def _send_file(self, region: Region) -> None:
        exchange, start = self._exchange, self._start
        try:
            await send_region(exchange, start, region)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            self._inline.failed(exchange, error)
        finally:
            self._close()

    def _close(self) -> None:
        close = getattr(self._result, "close", None)
        if close is None:
            return
        self._exchange.connection.flush()
        try:
            self._held(close)
        except BaseException as error:
            self._inline.error_log.error(
                f"close() of the body raised {described(error)}, {request_text(self._exchange)}",
                connection=self._exchange.connection_number,
                exc=error,
            )
            if isinstance(error, SystemExit):
                self._inline.on_exit()


async def send_region(exchange: "Exchange", start: Start, region: Region) -> None:
    """Send a file by the kernel: to its end, or as much as Content-Length says."""
    count = region.size if start.length is None else min(start.length, region.size)
    start.begun = True
    exchange.reason = start.reason
    exchange.start(start.status, start.fields, count if start.length is None else start.length)
    if count and exchange.method != "HEAD" and not bodiless(start.status):
        await exchange.send_file(region.fd, region.offset, count)
        await exchange.drain()
    check_length(exchange, start)
    exchange.end()


def check_length(exchange: "Exchange", start: Start) -> None:
    """Raises ApplicationError when what was promised did not come."""
    length = start.length
    if length is None or exchange.method == "HEAD" or bodiless(start.status):
        return
    if exchange.bytes_sent < length:
        raise ApplicationError(short(exchange.bytes_sent, length))


def short(size: int, length: int | None) -> str:
    return f"the body has {size} of the {length} bytes of its Content-Length"
