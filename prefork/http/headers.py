"""Header fields, split from the head only when somebody asks.

Most handlers read none or two of a browser's thirteen fields, and splitting them all costs as much
as parsing the request. The parser has validated every line before this sees it.
"""

from collections.abc import Iterator
from typing import Final

RawHeaders = list[tuple[bytes, bytes]]

_KNOWN_LINES_LIMIT: Final = 1024
_KNOWN_LINE_SIZE: Final = 256
_SECRET: Final = frozenset({b"authorization", b"cookie", b"proxy-authorization"})


def split_fields(block: bytes) -> RawHeaders:
    """`name: value` lines, CRLF between them, as (lower-case name, value without outer space).

    RFC 9112 section 5.1: "A field line value might be preceded and/or followed by optional
    whitespace (OWS)", which is not part of it.
    """
    if not block:
        return []
    fields = []
    for line in block.split(b"\r\n"):
        name, _, value = line.partition(b":")
        fields.append((name.lower(), value.strip(b" \t")))
    return fields


class KnownLines(dict[bytes, tuple[bytes, bytes]]):
    """Header lines by what they were split into; `known[line]` splits a line it has not seen.

    Clients repeat themselves: one that comes again costs a look-up (50 ns) in place of a split
    (200 ns), for those who need every field of every request. The memory is bounded, and what
    identifies a user is not kept.
    """

    __slots__ = ()

    def __missing__(self, line: bytes) -> tuple[bytes, bytes]:
        name, _, value = line.partition(b":")
        field = (name.lower(), value.strip(b" \t"))
        if len(line) <= _KNOWN_LINE_SIZE and field[0] not in _SECRET:
            if len(self) >= _KNOWN_LINES_LIMIT:
                self.clear()
            self[line] = field
        return field


class Headers:
    """The header fields of a request: names are case-insensitive, values are text (latin-1)."""

    __slots__ = ("raw",)

    def __init__(self, raw: RawHeaders) -> None:
        self.raw = raw

    def get_all(self, name: str) -> list[str]:
        """Every value of `name`, in the order they came."""
        key = name.lower().encode("latin-1")
        return [value.decode("latin-1") for field, value in self.raw if field == key]

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of `name`; several are joined as RFC 9110 section 5.3 joins them.

        Cookie is the exception: its pairs are joined by "; " (RFC 6265 section 5.4).
        """
        values = self.get_all(name)
        if not values:
            return default
        if len(values) == 1:
            return values[0]
        return ("; " if name.lower() == "cookie" else ", ").join(values)

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        """The names, lower-case, each once."""
        return iter(dict.fromkeys(name.decode("latin-1") for name, _ in self.raw))

    def __len__(self) -> int:
        return len(self.raw)

    def items(self) -> list[tuple[str, str]]:
        """(name, value) pairs as they came, repeated names and all."""
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.raw]
