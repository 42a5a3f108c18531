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

    __slots__ = ("forgiven", "waits")

    def __init__(self) -> None:
        self.forgiven = False
        self.waits = 0

    def delay(self, *, was_ready: bool, uptime: float) -> float:
        """Seconds to wait after a death now; `uptime` is the dead worker's, in seconds."""
        if was_ready and uptime >= FORGET_AFTER:
            self.forgiven = False
            self.waits = 0
        if was_ready and not self.forgiven:
            # The first death of a worker that did serve may be an accident.
            self.forgiven = True
            return 0.0
        wait = float(min(LONGEST, FIRST * 2.0 ** min(self.waits, 16)))
        self.waits += 1
        return wait
