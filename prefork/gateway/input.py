"""`wsgi.input`: a request's body as a file.

A body that has come whole is a real file: in memory up to a mebibyte, beyond it in a temporary one
that nobody else can open. A body that is still coming is a `StreamInput`, for threads. All of them
end where the body ends (`wsgi.input_terminated`), whether its length was declared or not.
"""

import io
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prefork.http.body import Body

IN_MEMORY: Final = 1024 * 1024


class NoInput:
    """The input of a request without a body; one instance serves all."""

    __slots__ = ()

    def read(self, size: int | None = -1, /) -> bytes:  # noqa: ARG002
        return b""

    def readline(self, size: int | None = -1, /) -> bytes:  # noqa: ARG002
        return b""

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:  # noqa: ARG002
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        pass


NO_INPUT: Final = NoInput()


async def collect(body: "Body") -> tuple[IO[bytes], int]:
    """The whole of `body` as a file, and its size. Raises what `Body` raises, and OSError."""
    chunks: list[bytes] = []
    size = 0
    file: IO[bytes] | None = None
    try:
        while data := await body.read_some():
            size += len(data)
            if file is None and size > IN_MEMORY:
                file = tempfile.TemporaryFile(prefix="prefork-body-")  # noqa: SIM115 - handed on
                file.writelines(chunks)
                chunks.clear()
            if file is None:
                chunks.append(data)
            else:
                file.write(data)
    except BaseException:
        if file is not None:
            file.close()
        raise
    if file is None:
        return io.BytesIO(chunks[0] if len(chunks) == 1 else b"".join(chunks)), size
    file.seek(0)
    return file, size


class StreamInput:
    """The part of a body that has come, and the rest by `pull()`, which gives b"" at its end.

    `pull` blocks, and raises OSError when the rest will not come.
    """

    __slots__ = ("_at_end", "_buffer", "_pull")

    def __init__(self, begun: bytes, pull: Callable[[], bytes]) -> None:
        self._buffer = begun
        self._pull = pull
        self._at_end = False

    def _more(self) -> bytes:
        data = b"" if self._at_end else self._pull()
        self._at_end = not data
        return data

    def read(self, size: int | None = -1, /) -> bytes:
        """Exactly `size` bytes, fewer only at the end of the body."""
        parts = [self._buffer]
        have = len(self._buffer)
        self._buffer = b""
        while size is None or size < 0 or have < size:
            data = self._more()
            if not data:
                break
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        if size is None or size < 0 or have <= size:
            return whole
        self._buffer = whole[size:]
        return whole[:size]

    def readline(self, size: int | None = -1, /) -> bytes:
        most = -1 if size is None or size < 0 else size
        parts: list[bytes] = []
        have = 0
        data = self._buffer
        self._buffer = b""
        while True:
            end = data.find(b"\n") + 1 or len(data)
            if most >= 0:
                end = min(end, most - have)
            parts.append(data[:end])
            have += end
            if end < len(data) or data.endswith(b"\n") or have == most:
                self._buffer = data[end:]
                break
            data = self._more()
            if not data:
                break
        return b"".join(parts)

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        lines = []
        have = 0
        for line in self:
            lines.append(line)
            have += len(line)
            if hint is not None and 0 < hint <= have:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if line:
            return line
        raise StopIteration

    def close(self) -> None:
        pass
