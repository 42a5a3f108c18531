"""What an application has started on import, and no fork carries along.

A forked process has one thread, whatever its parent had: who waits for another one's work, or for
a lock it held, waits for ever. It shares its parent's connections: two processes that talk over one
socket read each other's answers. It inherits an event loop's epoll descriptor, through which it
would change what its parent waits for. None of that can be repaired afterwards, and all of it
works in a test with one process. So it is looked for once, before a mold's first fork, and named.
"""

import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import Final

_STREAMS: Final = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
LOOKS: Final = 5
LOOK_EVERY: Final = 0.01  # seconds
_LIBRARY: Final = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


class ForkGuard:
    """Made before the import; `hazards` afterwards tells what has come since."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._tasks = {number for number, _ in _native_threads()}
        self._sockets = set(_sockets())

    def hazards(self) -> list[str]:
        """A text each, such as `thread "poller" (/srv/app.py:12)`; empty when it is safe to fork.

        Threads of C libraries are told from Python's by their number, and named by the kernel.
        """
        return [*self._of_threads(), *self._of_sockets(), *_of_loops()]

    def _of_threads(self) -> list[str]:
        found = []
        frames = sys._current_frames()
        known: set[int | None] = {*self._tasks}
        for thread in threading.enumerate():
            known.add(thread.native_id)
            if thread not in self._threads:
                found.append(f'thread "{thread.name}"{_where(frames.get(thread.ident or 0))}')
        foreign: list[str] = []
        for _ in range(LOOKS):
            foreign = [name for number, name in _native_threads() if number not in known]
            if not foreign:
                break
            time.sleep(LOOK_EVERY)  # one that Python has joined is the kernel's for a moment more
        if foreign:
            names = ", ".join(sorted(set(foreign)))
            found.append(
                f"{len(foreign)} thread{'s'[: len(foreign) != 1]} of a C library ({names})"
            )
        return found

    def _of_sockets(self) -> list[str]:
        return [
            f"a connection to {peer} (fd {fd})"
            for (fd, inode), peer in _sockets().items()
            if (fd, inode) not in self._sockets
        ]


def warning(hazards: Iterable[str], subject: str = "preload: not safe to fork") -> str:
    """The one line of the error log."""
    return (
        f"{subject}: {'; '.join(hazards)}. Workers do not get threads, and must not"
        " share connections or loops: make them in an on_startup hook, which runs in each worker"
    )


def _where(frame: FrameType | None) -> str:
    """` (file:line)` of the innermost frame that is not the standard library's, if there is one."""
    innermost = frame
    while frame is not None and _of_library(frame.f_code.co_filename):
        frame = frame.f_back
    frame = frame or innermost
    return "" if frame is None else f" ({frame.f_code.co_filename}:{frame.f_lineno})"


def _of_library(filename: str) -> bool:
    return filename.startswith(_LIBRARY) and "site-packages" not in filename


def _native_threads() -> list[tuple[int, str]]:
    """(the kernel's number, its name) of each thread we have; empty where /proc does not say."""
    found = []
    try:
        for number in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{number}/comm") as file:
                found.append((int(number), file.read().strip()))
    except OSError:
        pass  # not Linux, or one has just ended
    return found


def _sockets() -> dict[tuple[int, int], str]:
    """(descriptor, inode) of each connected stream socket, and its peer.

    By descriptor, not by Python object: a driver in C holds its connection itself. Ends of socket
    pairs have no name, and datagrams may be shared.
    """
    found = {}
    try:
        descriptors = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return {}
    for fd in descriptors:
        try:
            status = os.fstat(fd)
            if not stat.S_ISSOCK(status.st_mode):
                continue
            sock = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue  # the one this list was read by
        with sock:
            try:
                if sock.type in _STREAMS:
                    peer = sock.getpeername()
                    if peer:
                        found[fd, status.st_ino] = _address(peer)
            except OSError:
                pass  # not connected: it may listen
    return found


def _address(peer: object) -> str:
    if isinstance(peer, tuple):
        host, port = peer[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(peer, bytes):
        return f"unix:@{peer[1:].decode(errors='replace')}"
    return f"unix:{peer}"


def _of_loops() -> list[str]:
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return []
    import gc

    found = []
    for one in gc.get_objects():
        # By type(): a lazy proxy answers isinstance() by doing what it is lazy about.
        if issubclass(type(one), asyncio.AbstractEventLoop) and not one.is_closed():
            state = "runs" if one.is_running() else "is not closed"
            found.append(f"an event loop that {state} ({type(one).__module__})")
    return found
