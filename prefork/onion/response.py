"""The response's side of a context: Koa's rules for status, type and body.

It holds only the context. Setters after the head was sent do nothing, as in Koa: an error layer
may well run then, and what it wants to say can no longer be said.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from prefork.http.dates import format_http_date, parse_http_date
from prefork.http.status import NO_BODY
from prefork.onion.bodies import FILE, JSON, UNSET, implied_type, kind_of
from prefork.onion.fields import JSON as JSON_TYPE
from prefork.onion.fields import (
    NO_TYPE,
    Fields,
    field_key,
    field_line,
    type_line,
    type_line_of_file,
    values_of,
)

if TYPE_CHECKING:
    from prefork.onion.context import Context

# Koa's `statuses.empty`: a body set with one of these is not sent.
EMPTY: Final = frozenset({204, 205, 304})
_REDIRECTS: Final = frozenset({300, 301, 302, 303, 305, 307, 308})
# What may stand in a URL as it is, "%" among it: an encoded URL is not encoded again.
_URL_SAFE: Final = "!#$%&'()*+,/:;=?@[]~"


def set_body(ctx: "Context", body: Any) -> None:
    """Koa's rules of `ctx.body = body`; what the status becomes is told by `Context.status`."""
    if body is None:
        _clear_body(ctx)
        return
    old = ctx._body
    kind = kind_of(body)
    fields = ctx._fields
    if old is not UNSET and old is not None and old is not body:
        # A layer that replaces a body (compresses it, wraps it) keeps its type, not its length.
        if fields is None:
            fields = ctx._fields = {}
        fields.pop("content-length", None)
        if fields.setdefault("content-type", implied_type(old)) == NO_TYPE:
            del fields["content-type"]
    if kind is JSON and fields is not None:
        line = fields.get("content-type")
        if line is not None and b"json" not in line:
            fields["content-type"] = JSON_TYPE
    if kind >= FILE:
        # Closed when the request is over, whatever becomes of it. A body that was replaced is kept
        # until then too: the new one may well read from it.
        if ctx._held is None:
            ctx._held = []
        if not any(held is body for held in ctx._held):
            ctx._held.append(body)
    ctx._body = body


def _clear_body(ctx: "Context") -> None:
    ctx._body = None
    if ctx._status and ctx._status not in EMPTY:
        ctx._status = 204
    if ctx._fields is not None:
        ctx._fields.pop("content-type", None)
        ctx._fields.pop("content-length", None)


