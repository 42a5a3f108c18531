"""`threads: N`: up to N requests of a WSGI application at once, each in a thread.

A request has two halves. `Serving` is its Task on the loop, the only one to touch the exchange. The
thread's half is `Call`: the application, its iteration, its blocking reads. What the thread has to
say goes by the mailbox, in order; what it waits for comes back by a queue of its own: room for more
of the body, pieces of the request's, or the news that nobody listens any more.
"""

import asyncio
import io
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from prefork.errors import PeerError
from prefork.gateway.failure import (
    BodyError,
    ClientGoneError,
    answer_failure,
    described,
    log_failure,
    request_text,
)
from prefork.gateway.inline import LONG, check_length, give_body, send_region, short
from prefork.gateway.input import StreamInput
from prefork.gateway.pool import ThreadPool
from prefork.gateway.start import ApplicationError, Start, bodiless, octets, pieces_of
from prefork.gateway.wsgifile import FileWrapper
from prefork.http.body import NO_BODY

if TYPE_CHECKING:
    from prefork.gateway.environ import Environ, Environs
    from prefork.http.exchange import Exchange
    from prefork.log import ErrorLog

# A thread runs this far ahead of its client.
WINDOW: Final = 64 * 1024
# A body that said its length is awaited this far before it gets a thread: small uploads of slow
# clients take none.
AWAITED: Final = 64 * 1024

Message = Callable[[], "Coroutine[Any, Any, None] | None"]


class Threaded:
    """Handles exchanges by calling `application` in a thread of `pool`."""

    def __init__(
        self,
        application: Callable[..., Any],
        environs: "Environs",
        pool: ThreadPool,
        error_log: "ErrorLog",
        on_exit: Callable[[], None],
    ) -> None:
        self.application = application
        self.pool = pool
        self.error_log = error_log
        self.on_exit = on_exit
        self._environs = environs
        self._context = copy_context()
        self._quiet_until = 0.0

    async def handle(self, exchange: "Exchange") -> None:
        """Answer one request; its Task."""
        body = exchange.body
        environ = self._environs.make(exchange)
        call = Call(self, exchange, environ)
        if body is not NO_BODY:
            begun = await self._await_beginning(exchange)
            if body.exhausted and not body.failed:
                give_body(environ, io.BytesIO(begun), len(begun))
            else:
                environ["wsgi.input"] = StreamInput(begun, call.pull)
        context = self._context.copy()
        if not self.pool.submit(lambda: context.run(call.run)):
            self._refuse(exchange)
            return
        try:
            await call.attend()
        finally:
            call.release()

    async def _await_beginning(self, exchange: "Exchange") -> bytes:
        """What has come of the body; of one with a length, as much as is awaited."""
        body = exchange.body
        begun = body.take()
        if body.length is None or body.awaits_continue:
            return begun
        while not body.exhausted and len(begun) < AWAITED:
            more = await body.read_some()
            if not more:
                break
            begun += more
        return begun

    def _refuse(self, exchange: "Exchange") -> None:
        now = monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + 1.0
            pool = self.pool
            self.error_log.warn(
                f"all {pool.size} threads are busy and {pool.most - pool.size} requests wait:"
                f" answered 503 (threads), {request_text(exchange)}",
                connection=exchange.connection_number,
            )
        exchange.reply(
            503, b"Content-Type: text/plain\r\nRetry-After: 1\r\n", b"Service Unavailable\n"
        )


