"""The next mold is made of a worker that has served for a while (`refork_after`).

What an application caches as it serves is private to each worker, and grows by as many times. A
fork from a warmed worker shares it. pitchfork's lesson is kept: a mold never serves. So the worker
leaves its requests as if it were recycled, when another one has taken its place; it runs its
shutdown hooks, closes its loop and joins its threads. Only then is it a mold, and the other workers
are replaced by its children, one at a time, each READY before its predecessor gets QUIT. The mold
there was leaves when the last of them has been replaced.

Until then it is there to go back to: whatever fails, fails to the state before. And it is not tried
again in this generation, or every worker in turn would be drained for nothing.
"""

from typing import TYPE_CHECKING

from prefork.process.cycle import Cycle
from prefork.process.table import NO_SLOT, ProcessSlot

if TYPE_CHECKING:
    from prefork.process.master import Master


class Refork:
    """The master's side; `step` is to be called after whatever has happened."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        # A worker's row, its pid, and its cycle.
        self._candidate: tuple[ProcessSlot, int, Cycle] | None = None
        self._mold: ProcessSlot | None = None  # the new one, until all come from it
        self._left: list[tuple[ProcessSlot, int]] = []  # who does not yet
        self._given_up: Cycle | None = None

    def offered(self, row: ProcessSlot) -> None:
        """A worker has served enough."""
        master, cycle = self._master, row.cycle
        busy = self._candidate is not None or self._mold is not None
        if busy or cycle is None or cycle is self._given_up or cycle is not master.cycle:
            return
        if row.exiting or row.mold is None or row.mold is not master.workers.molds.ready(cycle):
            return
        self._candidate = (row, row.pid, cycle)
        row.promoted = True
        master.replacements.ask(row, "it becomes the next mold (refork_after)")

    def promoted(self, row: ProcessSlot) -> None:
        """It has left all that a worker is."""
        master, cycle = self._master, row.cycle
        molds = master.workers.molds
        assert cycle is not None
        asked = self._candidate is not None and self._candidate[:2] == (row, row.pid)
        wanted = asked and cycle is master.cycle and not master.ending
        before = molds.ready(cycle)
        mold = ProcessSlot(
            NO_SLOT,
            pid=row.pid,
            name=f"mold of generation {cycle.generation}",
            cycle=cycle,
            channel=row.channel,
            ready=True,
            started=row.started,
            refork=1 if before is None else before.refork + 1,
        )
        name = row.name
        row.channel = None
        master.watchdog.forget(row)
        master.workers.forget(row)
        molds.add(mold)
        if not wanted:
            molds.end(mold)
            return
        self._candidate = None
        self._mold = mold
        self._left = [
            (one, one.pid)
            for one in master.table.workers()
            if one.cycle is cycle and one.living and not one.exiting
        ]
        master.cycle.error_log.notice(
            f"{name} {mold.pid} is the {mold.name} now: {len(self._left)} workers are forked again"
        )
        for one, _pid in self._left:
            master.replacements.ask(one, "it is forked again from the new mold (refork_after)")

    def step(self) -> None:
        """Has the candidate failed, or the new mold; is the last worker replaced?"""
        if self._candidate is not None:
            self._look_after(*self._candidate)
        if self._mold is not None:
            self._go_on(self._mold)

    def _look_after(self, row: ProcessSlot, pid: int, cycle: Cycle) -> None:
        if cycle is not self._master.cycle:
            self._candidate = None  # a reload has come, and its own mold
        elif row.pid != pid:
            self._candidate = None
            self._give_up(f"worker {row.index + 1} {pid} has not become a mold")

    def _go_on(self, mold: ProcessSlot) -> None:
        master = self._master
        if mold.cycle is not master.cycle:
            self._mold = None  # a reload has come, and its own mold
            return
        if not mold.living:
            self._mold = None
            for row, pid in self._left:
                if row.pid == pid:
                    master.replacements.withdraw(row)
            self._give_up("the new mold has died")
            return
        self._left = [(row, pid) for row, pid in self._left if row.pid == pid and not row.exiting]
        asked = any(row.unborn and row.mold is not mold for row in master.table)
        if not self._left and not asked:
            self._mold = None
            for old in list(master.table.molds):
                if old is not mold and old.cycle is mold.cycle:
                    master.workers.molds.end(old)
            master.cycle.error_log.notice(f"all workers come from mold {mold.pid} now")

    def _give_up(self, why: str) -> None:
        if self._master.ending:
            return
        self._given_up = self._master.cycle
        self._master.cycle.error_log.warn(
            f"refork_after: {why}; the mold there was stays, and it is not tried again before the"
            " next reload"
        )
