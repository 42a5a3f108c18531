"""Closing the entrance of a listening socket while its queue is still served.

The last close of a listening socket resets whatever waits in its accept queue: connections that
their clients hold for established. So a stop accepts until there is nothing left and then closes;
but between the last `accept` and the close another one may come. Facts (Linux 6.18):
- `listen(fd, 0)` lets SYNs be dropped while the queue holds anything, but still admits one
  connection at a time, and drops the last step of handshakes that are under way: their clients
  believe in a connection that is reset later.
- A classic BPF filter that drops SYNs, and SYNs only, admits nobody new and lets handshakes end.
  It needs no privilege. The client sends its SYN again after a second, finds the socket closed,
  and is refused: nothing was reset.
- A Unix socket refuses at once after `shutdown(SHUT_RD)`, and its queue can still be accepted.
  (On a TCP socket the same call throws the queue away.)

All of this acts on the socket, not on one descriptor: whoever shares it is shut out, too. It is
only for sockets that are ours alone, and only when the whole server stops. Connections accepted
later inherit the filter, which lets everything pass that an established connection receives.
"""

import ctypes
import socket
import struct
import sys
from typing import Final

# SYN without ACK, at byte 13 of the TCP header, where a socket's filter begins to count
# (linux/filter.h: code, jump if true, jump if false, operand).
_DROP_SYN: Final = b"".join(
    struct.pack("=HBBI", *step)
    for step in (
        (0x30, 0, 0, 13),  # ldb [13]
        (0x54, 0, 0, 0x12),  # and #(SYN|ACK)
        (0x15, 0, 1, 0x02),  # jeq #SYN
        (0x06, 0, 0, 0),  # ret #0
        (0x06, 0, 0, 0xFFFF_FFFF),  # ret all of it
    )
)
_STEP_SIZE: Final = 8
_SO_ATTACH_FILTER: Final = 26


def seal(sock: socket.socket) -> None:
    """Let no new connection into the queue of `sock`, whoever shares it; the queue stays.

    Raises OSError.
    """
    if sock.family == socket.AF_UNIX:
        sock.shutdown(socket.SHUT_RD)
        return
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
        # struct sock_fprog, by the machine's own alignment.
        filter_ = struct.pack("HP", len(_DROP_SYN) // _STEP_SIZE, ctypes.addressof(program))
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
            return
        except OSError:
            pass  # a sandbox forbids it: the next best
    sock.listen(0)
