"""What the reactor asks of the kernel: which of these descriptors can be read or written now.

One `Poller`, three answers, after Redis's `ae_epoll.c`, `ae_kqueue.c` and `ae_select.c`. What to
watch for is said in the reactor's own masks (`READABLE`, `WRITABLE`). The answer of `poll` keeps
the kernel's bits, because it is looked at once for each event: `read_bits` and `write_bits` say
which of them concern a reader and a writer.

Facts about epoll that decided this module:
- An fd added with EPOLLEXCLUSIVE cannot be modified (EINVAL): it is deleted and added again.
- HUP and ERR are reported whatever was asked for. They concern reader and writer alike, as in
  Redis: whoever waits learns of it from the error of its next call.
- Closing an fd removes it from the set only when no other descriptor refers to the same open
  file, and a fork makes such descriptors. So an fd is always deleted before it is closed.
"""

import select
import sys
from typing import Final, Protocol

READABLE: Final = 1
WRITABLE: Final = 2

Event = tuple[int, int]


class Poller(Protocol):
    """A kernel multiplexer. `poll` takes seconds (None: for ever), returns (fd, bits) pairs."""

    name: str
    read_bits: int
    write_bits: int

    def add(self, fd: int, mask: int, *, exclusive: bool = False) -> None: ...
    def modify(self, fd: int, mask: int) -> None: ...
    def remove(self, fd: int) -> None: ...
    def poll(self, timeout: float | None) -> list[Event]: ...
    def close(self) -> None: ...


if sys.platform == "linux":

    class EpollPoller:
        """epoll(7), level-triggered."""

        name = "epoll"
        read_bits = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
        write_bits = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR

        def __init__(self, max_events: int = 512) -> None:
            self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
            self._max_events = max_events

        def add(self, fd: int, mask: int, *, exclusive: bool = False) -> None:
            events = _TO_EPOLL[mask]
            self._epoll.register(fd, events | select.EPOLLEXCLUSIVE if exclusive else events)

        def modify(self, fd: int, mask: int) -> None:
            self._epoll.modify(fd, _TO_EPOLL[mask])

        def remove(self, fd: int) -> None:
            self._epoll.unregister(fd)

        def poll(self, timeout: float | None) -> list[Event]:
            return self._epoll.poll(timeout, self._max_events)

        def close(self) -> None:
            self._epoll.close()

    _TO_EPOLL: Final = {
        READABLE: select.EPOLLIN,
        WRITABLE: select.EPOLLOUT,
        READABLE | WRITABLE: select.EPOLLIN | select.EPOLLOUT,
    }


class PollPoller:
    """poll(2): everywhere, and good for few descriptors."""

    name = "poll"
    read_bits = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL
    write_bits = select.POLLOUT | select.POLLHUP | select.POLLERR | select.POLLNVAL

    def __init__(self) -> None:
        self._poll = select.poll()

    def add(self, fd: int, mask: int, *, exclusive: bool = False) -> None:  # noqa: ARG002
        # poll(2) has no exclusive wake-up; every waiter wakes and one wins the accept.
        self._poll.register(fd, _TO_POLL[mask])

    def modify(self, fd: int, mask: int) -> None:
        self._poll.modify(fd, _TO_POLL[mask])

    def remove(self, fd: int) -> None:
        self._poll.unregister(fd)

    def poll(self, timeout: float | None) -> list[Event]:
        # poll(2) counts milliseconds: rounding up keeps a timer from firing early and spinning.
        milliseconds = None if timeout is None else int(timeout * 1000 + 0.999)
        return self._poll.poll(milliseconds)

    def close(self) -> None:
        pass


_TO_POLL: Final = {
    READABLE: select.POLLIN,
    WRITABLE: select.POLLOUT,
    READABLE | WRITABLE: select.POLLIN | select.POLLOUT,
}


if sys.platform != "linux":

    class KqueuePoller:
        """kqueue(2): one filter for each direction."""

        name = "kqueue"
        read_bits = READABLE
        write_bits = WRITABLE

        def __init__(self, max_events: int = 512) -> None:
            self._kqueue = select.kqueue()
            self._masks: dict[int, int] = {}
            self._max_events = max_events

        def add(self, fd: int, mask: int, *, exclusive: bool = False) -> None:  # noqa: ARG002
            self._masks[fd] = 0
            self.modify(fd, mask)

        def modify(self, fd: int, mask: int) -> None:
            before = self._masks[fd]
            changes = []
            for bit, kind in (
                (READABLE, select.KQ_FILTER_READ),
                (WRITABLE, select.KQ_FILTER_WRITE),
            ):
                if mask & bit and not before & bit:
                    changes.append(select.kevent(fd, kind, select.KQ_EV_ADD))
                elif before & bit and not mask & bit:
                    changes.append(select.kevent(fd, kind, select.KQ_EV_DELETE))
            if changes:
                self._kqueue.control(changes, 0, 0)
            self._masks[fd] = mask

        def remove(self, fd: int) -> None:
            self.modify(fd, 0)
            del self._masks[fd]

        def poll(self, timeout: float | None) -> list[Event]:
            found: dict[int, int] = {}
            for event in self._kqueue.control(None, self._max_events, timeout):
                mask = READABLE if event.filter == select.KQ_FILTER_READ else WRITABLE
                found[event.ident] = found.get(event.ident, 0) | mask
            return list(found.items())

        def close(self) -> None:
            self._kqueue.close()

    def best_poller() -> Poller:
        """The poller this kernel serves best."""
        return KqueuePoller() if hasattr(select, "kqueue") else PollPoller()

else:

    def best_poller() -> Poller:
        """The poller this kernel serves best."""
        return EpollPoller()
