"""What a response body may be, and what type it has when nobody says.

None                              204, nothing
str                               text, or HTML when it begins with "<"; UTF-8
bytes, bytearray, memoryview      octets
pathlib.Path, an open file        the file, by sendfile where the kernel can
an (a)synchronous iterator        a stream
anything else                     JSON, by msgspec
"""

import io
from enum import Enum
from pathlib import Path
from typing import Any, Final

from prefork.onion.fields import BINARY, HTML, JSON, TEXT, type_line_of_file


class Unset(Enum):
    """The body before anybody has set one. None is a body: the empty one."""

    UNSET = 0


UNSET: Final = Unset.UNSET


class Kind(Enum):
    TEXT = "text"
    OCTETS = "octets"
    PATH = "path"
    FILE = "file"
    ASYNC = "asynchronous iterator"
    SYNC = "iterator"
    JSON = "JSON"


_BY_CLASS: Final[dict[type, Kind]] = {
    str: Kind.TEXT,
    bytes: Kind.OCTETS,
    dict: Kind.JSON,
    list: Kind.JSON,
    tuple: Kind.JSON,
    int: Kind.JSON,
    float: Kind.JSON,
    bool: Kind.JSON,
}


def kind_of(body: Any) -> Kind:
    """The kind of a body that is neither UNSET nor None."""
    cls = body.__class__
    known = _BY_CLASS.get(cls)
    if known is not None:
        return known
    if isinstance(body, str):
        return Kind.TEXT
    if isinstance(body, bytes | bytearray | memoryview):
        return Kind.OCTETS
    if isinstance(body, Path):
        return Kind.PATH
    if isinstance(body, io.IOBase) or (hasattr(body, "read") and hasattr(body, "fileno")):
        return Kind.FILE
    if hasattr(cls, "__aiter__"):
        return Kind.ASYNC
    if hasattr(cls, "__next__"):
        return Kind.SYNC
    return Kind.JSON


def is_html(text: str) -> bool:
    """Koa's rule: the first character that is no space is "<"."""
    first = text[:1]
    return first == "<" or (first.isspace() and text.lstrip()[:1] == "<")


def implied_type(body: Any) -> bytes:
    """The Content-Type line of a body that is neither UNSET nor None."""
    kind = kind_of(body)
    if kind is Kind.TEXT:
        return HTML if is_html(body) else TEXT
    if kind is Kind.JSON:
        return JSON
    if kind is Kind.PATH:
        return type_line_of_file(body.name)
    if kind is Kind.FILE:
        name = getattr(body, "name", None)  # a number for a file made from a descriptor
        return type_line_of_file(name) if isinstance(name, str) else BINARY
    return BINARY


def must_be_closed(kind: Kind) -> bool:
    """Whether a body of this kind holds something that its context has to let go of."""
    return kind is Kind.FILE or kind is Kind.ASYNC or kind is Kind.SYNC
