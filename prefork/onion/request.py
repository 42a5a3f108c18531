"""The request's side of a context. It holds only the context; nothing is parsed before it is asked.

`type` is Koa's word for the media type, which is why the builtin is spelled out here.
"""

import builtins
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from prefork.errors import HttpError
from prefork.onion.negotiate import best_accepted, matching_type, parameter

if TYPE_CHECKING:
    from prefork.http.body import Body
    from prefork.http.headers import Headers
    from prefork.onion.context import Context

T = TypeVar("T")

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})
# A form of a million fields takes a second of a worker's time to take apart.
_MAX_QUERY_FIELDS = 1000


class Query(Mapping[str, str]):
    """The fields of a query: `query["name"]` is the first value, `get_all` has every one."""

    __slots__ = ("_values",)

    def __init__(self, text: str) -> None:
        """Raises HttpError 400 beyond a thousand fields."""
        self._values: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
        except ValueError:
            raise HttpError(400, "too many fields in the query") from None
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> str:
        return self._values[name][0]

    def get_all(self, name: str) -> list[str]:
        return list(self._values.get(name, ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Query({self._values!r})"


class Request:
    """What came: after Koa's request."""

    __slots__ = ("_content", "_query", "ctx")

    _content: bytes
    _query: tuple[str, Query]

    def __init__(self, ctx: "Context") -> None:
        self.ctx = ctx

    # The line

    @property
    def method(self) -> str:
        return self.ctx.exchange.method

    @property
    def url(self) -> str:
        """The request target: as sent, or as it was rewritten to on the way in."""
        rewritten = self.ctx._rewritten
        return self.ctx.exchange.target if rewritten is None else rewritten

    @url.setter
    def url(self, url: str) -> None:
        self.ctx._target = url

    @property
    def original_url(self) -> str:
        return self.ctx.exchange.target

    @property
    def path(self) -> str:
        """The path, percent-decoded."""
        rewritten = self.ctx._rewritten
        if rewritten is None:
            return self.ctx.exchange.path
        return unquote(rewritten.partition("?")[0])

    @path.setter
    def path(self, path: str) -> None:
        query = self.querystring
        self.ctx._target = quote(path) + (f"?{query}" if query else "")

    @property
    def querystring(self) -> str:
        """The query as sent, without the question mark."""
        rewritten = self.ctx._rewritten
        if rewritten is None:
            return self.ctx.exchange.query_string
        return rewritten.partition("?")[2]

    @querystring.setter
    def querystring(self, text: str) -> None:
        path = self.url.partition("?")[0]
        self.ctx._target = f"{path}?{text}" if text else path

    @property
    def query(self) -> Query:
        text = self.querystring
        with contextlib.suppress(AttributeError):
            parsed, query = self._query
            if parsed == text:
                return query
        query = Query(text)
        self._query = (text, query)
        return query

    @property
    def idempotent(self) -> bool:
        return self.method in _IDEMPOTENT

    # Where it came from and for whom

    @property
    def protocol(self) -> str:
        """`http` or `https`; behind a proxy that is trusted what the client used."""
        return self._forwarded("X-Forwarded-Proto") or self.ctx.exchange.scheme

    @property
    def secure(self) -> bool:
        return self.protocol == "https"

    @property
    def host(self) -> str:
        """The authority that was asked for, with its port when it has one."""
        return self._forwarded("X-Forwarded-Host") or self.ctx.exchange.host

    @property
    def hostname(self) -> str:
        """The host without port and, for an IPv6 address, without brackets."""
        host = self.host
        if host.startswith("["):
            return host[1:].partition("]")[0]
        return host.partition(":")[0]

    @property
    def origin(self) -> str:
        """Scheme and host, which is not the Origin header: `https://example.org`."""
        return f"{self.protocol}://{self.host}"

    @property
    def href(self) -> str:
        """The whole URL as it was asked for."""
        target = self.original_url
        if target == "*":
            return self.origin
        return self.origin + target if target.startswith("/") else target

    @property
    def ip(self) -> str:
        """The client's address; behind a proxy that is trusted, what the proxy says it is."""
        ips = self.ips
        return ips[0] if ips else self.ctx.exchange.peer

    @property
    def ips(self) -> list[str]:
        """The addresses that proxies tell and we believe, the client's first; [] without any.

        Those are what `forwarded.trust` admits; where it is empty and the application was made
        with `proxy=True`, all that X-Forwarded-For has.
        """
        forwarded = self.ctx.exchange.forwarded
        if forwarded is not None:
            return list(forwarded.ips)
        if not self._believes:
            return []
        return [one.strip() for one in self.get("X-Forwarded-For").split(",") if one.strip()]

    @property
    def _believes(self) -> bool:
        """Whether `Application(proxy=True)` decides: it does where `forwarded.trust` is empty."""
        return self.ctx.app.proxy and self.ctx.exchange.server.forwarding is None

    def _forwarded(self, name: str) -> str:
        if not self._believes:
            return ""
        return self.get(name).partition(",")[0].strip()

    # Header fields

    @property
    def headers(self) -> "Headers":
        return self.ctx.exchange.headers

    def get(self, name: str) -> str:
        """The header `name`, or "" when it did not come. Referer and Referrer are one."""
        headers = self.ctx.exchange.headers
        value = headers.get(name)
        if value is None and name.lower() in ("referer", "referrer"):
            value = headers.get("referer") or headers.get("referrer")
        return value or ""

    @property
    def type(self) -> str:
        """The media type of the body without parameters, or ""."""
        return self.get("Content-Type").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        return parameter(self.get("Content-Type"), "charset")

    @property
    def length(self) -> int | None:
        """The body's length where it is known beforehand."""
        return self.ctx.exchange.body.length

    def is_(self, *types: str) -> str | None:
        """The first of `types` that the body is of: `json`, `text/*`, `+json`; None without one.

        Without arguments: the body's type.
        """
        if self.length == 0:
            return None
        return matching_type(self.type, types)

    def accepts(self, *types: str) -> str | None:
        """The one of `types` that the client prefers (the first of equals), None for none."""
        return best_accepted(self.get("Accept"), types)

    # The body

    @property
    def stream(self) -> "Body":
        """The body as it comes: an asynchronous iterator of bytes, with its trailers at the end."""
        return self.ctx.exchange.body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.ctx.exchange.body.__aiter__()

    async def body(self) -> bytes:
        """The whole body; read once and kept, so that several layers may look at it.

        Raises PeerError 413 beyond the limit, which answers the request if nobody catches it.
        """
        try:
            return self._content
        except AttributeError:
            self._content = await self.ctx.exchange.body.read()
            return self._content

    async def text(self) -> str:
        """The body as text, by its charset or UTF-8. Raises HttpError 415 and 400."""
        charset = self.charset or "utf-8"
        content = await self.body()
        try:
            return content.decode(charset)
        except LookupError:
            raise HttpError(415, f"unknown charset {charset!r}") from None
        except UnicodeDecodeError as error:
            raise HttpError(400, f"the body is not {charset}: {error.reason}") from None

    @overload
    async def json(self) -> Any: ...
    @overload
    async def json(self, kind: builtins.type[T]) -> T: ...
    async def json(self, kind: Any = Any) -> Any:
        """The body decoded from JSON, and checked against `kind` (a msgspec Struct, `list[int]`).

        Raises HttpError 400 with the reason and, for a wrong value, the place.
        """
        content = await self.body()
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.ValidationError as error:
            raise HttpError(400, f"invalid value in the JSON body: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HttpError(400, f"invalid JSON: {error}") from error
