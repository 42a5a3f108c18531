"""What a response body may be, and what type it has when nobody says.

None                              204, nothing
str                               text, or HTML when it begins with "<"; UTF-8
bytes, bytearray, memoryview      octets
pathlib.Path, an open file        the file, by sendfile where the kernel can
an (a)synchronous iterator        a stream
anything else                     JSON, by msgspec
"""

import io
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Final

from prefork.onion import fields
from prefork.onion.fields import type_line_of_file


class Unset(Enum):
    """The body before anybody has set one. None is a body: the empty one."""

    UNSET = 0


UNSET: Final = Unset.UNSET


class Kind(IntEnum):
    TEXT = 0
    OCTETS = 1
    JSON = 2
    PATH = 3
    # From here on a body holds something that its context has to let go of.
    FILE = 4
    ASYNC = 5
    SYNC = 6


# As plain names: an enum member's look-up is two attribute reads on the hot path.
TEXT, OCTETS, JSON, PATH, FILE, ASYNC, SYNC = Kind

_BY_CLASS: Final[dict[type, Kind]] = {
    str: TEXT,
    bytes: OCTETS,
    dict: JSON,
    list: JSON,
    tuple: JSON,
    int: JSON,
    float: JSON,
    bool: JSON,
}


def kind_of(body: Any) -> Kind:
    """The kind of a body that is neither UNSET nor None."""
    cls = body.__class__
    known = _BY_CLASS.get(cls)
    if known is not None:
        return known
    if isinstance(body, str):
        return TEXT
    if isinstance(body, bytes | bytearray | memoryview):
        return OCTETS
    if isinstance(body, Path):
        return PATH
    if isinstance(body, io.IOBase) or (hasattr(body, "read") and hasattr(body, "fileno")):
        return FILE
    if hasattr(cls, "__aiter__"):
        return ASYNC
    if hasattr(cls, "__next__"):
        return SYNC
    return JSON


def is_html(text: str) -> bool:
    """Koa's rule: the first character that is no space is "<"."""
    first = text[:1]
    return first == "<" or (first.isspace() and text.lstrip()[:1] == "<")


def implied_type(body: Any) -> bytes:
    """The Content-Type line of a body that is neither UNSET nor None."""
    kind = kind_of(body)
    if kind is TEXT:
        return fields.HTML if body[:1] <= "<" and is_html(body) else fields.TEXT
    if kind is JSON:
        return fields.JSON
    if kind is PATH:
        return type_line_of_file(body.name)
    if kind is FILE:
        name = getattr(body, "name", None)  # a number for a file made from a descriptor
        return type_line_of_file(name) if isinstance(name, str) else fields.BINARY
    return fields.BINARY
