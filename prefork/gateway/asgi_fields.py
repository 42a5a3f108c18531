"""An ASGI application's response headers as the lines that are sent.

Applications repeat their headers too, so each pair is checked and written out once and found again
by a look-up. What cannot be sent is an error in the application at its `send`, with its traceback,
and not a response that a value has split in two.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

# RFC 9110 section 5.6.2, token; section 5.5, field-value.
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_BAD_VALUE: Final = re.compile(rb"[^\t\x20-\x7e\x80-\xff]").search

# RFC 9110 section 7.6.1: they speak of the connection, which is the server's; and of Date there
# is one already.
_SERVERS_OWN: Final = frozenset({b"date", b"keep-alive", b"proxy-connection", b"transfer-encoding"})

_KNOWN_LIMIT: Final = 1024
_KNOWN_SIZE: Final = 256

CLOSE: Final = -1  # in place of a line: the connection is to end with this response


class _KnownLines(dict[tuple[bytes, bytes], bytes | int]):
    """(name, value) to its line; to a number for Content-Length, to CLOSE; b"" is not sent."""

    __slots__ = ()

    def __missing__(self, pair: tuple[bytes, bytes]) -> bytes | int:
        name, value = _pair(pair)
        if not _TOKEN(name):
            raise ValueError(f"invalid header name {name!r}")
        if _BAD_VALUE(value):
            raise ValueError(f"invalid character in the value of header {name!r}: {value!r}")
        key = name.lower()
        line: bytes | int
        if key == b"content-length":
            if not value.isdigit() or len(value) > 18:
                raise ValueError(f"content-length must be a number of bytes, not {value!r}")
            line = int(value)
        elif key == b"connection":
            # RFC 9112 section 9.6. Its other options have nothing to say here.
            tokens = [token.strip().lower() for token in value.split(b",")]
            line = CLOSE if b"close" in tokens else b""
        elif key in _SERVERS_OWN:
            line = b""
        else:
            line = b"%b: %b\r\n" % (name, value.strip(b" \t"))
        if len(value) <= _KNOWN_SIZE and key != b"set-cookie":
            if len(self) >= _KNOWN_LIMIT:
                self.clear()
            self[name, value] = line
        return line


def _pair(item: Any) -> tuple[bytes, bytes]:
    """`item` as the pair of bytes it must be. Raises TypeError."""
    try:
        name, value = item
    except (TypeError, ValueError):
        raise TypeError(f"a header is a pair of name and value, not {item!r}") from None
    for one in (name, value):
        if not isinstance(one, bytes | bytearray | memoryview):
            raise TypeError(
                f"header names and values are bytes, not {type(one).__name__}: {name!r}: {value!r}"
            )
    return bytes(name), bytes(value)


known: Final = _KnownLines()


def lines_of(headers: Iterable[Any]) -> tuple[bytes, int | None, bool]:
    """(the lines, the declared Content-Length, whether the connection is to end).

    Raises TypeError or ValueError for what cannot be sent.
    """
    fields = b""
    length: int | None = None
    close = False
    for item in headers:
        try:
            line = known[item]
        except TypeError:  # a list cannot be looked up
            line = known[_pair(item)]
        if line.__class__ is bytes:
            fields += line
            continue
        number = int(line)
        if number == CLOSE:
            close = True
        elif length is not None and length != number:
            raise ValueError(f"two different content-lengths: {length} and {number}")
        else:
            length = number
    return fields, length, close
