"""When a request entered and left each layer."""

import functools
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefork import Context, Next

Layer = Callable[[Any, Next], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One crossing: the time spent in `ring` itself, on the way `in`, at the `core` or `out`."""

    ring: str
    way: str
    microseconds: float


class Trace:
    """Marks in the order they happened; what lies between two of them is the work of one ring."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, bool, int]] = []  # ring, entered (or left), nanoseconds

    @contextmanager
    def ring(self, name: str) -> Iterator[None]:
        self._marks.append((name, True, time.perf_counter_ns()))
        try:
            yield
        finally:
            self._marks.append((name, False, time.perf_counter_ns()))

    def steps(self) -> list[Step]:
        """Inwards, the core, outwards.

        From one entry to the next the outer ring was at work; from one exit to the next, again the
        outer one, on its way out; from an entry to the exit of the same ring, the core.
        """
        found = []
        for (ring, entered, at), (after, enters, then) in zip(
            self._marks, self._marks[1:], strict=False
        ):
            if entered:
                step = Step(
                    ring=ring, way="in" if enters else "core", microseconds=(then - at) / 1000
                )
            else:
                step = Step(ring=after, way="out", microseconds=(then - at) / 1000)
            found.append(step)
        return found


def watched(layer: Layer) -> Layer:
    """`layer`, which marks its entry and exit when the request carries a trace."""

    @functools.wraps(layer)
    async def around(ctx: Context, next: Next) -> None:
        trace: Trace | None = ctx.state.get("trace")
        if trace is None:
            await layer(ctx, next)
            return
        with trace.ring(layer.__name__):
            await layer(ctx, next)

    return around
