"""Room for one more generation (`reload.generations`).

A generation that was replaced lives on until its last request has ended, and whoever reloads often
collects them: each with all its workers and their memory. So there is a bound. A reload that would
exceed it has the oldest generation leave first. That one is not cut off at once: what ends soon
may end, and an idle connection is closed in the time that is safe for its client
(`timeouts.keep_alive_min`). What goes on after that is cancelled and closed by the worker itself,
then comes TERM, then KILL.
"""

import time
from typing import TYPE_CHECKING, Final

from prefork.process.cycle import Cycle
from prefork.process.table import ProcessSlot
from prefork.process.workers import HURRY_MARGIN, LAST_GRACE

if TYPE_CHECKING:
    from prefork.process.master import Master

MERCY: Final = 1.0  # seconds, beside keep_alive_min, for what is almost done


class Room:
    """Of one reload, which asks `wanting` again whenever a worker has left."""

    def __init__(self, master: "Master", bound: int) -> None:
        """`bound`: how many generations may be alive at once, the new one among them."""
        self._master = master
        self._bound = bound
        self._pressed: set[Cycle] = set()
        self.seconds = 0.0
        """How long it may take until there is room, from the last `wanting` that found none."""

    def wanting(self) -> str:
        """Which generations have to leave first, and with what; "" when there is room."""
        alive: dict[Cycle, list[ProcessSlot]] = {}
        for row in sorted(self._master.table.living(), key=lambda row: row.started):
            if row.cycle is not None:
                alive.setdefault(row.cycle, []).append(row)
        excess = len(alive) + 1 - self._bound
        leaving = [cycle for cycle in alive if cycle is not self._master.cycle][: max(excess, 0)]
        for cycle in leaving:
            if cycle not in self._pressed:
                self._pressed.add(cycle)
                self._press(cycle, alive[cycle])
        return "; ".join(
            f"generation {cycle.generation} leaves first: {self._work(alive[cycle])}"
            for cycle in leaving
        )

    def _press(self, cycle: Cycle, rows: list[ProcessSlot]) -> None:
        seconds = cycle.conf.timeouts.keep_alive_min + MERCY
        self.seconds = max(self.seconds, seconds + HURRY_MARGIN + LAST_GRACE)
        self._master.cycle.error_log.warn(
            f"generation {cycle.generation} makes room for a new one (reload.generations:"
            f" {self._bound}) and is ended in {seconds:g} s: {self._work(rows)}"
        )
        for row in rows:
            self._master.workers.hurry(row, seconds)

    def _work(self, rows: list[ProcessSlot]) -> str:
        """`worker 1 (pid 7) with 1 connection, GET /export for 12.3 s`."""
        return ", ".join(self._work_of(row) for row in rows)

    def _work_of(self, row: ProcessSlot) -> str:
        slot = self._master.board.slot(row.index)
        left = slot.connections
        text = f"{row.name} (pid {row.pid}) with {left} connection{'s'[: left != 1]}"
        began, line = 0.0, ""
        since = slot.oldest_since_ns  # 0 without one, and it may be over at any moment
        if since:
            began, line = since / 1e9, slot.oldest_line
        elif slot.busy_since_ns:  # one that has not let its worker sleep since it began
            began, line = next(iter(slot.recent()), (began, line))
        if line:
            text += f', "{line}" for {max(time.monotonic() - began, 0.0):.1f} s'
        return text
