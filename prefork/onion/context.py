"""What a middleware sees of one request and its response: `ctx`, after Koa's context.

All state is here, in slots; `ctx.request` and `ctx.response` are views that hold only the context
and are made when somebody asks for them. What is used in nearly every request is written out on
the context itself, the rest is delegated by name. No member is found by magic, so editors and type
checkers know them all.
"""

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar

from prefork.errors import HttpError
from prefork.http.status import REASONS, reason
from prefork.onion.bodies import UNSET
from prefork.onion.cookies import Cookies
from prefork.onion.events import event_stream
from prefork.onion.fields import Fields, field_line, type_line
from prefork.onion.request import Query, Request
from prefork.onion.response import Response, set_body
from prefork.onion.threads import LentThread, run_blocking
from prefork.onion.websocket import offered_websocket

if TYPE_CHECKING:
    from prefork.event.executor import Executor
    from prefork.http.exchange import Exchange
    from prefork.http.headers import Headers
    from prefork.http.websocket import WebSocket
    from prefork.log import ErrorLog
    from prefork.onion.application import Application

P = ParamSpec("P")
R = TypeVar("R")

_SIMPLE: Final = frozenset({str, bytes})
_FINAL: Final = frozenset(code for code in REASONS if code >= 200)


class Service:
    """What the requests that one callback serves have in common."""

    __slots__ = ("app", "error_log", "executor")

    def __init__(self, app: "Application", executor: "Executor", error_log: "ErrorLog") -> None:
        self.app = app
        self.executor = executor
        self.error_log = error_log


