"""`start_response`: what it takes, and what becomes of it (PEP 3333, "The start_response()
Callable").

The status and the header fields are checked and written out here, where a mistake is still an
exception in the code that made it. Applications repeat themselves, so both are remembered.
"""

import inspect
import re
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from prefork.http.status import REASONS
from prefork.onion.fields import field_line

if TYPE_CHECKING:
    from collections.abc import Callable

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

# RFC 9112 section 4; the registered phrases as they are written there need no bytes of their own.
_STATUS: Final = re.compile(r"([2-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_STATUSES: Final[dict[str, tuple[int, bytes | None]]] = {
    f"{code} {reason}": (code, None) for code, reason in REASONS.items() if code >= 200
}
# Finished lines by (name, value); of Content-Length the number.
_LINES: Final[dict[Any, bytes | int]] = {}
# All lines and the Content-Length, by all headers.
_HEADS: Final[dict[Any, tuple[bytes, int | None]]] = {}
_KNOWN_LIMIT: Final = 1024
_KNOWN_SIZE: Final = 256
_KNOWN_HEADERS: Final = 16

# PEP 3333, "Other HTTP Features": "applications and middleware are forbidden from using HTTP/1.1
# hop-by-hop features or headers". wsgiref.util.is_hop_by_hop has the list.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)
_FLEETING: Final = frozenset({"set-cookie", "location", "etag"})  # secret, or never the same


class ApplicationError(Exception):
    """An application broke the rules of WSGI; the text says which."""


class Start(ABC):
    """What one request's application has said by `start_response`.

    `status` is 0 before; `reason` None for the registered phrase; `fields` are finished lines
    without Content-Length, which is `length`.
    """

    __slots__ = ("begun", "fields", "length", "reason", "status")

    def __init__(self) -> None:
        self.status = 0
        self.begun = False  # the head is on its way, and cannot be taken back

    def start_response(
        self, status: str, headers: Any, exc_info: ExcInfo | None = None
    ) -> "Callable[[bytes], None]":
        """Raises ApplicationError, and what `exc_info` holds when it is too late for it."""
        if exc_info is not None:
            try:
                if self.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # PEP 3333: "avoid dangling circular ref"
        elif self.status:
            raise ApplicationError("start_response() was called a second time, without exc_info")
        try:
            code, reason = _STATUSES[status]
        except (KeyError, TypeError):
            code, reason = _read_status(status)
        try:
            key = tuple(headers)
        except TypeError:
            raise ApplicationError(f"the headers must be a list, not {headers!r}") from None
        try:
            self.fields, self.length = _HEADS[key]
        except (KeyError, TypeError):
            self.fields, self.length = _read_headers(key)
        self.reason = reason
        self.status = code
        return self.write

    @abstractmethod
    def write(self, data: bytes) -> None:
        """What `start_response` returns, for applications that cannot iterate."""

    def check(self) -> None:
        """Raises ApplicationError when there is a body and was no `start_response`."""
        if not self.status:
            raise ApplicationError("start_response() was not called before the body")


def _read_status(status: object) -> tuple[int, bytes | None]:
    if not isinstance(status, str):
        raise ApplicationError(f"the status must be a str, not {type(status).__name__}")
    match = _STATUS.fullmatch(status)
    if match is None:
        raise ApplicationError(f'the status must be like "200 OK", not {status!r}')
    code = int(match[1])
    phrase = match[2] or ""
    found = (code, None if phrase == REASONS.get(code) else phrase.encode("latin-1"))
    if len(_STATUSES) < _KNOWN_LIMIT and len(status) <= _KNOWN_SIZE:
        _STATUSES[status] = found
    return found


def _read_headers(headers: tuple[Any, ...]) -> tuple[bytes, int | None]:
    """The finished lines but for Content-Length, and that."""
    lines: list[bytes] = []
    length: int | None = None
    known = True
    for header in headers:
        line = _LINES.get(header) if header.__class__ is tuple else None
        if line is None:
            line = _read_header(header)
            known = False
        if isinstance(line, bytes):
            lines.append(line)
        elif length is None:
            length = line
        elif length != line:
            raise ApplicationError("two values of Content-Length")
    found = (b"".join(lines), length)
    if known and len(lines) <= _KNOWN_HEADERS:
        if len(_HEADS) >= _KNOWN_LIMIT:
            _HEADS.clear()
        _HEADS[headers] = found
    return found


def _read_header(header: Any) -> bytes | int:
    """One header's line; b"" for one that is ours to write, an int for Content-Length."""
    try:
        name, value = header
    except (TypeError, ValueError):
        raise ApplicationError(f"a header must be (name, value), not {header!r}") from None
    if not isinstance(name, str) or not isinstance(value, str):
        raise ApplicationError(f"a header must be two str: {header!r}")
    key = name.lower()
    if key in _HOP_BY_HOP:
        raise ApplicationError(
            f"{name} is a hop-by-hop header, which is the server's: PEP 3333 forbids it"
        )
    line: bytes | int
    if key == "date":
        line = b""  # the exchange writes it, right to the second
    else:
        try:
            key, line = field_line(name, value)
        except (ValueError, TypeError) as error:
            raise ApplicationError(str(error)) from None
        if key == "content-length":
            line = int(value)
    if key not in _FLEETING and len(name) + len(value) <= _KNOWN_SIZE:
        if len(_LINES) >= _KNOWN_LIMIT:
            _LINES.clear()
        _LINES[(str(name), str(value))] = line
    return line


def bodiless(status: int) -> bool:
    """Whether a response of this status has no content (RFC 9110 section 6.4.1)."""
    return status in (204, 304)


def octets(piece: object) -> bytes:
    """A piece of a body as bytes. Raises ApplicationError for what is none."""
    if isinstance(piece, bytes):
        return piece
    if isinstance(piece, bytearray | memoryview):
        return bytes(piece)
    if isinstance(piece, str):
        raise ApplicationError("a piece of the body is str: encode it, bodies are bytes")
    raise ApplicationError(f"a piece of the body is {type(piece).__name__}, not bytes")


def pieces_of(result: Any) -> Any:
    """The iterator over what an application returned. Raises ApplicationError."""
    if isinstance(result, bytes | str):
        raise ApplicationError(
            f"the application returned {type(result).__name__}: put it into a list"
        )
    try:
        return iter(result)
    except TypeError:
        if inspect.iscoroutine(result):
            result.close()
            raise ApplicationError(
                "the application returned a coroutine: if it is ASGI, write `interface: asgi`"
            ) from None
        kind = "None" if result is None else type(result).__name__
        raise ApplicationError(f"the application returned {kind}, which is no iterable") from None
