"""How long a dead worker's slot stays empty (`backoff.*`).

A worker that served and then died comes back at once. One that dies again and again, or cannot
even boot, comes back after 1, 2, 4, ... seconds, so that a broken application neither spins the
machine nor fills the log, and its healthy neighbours are left alone. A worker that lived long
enough has its past forgotten. Each wait is a little shorter than its step: workers that die of one
cause, a database that is gone, shall not all come back in the same moment, and again in the next.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prefork.config.sections import Backoff as BackoffConfig

JITTER: Final = 0.2  # of a wait, by which it may be shorter


class Backoff:
    """The delays of one slot; `crashes` is how many deaths in a row are not forgotten."""

    __slots__ = ("_dice", "_forgiven", "_waits", "crashes")

    def __init__(self, dice: Callable[[], float] = random.random) -> None:
        """`dice` gives a number from 0 to 1."""
        self.crashes = 0
        self._dice = dice
        self._forgiven = False
        self._waits = 0

    def forget(self) -> None:
        """The worker has lived long enough."""
        self._forgiven = False
        self.crashes = self._waits = 0

    def delay(
        self, conf: "BackoffConfig", *, was_ready: bool, uptime: float, well: bool = False
    ) -> float:
        """Seconds to wait after a death now; `uptime` is the dead worker's, in seconds.

        `well`: it served, and has left with exit code 0, which is nobody's crash.
        """
        if was_ready and uptime >= conf.forget_after:
            self.forget()
        if well:
            return 0.0
        self.crashes += 1
        if was_ready and not self._forgiven:
            # The first death of a worker that did serve may be an accident.
            self._forgiven = True
            return 0.0
        wait = min(conf.longest, conf.first * 2.0 ** min(self._waits, 30))
        self._waits += 1
        return wait * (1.0 - JITTER * self._dice())