class Context:
    """One request and its response, as the layers of the onion share them."""

    __slots__ = (
        "_body",
        "_cookies",
        "_fields",
        "_held",
        "_lent",
        "_message",
        "_request",
        "_response",
        "_service",
        "_state",
        "_status",
        "_target",
        "_websocket",
        "exchange",
    )

    _body: Any
    _cookies: Cookies
    _fields: Fields | None
    _held: list[Any] | None  # bodies to be closed at the end
    _lent: LentThread | None
    _message: str
    _request: Request
    _response: Response
    _state: dict[str, Any]
    _status: int  # 0: follows from the body
    _target: str | None  # what the request target was rewritten to
    _websocket: "WebSocket | None"

    def __init__(self, exchange: "Exchange", service: Service) -> None:
        # What is missing here (_message, _request, ...) is made when it is first read: a store
        # costs 10 ns in every request, an AttributeError 300 ns in those that use it.
        self.exchange = exchange
        self._service = service
        self._status = 0
        self._body = UNSET
        self._fields = None
        self._held = None

    # The context's own

    @property
    def app(self) -> "Application":
        return self._service.app

    @property
    def request(self) -> Request:
        try:
            return self._request
        except AttributeError:
            self._request = Request(self)
            return self._request

    @property
    def response(self) -> Response:
        try:
            return self._response
        except AttributeError:
            self._response = Response(self)
            return self._response

    @property
    def state(self) -> dict[str, Any]:
        """Whatever layers want to tell each other."""
        try:
            return self._state
        except AttributeError:
            self._state = {}
            return self._state

    @property
    def cookies(self) -> Cookies:
        try:
            return self._cookies
        except AttributeError:
            self._cookies = Cookies(self)
            return self._cookies

    @property
    def websocket(self) -> "WebSocket | None":
        """The WebSocket that the client asks for, to be accepted; None for any other request.

        See `prefork.onion.websocket`. Raises HttpError when the client asks wrongly.
        """
        try:
            return self._websocket
        except AttributeError:
            self._websocket = offered_websocket(self)
            return self._websocket

    def sse(self, source: AsyncIterable[Any], *, keep_alive: float = 15.0) -> None:
        """Answer with server-sent events, one for each value of `source`.

        A value is the data (a str as it is, anything else as JSON), or a mapping of `data`,
        `event`, `id` and `retry`. A comment is sent every `keep_alive` seconds without an event, or
        never by 0. The stream ends when `source` does, when the client leaves, or the worker.
        """
        self.type = "events"
        self.set("Cache-Control", "no-cache")
        self.set("X-Accel-Buffering", "no")  # nginx in front would collect them
        self.body = event_stream(self, source, keep_alive)

    def throw(
        self,
        status: int = 500,
        message: str | None = None,
        *,
        expose: bool | None = None,
        headers: Mapping[str, str] | None = None,
        **properties: object,
    ) -> NoReturn:
        """Raise HttpError: the answer is `status` with `message`, shown to the client below 500.

        `properties` become attributes of the error, for the layers around this one.
        """
        error = HttpError(status, message, expose=expose, headers=headers)
        for name, value in properties.items():
            setattr(error, name, value)
        raise error

    def assert_(
        self,
        value: object,
        status: int = 500,
        message: str | None = None,
        *,
        expose: bool | None = None,
        headers: Mapping[str, str] | None = None,
        **properties: object,
    ) -> None:
        """`throw` unless `value` is true."""
        if not value:
            self.throw(status, message, expose=expose, headers=headers, **properties)

    def on_finished(self, fn: Callable[[], None]) -> None:
        """Call `fn` when the response is sent to its end or can no longer be."""
        self.exchange.on_finished(fn)

    @property
    def draining(self) -> bool:
        """Does this worker only finish what runs? See `on_drain`."""
        return self.exchange.draining

    @property
    def stopping(self) -> bool:
        """Has the whole server been asked to stop? A readiness check answers 503 then.

        It turns true before anything is refused (`drain_delay`); a reload leaves it false.
        """
        return self.exchange.stopping

    def on_drain(self, fn: Callable[[], None]) -> None:
        """Call `fn` once, when the worker begins to leave: at once when it does so already.

        A response without an end of its own (server-sent events, a long poll) ends here. One that
        does not is cancelled before timeouts.graceful is over.
        """
        self.exchange.on_drain(fn)

    async def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of the blocking `fn(*args, **kwargs)`, run in a thread of the worker's.

        It sees a copy of this request's context variables.
        """
        return await run_blocking(self, fn, *args, **kwargs)

    # The request: what is here is read from the exchange directly

    @property
    def method(self) -> str:
        return self.exchange.method

    @property
    def path(self) -> str:
        return self.exchange.path if self._rewritten is None else self.request.path

    @path.setter
    def path(self, path: str) -> None:
        self.request.path = path

    @property
    def headers(self) -> "Headers":
        """The request's header fields."""
        return self.exchange.headers

    def get(self, name: str) -> str:
        """The request header `name`, or "" when it did not come."""
        return self.request.get(name)

    @property
    def _rewritten(self) -> str | None:
        try:
            return self._target
        except AttributeError:
            self._target = None
            return None

    # The request: delegated

    @property
    def url(self) -> str:
        return self.request.url

    @url.setter
    def url(self, url: str) -> None:
        self.request.url = url

    @property
    def original_url(self) -> str:
        return self.exchange.target

    @property
    def querystring(self) -> str:
        return self.request.querystring

    @property
    def query(self) -> Query:
        return self.request.query

    @property
    def host(self) -> str:
        return self.request.host

    @property
    def hostname(self) -> str:
        return self.request.hostname

    @property
    def origin(self) -> str:
        return self.request.origin

    @property
    def href(self) -> str:
        return self.request.href

    @property
    def protocol(self) -> str:
        return self.request.protocol

    @property
    def secure(self) -> bool:
        return self.request.secure

    @property
    def ip(self) -> str:
        return self.request.ip

    @property
    def ips(self) -> list[str]:
        return self.request.ips

    @property
    def idempotent(self) -> bool:
        return self.request.idempotent

    def is_(self, *types: str) -> str | None:
        return self.request.is_(*types)

    def accepts(self, *types: str) -> str | None:
        return self.request.accepts(*types)

    # The response: what is here is the hot path

    @property
    def body(self) -> Any:
        """The response's body; None when there is none or none yet."""
        body = self._body
        return None if body is UNSET else body

    @body.setter
    def body(self, body: Any) -> None:
        if self._body is UNSET and body.__class__ in _SIMPLE:
            self._body = body
        else:
            set_body(self, body)

    @property
    def status(self) -> int:
        """As set; until then 404 without a body, 204 with None, 200 with any other."""
        status = self._status
        if status:
            return status
        body = self._body
        if body is UNSET:
            return 404
        return 204 if body is None else 200

    @status.setter
    def status(self, status: int) -> None:
        if (
            status.__class__ is int
            and status in _FINAL
            and self._body is UNSET
            and not self.exchange.head_sent
        ):
            self._status = status
        else:
            self.response.status = status

    # The response: delegated

    @property
    def message(self) -> str:
        """The reason phrase, or the text that was set in its place."""
        try:
            return self._message
        except AttributeError:
            return reason(self.status)

    @message.setter
    def message(self, message: str) -> None:
        self._message = message

    @property
    def type(self) -> str:
        return self.response.type

    @type.setter
    def type(self, kind: str) -> None:
        if self._fields is None and not self.exchange.head_sent:
            self._fields = {"content-type": type_line(kind)}
        else:
            self.response.type = kind

    @property
    def length(self) -> int | None:
        return self.response.length

    @length.setter
    def length(self, length: int) -> None:
        self.response.length = length

    @property
    def last_modified(self) -> datetime | None:
        return self.response.last_modified

    @last_modified.setter
    def last_modified(self, moment: datetime | float) -> None:
        self.response.last_modified = moment

    @property
    def etag(self) -> str:
        return self.response.etag

    @etag.setter
    def etag(self, tag: str) -> None:
        self.response.etag = tag

    @property
    def header_sent(self) -> bool:
        return self.exchange.head_sent

    @property
    def writable(self) -> bool:
        return self.response.writable

    def set(
        self, name: str | Mapping[str, str | int], value: str | int | Iterable[str] | None = None
    ) -> None:
        if isinstance(name, str) and isinstance(value, str) and not self.exchange.head_sent:
            key, line = field_line(name, value)
            if self._fields is None:
                self._fields = {key: line}
            else:
                self._fields[key] = line
        else:
            self.response.set(name, value)

    def append(self, name: str, value: str | int | Iterable[str]) -> None:
        self.response.append(name, value)

    def remove(self, name: str) -> None:
        self.response.remove(name)

    def has(self, name: str) -> bool:
        return self.response.has(name)

    def vary(self, name: str) -> None:
        self.response.vary(name)

    def redirect(self, url: str) -> None:
        self.response.redirect(url)

    def attachment(self, filename: str | None = None) -> None:
        self.response.attachment(filename)
