"""The pipe between the master and one child, in framed messages.

nginx writes fixed structures over a socketpair; ours also carry a payload, because a worker that
cannot start sends its traceback home to be printed once instead of once per worker. Hence a
stream with lengths: a datagram or one read could not be relied on to hold it.

Neither end ever blocks, and neither raises when the other is gone: the master learns of a death
by SIGCHLD, a worker of the master's by end of file here (`eof`), and both must act on it in their
own good time. The master sleeps in `sigsuspend`, so its end asks for SIGIO (`enable_sigio`).
"""

import contextlib
import enum
import fcntl
import os
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

MAX_PAYLOAD: Final = 64 * 1024
"""Longer payloads are cut. One whole frame always fits the kernel's buffer of an idle channel
(208 KiB on Linux), so a dying worker's last words need no second write."""

_MAX_QUEUED: Final = 4 * MAX_PAYLOAD
_DESCRIPTOR: Final = struct.Struct("=i")
_FRAME: Final = struct.Struct("=BxxxIii")  # command, payload length, slot, pid


class Command(enum.IntEnum):
    QUIT = 1
    TERMINATE = 2
    REOPEN = 3
    READY = 4
    FAILED = 5
    HELLO = 6  # an adopted worker: here I am, with my pid
    ADOPTED = 7  # the master: go on
    SPAWN = 8  # the master to the mold: make a worker; its channel comes with it
    PROMOTE = 9  # the master to a worker: become the next mold; and its answer: I am
    RECYCLE = 10  # from a worker: it asks to be replaced; the payload says why
    BUSY = 11  # a worker is awake, after it may have slept for long
    DRAIN_QUEUE = 12  # QUIT of the whole server; the payload numbers the sealed listeners
    RIPE = 14  # a worker has served as many requests as make a mold (refork_after)
    STUCK = 16  # a worker has a request that was given up and does not end
    TOLD = 17  # to a worker: the slowness of what it runs has been logged
    FAREWELL = 20  # the whole server will stop soon: each answer is its connection's last
    ADMIT = 21  # to a worker that waits for it: accept from now on
    HURRY = 22  # to one that drains: the payload is how many seconds are left, as text


@dataclass(frozen=True, slots=True)
class Message:
    """`slot` and `pid` say whom it is about; -1 and 0 when that goes without saying."""

    command: Command
    slot: int = -1
    pid: int = 0
    payload: bytes = b""


class Channel:
    """One end. `eof` turns True when the other end is gone or talks nonsense, and stays so."""

    __slots__ = ("_incoming", "_outgoing", "_sock", "_sockets", "eof")

    def __init__(self, sock: socket.socket) -> None:
        """Takes `sock` over, a connected stream socket."""
        sock.setblocking(False)
        self._sock = sock
        self._incoming = bytearray()
        self._outgoing = bytearray()  # the rest of a frame the kernel took only a part of
        self._sockets: deque[int] | None = None  # descriptors that came, where they are taken
        self.eof = False

    def fileno(self) -> int:
        """-1 once closed."""
        return self._sock.fileno()

    def send(self, message: Message) -> bool:
        """Hand a message over. False: it will not arrive (the peer is gone, or has not read
        for so long that its buffer is full), and the caller may fall back on a signal."""
        if self.eof or (not self.flush() and len(self._outgoing) > _MAX_QUEUED):
            return False
        payload = message.payload[:MAX_PAYLOAD]
        head = _FRAME.pack(message.command, len(payload), message.slot, message.pid)
        self._outgoing += head + payload
        self.flush()
        return not self.eof

    def pass_on(self, message: Message, other: "Channel") -> bool:
        """Hand a message over together with a copy of the end `other`.

        False: neither will arrive. The other side must have called `take_channels`.
        """
        try:
            if self.eof or not self.flush():
                return False  # behind a queued frame the kernel would attach it to the wrong one
            payload = message.payload[:MAX_PAYLOAD]
            frame = _FRAME.pack(message.command, len(payload), message.slot, message.pid) + payload
            sent = socket.send_fds(self._sock, [frame], [other.fileno()])
            self._outgoing += frame[sent:]
        except BlockingIOError:
            return False
        except OSError:
            self._lost()
            return False
        return True

    def take_channels(self) -> None:
        """From now on `receive` keeps what `pass_on` sends along, for `taken`."""
        if self._sockets is None:
            self._sockets = deque()

    def taken(self) -> "Channel | None":
        """The end that came with the oldest `pass_on` whose end has not been asked for yet."""
        if not self._sockets:
            return None
        return Channel(socket.socket(fileno=self._sockets.popleft()))

    def flush(self, timeout: float = 0.0) -> bool:
        """Write what is still queued, waiting up to `timeout` seconds; True when all is out."""
        deadline = time.monotonic() + timeout
        while self._outgoing and not self.eof:
            try:
                sent = self._sock.send(self._outgoing)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                poll = select.poll()
                poll.register(self._sock, select.POLLOUT)
                poll.poll(left * 1000)
            except OSError:  # EPIPE, ECONNRESET, EBADF after close()
                self._lost()
            else:
                del self._outgoing[:sent]
        return not self._outgoing and not self.eof

    def receive(self) -> list[Message]:
        """All the whole messages there are; a started one is kept for the next call."""
        while not self.eof:
            try:
                data = self._read()
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                # What arrived before the end still counts: FAILED, then exit.
                messages = self._take()
                self._lost()
                return messages
            self._incoming += data
        return self._take()

    def _read(self) -> bytes:
        if self._sockets is None:
            return self._sock.recv(MAX_PAYLOAD)
        room = socket.CMSG_SPACE(_DESCRIPTOR.size)
        data, extra, _flags, _address = self._sock.recvmsg(
            MAX_PAYLOAD, room, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._sockets.extend(fd for (fd,) in _DESCRIPTOR.iter_unpack(content))
        return data

    def enable_sigio(self, pid: int) -> None:
        """Have the kernel send `pid` a SIGIO whenever this end becomes readable."""
        fcntl.fcntl(self._sock, fcntl.F_SETOWN, pid)
        flags = fcntl.fcntl(self._sock, fcntl.F_GETFL)
        fcntl.fcntl(self._sock, fcntl.F_SETFL, flags | os.O_ASYNC)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.close()
        while self._sockets:
            os.close(self._sockets.popleft())
        self._lost()

    def _take(self) -> list[Message]:
        messages = []
        buffer = self._incoming
        while len(buffer) >= _FRAME.size:
            command, length, slot, pid = _FRAME.unpack_from(buffer)
            if length > MAX_PAYLOAD:
                self._lost()  # out of step: no later byte could be trusted
                break
            end = _FRAME.size + length
            if len(buffer) < end:
                break
            payload = bytes(buffer[_FRAME.size : end])
            del buffer[:end]
            # A command of another version is none of ours; its frame has been skipped whole.
            with contextlib.suppress(ValueError):
                messages.append(Message(Command(command), slot, pid, payload))
        return messages

    def _lost(self) -> None:
        self.eof = True
        self._incoming.clear()
        self._outgoing.clear()


def channel_pair() -> tuple[Channel, Channel]:
    """(the master's end, the child's end), non-blocking and closed by exec. Raises OSError."""
    master, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(master), Channel(child)
