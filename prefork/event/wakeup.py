"""A signal ends the poll.

By PEP 475 a signal does not interrupt `epoll.poll`: the C handler sets a mark, the call is retried
and the Python handler runs when something else wakes the process. `signal.set_wakeup_fd` is the
cure: the C handler writes a byte to a socket that the reactor watches.

asyncio's `add_signal_handler` replaces the wakeup descriptor by its own. A worker whose application
does that still wakes, because asyncio's own socket lies in the same reactor.
"""

import signal
import socket

from prefork.event.reactor import READABLE, Reactor


class Wakeup:
    """Routes every signal's wake-up byte into `reactor` until closed. Main thread only."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        reactor.create_file_event(self._read.fileno(), READABLE, self._drain)
        # A full socket already means "wake up", so a byte that does not fit is no loss.
        self._before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)

    def _drain(self) -> None:
        try:
            while len(self._read.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        current = signal.set_wakeup_fd(self._before)
        if current != self._write.fileno():
            signal.set_wakeup_fd(current)  # somebody replaced it meanwhile: leave theirs
        self._reactor.delete_file_event(self._read.fileno(), READABLE)
        self._read.close()
        self._write.close()
