"""One accepted socket: bytes up to a protocol, bytes down to the kernel.

A `Connection` knows no HTTP. It reads when the reactor says so and hands the bytes to
`protocol.data_received`; it collects what the protocol writes and sends it once a turn, before
the process sleeps (Redis: `handleClientsWithPendingWrites`), so that ten pipelined answers cost
one system call and a written answer costs no trip through the poller.

The rules of its end:
- `close_soon` sends what is left, then closes. With `linger` it first shuts down its own side and
  reads what still comes, for closing a socket with unread bytes makes the kernel send RST, which
  destroys the answer on its way to the client (RFC 9112 section 9.6).
- `abort` closes at once and drops what is left; the peer sees a cut, never half a message that
  looks whole.
- Every end goes through `_lost`, once, and tells the protocol.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol

from prefork.event.deadlines import Deadlines
from prefork.event.reactor import READABLE, WRITABLE, Reactor
from prefork.net.outbuf import OutBuffer, Piece

# What one read takes at most: an upload of 64 KiB, a usual size, with its head at once.
READ_SIZE: Final = 128 * 1024
HIGH_WATER: Final = 64 * 1024
LOW_WATER: Final = 16 * 1024
# What is written in one turn and goes out at once: each write to the kernel wakes the peer.
BATCH: Final = 256 * 1024
# A peer that goes on sending after our last word gets this long, and is read this far. Many clients
# send a whole upload before they look at the answer: for them the bytes must be generous.
LINGER_SECONDS: Final = 5.0
LINGER_BYTES: Final = 64 * 1024 * 1024


class ConnectionProtocol(Protocol):
    """What a connection tells the layer above."""

    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> None: ...
    def connection_lost(self, error: OSError | None) -> None: ...


class Pool:
    """What the connections of one server share: reactor, flush list, deadlines of the wire."""

    def __init__(self, reactor: Reactor, loop: asyncio.AbstractEventLoop, send: float) -> None:
        self.reactor = reactor
        self.loop = loop
        self.unsent: list[Connection] = []
        self.connections: set[Connection] = set()
        self.numbers = 0
        self.sent = 0  # bytes, headers and all
        self.sending: Deadlines[Connection] = Deadlines(reactor, send, _send_expired)
        self.lingering: Deadlines[Connection] = Deadlines(reactor, LINGER_SECONDS, _linger_expired)
        self.on_lost: Callable[[], None] = lambda: None
        reactor.before_sleep.append(self.flush)

    def flush(self) -> None:
        """Send what was written in this turn."""
        unsent = self.unsent
        if not unsent:
            return
        # A flush may wake a writer, but no writer runs before the hooks are done.
        for connection in unsent:
            out = connection.out
            pieces = out.pieces
            # The usual, without a call: one piece, which the kernel takes whole.
            if len(pieces) == 1:
                try:
                    sent = connection._send(pieces[0])
                except (BlockingIOError, InterruptedError):
                    connection.await_room()
                    continue
                except OSError as error:
                    connection._lost(error)
                    continue
                self.sent += sent
                if sent == out.size:
                    pieces.clear()
                    out.size = 0
                    if connection.closing:
                        connection._finish()
                else:
                    out.dropped(sent)
                    connection.await_room()
            elif pieces:
                connection.flush()
        unsent.clear()

    def close(self) -> None:
        self.reactor.before_sleep.remove(self.flush)


def _send_expired(connection: "Connection") -> None:
    connection.abort(TimeoutError("the peer took nothing for the send timeout"))


def _linger_expired(connection: "Connection") -> None:
    connection.abort()


class Connection:
    """An accepted socket in the reactor."""

    __slots__ = (
        "_drained",
        "_local",
        "_realip",
        "_recv",
        "_send",
        "client_gone",
        "closing",
        "fd",
        "gateway",
        "linger",
        "number",
        "on_room",
        "out",
        "peer",
        "peer_port",
        "pool",
        "protocol",
        "reading",
        "remembered",
        "sock",
    )

    def __init__(self, pool: Pool, sock: socket.socket, peer: str, peer_port: int) -> None:
        self.pool = pool
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.peer_port = peer_port
        pool.numbers += 1
        self.number = pool.numbers
        self.protocol: ConnectionProtocol
        self.out = OutBuffer()
        self.reading = False
        self.closing = False  # nothing more will be written; close when the buffer is empty
        self.linger = False
        self.client_gone = False
        # The access log's own: what it read in this client's last head (see http.logformat).
        self.remembered: tuple[bytes, tuple[str, ...]] | None = None
        self.gateway: Any = None  # what a hosted application's interface keeps with its client
        self.on_room: Callable[[], None] | None = None  # called once, below the low water mark
        self._realip: str  # set by `speaks_for` alone
        self._recv = sock.recv
        self._send = sock.send
        self._local: tuple[str, int] | None = None
        self._drained: asyncio.Future[None] | None = None
        pool.connections.add(self)

    @property
    def realip(self) -> str:
        """Who has connected to us, whoever that speaks for."""
        try:
            return self._realip
        except AttributeError:
            return self.peer

    def speaks_for(self, peer: str, peer_port: int, local: tuple[str, int]) -> None:
        """The client is `peer`, which has connected to `local`: who has connected to us says so."""
        self._realip = self.peer
        self.peer, self.peer_port = peer, peer_port
        self._local = local

    def local_address(self) -> tuple[str, int]:
        """(host, port) that the client connected to; (path, 0) on a UNIX socket."""
        if self._local is None:
            name = self.sock.getsockname() if not self.client_gone else ("", 0)
            self._local = (name, 0) if isinstance(name, str) else (name[0], name[1])
        return self._local

    # Reading

    def resume_reading(self) -> None:
        if not self.reading and not self.client_gone:
            self.reading = True
            self.pool.reactor.create_file_event(self.fd, READABLE, self.on_readable)

    def pause_reading(self) -> None:
        if self.reading:
            self.reading = False
            self.pool.reactor.delete_file_event(self.fd, READABLE)

    def has_spoken(self) -> bool:
        """Whether a read would not have to wait."""
        try:
            self._recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass  # the read will tell
        return True

    def on_readable(self) -> None:
        try:
            data = self._recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        if data:
            self.protocol.data_received(data)
        else:
            # Level-triggered, an end of file would be reported for ever.
            self.pause_reading()
            self.protocol.eof_received()

    # Writing

    def write(self, data: Piece) -> None:
        """Send `data` before the process sleeps. Ignored once the connection has ended."""
        if self.client_gone:
            return
        out = self.out
        if not out.size:
            self.pool.unsent.append(self)
        out.pieces.append(data)
        out.size += len(data)

    def flush(self) -> None:
        """Send what there is; watch for room when the kernel did not take it all."""
        out = self.out
        if not out.size:
            return
        try:
            self.pool.sent += out.send(self.sock)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lost(error)
            return
        if out.size:
            self.await_room()
        elif self.closing:
            self._finish()

    def push(self) -> bool:
        """Send what the kernel takes now, and wait for no room; whether all is sent.

        From another thread, while nothing else touches this connection. An error is left for the
        next who writes.
        """
        out = self.out
        if out.size:
            try:
                self.pool.sent += out.send(self.sock)
            except OSError:
                pass
        return not out.size

    def await_room(self) -> None:
        """Go on sending when the kernel can take more, or give up when it takes too long."""
        self.pool.sending.touch(self)
        self.pool.reactor.create_file_event(self.fd, WRITABLE, self.on_writable)

    def on_writable(self) -> None:
        out = self.out
        if out.size:
            try:
                sent = out.send(self.sock)
                if sent:
                    self.pool.sent += sent
                    self.pool.sending.touch(self)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lost(error)
                return
        if out.size <= LOW_WATER:
            self._wake()
        if not out.size:
            self.pool.sending.discard(self)
            self.pool.reactor.delete_file_event(self.fd, WRITABLE)
            if self.closing:
                self._finish()

    async def drain(self) -> None:
        """Return at once below the high water mark, else when the low one is reached.

        What a peer that keeps up is sent goes out in batches. Raises ConnectionError when the
        connection has ended.
        """
        size = self.out.size
        if size > HIGH_WATER and (size > BATCH or self in self.pool.sending):
            self.flush()
            if self.out.size > HIGH_WATER:
                await self._room()
        if self.client_gone:
            raise ConnectionResetError("the client left")

    async def _room(self) -> None:
        # Several tasks may write one stream; the first one makes the future, all wait for it.
        if self._drained is None:
            self._drained = self.pool.loop.create_future()
        await asyncio.shield(self._drained)

    def _wake(self) -> None:
        waiter = self._drained
        if waiter is not None:
            self._drained = None
            if not waiter.done():
                waiter.set_result(None)
        on_room = self.on_room
        if on_room is not None:
            self.on_room = None
            on_room()

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send `count` bytes of the open file `fd` from `offset` without copying them here.

        Returns how many went: fewer when the file is shorter. Raises ConnectionError when the
        connection ends meanwhile.
        """
        sent = 0
        while sent < count:
            if self.out.size:
                self.flush()
            if self.client_gone:
                raise ConnectionResetError("the client left")
            if self.out.size:
                await self._room()
                continue
            try:
                # Chunks keep one fast client from holding the loop while a big file goes out.
                n = _sendfile(self.fd, fd, offset + sent, min(count - sent, 1024 * 1024))
            except (BlockingIOError, InterruptedError):
                n = -1
            except OSError as error:
                self._lost(error)
                raise ConnectionResetError("the client left") from error
            if n == 0:
                break
            if n > 0:
                sent += n
                self.pool.sent += n
                if sent < count:
                    await asyncio.sleep(0)
                continue
            self.await_room()
            await self._room()
        return sent

    # Ending

    def close_soon(self, *, linger: bool = False) -> None:
        """Close once everything written has been sent."""
        if self.closing or self.client_gone:
            return
        self.closing = True
        self.linger = linger
        if not linger:
            self.pause_reading()
        if not self.out.size:
            self._finish()

    def _finish(self) -> None:
        if not self.linger:
            self._lost(None)
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._lost(error)
            return
        self.protocol = _Discard(self)
        self.resume_reading()
        if self.reading:
            self.pool.lingering.touch(self)
        else:
            self._lost(None)

    def abort(self, error: OSError | None = None, *, reset: bool = False) -> None:
        """Close now, whatever was left to send; `reset` by RST even when nothing was left."""
        self._lost(error, reset)

    def _lost(self, error: OSError | None, reset: bool = False) -> None:
        if self.client_gone:
            return
        self.client_gone = True
        self.closing = True
        pool = self.pool
        pool.reactor.delete_file_event(self.fd, READABLE | WRITABLE)
        self.reading = False
        pool.sending.discard(self)
        pool.lingering.discard(self)
        pool.connections.discard(self)
        reset = reset or self.out.size > 0
        self.out.clear()
        if reset:
            # What was promised cannot be kept: RST tells the peer that the message is cut.
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()
        self.on_room = None
        self._wake()
        self.protocol.connection_lost(error)
        # The two hold each other: parted here, they go without the garbage collector's help.
        self.protocol = _NOBODY
        pool.on_lost()


class _Nobody:
    """The protocol of a connection that has ended."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        pass

    def eof_received(self) -> None:
        pass

    def connection_lost(self, error: OSError | None) -> None:
        pass


_NOBODY: Final = _Nobody()


class _Discard:
    """The protocol of a connection that has said its last word and only listens on."""

    __slots__ = ("connection", "read")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.read = 0

    def data_received(self, data: bytes) -> None:
        self.read += len(data)
        if self.read > LINGER_BYTES:
            self.connection.abort()

    def eof_received(self) -> None:
        self.connection.abort()

    def connection_lost(self, error: OSError | None) -> None:
        pass


if sys.platform == "linux":

    def _sendfile(out_fd: int, in_fd: int, offset: int, count: int) -> int:
        return os.sendfile(out_fd, in_fd, offset, count)

else:

    def _sendfile(out_fd: int, in_fd: int, offset: int, count: int) -> int:
        # The BSDs' sendfile differs in arguments and in what it returns on EAGAIN; reading and
        # sending a piece is the same promise everywhere.
        data = os.pread(in_fd, min(count, READ_SIZE), offset)
        return os.write(out_fd, data) if data else 0
