"""An ASGI application as a layer of an onion: `app.use(prefork.asgi(application))`.

The layers around it see its response as they see any other: status, header fields and body of the
context, a body that comes in pieces as an asynchronous iterator. So whatever works on responses
works on those of a hosted application. The price is a task of its own for each request, because the
application goes on behind its last message while the response goes out through the onion.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefork.event.bridge import EXCHANGE_TASK, is_cancelled
from prefork.gateway.asgi import AsgiApplication, is_about_the_client
from prefork.gateway.asgi_http import HttpTalk, Message, encoded, http_scope
from prefork.gateway.failure import described, request_text
from prefork.gateway.lifespan import Lifespan, Mode
from prefork.gateway.rootpath import checked
from prefork.onion.respond import as_mistake

if TYPE_CHECKING:
    from prefork.log import ErrorLog
    from prefork.onion.context import Context

_EXTENSIONS: Final[dict[str, dict[str, Any]]] = {"http.response.pathsend": {}}
_NOT_OURS: Final = frozenset(
    {b"connection", b"content-length", b"date", b"keep-alive", b"proxy-connection"}
    | {b"transfer-encoding"}
)
_NO_BODY: Final = frozenset({204, 205, 304})


def asgi(app: AsgiApplication, *, lifespan: Mode = "auto", root_path: str = "") -> "AsgiLayer":
    """`app` as the innermost layer: it answers every request that reaches it.

    `root_path` is what a proxy, or a layer further out by setting `ctx.path`, has taken off the
    path: the application is told of it. Raises ValueError.
    """
    return AsgiLayer(app, lifespan, checked(root_path))


class AsgiLayer:
    """See `asgi`. Its lifespan runs with the hooks of the application that uses it."""

    def __init__(self, app: AsgiApplication, lifespan: Mode, root_path: str = "") -> None:
        self._app = app
        self._root_path = root_path
        self._lifespan = Lifespan(app, lifespan)
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references

    async def startup(self) -> None:
        """Raises LifespanError."""
        await self._lifespan.startup()

    async def shutdown(self) -> None:
        """Raises LifespanError."""
        await self._lifespan.shutdown()

    async def __call__(self, ctx: "Context", next: Callable[[], Any]) -> None:  # noqa: ARG002
        exchange = ctx.exchange
        log = ctx._service.error_log
        self._lifespan.report_to(log)
        if exchange.upgrade == "websocket":
            from prefork.gateway.asgi_websocket import serve_websocket

            if await serve_websocket(self._app, exchange, self._scope(ctx), log):
                ctx.app.called_exit()
            return
        scope = self._scope(ctx)
        scope["extensions"] = _EXTENSIONS.copy()
        talk = _LayerTalk(ctx, log)
        talk.task = task = asyncio.create_task(self._run(scope, talk), name=EXCHANGE_TASK)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await talk.ready
        except asyncio.CancelledError:
            task.cancel()
            raise

    def _scope(self, ctx: "Context") -> dict[str, Any]:
        root_path = self._root_path
        scope = http_scope(ctx.exchange, self._lifespan.state, root_path)
        if ctx._rewritten is not None:
            path, _, query = ctx._rewritten.partition("?")
            scope["path"] = root_path + ctx.path
            scope["raw_path"] = encoded(root_path) + path.encode()
            scope["query_string"] = query.encode()
        return scope

    async def _run(self, scope: dict[str, Any], talk: "_LayerTalk") -> None:
        try:
            await self._app(scope, talk.receive, talk.send)
        except asyncio.CancelledError as error:
            if is_cancelled():
                talk.failed(ConnectionResetError("the request was cancelled"))
                raise
            talk.failed(as_mistake(error))
        except Exception as error:
            talk.failed(error)
        except BaseException as error:
            # Whoever waits for the answer has to hear, and asyncio would end its loop for some.
            talk.failed(as_mistake(error))
            if isinstance(error, SystemExit):
                talk.app.called_exit()
        else:
            talk.failed(None)


class _LayerTalk(HttpTalk):
    """`receive` as in HTTP; what is sent goes into the context."""

    __slots__ = ("_complete", "_ctx", "_pieces", "app", "ready", "task")

    task: asyncio.Task[None]  # the application's

    def __init__(self, ctx: "Context", log: "ErrorLog") -> None:
        super().__init__(ctx.exchange, log)
        self._ctx = ctx
        self.app = ctx.app  # the onion
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pieces: _Pieces | None = None
        self._complete = False

    def _drain(self) -> None:
        pieces = self._pieces
        if pieces is None or pieces.over:
            return  # it has ended by itself, and what is left of it is on its way
        # The body ends for the layers around, and so the response.
        self._drained = self._complete = True
        pieces.end(None)
        self._wake()
        self._cancel_soon()

    def _handler(self) -> asyncio.Task[None]:
        return self.task

    def _is_over(self) -> bool:
        return super()._is_over() or (self._pieces is not None and self._pieces.closed)

    async def send(self, message: Message) -> None:
        kind = message["type"]
        gone = self.exchange.client_gone or self._drained
        if gone or (self._pieces is not None and self._pieces.closed):
            raise self._nobody()
        if kind == "http.response.start":
            if self._status:
                raise self._out_of_order(kind)
            headers = list(message.get("headers", ()))
            # HTTP's own checks them, and honours `Connection: close`.
            await super().send({**message, "headers": headers, "trailers": False})
            self._set_fields(headers)
        elif kind in ("http.response.body", "http.response.pathsend"):
            if not self._status or self._complete:
                raise self._out_of_order(kind)
            if kind == "http.response.pathsend":
                if self._pieces is not None:
                    raise self._out_of_order(kind)
                self._answer(Path(message["path"]))
            else:
                await self._piece(message)
        else:
            raise RuntimeError(
                f"unknown ASGI message {kind!r}: behind layers of an onion prefork knows"
                " http.response.start, http.response.body and http.response.pathsend"
            )

    def _out_of_order(self, kind: str) -> Exception:
        if self._complete:
            return RuntimeError(
                f"ASGI message {kind!r} is not expected now: the response is complete"
            )
        return super()._out_of_order(kind)

    def _set_fields(self, headers: Any) -> None:
        ctx = self._ctx
        seen = set()
        for name, value in headers:
            key = bytes(name).lower()
            if key in _NOT_OURS:
                continue
            add = ctx.append if key in seen else ctx.set
            seen.add(key)
            add(bytes(name).decode("ascii"), bytes(value).strip(b" \t").decode("latin-1"))

    async def _piece(self, message: Message) -> None:
        body = message.get("body", b"")
        if not isinstance(body, bytes | bytearray | memoryview):
            raise TypeError(f"the body in http.response.body is bytes, not {type(body).__name__}")
        more = bool(message.get("more_body"))
        if self._status in _NO_BODY:
            # Nobody will ask for pieces; they are taken here, so that the application goes on.
            if not self.ready.done():
                self._answer(b"", more=True)
            self._complete = not more
            await asyncio.sleep(0)
            return
        if self._pieces is None and not more:
            self._check_length(len(body))
            self._answer(bytes(body))
            return
        if self._pieces is None:
            self._pieces = _Pieces(self)
            self._answer(self._pieces, more=True)
            if self._length is None and b"text/event-stream" in self._fields:
                self.exchange.on_drain(self._drain)
        await self._pieces.put(bytes(body))
        if not more:
            self._complete = True
            self._pieces.end(None)

    def _check_length(self, size: int) -> None:
        length = self._length
        bodiless = self.exchange.method == "HEAD" or self._status in _NO_BODY
        if length is not None and length != size and not bodiless:
            raise RuntimeError(
                f"the body has {size} bytes and the declared Content-Length is {length}"
            )

    def _answer(self, body: Any, *, more: bool = False) -> None:
        """Hand the response to the layers around."""
        ctx = self._ctx
        self._complete = not more
        length = self._length
        ctx.status = self._status
        if self._status in _NO_BODY:
            ctx.body = None
        elif body == b"" and self.exchange.method == "HEAD" and length is not None:
            ctx.length = length  # it says what GET would have sent
        else:
            typed = ctx.response.has("Content-Type")
            ctx.body = body
            if not typed:
                ctx.remove("Content-Type")  # nothing is added that the application has not said
            if more and length is not None:
                ctx.length = length
        if not self.ready.done():
            self.ready.set_result(None)

    def failed(self, error: Exception | None) -> None:
        """The application has raised, or returned."""
        if self._complete:
            told = self.told and is_about_the_client(error)
            if error is not None and not (told or isinstance(error, ConnectionError)):
                self._log_error(error, "after the response was complete")
            return
        exchange = self.exchange
        if self.told and exchange.client_left and (error is None or is_about_the_client(error)):
            # It has heard, and that is all there is to say.
            if exchange.head_sent:
                exchange.abort()
            error = ConnectionResetError("the client left")
        elif error is None:
            error = RuntimeError("the application returned before its response was complete")
        if not self.ready.done():
            self.ready.set_exception(error)
        elif self._pieces is not None and not self._pieces.closed:
            self._pieces.end(error)
        elif not (isinstance(error, ConnectionError) or is_about_the_client(error)):
            self._log_error(error, "after the client had left")

    def _log_error(self, error: Exception, when: str) -> None:
        self._log.error(
            f"{described(error)}, {when}, {request_text(self.exchange)}",
            connection=self.exchange.connection_number,
            exc=error,
        )


class _Pieces:
    """A body that an application sends and the onion takes, one piece at a time."""

    def __init__(self, talk: _LayerTalk) -> None:
        self._talk = talk
        self._piece: bytes | None = None
        self._given = asyncio.Event()
        self._taken = asyncio.Event()
        self.over = False
        self._error: Exception | None = None
        self.closed = False

    def __aiter__(self) -> "_Pieces":
        return self

    async def __anext__(self) -> bytes:
        while self._piece is None:
            if self._error is not None:
                raise self._error
            if self.over:
                raise StopAsyncIteration
            self._given.clear()
            await self._given.wait()
        piece, self._piece = self._piece, None
        self._taken.set()
        return piece

    async def put(self, piece: bytes) -> None:
        """Wait until the last one is taken. Raises ClientDisconnectedError."""
        while self._piece is not None and not self.closed:
            self._taken.clear()
            await self._taken.wait()
        if self.closed:
            raise self._talk._nobody()
        if piece:
            self._piece = piece
            self._given.set()

    def end(self, error: Exception | None) -> None:
        self.over = True
        self._error = error
        self._given.set()

    async def aclose(self) -> None:
        """The request is over, whatever was taken."""
        self.closed = True
        self._taken.set()
        self._talk._wake()
        if not self.over and is_cancelled():
            # What the request's task is told is meant for whom it waits for.
            self._talk.task.cancel()
