"""A request's body as a stream.

The protocol feeds it, the handler reads it. What has come and was not read yet is bounded: beyond
`HIGH_WATER` the connection is not read, the kernel's buffers fill, and the client waits.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Protocol

from prefork.errors import PeerError
from prefork.http.headers import Headers
from prefork.net.connection import READ_SIZE

# One read of the socket may still come on top of what lies here already: never more than HIGH_WATER
# bytes are kept.
PAUSE_ABOVE: Final = 64 * 1024
HIGH_WATER: Final = PAUSE_ABOVE + READ_SIZE
RESUME_BELOW: Final = 16 * 1024
_NO_TRAILERS: Final = Headers([])


class BodySource(Protocol):
    """What a body asks of the protocol that feeds it."""

    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...
    def send_continue(self) -> None: ...


class Body:
    """An asynchronous iterator of bytes; `await read()` gives the whole.

    Raises PeerError 413 beyond the limit, 408 when the client is too slow, 400 when its framing
    breaks; ConnectionResetError when it leaves before the end.
    """

    __slots__ = (
        "_chunks",
        "_error",
        "_expected",
        "_limit",
        "_loop",
        "_paused",
        "_size",
        "_source",
        "_waiter",
        "at_end",
        "length",
        "received",
        "trailers",
    )

    def __init__(
        self,
        source: BodySource,
        loop: asyncio.AbstractEventLoop,
        *,
        length: int | None,
        limit: int,
        expects_continue: bool,
    ) -> None:
        self.length = length
        self.received = 0
        self.at_end = False  # everything has come; it may not have been read yet
        self.trailers = _NO_TRAILERS
        self._source = source
        self._loop = loop
        self._limit = limit
        self._expected = expects_continue
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def awaits_continue(self) -> bool:
        """The client waits for "100 Continue" and has sent nothing."""
        return self._expected and not self.received

    # What the protocol calls

    def feed(self, data: bytes) -> None:
        self.received += len(data)
        if self._error is not None:
            return
        if self.received > self._limit:
            self.fail(PeerError(413, f"the body is larger than {self._limit} bytes"))
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._size > PAUSE_ABOVE and not self._paused and self.received != self.length:
            self._paused = True
            self._source.pause_body()
        self._wake()

    def feed_eof(self, trailers: Headers | None = None) -> None:
        if trailers is not None:
            self.trailers = trailers
        self.at_end = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """The rest will not come: the reader gets `error` after what has come."""
        if self._error is None and not self.at_end:
            self._error = error
            self._wake()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def discard(self) -> None:
        """Nobody will read: let go of what came and take the rest without keeping it."""
        self._chunks.clear()
        self._size = 0
        self._limit = 0
        self.fail(ConnectionResetError("the request is over"))
        if self._paused:
            self._paused = False
            self._source.resume_body()

    # What the handler calls

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while True:
            if self._chunks:
                data = self._chunks.popleft()
                self._size -= len(data)
                if self._paused and self._size < RESUME_BELOW:
                    self._paused = False
                    self._source.resume_body()
                return data
            if self._error is not None:
                raise self._error
            if self.at_end:
                raise StopAsyncIteration
            if self._expected:
                self._expected = False
                if not self.received:
                    self._source.send_continue()
            if self._waiter is not None:
                raise RuntimeError("two tasks read one body")
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def read(self) -> bytes:
        """All that is left of the body."""
        return b"".join([chunk async for chunk in self])

    def take(self) -> bytes:
        """What has come and was not read, without a wait."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self._source.resume_body()
        return data

    async def read_some(self) -> bytes:
        """What has come by now, after a wait when that is nothing; b"" at the end."""
        try:
            data = await self.__anext__()
        except StopAsyncIteration:
            return b""
        more = self.take()
        return data + more if more else data

    @property
    def exhausted(self) -> bool:
        """Everything has come and was read."""
        return self.at_end and not self._chunks


class WholeBody(Body):
    """The body of a request that has come whole with its head: one chunk, and nothing to wait for.

    What is the same for all of them is the class's: that hides the slots of the same names.
    """

    __slots__ = ("_data",)

    at_end = True
    trailers = _NO_TRAILERS
    _error = None
    _expected = False

    def __init__(self, data: bytes) -> None:
        self.length = self.received = len(data)
        self._data = [data]

    def discard(self) -> None:
        self._data.clear()

    async def __anext__(self) -> bytes:
        if self._data:
            return self._data.pop()
        raise StopAsyncIteration

    def take(self) -> bytes:
        return self._data.pop() if self._data else b""

    @property
    def exhausted(self) -> bool:
        return not self._data


class NoBody(Body):
    """The body of a request without one; one instance serves all."""

    __slots__ = ()

    def __init__(self) -> None:
        self.length = 0
        self.received = 0
        self.at_end = True
        self.trailers = _NO_TRAILERS
        self._chunks = deque()
        self._error = None

    async def read(self) -> bytes:
        return b""


NO_BODY: Final = NoBody()
