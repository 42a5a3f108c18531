"""When a worker asks to be replaced: by requests, by age, by memory (`recycle.*`).

The worker decides, because it knows, and because nobody need ask it: requests are counted anyway,
its age is one timer, and its memory is measured by itself, while it is awake. It asks once; the
master sees to the rest (`process.replace`). A worker that idles is not woken to be measured, and no
request waits for a measurement: it is taken in the turn after the one that began by a request.
"""

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prefork.event.reactor import NOMORE
from prefork.unix import memory

if TYPE_CHECKING:
    from prefork.config.sections import Recycle
    from prefork.http.server import HttpServer
    from prefork.process.awake import Awake

MEASURE_EVERY: Final = 1.0  # seconds
MEASURE_SHARE: Final = 500  # at most this part of the time is spent on it: a large heap takes long


class Recycler:
    """Calls `ask(reason)` once, when one of the limits of `conf` is reached.

    `dice` gives a number from 0 to 1; `exceeds(limit)` our memory in bytes where it is more.
    """

    def __init__(
        self,
        conf: "Recycle",
        server: "HttpServer",
        awake: "Awake",
        ask: Callable[[str], None],
        *,
        dice: Callable[[], float] = random.random,
        exceeds: Callable[[int], int | None] = memory.exceeds,
    ) -> None:
        self._conf = conf
        self._server = server
        self._reactor = server.reactor
        self._ask = ask
        self._exceeds = exceeds
        self._born = self._reactor.clock()
        self._every = MEASURE_EVERY
        self._asked = False
        # Shorter, not longer: what is configured is the most.
        shorter = 1.0 - conf.jitter * dice()
        if conf.max_requests:
            server.milestone = max(1, round(conf.max_requests * shorter))
            server.on_milestone = self._requests
        if conf.max_age:
            self._reactor.create_time_event(conf.max_age * shorter, self._age)
        if conf.max_memory:
            awake.look(self._look)

    def _requests(self) -> float:
        requests = self._server.requests
        self._want(f"{requests} requests (recycle.max_requests)")
        return math.inf

    def _age(self) -> float:
        age = self._reactor.clock() - self._born
        self._want(f"{age:.0f} s old (recycle.max_age)")
        return NOMORE

    def _look(self) -> float:
        if self._asked:
            return math.inf
        self._reactor.create_time_event(0.0, self._measure)
        return self._reactor.now + self._every

    def _measure(self) -> float:
        clock = self._reactor.clock
        began = clock()
        size = self._exceeds(self._conf.max_memory)
        self._every = max(MEASURE_EVERY, MEASURE_SHARE * (clock() - began))
        if size is not None:
            self._want(
                f"{size / 2**20:.0f} MiB of memory, more than the"
                f" {self._conf.max_memory / 2**20:.0f} MiB of recycle.max_memory"
            )
        return NOMORE

    def _want(self, reason: str) -> None:
        """Ask now, or as soon as we have lived for recycle.min_lifetime."""
        if self._asked:
            return
        self._asked = True
        too_young = self._born + self._conf.min_lifetime - self._reactor.clock()

        def ask() -> float:
            self._ask(reason)
            return NOMORE

        if too_young > 0:
            self._reactor.create_time_event(too_young, ask)
        else:
            ask()