class Call(Start):
    """One request: `run` is the thread's, `attend` the loop's."""

    __slots__ = (
        "_ahead",
        "_environ",
        "_exchange",
        "_gone",
        "_messages",
        "_over",
        "_owner",
        "_pieces",
        "_room",
        "_sent",
        "_waiter",
    )

    def __init__(self, owner: Threaded, exchange: "Exchange", environ: "Environ") -> None:
        self.status = 0
        self.begun = False
        self._owner = owner
        self._exchange = exchange
        self._environ = environ
        self._messages: deque[Message] = deque()  # from the thread
        self._waiter: asyncio.Future[None] | None = None
        self._over = False  # the answer is complete, or never will be
        self._gone = False  # nobody takes what the thread has to say
        self._sent = 0  # of the body, by the thread
        self._ahead = 0  # bytes that the thread has written and the client's side not taken
        self._room: SimpleQueue[int] = SimpleQueue()
        self._pieces: SimpleQueue[bytes | Exception] = SimpleQueue()

    # In the thread

    def run(self) -> None:
        """The application, from its call to the close() of what it returned."""
        if self._exchange.client_gone:
            self._post(self._exchange.abort)  # it left while this waited for a thread
            return
        result: Any = None
        try:
            result = self._owner.application(self._environ, self.start_response)
            self._answer(result)
        except BaseException as error:
            self._failed(error)
        try:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self._owner.error_log.error(
                f"close() of the body raised {described(error)}, {request_text(self._exchange)}",
                connection=self._exchange.connection_number,
                exc=error,
            )
            if isinstance(error, SystemExit):
                self._owner.pool.mailbox.post(self._owner.on_exit)

    def _answer(self, result: Any) -> None:
        head = self._exchange.method == "HEAD"
        if type(result) is FileWrapper and not self.begun:
            region = result.region()
            if region is not None:
                self.check()
                self.begun = True
                self._post(lambda: self._send_file(region))
                self._room.get()  # till the answer is over, for then the file is closed
                return
        if isinstance(result, list | tuple):
            piece = b"".join(map(octets, result))
            self.check()
            if self.length is None and not self.begun and (piece or not head):
                self.length = len(piece)
            promised = 0 if self.begun or head or bodiless(self.status) else self.length or 0
            if len(piece) < promised:
                raise ApplicationError(short(len(piece), self.length))
            if self.length is not None and self._sent + len(piece) > self.length:
                self._last(piece[: self.length - self._sent])
                raise ApplicationError(LONG)
            self._last(piece)
            return
        for piece in pieces_of(result):
            if piece.__class__ is not bytes:
                piece = octets(piece)
            self.check()
            if not piece:
                continue
            if len(piece) == self.length and not self.begun and not head:
                self._last(piece)
            else:
                self.write(piece)
            if head:
                break  # nobody will see the rest
        self.check()
        if not self._over:
            if not self.begun and not head and self.length and not bodiless(self.status):
                raise ApplicationError(short(0, self.length))
            if not self.begun and not head and self.length is None:
                self.length = 0
            self._last(b"")

    def write(self, data: bytes) -> None:
        """Hand a piece to the loop, and wait while the client is slow."""
        data = octets(data)
        if self._over:
            raise ApplicationError(LONG)
        if self._gone:
            raise ClientGoneError
        self._sent += len(data)
        if self.length is not None and self._sent > self.length:
            self._last(data[: self.length - self._sent])
            raise ApplicationError(LONG)
        begin, self.begun = not self.begun, True
        self._post(lambda: self._send(data, begin))
        self._ahead += len(data)
        while self._ahead > WINDOW:
            self._ahead -= self._room.get()
            if self._gone:
                raise ClientGoneError

    def _last(self, piece: bytes) -> None:
        begin, self.begun = not self.begun, True
        self._over = True
        self._post(lambda: self._end(piece, begin))

    def pull(self) -> bytes:
        """The next piece of the request's body, b"" at its end; for StreamInput."""
        self._post(self._read)
        if self._gone:
            raise ClientGoneError
        piece = self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        return piece

    def _failed(self, error: BaseException) -> None:
        owner = self._owner
        log_failure(owner.error_log, self._exchange, error)
        if isinstance(error, SystemExit):
            owner.pool.mailbox.post(owner.on_exit)
        self._over = True
        self._post(lambda: answer_failure(self._exchange, error))

    def _post(self, message: Message) -> None:
        self._messages.append(message)
        self._owner.pool.mailbox.post(self._wake)

    # On the loop

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def attend(self) -> None:
        """Do what the thread asks for, until the answer is complete."""
        messages, exchange = self._messages, self._exchange
        while True:
            while messages:
                rest = messages.popleft()()
                if rest is not None:
                    await rest
                if exchange.finished:
                    return
            self._waiter = self._owner.pool.loop.create_future()
            await self._waiter
            self._waiter = None

    def release(self) -> None:
        """Let the thread go, wherever it waits."""
        self._gone = True
        self._room.put(1 << 62)
        self._pieces.put(ClientGoneError())

    def _begin(self) -> None:
        self._exchange.reason = self.reason
        self._exchange.start(self.status, self.fields, self.length)

    async def _send(self, data: bytes, begin: bool) -> None:
        exchange = self._exchange
        if begin:
            self._begin()
        exchange.write(data)
        await exchange.drain()
        self._room.put(len(data))

    def _end(self, piece: bytes, begin: bool) -> "Coroutine[Any, Any, None] | None":
        exchange = self._exchange
        whole = self.length == len(piece) or bodiless(self.status)
        if begin and whole and self.reason is None and exchange.method != "HEAD":
            exchange.reply(self.status, self.fields, piece)
            return None
        return self._end_slowly(piece, begin)

    async def _end_slowly(self, piece: bytes, begin: bool) -> None:
        exchange = self._exchange
        if piece or begin:
            await self._send(piece, begin)
        if exchange.finished:
            return
        try:
            check_length(exchange, self)
        except ApplicationError as error:
            log_failure(self._owner.error_log, exchange, error)
            answer_failure(exchange, error)
        else:
            exchange.end()

    async def _send_file(self, region: Any) -> None:
        exchange = self._exchange
        try:
            await send_region(exchange, self, region)
        except ApplicationError as error:
            log_failure(self._owner.error_log, exchange, error)
            answer_failure(exchange, error)

    async def _read(self) -> None:
        body = self._exchange.body
        try:
            self._pieces.put(await body.read_some())
        except PeerError as error:
            self._pieces.put(BodyError(error))
        except ConnectionError as error:
            self._pieces.put(error)
