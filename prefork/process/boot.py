"""Workers that boot, and what follows.

The first start, a reload and a step up in scale all wait for the same thing: that their workers
say READY, or die before all of them do. They differ in what a death means. A reload is over at the
first; the first start only when every worker has died, for one that serves is better than none.

They differ in the pace, too. The first start boots all at once, there is nobody to disturb; a
reload sends one ahead and the others after it a few at a time, and takes them in with `add`.
"""

from collections.abc import Callable, Iterable

from prefork.process.table import ProcessSlot


class Boot:
    """Tells `on_ready()` or `on_failed(row, reason)`, once, whichever is decided first.

    `expected` is how many workers it takes, where they are not all in `rows` yet; `on_step()` is
    told whenever one of them is ready and others are still to come.
    """

    def __init__(
        self,
        rows: Iterable[ProcessSlot],
        *,
        on_ready: Callable[[], None],
        on_failed: Callable[[ProcessSlot, str], None],
        tolerant: bool = False,
        expected: int = 0,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self._waiting = set(rows)
        self._ready: set[ProcessSlot] = set()
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._on_step = on_step
        self._tolerant = tolerant
        self._expected = max(expected, len(self._waiting))
        self._afterwards: list[Callable[[], None]] = []
        self.decided = False

    @property
    def ready_count(self) -> int:
        """How many are ready."""
        return len(self._ready)

    @property
    def booting_count(self) -> int:
        """How many have been started and are not ready."""
        return len(self._waiting)

    @property
    def missing_count(self) -> int:
        """How many have not even been started."""
        return self._expected - len(self._waiting) - len(self._ready)

    def add(self, row: ProcessSlot) -> None:
        """One of the expected has been started."""
        self._waiting.add(row)

    def ready(self, row: ProcessSlot) -> None:
        """A worker has said READY."""
        if row in self._waiting:
            self._waiting.discard(row)
            self._ready.add(row)
            self._look(row, "")

    def died(self, row: ProcessSlot, reason: str) -> None:
        """A worker has died, before it was ready or after."""
        if row in self._waiting or row in self._ready:
            self._waiting.discard(row)
            self._ready.discard(row)
            if not self._tolerant:
                self._decide(lambda: self._on_failed(row, reason))
            else:
                self._expected -= 1
            self._look(row, reason)

    def postpone(self, proc: Callable[[], None]) -> bool:
        """Keep what is to be done for a dead worker until it is known that the others live.

        Then `proc` is called, and never when they all die: nobody comes back to a server that
        gives up. False, and nothing is kept, where a death decides.
        """
        if self.decided or not self._tolerant:
            return False
        self._afterwards.append(proc)
        return True

    def abandon(self) -> None:
        """Nobody waits any longer."""
        self.decided = True
        self._afterwards.clear()

    def _look(self, row: ProcessSlot, reason: str) -> None:
        if self.decided:
            return
        if self._waiting or self.missing_count > 0:
            if self._on_step is not None and not reason:
                self._on_step()
        elif self._ready:
            self._decide(self._on_ready)
            for proc in self._afterwards:
                proc()
        else:
            self._decide(lambda: self._on_failed(row, reason))

    def _decide(self, tell: Callable[[], None]) -> None:
        if not self.decided:
            self.decided = True
            tell()
