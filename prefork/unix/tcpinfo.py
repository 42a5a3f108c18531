"""How many connections wait to be accepted, and how many may.

TCP_INFO tells it of a listening socket one holds (`tcpi_unacked`, `tcpi_sacked`). A control command
holds none of the server's, and to take one (pidfd_getfd) needs the right to trace the master. The
kernel also tells it of every socket to anyone: sock_diag(7), which is what `ss -l` asks. One dump
of the sockets that listen per family, however many connections there are, and no right needed.

A socket is known by the inode number of its descriptor (`os.fstat(fd).st_ino`), which is the
machine's own and not given twice at a time. A socket of another network namespace is not in the
dump: nothing is known of it. Nor is anything where there is no sock_diag (a kernel without the
module, a container's seccomp filter, another system).
"""

import contextlib
import socket
import struct
from collections.abc import Callable, Container, Iterator
from typing import Final, NamedTuple

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_STATE_LISTEN: Final = 1 << 10  # TCP_LISTEN, which UNIX sockets borrow
_UDIAG_SHOW_RQLEN: Final = 0x10
_UNIX_DIAG_RQLEN: Final = 4
_PATIENCE: Final = 0.05  # seconds; the kernel answers at once or not at all

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_INET_MSG: Final = struct.Struct("=4x48x4xIIII")  # ... idiag_rqueue, wqueue, uid, inode
_UNIX_MSG: Final = struct.Struct("=4xI8x")  # udiag_ino, between family and cookie
_ATTRIBUTE: Final = struct.Struct("=HH")
_PAIR: Final = struct.Struct("=II")


class AcceptQueue(NamedTuple):
    """Connections that are made and wait for accept(); how many may, before the next ones fail."""

    waiting: int
    limit: int


def accept_queues(inodes: Container[int]) -> dict[int, AcceptQueue]:
    """The queues of the listening sockets with these inode numbers; of those that can be found."""
    found: dict[int, AcceptQueue] = {}
    if not hasattr(socket, "AF_NETLINK"):
        return found
    inet = struct.pack("=xBxxI48x", socket.IPPROTO_TCP, _STATE_LISTEN)
    unix = struct.pack("=xxxxIIIII", _STATE_LISTEN, 0, _UDIAG_SHOW_RQLEN, 0, 0)
    for family, request, read in (
        (socket.AF_INET, inet, _read_inet),
        (socket.AF_INET6, inet, _read_inet),
        (socket.AF_UNIX, unix, _read_unix),
    ):
        with contextlib.suppress(OSError):
            for inode, queue in _dump(bytes((family,)) + request[1:], read):
                if inode in inodes:
                    found[inode] = queue
    return found


def _dump(
    request: bytes, read: Callable[[memoryview], tuple[int, AcceptQueue] | None]
) -> Iterator[tuple[int, AcceptQueue]]:
    """Every answer to one question. Ends early when the kernel refuses it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_PATIENCE)
        length = _HEADER.size + len(request)
        sock.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + request)
        while True:
            data = memoryview(sock.recv(65536))
            while len(data) >= _HEADER.size:
                length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
                    return
                row = read(data[_HEADER.size : length])
                if row is not None:
                    yield row
                data = data[(length + 3) & ~3 :]


def _read_inet(data: memoryview) -> tuple[int, AcceptQueue] | None:
    """struct inet_diag_msg: for a socket that listens, the two queues are the backlogs."""
    waiting, limit, _uid, inode = _INET_MSG.unpack_from(data)
    return inode, AcceptQueue(waiting, limit)


def _read_unix(data: memoryview) -> tuple[int, AcceptQueue] | None:
    """struct unix_diag_msg, then attributes, of which UNIX_DIAG_RQLEN has the queue."""
    (inode,) = _UNIX_MSG.unpack_from(data)
    data = data[_UNIX_MSG.size :]
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return None
        if kind == _UNIX_DIAG_RQLEN:
            return inode, AcceptQueue(*_PAIR.unpack_from(data, _ATTRIBUTE.size))
        data = data[(length + 3) & ~3 :]
    return None
