"""The master's timers: one heap over the one `ITIMER_REAL` a process has.

The master sleeps in `sigsuspend`, so a timer is an alarm signal: `arm` sets it to the nearest
deadline, or switches it off when there is none, and an idle master is woken by nothing. The
escalation of TERM in the master's cycle sets the same alarm itself, and drops these timers first:
whatever they waited for no longer matters then.
"""

import heapq
import time
from collections.abc import Callable
from itertools import count

from prefork.unix import signals

# An alarm may come a little before the clock says so; zero would switch it off altogether.
_SHORTEST = 0.001


class Timer:
    """A call that is due at `when` (seconds of the clock), until it is cancelled."""

    __slots__ = ("proc", "when")

    def __init__(self, when: float, proc: Callable[[], None]) -> None:
        self.when = when
        self.proc: Callable[[], None] | None = proc

    def cancel(self) -> None:
        """Forget the call. Its place in the heap goes when its moment comes."""
        self.proc = None


class Timers:
    """`after` makes a timer, `arm` before the sleep, `run` after an alarm."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()  # equal moments run in the order they were asked for
        self._armed: float | None = None

    def after(self, delay: float, proc: Callable[[], None]) -> Timer:
        """Call `proc` once, in `delay` seconds."""
        timer = Timer(self.clock() + delay, proc)
        heapq.heappush(self._heap, (timer.when, next(self._order), timer))
        return timer

    def arm(self) -> None:
        """Set the alarm for the nearest timer; a second call for the same moment costs nothing."""
        heap = self._heap
        while heap and heap[0][2].proc is None:
            heapq.heappop(heap)
        nearest = heap[0][0] if heap else None
        if nearest == self._armed:
            return
        self._armed = nearest
        signals.set_alarm(0 if nearest is None else max(nearest - self.clock(), _SHORTEST))

    def run(self) -> None:
        """Call what is due. The alarm was one-shot, so the next `arm` sets it anew."""
        self._armed = None
        now = self.clock()
        heap = self._heap
        due: list[Timer] = []
        # What a call asks for now waits for the next alarm, or a delay of 0 would never end.
        while heap and heap[0][0] <= now:
            due.append(heapq.heappop(heap)[2])
        for timer in due:
            proc, timer.proc = timer.proc, None
            if proc is not None:
                proc()

    def clear(self) -> None:
        """Forget every timer and switch the alarm off."""
        self._heap.clear()
        self._armed = None
        signals.set_alarm(0)
