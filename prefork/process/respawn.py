"""How long a dead worker's slot stays empty.

A worker that served and then died comes back at once. One that dies again and again, or cannot
even boot, comes back after 1, 2, 4, ... seconds, so that a broken application neither spins the
machine nor fills the log, and its healthy neighbours are left alone. A worker that lived long
enough has its past forgotten.
"""

from typing import Final

FIRST: Final = 1.0
LONGEST: Final = 60.0
FORGET_AFTER: Final = 60.0


class Backoff:
    """The delays of one slot."""

    __slots__ = ("deaths",)

    def __init__(self) -> None:
        self.deaths = 0

    def delay(self, *, was_ready: bool, uptime: float) -> float:
        """Seconds to wait after a death now; `uptime` is the dead worker's, in seconds."""
        if was_ready and uptime >= FORGET_AFTER:
            self.deaths = 0
        self.deaths += 1
        # The first death of a worker that did serve may be an accident: no need to punish it.
        steps = self.deaths - 2 if was_ready else self.deaths - 1
        if steps < 0:
            return 0.0
        return float(min(LONGEST, FIRST * 2.0 ** min(steps, 16)))
