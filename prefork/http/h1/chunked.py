"""The chunked transfer coding, RFC 9112 section 7.1, as strict as the RFC allows.

    chunked-body = *chunk last-chunk trailer-section CRLF
    chunk        = chunk-size [ chunk-ext ] CRLF chunk-data CRLF

This is where requests are smuggled, so there is no leniency: a line ends in CRLF and nothing else,
a size is plain hexadecimal of at most 16 digits, extensions and trailers are bounded, and a byte
that does not belong where it stands refuses the request.
"""

import re
from collections.abc import Callable
from typing import Final

from prefork.errors import PeerError
from prefork.http.headers import Headers, split_fields

# A chunk line holds the size and extensions that nobody uses: megabytes of them are an attack.
MAX_LINE: Final = 256
MAX_EXTENSIONS: Final = 16 * 1024  # over the whole body

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t \x21-\x7e\x80-\xff]*)?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t \x21-\x7e\x80-\xff]*")


class ChunkedDecoder:
    """Feed it bytes as they come; it calls `on_data` and, once, `on_end`.

    `feed` returns what came after the end of the body: the next request. It raises PeerError 400
    for broken framing and 431 for trailers beyond `trailer_limit` bytes.
    """

    __slots__ = (
        "_buffer",
        "_extensions",
        "_left",
        "_on_data",
        "_on_end",
        "_state",
        "_trailer_limit",
    )

    def __init__(
        self,
        on_data: Callable[[bytes], None],
        on_end: Callable[[Headers], None],
        *,
        trailer_limit: int,
    ) -> None:
        self._on_data = on_data
        self._on_end = on_end
        self._trailer_limit = trailer_limit
        self._buffer = b""
        self._left = 0
        self._extensions = 0
        self._state: Callable[[bytes], bytes | None] = self._size_line

    def feed(self, data: bytes) -> bytes:
        """Decode `data`; returns the bytes that are not the body's, b"" while it goes on."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while True:
            rest = self._state(data)
            if rest is None:
                return b""
            if self._state == self._done:
                return rest
            data = rest

    def _keep(self, data: bytes) -> None:
        self._buffer = data

    def _size_line(self, data: bytes) -> bytes | None:
        end = data.find(b"\n")
        if end < 0:
            if len(data) > MAX_LINE:
                raise PeerError(400, "a chunk line is too long")
            self._keep(data)
            return None
        if end > MAX_LINE:
            raise PeerError(400, "a chunk line is too long")
        match = _SIZE.fullmatch(data, 0, end - 1) if data[end - 1 : end] == b"\r" else None
        if match is None:
            raise PeerError(400, "invalid chunk size")
        self._extensions += end - 1 - match.end(1)
        if self._extensions > MAX_EXTENSIONS:
            raise PeerError(400, "too many chunk extensions")
        self._left = int(match[1], 16)
        self._state = self._data if self._left else self._trailers
        return data[end + 1 :]

    def _data(self, data: bytes) -> bytes | None:
        if not data:
            return None
        if len(data) <= self._left:
            self._left -= len(data)
            self._on_data(data)
            if not self._left:
                self._state = self._data_end
            return None
        piece = data[: self._left]
        rest = data[self._left :]
        self._left = 0
        self._on_data(piece)
        self._state = self._data_end
        return rest

    def _data_end(self, data: bytes) -> bytes | None:
        if not b"\r\n".startswith(data[:2]):
            raise PeerError(400, "a chunk does not end where its size says")
        if len(data) < 2:
            self._keep(data)
            return None
        self._state = self._size_line
        return data[2:]

    def _trailers(self, data: bytes) -> bytes | None:
        if data[:2] == b"\r\n":
            self._state = self._done
            self._on_end(Headers([]))
            return data[2:]
        end = data.find(b"\r\n\r\n")
        if (len(data) if end < 0 else end) > self._trailer_limit:
            raise PeerError(431, "the trailer section is too large")
        if end < 0:
            self._check_partial(data)
            self._keep(data)
            return None
        block = data[:end]
        for line in block.split(b"\r\n"):
            if not _TRAILER.fullmatch(line):
                raise PeerError(400, "invalid trailer field")
        self._state = self._done
        self._on_end(Headers(split_fields(block)))
        return data[end + 4 :]

    def _check_partial(self, data: bytes) -> None:
        # Without this a trailer section with bare LFs would wait for its end until the deadline.
        if data.replace(b"\r\n", b"").find(b"\n") >= 0:
            raise PeerError(400, "invalid trailer field")

    def _done(self, data: bytes) -> bytes | None:
        return data
