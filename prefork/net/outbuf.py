"""What a connection still has to send: bytes in order, written with as few calls as possible.

Small pieces are joined, large ones go out by `sendmsg` without being copied; what the kernel did
not take stays at the front as a view on the same bytes.
"""

import socket
from typing import Final

# A joined copy of this much costs less than the iovec that would spare it.
JOIN_BELOW: Final = 16 * 1024
# Linux takes 1024 vectors a call (IOV_MAX); a few dozen already fill a socket buffer.
VECTORS: Final = 64

Piece = bytes | bytearray | memoryview


class OutBuffer:
    """A queue of bytes with its size; `send` moves what the socket takes."""

    __slots__ = ("pieces", "size")

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.size = 0

    def append(self, data: Piece) -> None:
        self.pieces.append(data)
        self.size += len(data)

    def send(self, sock: socket.socket) -> int:
        """Send once; returns how many bytes went. Raises what `send` raises."""
        pieces = self.pieces
        if len(pieces) == 1:
            sent = sock.send(pieces[0])
        elif self.size <= JOIN_BELOW:
            pieces[:] = [b"".join(pieces)]
            sent = sock.send(pieces[0])
        else:
            sent = sock.sendmsg(pieces[:VECTORS])
        self.dropped(sent)
        return sent

    def dropped(self, sent: int) -> None:
        """The first `sent` bytes are the kernel's now."""
        pieces = self.pieces
        self.size -= sent
        if not self.size:
            pieces.clear()
            return
        whole = 0
        while sent >= len(pieces[whole]):
            sent -= len(pieces[whole])
            whole += 1
        del pieces[:whole]
        if sent:
            pieces[0] = memoryview(pieces[0])[sent:]

    def clear(self) -> None:
        self.pieces.clear()
        self.size = 0
