"""The one place where a worker sleeps, after Redis's `ae.c`.

Everything that can happen to a worker is a file event (a descriptor can be read or written) or a
time event (a moment has come). `process_events` is one turn:

    before_sleep hooks -> poll -> after_sleep hooks -> file events -> time events

- File events come before time events (`ae.c, aeProcessEvents`), so that a deadline never beats
  the bytes that would have met it.
- A time event's proc returns its own next delay, or `NOMORE` (`ae.c, processTimeEvents`).
- `now` is read once, on waking, and stands still for the turn: two procs of one turn agree on the
  time, and a handler that blocks for seconds does not expire its neighbours' deadlines before
  they had a turn to be served.
- An exception that escapes a proc or a hook goes to `on_error` and no further: one broken
  connection must not end the loop that carries all the others.
"""

import heapq
import sys
import time
import traceback
from collections.abc import Callable
from itertools import count
from typing import Final

from prefork.event.poller import READABLE, WRITABLE, Poller, best_poller

__all__ = ["NOMORE", "READABLE", "WRITABLE", "FileEvent", "Reactor", "TimeEvent"]

NOMORE: Final = -1.0

FileProc = Callable[[], None]
TimeProc = Callable[[], float]


class FileEvent:
    """What is watched on one descriptor, and who is told."""

    __slots__ = ("exclusive", "mask", "read", "write")

    def __init__(self) -> None:
        self.mask = 0
        self.read: FileProc | None = None
        self.write: FileProc | None = None
        self.exclusive = False


class TimeEvent:
    """A proc that is due at `when`, in seconds of the reactor's clock."""

    __slots__ = ("proc", "when")

    def __init__(self, when: float, proc: TimeProc) -> None:
        self.when = when
        self.proc: TimeProc | None = proc


def _print_error(error: BaseException, where: str) -> None:
    print(f"prefork: exception in {where}", file=sys.stderr)
    traceback.print_exception(error)


class Reactor:
    """An event loop: `create_file_event`, `create_time_event`, `process_events`."""

    def __init__(
        self, poller: Poller | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.poller = poller or best_poller()
        self.clock = clock
        self.now = clock()
        self.before_sleep: list[Callable[[], None]] = []
        self.after_sleep: list[Callable[[], None]] = []
        self.on_error: Callable[[BaseException, str], None] = _print_error
        self._read_bits = self.poller.read_bits
        self._write_bits = self.poller.write_bits
        self._files: dict[int, FileEvent] = {}
        self._timers: list[tuple[float, int, TimeEvent]] = []
        self._order = count()  # equal moments fire in the order they were asked for

    def create_file_event(
        self, fd: int, mask: int, proc: FileProc, *, exclusive: bool = False
    ) -> None:
        """Call `proc` whenever `fd` can be read or written, by `mask`, until deleted.

        `exclusive` wakes one of several processes that watch the same socket instead of all
        (EPOLLEXCLUSIVE); it is for READABLE on a listening socket and cannot be combined.
        """
        event = self._files.get(fd)
        if event is None:
            event = FileEvent()
            self.poller.add(fd, mask, exclusive=exclusive)
            event.mask = mask
            event.exclusive = exclusive
            self._files[fd] = event
        elif event.mask | mask != event.mask:
            self.poller.modify(fd, event.mask | mask)
            event.mask |= mask
        if mask & READABLE:
            event.read = proc
        if mask & WRITABLE:
            event.write = proc

    def delete_file_event(self, fd: int, mask: int) -> None:
        """Stop watching `fd` for `mask`; nothing happens where it was not watched."""
        event = self._files.get(fd)
        if event is None:
            return
        left = event.mask & ~mask
        if left == event.mask:
            return
        if mask & READABLE:
            event.read = None
        if mask & WRITABLE:
            event.write = None
        event.mask = left
        if left:
            self.poller.modify(fd, left)
        else:
            del self._files[fd]
            self.poller.remove(fd)

    def watched(self, fd: int) -> int:
        """The mask that `fd` is watched for, 0 where it is not."""
        event = self._files.get(fd)
        return 0 if event is None else event.mask

    def create_time_event(self, delay: float, proc: TimeProc) -> TimeEvent:
        """Call `proc` in `delay` seconds; it returns the next delay, or `NOMORE`."""
        event = TimeEvent(self.clock() + delay, proc)
        heapq.heappush(self._timers, (event.when, next(self._order), event))
        return event

    def delete_time_event(self, event: TimeEvent) -> None:
        """Forget `event`, fired or not. Its place in the heap goes when its moment comes."""
        event.proc = None

    def process_events(self, timeout: float | None = None) -> int:
        """One turn: sleep at most `timeout` seconds (None: until something happens).

        Returns how many file and time events were served.
        """
        self.run_hooks(self.before_sleep)
        return self.wait(timeout)

    def run_hooks(self, hooks: list[Callable[[], None]]) -> None:
        for hook in hooks:
            try:
                hook()
            except Exception as error:
                self.on_error(error, "a sleep hook")

    def wait(self, timeout: float | None) -> int:
        """The turn without its `before_sleep`, for a loop that must look between the two."""
        timers = self._timers
        while timers and timers[0][2].proc is None:
            heapq.heappop(timers)
        if timers and timeout != 0:
            until = timers[0][0] - self.clock()
            if until < 0.0:
                until = 0.0
            if timeout is None or until < timeout:
                timeout = until
        events = self.poller.poll(timeout)
        self.now = self.clock()
        for hook in self.after_sleep:
            try:
                hook()
            except Exception as error:
                self.on_error(error, "a sleep hook")
        served = len(events)
        files = self._files
        read_bits, write_bits = self._read_bits, self._write_bits
        for fd, bits in events:
            # A proc of this turn may have deleted the event, so each is looked up when due.
            try:
                event = files[fd]
            except KeyError:
                continue
            try:
                if bits & read_bits and event.read is not None:
                    event.read()
                if bits & write_bits and event.write is not None:
                    event.write()
            except Exception as error:
                self.on_error(error, f"the file event of fd {fd}")
        if timers and timers[0][0] <= self.now:
            served += self._process_time_events()
        return served

    def _process_time_events(self) -> int:
        timers = self._timers
        now = self.now
        due: list[TimeEvent] = []
        # What a proc creates now waits for the next turn, or a delay of 0 would never end.
        while timers and timers[0][0] <= now:
            due.append(heapq.heappop(timers)[2])
        for event in due:
            proc = event.proc
            if proc is None:
                continue
            try:
                delay = proc()
            except Exception as error:
                self.on_error(error, "a time event")
                delay = NOMORE
            if delay >= 0.0 and event.proc is not None:
                event.when = self.clock() + delay
                heapq.heappush(timers, (event.when, next(self._order), event))
            else:
                event.proc = None
        return len(due)

    def close(self) -> None:
        """Give the poller's descriptor back. Safe in a forked child: nothing is unregistered."""
        self._files.clear()
        self._timers.clear()
        self.poller.close()
