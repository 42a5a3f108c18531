"""One request and its response: the seam between HTTP and whoever answers.

`Exchange` is what every version of HTTP offers to the layer above; the request side lives here, the
response side is written by the version (`h1.exchange.H1Exchange`). The layer above is a `Handler`,
a callable given to the server at construction: HTTP imports nothing of it.

Framing and the connection belong to the exchange. `fields` never holds Date, Connection,
Content-Length or Transfer-Encoding; they are written here, because only this side knows whether the
connection lives on and what the client can read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from prefork.http.body import NO_BODY, Body
from prefork.http.headers import Headers, split_fields

if TYPE_CHECKING:
    import asyncio

    from prefork.http.forwarded import Forwarded
    from prefork.http.server import HttpServer
    from prefork.net.connection import Connection

# Answers an exchange. What it cannot do at once is in the coroutine it returns, which becomes the
# request's task; one that returns None has answered, errors and all.
Handler = Callable[["Exchange"], Coroutine[Any, Any, None] | None]


# What a handler has whose stream has ended because the worker leaves, until it is cancelled if it
# has not heard of it: one that waits for its next event, or message, neither sends nor listens.
LAST_SECONDS: Final = 1.0


class Exchange(ABC):
    """A request as it came and the response as it goes.

    What most requests never change are attributes of the class, not of each instance: making an
    exchange is on the hot path, and an attribute that is not set costs nothing.
    """

    method: str
    raw_target: bytes  # as sent
    request_line: bytes  # as sent, without CRLF
    head: bytes  # request line and header fields, as sent, with the empty line
    lower: bytes  # head in lower case, for searching
    version: str = "1.1"
    scheme: str = "http"
    connection: "Connection"
    started: float  # the reactor's clock
    body: Body = NO_BODY
    upgrade: str = ""  # the protocol that the client offers to change to, in lower case
    host: str = ""  # the authority that was asked for; "" only in HTTP/1.0
    forwarded: "Forwarded | None" = None  # what proxies say that are trusted

    status: int = 0
    reason: bytes | None = None  # in place of the registered phrase, where `start` begins
    head_sent: bool = False
    finished: bool = False
    bytes_sent: int = 0  # of the body, before any transfer coding
    # Called when the client has closed its side, or the connection has broken, before the end of
    # the response. A client that only closed its side may still read.
    on_client_left: Callable[[], None] | None = None
    task: "asyncio.Task[None] | None" = None  # the handler's, once it has had to wait
    _on_finished: list[Callable[[], None]] | None = None

    # The request

    @cached_property
    def headers(self) -> Headers:
        return Headers(split_fields(self.head[len(self.request_line) + 2 : -4]))

    @cached_property
    def target(self) -> str:
        return self.raw_target.decode("ascii")

    @cached_property
    def raw_path(self) -> bytes:
        """The path as sent, still percent-encoded; "*" for the server as a whole."""
        target = self.raw_target
        if not target.startswith(b"/") and target != b"*":
            # absolute-form (RFC 9112 section 3.2.2): the path begins after the authority.
            authority = target.find(b"//") + 2
            slash = target.find(b"/", authority)
            question = target.find(b"?", authority)
            if slash < 0 or 0 <= question < slash:
                return b"/"
            target = target[slash:]
        return target.partition(b"?")[0]

    @cached_property
    def path(self) -> str:
        """The path, percent-decoded as UTF-8; bytes that are not become U+FFFD."""
        raw = self.raw_path
        if 0x25 in raw:  # "%"; as a number it is found five times as soon
            return unquote_to_bytes(raw).decode("utf-8", "replace")
        return raw.decode("ascii")

    @cached_property
    def query_string(self) -> str:
        return self.raw_target.partition(b"?")[2].decode("ascii")

    @property
    def peer(self) -> str:
        """The client's address; "unix:" on a UNIX socket."""
        forwarded = self.forwarded
        return self.connection.peer if forwarded is None else forwarded.client[0]

    @property
    def peer_port(self) -> int:
        """0 on a UNIX socket, and where the proxies that are trusted do not tell it."""
        forwarded = self.forwarded
        return self.connection.peer_port if forwarded is None else forwarded.client[1]

    @property
    def local(self) -> tuple[str, int]:
        """The address the client connected to; (path, 0) on a UNIX socket."""
        local = self.connection.local_address()
        return local if self.forwarded is None else self.forwarded.local(local, self.scheme)

    @property
    def connection_number(self) -> int:
        return self.connection.number

    @property
    def client_gone(self) -> bool:
        return self.connection.client_gone

    @property
    @abstractmethod
    def client_left(self) -> bool:
        """The client has closed its side, or is gone: it waits for nothing, as far as one knows."""

    @property
    @abstractmethod
    def server(self) -> "HttpServer":
        """The server whose request this is."""

    def on_finished(self, fn: Callable[[], None]) -> None:
        """Call `fn` once, when the response is sent to its end or can no longer be."""
        if self._on_finished is None:
            self._on_finished = []
        self._on_finished.append(fn)

    @property
    @abstractmethod
    def draining(self) -> bool:
        """Does the worker only finish what runs (see `on_drain`)?"""

    @property
    @abstractmethod
    def stopping(self) -> bool:
        """Has the whole server been asked to stop? A readiness check answers 503 then."""

    @abstractmethod
    def on_drain(self, fn: Callable[[], None]) -> None:
        """Call `fn` once, when the worker begins to drain while this request runs.

        At once when it drains already. A response without an end of its own ends here: before
        timeouts.graceful is over the handler's task is cancelled, then the connection is cut.
        """

    # The response

    @abstractmethod
    def reply(self, status: int, fields: bytes, body: bytes) -> None:
        """The whole response at once. `fields` is b"Name: value\\r\\n" lines."""

    @abstractmethod
    def close_after(self) -> None:
        """The connection is to end with this response; to be called before its head."""

    @abstractmethod
    def switch(self, fields: bytes, receiver: Callable[[bytes], None]) -> None:
        """Answer 101; what the client sends from now on goes to `receiver`.

        The other way it is the connection that is written to. `end()` closes it.
        """

    @abstractmethod
    def start(self, status: int, fields: bytes, length: int | None) -> None:
        """Begin a streamed response; `length` None when it is not known."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """A piece of the body. Raises RuntimeError beyond the declared length."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait while the client is slow. Raises ConnectionError when it left."""

    @abstractmethod
    async def send_file(self, fd: int, offset: int, count: int) -> None:
        """A piece of the body out of an open file, by the kernel."""

    @abstractmethod
    def end(self, trailers: bytes = b"") -> None:
        """The body is complete."""

    @abstractmethod
    def inform(self, status: int, fields: bytes = b"") -> None:
        """An interim response, 102 to 199 (RFC 9110 section 15.2)."""

    @abstractmethod
    def abort(self) -> None:
        """Cut the connection: the response cannot be completed and must not look as if it were."""
