"""Hosting an ASGI 3 application: its lifespan, and the handler that HTTP is given.

The application's call is the request's handler, in the request's own task. It may go on after the
response is complete (background tasks do). Whatever it does wrong costs one request: an answer of
500 while the head is unsent, a cut connection afterwards, and a line in the error log.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from prefork.event.bridge import is_cancelled
from prefork.gateway.asgi_http import (
    ClientDisconnectedError,
    HttpTalk,
    http_scope,
)
from prefork.gateway.failure import described, request_text
from prefork.gateway.lifespan import Lifespan, Mode

if TYPE_CHECKING:
    from prefork.event.executor import Executor
    from prefork.http.exchange import Exchange, Handler
    from prefork.log import ErrorLog

AsgiApplication = Callable[[Any, Any, Any], Awaitable[Any]]

_TEXT: Final = b"Content-Type: text/plain; charset=utf-8\r\n"


class AsgiHost:
    """An ASGI application as a worker serves it, by the settings `lifespan` and `root_path`."""

    def __init__(self, app: AsgiApplication, *, lifespan: Mode, root_path: str = "") -> None:
        self.app = app
        self.root_path = root_path
        self.lifespan = Lifespan(app, lifespan)
        self.replace_worker: Callable[[str], None] = _nothing
        self._asked = False

    async def startup(self) -> None:
        """Raises LifespanError."""
        await self.lifespan.startup()

    async def shutdown(self) -> None:
        """Raises LifespanError."""
        await self.lifespan.shutdown()

    def callback(self, *, executor: "Executor", error_log: "ErrorLog") -> "Handler":  # noqa: ARG002
        """The handler for an HTTP server. Nothing of ours runs in threads of the `executor`."""
        self.lifespan.report_to(error_log)
        app = self.app
        state = self.lifespan.state
        root_path = self.root_path

        async def handle(exchange: "Exchange") -> None:
            if exchange.upgrade == "websocket":
                # The library is a price that only those pay who need it.
                from prefork.gateway.asgi_websocket import serve_websocket

                scope = http_scope(exchange, state, root_path)
                if await serve_websocket(app, exchange, scope, error_log):
                    self._exit()
                return
            talk = HttpTalk(exchange, error_log)
            try:
                await app(http_scope(exchange, state, root_path), talk.receive, talk.send)
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                # asyncio would end its loop for the last two, and every other request with it.
                failed(talk, error, error_log)
                if isinstance(error, SystemExit):
                    self._exit()
                return
            except asyncio.CancelledError as error:
                if is_cancelled():
                    raise
                failed(talk, error, error_log)
                return
            if not exchange.finished:
                unfinished(talk, error_log)

        return handle

    def _exit(self) -> None:
        """The application called exit(): what it has left behind is not to be trusted for long."""
        if not self._asked:
            self._asked = True
            self.replace_worker("the application called exit()")


def _nothing(_reason: str) -> None:
    pass


def failed(talk: HttpTalk, error: BaseException, log: "ErrorLog") -> None:
    """The application raised: log it as whose mistake it is, and answer if nobody has."""
    exchange = talk.exchange
    number = exchange.connection_number
    what = described(error)
    if talk.told and is_about_the_client(error):
        log.info(f"the client left: {what}, {request_text(exchange)}", connection=number)
    else:
        if isinstance(error, SystemExit):
            what = f"the application called exit(): {error!r}"
        if exchange.finished:
            what += ", after the response was complete"
        log.error(f"{what}, {request_text(exchange)}", connection=number, exc=error)
    _end(exchange)


def unfinished(talk: HttpTalk, log: "ErrorLog") -> None:
    """The application returned, and its response is not complete."""
    exchange = talk.exchange
    if not exchange.client_left:
        how = (
            "before its response was complete"
            if exchange.head_sent
            else "after http.response.start and without a body"
            if talk.started
            else "without a response"
        )
        log.error(
            f"the application returned {how}, {request_text(exchange)}",
            connection=exchange.connection_number,
        )
    _end(exchange)


def _end(exchange: "Exchange") -> None:
    if exchange.finished or exchange.status == 101:
        return  # what has become a WebSocket is closed by its own rules
    if exchange.head_sent or exchange.client_gone:
        # Never an error page glued to half a body.
        exchange.abort()
    else:
        exchange.reply(500, _TEXT, b"Internal Server Error")


def is_about_the_client(error: BaseException | None) -> bool:
    """Whether an error only passes on that the client left.

    Frameworks have exceptions of their own for it, without a common class; they say so in their
    names (ClientDisconnect, WebSocketDisconnect, HTTPDisconnectedError), or are raised from ours.
    """
    seen = 0
    while error is not None and seen < 16:
        if isinstance(error, ClientDisconnectedError) or "Disconnect" in type(error).__name__:
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(is_about_the_client(one) for one in error.exceptions)
        error = error.__cause__ or error.__context__
        seen += 1
    return False
