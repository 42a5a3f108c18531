"""The molds as the master sees them: one for each cycle that preloads, and a way to do without.

A mold is asked for a worker (`order`) and answers nothing: the worker itself says HELLO over the
channel that went along. Whatever keeps it from doing so costs a mold, never a worker: the master
forks that worker itself, which then imports for itself, and a new mold is made beside it after a
while (`backoff.*`). No timer runs while nothing is waited for.
"""

import os
import signal
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from prefork.log import ErrorLog
from prefork.process.cycle import Cycle
from prefork.process.spawn import SpawnError, spawn_process
from prefork.process.table import (
    NO_PROCESS,
    NO_SLOT,
    Death,
    Order,
    ProcessSlot,
    ProcessTable,
    Respawn,
)
from prefork.process.timers import Timers
from prefork.unix import subreaper
from prefork.unix.channel import Channel, Command, Message

LAST_GRACE: Final = 1.0  # seconds between the TERM and the KILL of a mold

MoldProc = Callable[[Cycle, ProcessSlot, Channel], NoReturn]


class Molds:
    """Makes and ends the molds in `table.molds`."""

    def __init__(
        self,
        table: ProcessTable,
        timers: Timers,
        proc: MoldProc,
        log: Callable[[], ErrorLog],
        on_lost: Callable[[ProcessSlot, str], None],
    ) -> None:
        """`on_lost(row, why)` is called for each worker that a mold was asked for in vain."""
        self._table = table
        self._timers = timers
        self._proc = proc
        self._log = log
        self._on_lost = on_lost
        # Who ends a mold that has not become ready in its time, and says why.
        self.on_overdue: Callable[[ProcessSlot, str], None] = lambda row, _: self.kill(row)
        self._waiting: dict[ProcessSlot, tuple[Callable[[], None], Callable[[str], None]]] = {}
        self._over = False

    # Making

    def prepare(
        self, cycle: Cycle, on_ready: Callable[[], None], on_failed: Callable[[str], None]
    ) -> None:
        """Make the mold of `cycle` where there is to be one, then call one of the two, once."""
        if not cycle.conf.preload:
            on_ready()
        elif not subreaper.become():
            cycle.error_log.warn(
                "preload: this system cannot give a mold's workers to the master"
                " (PR_SET_CHILD_SUBREAPER): each worker imports the application for itself"
            )
            on_ready()
        else:
            row = ProcessSlot(NO_SLOT, cycle=cycle)
            try:
                self._start(row)
            except SpawnError as error:
                on_failed(f"the mold could not be started: {error}")
            else:
                self._waiting[row] = (on_ready, on_failed)

    def _start(self, row: ProcessSlot) -> None:
        cycle = row.cycle
        assert cycle is not None

        def proc(row: ProcessSlot, channel: Channel) -> NoReturn:
            self._proc(cycle, row, channel)

        spawn_process(
            self._table,
            self._log(),
            proc,
            name=f"mold of generation {cycle.generation}",
            kind=Respawn.NORESPAWN,
            row=row,
        )
        if row not in self._table.molds:
            self._table.molds.append(row)
        self._log().notice(f"start {row.name} {row.pid}")
        row.disarm()
        row.timer = self._timers.after(cycle.conf.timeouts.boot, lambda: self._overdue(row))

    def _overdue(self, row: ProcessSlot) -> None:
        row.timer = None
        if row.cycle is None or row.ready or not row.living:
            return
        seconds = row.cycle.conf.timeouts.boot
        row.failure = f"the {row.name} was not ready within {seconds:g} s (timeouts.boot)"
        self.on_overdue(row, f"{row.failure}: kill {row.pid}")

    # Using

    def ready(self, cycle: Cycle) -> ProcessSlot | None:
        """The mold that the next worker of `cycle` comes from."""
        for row in reversed(self._table.molds):
            if row.cycle is cycle and row.living and row.ready and not row.exiting:
                return row
        return None

    def milestone(self, mold: ProcessSlot | None) -> int:
        """After how many requests a worker of `mold` offers itself as the next; 0 = never."""
        numbers = () if mold is None or mold.cycle is None else mold.cycle.conf.refork_after
        if mold is None or not numbers:
            return 0
        return numbers[min(mold.refork, len(numbers) - 1)]

    def add(self, row: ProcessSlot) -> None:
        """Take in one that was a worker: the next worker of its cycle comes from it."""
        self._table.molds.append(row)

    def order(self, mold: ProcessSlot, row: ProcessSlot, channel: Channel) -> bool:
        """Ask `mold` for the worker of `row`; False when it cannot be asked."""
        if mold.channel is None:
            return False
        order = Order(row.ordinal, row.waits, row.milestone)
        message = Message(Command.SPAWN, row.index, 0, msgspec.json.encode(order))
        return mold.channel.pass_on(message, channel)

    def reopen(self) -> None:
        """USR1: workers are born with the log files that their mold has open."""
        for row in self._table.molds:
            if row.living and row.channel is not None:
                row.channel.send(Message(Command.REOPEN))

    def heard(self, row: ProcessSlot, message: Message) -> None:
        """What a mold says: it is ready, it cannot be, or a worker could not be made."""
        if message.command is Command.READY:
            row.ready = True
            row.last_failure = ""
            if not row.exiting:
                row.disarm()
            self._log().notice(f"{row.name} {row.pid} is ready")
            on_ready, _ = self._waiting.pop(row, (_nothing, None))
            on_ready()
        elif message.command is Command.FAILED and message.slot == NO_SLOT:
            row.failure = message.payload.decode(errors="replace")
            if row.failure == row.last_failure:
                self._log().notice(f"{row.name} {row.pid} failed to start for the same reason")
            else:
                self._log().error(f"{row.name} {row.pid} failed to start: {row.failure}")
            row.last_failure = row.failure
        elif message.command is Command.FAILED:
            for worker in self._unborn(row):
                if worker.index == message.slot:
                    self._on_lost(worker, message.payload.decode(errors="replace"))

    def _unborn(self, mold: ProcessSlot) -> list[ProcessSlot]:
        return [row for row in self._table if row.unborn and row.mold is mold]

    # Ending

    def died(self, death: Death) -> None:
        """A mold has ended: who waits for it hears so, and its place is filled again."""
        row, cycle = death.row, death.row.cycle
        was_ready, exiting = row.ready, row.exiting
        how = row.failure or f"the {row.name} {death.text}"
        row.disarm()
        if row.channel is not None:
            row.channel.close()
            row.channel = None
        row.pid = NO_PROCESS
        row.ready = False
        row.failure = ""
        for worker in self._unborn(row):
            self._on_lost(worker, how)
        waiting = self._waiting.pop(row, None)
        if waiting is not None or exiting or self._over or cycle is None:
            self._table.molds.remove(row)
            if waiting is not None:
                waiting[1](how)
            return
        others = (one for one in self._table.molds if one is not row)
        if any(one.cycle is cycle and not one.exiting for one in others):
            self._table.molds.remove(row)  # a predecessor or a successor does its work
            return
        row.refork = 0
        row.held = True
        wait = row.backoff.delay(cycle.conf.backoff, was_ready=was_ready, uptime=death.uptime)
        until = f"in {wait:.1f} s; new workers import the application for themselves until then"
        self._log().warn(f"{how}: another one is made {until if wait else 'now'}")
        row.timer = self._timers.after(wait, lambda: self._bring_back(row))

    def _bring_back(self, row: ProcessSlot) -> None:
        row.timer = None
        if row.cycle is None or not row.held:
            return
        try:
            self._start(row)
        except SpawnError:
            wait = row.backoff.delay(row.cycle.conf.backoff, was_ready=False, uptime=0.0)
            row.timer = self._timers.after(wait, lambda: self._bring_back(row))

    def discard(self, cycle: Cycle) -> None:
        """`cycle` makes no more workers."""
        for row in list(self._table.molds):
            if row.cycle is cycle:
                self.end(row)

    def end_all(self, number: signal.Signals = signal.SIGTERM) -> bool:
        """The server stops. True while one is still there, and holds the listening sockets."""
        self._over = True
        for row in list(self._table.molds):
            if number == signal.SIGKILL or not row.exiting:
                self.end(row, number)
        return any(row.living for row in self._table.molds)

    def end(self, row: ProcessSlot, number: signal.Signals = signal.SIGTERM) -> None:
        """Have one leave; it has nothing to finish."""
        self._waiting.pop(row, None)
        row.disarm()
        if row.held:
            row.held = False
            self._table.molds.remove(row)
            return
        row.exiting = True
        _kill(row, number)
        row.timer = self._timers.after(LAST_GRACE, lambda: self.kill(row))

    def kill(self, row: ProcessSlot) -> None:
        """At once."""
        row.disarm()
        if row.living:
            _kill(row, signal.SIGKILL)


def _kill(row: ProcessSlot, number: signal.Signals) -> None:
    try:
        os.kill(row.pid, number)
    except ProcessLookupError:
        pass  # it has ended, and its SIGCHLD is on the way


def account(table: ProcessTable) -> str:
    """The molds for the scoreboard's header: a line each, of five words.

    Process id (-1 while there is none), generation, how many molds worked before it in its cycle,
    `starting`, `ready`, `leaving` or `waiting` (to be made again), and `time.monotonic_ns()` of its
    start.
    """
    lines = []
    for row in table.molds:
        state = (
            "waiting"
            if row.held
            else "leaving"
            if row.exiting
            else "ready"
            if row.ready
            else "starting"
        )
        generation = row.cycle.generation if row.cycle is not None else 0
        lines.append(f"{row.pid} {generation} {row.refork} {state} {int(row.started * 1e9)}")
    return "\n".join(lines)


def _nothing() -> None:
    pass
