"""A batch of workers that boot together, and what follows.

The first start, a reload and a step up in scale all wait for the same thing: that their workers
say READY, or die before all of them do. They differ in what a death means. A reload is over at the
first; the first start only when every worker has died, for one that serves is better than none.
"""

from collections.abc import Callable, Iterable

from prefork.process.table import ProcessSlot


class Boot:
    """Tells `on_ready()` or `on_failed(row, reason)`, once, whichever is decided first."""

    def __init__(
        self,
        rows: Iterable[ProcessSlot],
        *,
        on_ready: Callable[[], None],
        on_failed: Callable[[ProcessSlot, str], None],
        tolerant: bool = False,
    ) -> None:
        self._waiting = set(rows)
        self._ready: set[ProcessSlot] = set()
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._tolerant = tolerant
        self.decided = False

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
            self._look(row, reason)

    def abandon(self) -> None:
        """Nobody waits any longer."""
        self.decided = True

    def _look(self, row: ProcessSlot, reason: str) -> None:
        if self._waiting:
            return
        if self._ready:
            self._decide(self._on_ready)
        else:
            self._decide(lambda: self._on_failed(row, reason))

    def _decide(self, tell: Callable[[], None]) -> None:
        if not self.decided:
            self.decided = True
            tell()
