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

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t \x21-\x7e\x80-\xff]*)?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t \x21-\x7e\x80-\xff]*")

# RFC 9110 section 6.5.1: what frames or routes a message cannot be said behind it. Nobody here
# would believe it; whoever sends it hopes that somebody does.
_NO_TRAILER: Final = frozenset({b"content-length", b"transfer-encoding", b"host"})


class ChunkedDecoder:
    """Feed it bytes as they come; it calls `on_data` and, once, `on_end`.

    `feed` returns what came after the end of the body: the next request. It raises PeerError 400
    for broken framing, 413 for more than `limit` bytes of data, as soon as a size says so, and 431
    for trailers beyond `trailer_limit` bytes.

    A state takes the bytes and an offset and returns the offset behind what it has used, or -1
    when it needs more. Nothing is cut off the front: with chunks of one byte that would copy the
    64 KiB of a read ten thousand times.
    """

    __slots__ = (
        "_buffer",
        "_extensions",
        "_finished",
        "_left",
        "_limit",
        "_on_data",
        "_on_end",
        "_state",
        "_total",
        "_trailer_limit",
    )

    def __init__(
        self,
        on_data: Callable[[bytes], None],
        on_end: Callable[[Headers], None],
        *,
        limit: int,
        trailer_limit: int,
    ) -> None:
        self._on_data = on_data
        self._on_end = on_end
        self._limit = limit
        self._trailer_limit = trailer_limit
        self._buffer = b""
        self._left = 0
        self._total = 0
        self._extensions = 0
        self._finished = False
        self._state: Callable[[bytes, int], int] = self._size_line

    def feed(self, data: bytes) -> bytes:
        """Decode `data`; returns the bytes that are not the body's, b"" while it goes on."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at = 0
        while not self._finished:
            at = self._state(data, at)
            if at < 0:
                return b""
        return data[at:]

    def _keep(self, data: bytes) -> int:
        self._buffer = data
        return -1

    def _size_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at, at + MAX_LINE + 1)
        if end < 0:
            if len(data) - at > MAX_LINE:
                raise PeerError(400, "a chunk line is too long")
            return self._keep(data[at:])
        # An end before the start, of a line that is a bare LF, matches nothing.
        match = _SIZE.fullmatch(data, at, end - 1) if data[end - 1 : end] == b"\r" else None
        if match is None:
            raise PeerError(400, "invalid chunk size")
        self._extensions += end - 1 - match.end(1)
        if self._extensions > MAX_EXTENSIONS:
            raise PeerError(400, "too many chunk extensions")
        self._left = int(match[1], 16)
        self._total += self._left
        if self._total > self._limit:
            raise PeerError(413, f"the body is larger than {self._limit} bytes")
        self._state = self._data if self._left else self._trailers
        return end + 1

    def _data(self, data: bytes, at: int) -> int:
        end = min(at + self._left, len(data))
        if end == at:
            return -1
        self._left -= end - at
        if not self._left:
            self._state = self._data_end
        self._on_data(data[at:end])
        return end

    def _data_end(self, data: bytes, at: int) -> int:
        end = data[at : at + 2]
        if end == b"\r\n":
            self._state = self._size_line
            return at + 2
        if end not in (b"", b"\r"):
            raise PeerError(400, "a chunk does not end where its size says")
        return self._keep(end)

    def _trailers(self, data: bytes, at: int) -> int:
        if data[at : at + 2] == b"\r\n":
            self._finish(Headers([]))
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        if (len(data) if end < 0 else end) - at > self._trailer_limit:
            raise PeerError(431, "the trailer section is too large")
        if end < 0:
            return self._keep_partial(data[at:])
        block = data[at:end]
        for line in block.split(b"\r\n"):
            if not _TRAILER.fullmatch(line):
                raise PeerError(400, "invalid trailer field")
        trailers = Headers(split_fields(block))
        if any(name in _NO_TRAILER for name, _ in trailers.raw):
            raise PeerError(400, "a trailer that frames or routes the message")
        self._finish(trailers)
        return end + 4

    def _keep_partial(self, data: bytes) -> int:
        # Without this a section with a bare CR or LF would wait for its end until the deadline.
        rest = data.removesuffix(b"\r").replace(b"\r\n", b"")
        if b"\n" in rest or b"\r" in rest:
            raise PeerError(400, "invalid trailer field")
        return self._keep(data)

    def _finish(self, trailers: Headers) -> None:
        self._finished = True
        self._on_end(trailers)
