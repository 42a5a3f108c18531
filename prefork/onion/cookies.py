"""Cookies by RFC 6265: `ctx.cookies.get(name)`, `ctx.cookies.set(name, value, ...)`."""

import re
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from prefork.http.dates import format_http_date

if TYPE_CHECKING:
    from prefork.onion.context import Context

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
# RFC 6265 section 4.1.1, cookie-octet: no controls, space, quote, comma, semicolon, backslash.
_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*").fullmatch
_ATTRIBUTE: Final = re.compile(r"[\x20-\x3a\x3c-\x7e]*").fullmatch

SameSite = Literal["strict", "lax", "none"]


class Cookies:
    """The request's cookies for reading, the response's for writing."""

    __slots__ = ("_ctx", "_sent")

    def __init__(self, ctx: "Context") -> None:
        self._ctx = ctx
        self._sent: dict[str, str] | None = None

    def get(self, name: str) -> str | None:
        """The value the client sent, None without one. Of two with one name the first counts:
        RFC 6265 section 5.4 lets the client send the more specific path first."""
        return self.all().get(name)

    def all(self) -> dict[str, str]:
        """Every cookie the client sent."""
        if self._sent is None:
            self._sent = {}
            for pair in self._ctx.get("Cookie").split(";"):
                name, equals, value = pair.strip().partition("=")
                if equals:
                    if len(value) > 1 and value.startswith('"') and value.endswith('"'):
                        value = value[1:-1]
                    self._sent.setdefault(name.strip(), value)
        return self._sent

    def set(
        self,
        name: str,
        value: str | None,
        *,
        max_age: int | None = None,
        expires: datetime | float | None = None,
        path: str = "/",
        domain: str | None = None,
        secure: bool = False,
        http_only: bool = True,
        same_site: SameSite | None = None,
    ) -> None:
        """Send a cookie; None as the value makes the client forget it.

        `max_age` in seconds. Raises ValueError for what a cookie cannot hold: encode such a value.
        """
        if not _NAME(name):
            raise ValueError(f"invalid cookie name {name!r}")
        if value is None:
            value, max_age, expires = "", 0, 0.0
        if not _VALUE(value):
            raise ValueError(f"invalid character in the value of cookie {name}: {value!r}")
        parts = [f"{name}={value}"]
        for attribute, text in (("Path", path), ("Domain", domain)):
            if text:
                if not _ATTRIBUTE(text):
                    raise ValueError(f"invalid character in {attribute} of cookie {name}: {text!r}")
                parts.append(f"{attribute}={text}")
        if expires is not None:
            seconds = expires.timestamp() if isinstance(expires, datetime) else expires
            parts.append(f"Expires={format_http_date(seconds)}")
        if max_age is not None:
            parts.append(f"Max-Age={int(max_age)}")
        if secure:
            parts.append("Secure")
        if http_only:
            parts.append("HttpOnly")
        if same_site is not None:
            parts.append(f"SameSite={same_site.capitalize()}")
        self._ctx.append("Set-Cookie", "; ".join(parts))
