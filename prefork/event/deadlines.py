"""One timeout for many: deadlines of the same length in the order in which they end.

A timer for each request would cost more than the request. All deadlines of one kind have the same
length, so the order in which they were set is the order in which they end, and a dict keeps just
that order: to set one is to move its key to the end (about 50 ns), and one time event looks at
the front.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from prefork.event.reactor import NOMORE, Reactor, TimeEvent

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls `on_expired(item)` when `item` was touched `timeout` seconds ago and not since.

    An item is kept once, whatever it was touched with; `on_expired` may touch it again. Nothing
    is armed while nothing is kept, so an idle process is not woken.
    """

    __slots__ = ("_on_expired", "_reactor", "armed", "since", "timeout")

    def __init__(self, reactor: Reactor, timeout: float, on_expired: Callable[[T], None]) -> None:
        self.timeout = timeout
        self._reactor = reactor
        self._on_expired = on_expired
        self.since: dict[T, float] = {}
        self.armed: TimeEvent | None = None

    def __len__(self) -> int:
        return len(self.since)

    def __contains__(self, item: T) -> bool:
        return item in self.since

    def touch(self, item: T) -> None:
        """The time of `item` starts now. (`H1Protocol.exchange_finished` has this written out.)"""
        since = self.since
        try:
            del since[item]
        except KeyError:
            pass
        since[item] = self._reactor.now
        if self.armed is None:
            self.arm(self.timeout)

    def discard(self, item: T) -> None:
        """`item` has no deadline of this kind any more."""
        self.since.pop(item, None)

    def discard_due(self) -> None:
        """Forget the items whose time is over by now, and tell nobody."""
        since = self.since
        while since:
            item, started = next(iter(since.items()))
            if started + self.timeout > self._reactor.now:
                break
            del since[item]

    def shorten(self, timeout: float) -> None:
        """From now on the time is `timeout`, also for those whose time runs already."""
        if timeout < self.timeout:
            self.timeout = timeout
            if self.armed is not None:
                self._reactor.delete_time_event(self.armed)
                self.armed = None
            if self.since:
                self.arm(max(0.0, next(iter(self.since.values())) + timeout - self._reactor.now))

    def arm(self, delay: float) -> None:
        self.armed = self._reactor.create_time_event(delay, self._sweep)

    def _sweep(self) -> float:
        since = self.since
        while since:
            item, started = next(iter(since.items()))
            left = started + self.timeout - self._reactor.now
            if left > 0.0:
                return left
            del since[item]
            try:
                self._on_expired(item)
            except Exception as error:
                # Let out of here, it would disarm the deadlines of all the others for good.
                self._reactor.on_error(error, "a deadline")
        self.armed = None
        return NOMORE