class Response:
    """What goes: after Koa's response."""

    __slots__ = ("ctx",)

    def __init__(self, ctx: "Context") -> None:
        self.ctx = ctx

    # Status

    @property
    def status(self) -> int:
        return self.ctx.status

    @status.setter
    def status(self, status: int) -> None:
        ctx = self.ctx
        if ctx.exchange.head_sent:
            return
        if status.__class__ is not int and not isinstance(status, int):
            raise TypeError(f"a status is an int, not {type(status).__name__}")
        if not 200 <= status <= 999:
            raise ValueError(f"{status} is no final status (200 to 999)")
        ctx._status = int(status)
        if status in EMPTY and ctx._body is not UNSET and ctx._body is not None:
            self.body = None

    @property
    def message(self) -> str:
        return self.ctx.message

    @message.setter
    def message(self, message: str) -> None:
        self.ctx.message = message

    # Body

    @property
    def body(self) -> Any:
        return self.ctx.body

    @body.setter
    def body(self, body: Any) -> None:
        set_body(self.ctx, body)

    # Header fields

    @property
    def headers(self) -> dict[str, str | list[str]]:
        """What was set, by lower-case name: a str, or a list where there are several lines."""
        found: dict[str, str | list[str]] = {}
        for name, lines in (self.ctx._fields or {}).items():
            values = values_of(lines)
            if values:
                found[name] = values[0] if len(values) == 1 else values
        return found

    def get(self, name: str) -> str:
        """The value set for `name`, several joined by ", "; "" for none."""
        fields = self.ctx._fields
        lines = fields.get(name.lower()) if fields else None
        return ", ".join(values_of(lines)) if lines else ""

    def has(self, name: str) -> bool:
        fields = self.ctx._fields
        return bool(fields and fields.get(name.lower()))

    def _open_fields(self) -> Fields:
        ctx = self.ctx
        if ctx._fields is None:
            ctx._fields = {}
        return ctx._fields

    def set(
        self, name: str | Mapping[str, str | int], value: str | int | Iterable[str] | None = None
    ) -> None:
        """Set a field, or all of a mapping; an iterable of values becomes one line each.

        Raises ValueError for a name or value that cannot be sent, and for the fields that are the
        server's own business (Date, Connection, Transfer-Encoding).
        """
        ctx = self.ctx
        if ctx.exchange.head_sent:
            return
        if not isinstance(name, str):
            for one, its_value in name.items():
                self.set(one, its_value)
            return
        if isinstance(value, str | int):
            key, lines = field_line(name, value)
        elif value is None:
            raise TypeError(f"header {name} needs a value")
        else:
            key = field_key(name)
            lines = b"".join([field_line(name, one)[1] for one in value])
        if ctx._fields is None:
            ctx._fields = {key: lines}
        else:
            ctx._fields[key] = lines

    def append(self, name: str, value: str | int | Iterable[str]) -> None:
        """One more line (or several) of a field."""
        if self.ctx.exchange.head_sent:
            return
        fields = self._open_fields()
        before = fields.get(field_key(name), b"")
        self.set(name, value)
        fields[name.lower()] = before + fields[name.lower()]

    def remove(self, name: str) -> None:
        """Take a field back. Without a Content-Type the body's default is not sent either."""
        ctx = self.ctx
        if ctx.exchange.head_sent:
            return
        key = name.lower()
        if key == "content-type" and ctx._body is not UNSET:
            self._open_fields()[key] = NO_TYPE
        elif ctx._fields is not None:
            ctx._fields.pop(key, None)

    @property
    def type(self) -> str:
        """The media type without parameters: as set, or as the body implies; "" for none."""
        ctx = self.ctx
        lines = ctx._fields.get("content-type") if ctx._fields else None
        if lines is None:
            if ctx._body is UNSET or ctx._body is None:
                return ""
            lines = implied_type(ctx._body)
        values = values_of(lines)
        return values[0].partition(";")[0] if values else ""

    @type.setter
    def type(self, kind: str) -> None:
        """A media type, a short name (`html`, `json`) or an extension (`.png`)."""
        if not self.ctx.exchange.head_sent:
            self._open_fields()["content-type"] = type_line(kind)

    @property
    def length(self) -> int | None:
        """The length as set, or that of a body whose length is known."""
        ctx = self.ctx
        declared = self.get("Content-Length")
        if declared:
            return int(declared)
        body = ctx._body
        if isinstance(body, str):
            return len(body.encode())
        if isinstance(body, bytes | bytearray):
            return len(body)
        if isinstance(body, memoryview):
            return body.nbytes
        return None

    @length.setter
    def length(self, length: int) -> None:
        """For a streamed body, or the answer to HEAD; a whole body's length is counted."""
        self.set("Content-Length", length)

    @property
    def last_modified(self) -> datetime | None:
        seconds = parse_http_date(self.get("Last-Modified"))
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)

    @last_modified.setter
    def last_modified(self, moment: datetime | float) -> None:
        """A datetime (one without a zone is local time) or seconds since the epoch."""
        seconds = moment.timestamp() if isinstance(moment, datetime) else moment
        self.set("Last-Modified", format_http_date(seconds))

    @property
    def etag(self) -> str:
        return self.get("ETag")

    @etag.setter
    def etag(self, tag: str) -> None:
        """Quoted when it is not: `abc` becomes `"abc"`; `W/"abc"` stays."""
        self.set("ETag", tag if tag.startswith(('"', 'W/"')) else f'"{tag}"')

    def vary(self, name: str) -> None:
        """Add `name` to Vary unless it is there, or "*" is."""
        present = [one.strip() for one in self.get("Vary").split(",") if one.strip()]
        if name == "*" or "*" in present:
            self.set("Vary", "*")
        elif name.lower() not in (one.lower() for one in present):
            self.set("Vary", ", ".join([*present, name]))

    # Whole answers

    def redirect(self, url: str) -> None:
        """To `url`, with 302 unless a redirecting status is set."""
        ctx = self.ctx
        url = quote(url, safe=_URL_SAFE)
        self.set("Location", url)
        if ctx.status not in _REDIRECTS:
            self.status = 302
        if ctx.request.accepts("html", "text") == "html":
            self.type = "html"
            self.body = f'Redirecting to <a href="{escape(url)}">{escape(url)}</a>.\n'
        else:
            self.type = "text"
            self.body = f"Redirecting to {url}.\n"

    def attachment(self, filename: str | None = None) -> None:
        """Let the client save the body, as `filename`, whose extension gives the type."""
        if filename is None:
            self.set("Content-Disposition", "attachment")
            return
        filename = filename.rpartition("/")[2]
        if not self.has("Content-Type"):
            self._open_fields()["content-type"] = type_line_of_file(filename)
        plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "?" for c in filename)
        value = f'attachment; filename="{plain}"'
        if plain != filename:
            # RFC 6266 section 4.3: clients that know `filename*` prefer it.
            value += f"; filename*=UTF-8''{quote(filename, safe='')}"
        self.set("Content-Disposition", value)

    @property
    def header_sent(self) -> bool:
        return self.ctx.exchange.head_sent

    @property
    def writable(self) -> bool:
        """Whether what is written can still reach the client."""
        exchange = self.ctx.exchange
        return not exchange.finished and not exchange.client_gone


def is_bodiless(status: int) -> bool:
    """Whether a response of this status goes out without a body, whatever was set."""
    return status in EMPTY or status in NO_BODY
