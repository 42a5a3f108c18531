"""A hosted application that failed: what is logged of it, and what its client sees."""

from typing import TYPE_CHECKING

from prefork.errors import PeerError
from prefork.gateway.start import ApplicationError

if TYPE_CHECKING:
    from prefork.http.exchange import Exchange
    from prefork.log import ErrorLog


class BodyError(OSError):
    """The request's body cannot be read to its end; `peer` is whose fault that is.

    An OSError, because that is what frameworks expect of a client that went away.
    """

    def __init__(self, peer: PeerError) -> None:
        super().__init__(peer.reason)
        self.peer = peer


class ClientGoneError(ConnectionResetError):
    """Nobody takes the answer: raised in a thread that goes on with it."""

    def __init__(self) -> None:
        super().__init__("the client left")


def request_text(exchange: "Exchange") -> str:
    """nginx's tail of a log line about a request."""
    return (
        f"client: {exchange.peer}, "
        f'request: "{exchange.method} {exchange.target} HTTP/{exchange.version}"'
    )


def described(error: BaseException) -> str:
    """The class and the text of an exception, whose own `__str__` may be broken, too."""
    try:
        text = str(error)
    except Exception:
        text = "its text cannot be had"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def log_failure(log: "ErrorLog", exchange: "Exchange", error: BaseException) -> None:
    """One record with the request in it; a traceback where the application's code raised."""
    text, number = request_text(exchange), exchange.connection_number
    if isinstance(error, ClientGoneError) or (
        isinstance(error, ConnectionError) and (exchange.client_gone or exchange.body.failed)
    ):
        log.info(f"{error}, {text}", connection=number)
    elif isinstance(error, BodyError):
        log.info(f"{error.peer.reason}, answered {error.peer.status}, {text}", connection=number)
    elif isinstance(error, ApplicationError):
        log.error(f"the application broke WSGI: {error}, {text}", connection=number)
    elif isinstance(error, SystemExit):
        log.error(f"the application called exit(): {error!r}, {text}", connection=number, exc=error)
    else:
        log.error(
            f"exception in the application: {described(error)}, {text}",
            connection=number,
            exc=error,
        )


def answer_failure(exchange: "Exchange", error: BaseException) -> None:
    """500, or a cut connection when a part of the answer is on its way."""
    if exchange.finished:
        return
    if exchange.head_sent or exchange.client_gone:
        exchange.abort()
        return
    status, text = 500, "Internal Server Error"
    if isinstance(error, BodyError):
        status, text = error.peer.status, error.peer.reason
    exchange.reply(status, b"Content-Type: text/plain; charset=utf-8\r\n", f"{text}\n".encode())
