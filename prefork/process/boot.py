"""A batch of workers that boot together, and what follows.

The first start, a reload and a step up in scale all wait for the same thing: that their workers
say READY, or die before they do. They differ in what a death means. A reload is over at the first;
the first start only when every worker has died, for one that serves is better than none.
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
        self.waiting = set(rows)
        self.tolerant = tolerant
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._any_ready = False
        self.decided = False

    def ready(self, row: ProcessSlot) -> None:
        """A worker has said READY."""
        if row in self.waiting and not self.decided:
            self.waiting.discard(row)
            self._any_ready = True
            if not self.waiting:
                self.decided = True
                self._on_ready()

    def failed(self, row: ProcessSlot, reason: str) -> None:
        """A worker has died before it was ready."""
        if row not in self.waiting or self.decided:
            return
        self.waiting.discard(row)
        if not self.tolerant or (not self.waiting and not self._any_ready):
            self.decided = True
            self._on_failed(row, reason)
        elif not self.waiting:
            self.decided = True
            self._on_ready()

    def abandon(self) -> None:
        """Nobody waits any longer."""
        self.decided = True
        self.waiting.clear()
