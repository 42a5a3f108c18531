"""The worker processes as the master sees them: started, commanded, and ended when overdue.

After `ngx_start_worker_processes` and `ngx_signal_worker_processes`. Two timers are added to
nginx's: a worker has a time to boot in, and a worker that was asked to leave has a time to do so.
Only one of them can run, so they share the row's `timer`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final, NoReturn

from prefork.log import ErrorLog, errno_text
from prefork.process.cycle import Cycle
from prefork.process.molds import MoldProc, Molds
from prefork.process.spawn import SpawnError, spawn_process
from prefork.process.table import ProcessSlot, ProcessTable, Respawn
from prefork.process.timers import Timers
from prefork.scoreboard import Scoreboard, SlotState
from prefork.unix.channel import Channel, Command, Message

# A worker ends its drain by its own timer; the master steps in only when that did not happen.
MARGIN: Final = 2.0  # seconds
LAST_GRACE: Final = 1.0  # seconds between the TERM and the KILL of a worker that is overdue
HURRY_MARGIN: Final = 1.0  # seconds; what MARGIN is to a drain whose deadline was brought forward

BIRTH_SECONDS: Final = 10.0  # from the order to HELLO

WorkerProc = Callable[[Cycle, ProcessSlot, Channel], NoReturn]

_COMMANDS: Final = {
    signal.SIGQUIT: Command.QUIT,
    signal.SIGTERM: Command.TERMINATE,
    signal.SIGUSR1: Command.REOPEN,
}


class WorkerProcesses:
    """Starts and commands the workers in `table`."""

    def __init__(
        self,
        table: ProcessTable,
        board: Scoreboard,
        timers: Timers,
        proc: WorkerProc,
        mold_proc: MoldProc,
        log: Callable[[], ErrorLog],
    ) -> None:
        self.table = table
        self.board = board
        self.timers = timers
        self._proc = proc
        # Who ends a worker that has not become ready, or not left, in its time; and says why.
        self.on_overdue: Callable[[ProcessSlot, str], None] = lambda row, _: self.kill(row)
        self.on_deaf: Callable[[ProcessSlot, str], None] = lambda row, _: self.kill(row)
        self._log = log  # the current cycle's: a row's own may be closed by then
        self.molds = Molds(table, timers, mold_proc, log, self._fork_instead)
        self.on_unmade: Callable[[ProcessSlot, str], None] = lambda row, _: self.forget(row)

    def prepare(
        self, cycle: Cycle, on_ready: Callable[[], None], on_failed: Callable[[str], None]
    ) -> None:
        """Make ready what the workers of `cycle` are made from, then call one of the two, once.

        Without `preload` there is nothing to make, and `on_ready()` is called at once.
        """
        self.molds.prepare(cycle, on_ready, on_failed)

    def start(self, cycle: Cycle, number: int, kind: Respawn) -> list[ProcessSlot]:
        """Start `number` workers at once. Raises SpawnError; those made until then live."""
        cycle.error_log.notice("start worker processes")
        return [self.spawn(cycle, kind) for _ in range(number)]

    def spawn(self, cycle: Cycle, kind: Respawn, row: ProcessSlot | None = None) -> ProcessSlot:
        """Start one worker, in `row` when it comes back. Raises SpawnError.

        The cycle's mold makes it, where there is one: then it is `unborn` for a moment.
        """
        mold = self.molds.ready(cycle)
        return self._spawn(cycle, kind, row, mold)

    def _spawn(
        self, cycle: Cycle, kind: Respawn, row: ProcessSlot | None, mold: ProcessSlot | None
    ) -> ProcessSlot:
        def proc(row: ProcessSlot, channel: Channel) -> NoReturn:
            self._proc(cycle, row, channel)

        def before_fork(row: ProcessSlot) -> None:
            row.cycle = cycle
            row.ordinal = self._ordinal(row)
            # A generation that may yet be dropped serves nobody.
            row.waits = kind is Respawn.JUST_RESPAWN
            row.mold = None
            row.promoted = False
            row.milestone = self.molds.milestone(mold)
            slot = self.board.take(row.index)
            slot.state = SlotState.STARTING
            slot.generation = cycle.generation

        def order(row: ProcessSlot, channel: Channel) -> bool:
            if mold is None or not self.molds.order(mold, row, channel):
                return False
            row.mold = mold
            return True

        row = spawn_process(
            self.table,
            cycle.error_log,
            proc,
            name="worker {n}",
            kind=kind,
            row=row,
            before_fork=before_fork,
            order=order,
        )
        row.disarm()
        if row.unborn:
            seconds = min(BIRTH_SECONDS, cycle.conf.timeouts.boot)
            row.timer = self.timers.after(seconds, lambda: self._birth_overdue(row))
        else:
            self._made(row, cycle)
        return row

    def _made(self, row: ProcessSlot, cycle: Cycle, by: str = "") -> None:
        slot = self.board.slot(row.index)
        slot.pid = row.pid
        slot.boots += 1
        slot.started_ns = time.time_ns()
        slot.comes_back_ns = 0
        slot.crashes = row.backoff.crashes
        cycle.error_log.notice(f"start {row.name} {row.pid}{by}")
        row.timer = self.timers.after(cycle.conf.timeouts.boot, lambda: self._boot_overdue(row))

    def born(self, row: ProcessSlot, pid: int) -> None:
        """The worker that a mold was asked for has said HELLO: it is our child, and may go on."""
        if not row.unborn or row.cycle is None or row.channel is None:
            return
        row.disarm()
        row.unborn = False
        row.pid = pid
        row.channel.send(Message(Command.ADOPTED, row.index, pid))
        self._made(row, row.cycle, f" from mold {row.mold.pid}" if row.mold is not None else "")

    def unheard(self, row: ProcessSlot) -> None:
        """The channel of an unborn worker has ended: it died before it could say HELLO."""
        self._fork_instead(row, "it died while it was made")

    def _birth_overdue(self, row: ProcessSlot) -> None:
        row.timer = None
        if not row.unborn or row.mold is None:
            return
        mold = row.mold
        seconds = min(BIRTH_SECONDS, self.timers.clock() - row.started)
        self._log().error(
            f"the {mold.name} {mold.pid} has not made {row.name} within {seconds:.0f} s:"
            " kill (does a hook of os.register_at_fork wait for something?)"
        )
        self.molds.kill(mold)
        self._fork_instead(row, "the mold hangs")

    def _fork_instead(self, row: ProcessSlot, why: str) -> None:
        """What the mold owes us we make ourselves."""
        cycle = row.cycle
        if cycle is None or not row.unborn:
            return
        row.disarm()
        if row.channel is not None:
            row.channel.close()  # should it live after all, it leaves by this
            row.channel = None
        row.unborn = False
        row.held = True
        self._log().warn(f"{row.name} is forked by the master, and imports for itself: {why}")
        kind = Respawn.JUST_RESPAWN if row.waits else Respawn.RESPAWN
        try:
            self._spawn(cycle, kind, row, None)
        except SpawnError as error:
            self.on_unmade(row, str(error))

    def _ordinal(self, row: ProcessSlot) -> int:
        """The lowest place in its generation that nobody who stays has."""
        if row.held:
            return row.ordinal
        taken = {
            one.ordinal
            for one in self.table.workers()
            if one is not row and one.cycle is row.cycle and not one.exiting and not one.replaced
        }
        return next(place for place in range(len(taken) + 1) if place not in taken)

    def signal_all(self, number: signal.Signals) -> int:
        """Command every worker; returns how many were reached.

        As in nginx, QUIT passes by those who leave already, and once those who have just been
        spawned: so the QUIT of a reload reaches the old generation only.
        """
        reached = 0
        for row in self.table.living():
            if number == signal.SIGQUIT:
                if row.just_spawn:
                    row.just_spawn = False
                    continue
                if row.exiting:
                    continue
            self.command(row, number)
            reached += 1
        if number == signal.SIGUSR1:
            self.molds.reopen()
            return reached
        for row in self.table.workers():
            # A worker that waits to come back, or is not yet made, has nothing to leave.
            if row.held or (row.unborn and not (number == signal.SIGQUIT and row.just_spawn)):
                self.forget(row)
        if number in (signal.SIGTERM, signal.SIGKILL):
            self.molds.end_all(number)
        return reached

    def command(self, row: ProcessSlot, number: signal.Signals) -> None:
        """Command one worker: over its channel, or by kill() where that does not do.

        A worker that boots is inside somebody's import and reads no channel; a signal reaches it.
        """
        if row.unborn and number != signal.SIGUSR1:
            self.forget(row)
            return
        command = _COMMANDS.get(number)
        told = False
        if command is not None and (row.ready or row.unborn) and row.channel is not None:
            told = row.channel.send(Message(command, row.index, row.pid, b""))
        if not told:
            self._kill(row, number)
        if number != signal.SIGUSR1:
            self._leaves(row, bounded=number == signal.SIGQUIT)

    def leave(self, row: ProcessSlot, queues: Iterable[int]) -> None:
        """QUIT at the end of the whole server: one that is ready empties those queues first.

        `queues` are places in its cycle's listeners, which let nobody new in.
        """
        payload = " ".join(map(str, queues)).encode()
        message = Message(Command.DRAIN_QUEUE, row.index, row.pid, payload)
        if row.ready and row.channel is not None and row.channel.send(message):
            self._leaves(row, bounded=True)
        else:
            self.command(row, signal.SIGQUIT)

    def _leaves(self, row: ProcessSlot, *, bounded: bool) -> None:
        if bounded and not row.exiting and row.cycle is not None:
            row.disarm()
            grace = row.cycle.conf.timeouts.graceful
            said = f"{grace:g} s (timeouts.graceful)"
            row.timer = self.timers.after(grace + MARGIN, lambda: self._drain_overdue(row, said))
        row.exiting = True

    def retire(self, row: ProcessSlot) -> None:
        """Have one worker leave for good."""
        row.respawn = False
        if row.held:
            self.forget(row)
        elif (
            row.promoted
            and row.channel is not None
            and row.channel.send(Message(Command.PROMOTE, row.index, row.pid))
        ):
            self._leaves(row, bounded=True)
        else:
            self.command(row, signal.SIGQUIT)

    def admit(self, row: ProcessSlot) -> None:
        """Have a worker that waits for it accept from now on."""
        if row.waits and row.channel is not None:
            row.waits = False
            row.channel.send(Message(Command.ADMIT, row.index, row.pid))

    def hurry(self, row: ProcessSlot, seconds: float) -> None:
        """Bring forward the end of a drain: then the worker cuts what is left of it."""
        if not row.exiting:
            self.command(row, signal.SIGQUIT)
        until = self.timers.clock() + seconds + HURRY_MARGIN
        if row.timer is not None and row.timer.when <= until:
            return
        if row.channel is not None:
            row.channel.send(Message(Command.HURRY, row.index, row.pid, f"{seconds}".encode()))
        row.disarm()
        said = f"{seconds:g} s (reload.generations)"
        row.timer = self.timers.after(
            seconds + HURRY_MARGIN, lambda: self._drain_overdue(row, said)
        )

    def drop(self, row: ProcessSlot) -> None:
        """End a worker of a generation that is not to be: what it serves already is finished."""
        row.respawn = row.just_spawn = False
        if row.held or row.unborn:
            self.forget(row)
        else:
            # QUIT, for one that boots too, which it ends as quickly as TERM: a worker accepts from
            # the moment it is ready, and its READY may be on the way to us.
            self.command(row, signal.SIGQUIT)
            if not row.ready:
                row.disarm()
                row.timer = self.timers.after(LAST_GRACE, lambda: self._dropped_overdue(row))

    def forget(self, row: ProcessSlot) -> None:
        """Give a row back whose process is gone, or was never made."""
        self.board.fold(row.index)  # the dead worker's half of its slot is ours to clear: DEAD
        slot = self.board.slot(row.index)
        slot.pid = slot.comes_back_ns = slot.crashes = 0
        row.release()

    def kill(self, row: ProcessSlot) -> None:
        """At once."""
        self._kill(row, signal.SIGKILL)

    def _kill(self, row: ProcessSlot, number: signal.Signals) -> None:
        if not row.living:
            return
        # No pidfd: a child's number is not given to another process before we have reaped it.
        try:
            os.kill(row.pid, number)
        except ProcessLookupError:
            pass  # it has ended, and its SIGCHLD is on the way
        except OSError as error:
            self._log().alert(f"kill({row.pid}, {int(number)}) failed {errno_text(error)}")

    def _boot_overdue(self, row: ProcessSlot) -> None:
        row.timer = None
        if row.cycle is None or row.ready or not row.living:
            return
        row.failure = (
            f"{row.name} was not ready within {row.cycle.conf.timeouts.boot:g} s (timeouts.boot)"
        )
        self.on_overdue(row, f"{row.name} {row.pid}: {row.failure}")

    def _dropped_overdue(self, row: ProcessSlot) -> None:
        if row.ready:
            row.exiting = False
            self._leaves(row, bounded=True)  # it had begun to serve, and has the time of a drain
        else:
            self._kill_overdue(row)

    def _drain_overdue(self, row: ProcessSlot, said: str) -> None:
        if row.cycle is None or not row.living:
            return
        self._log().warn(f"{row.name} {row.pid} has not left within {said}: SIGTERM")
        self._kill(row, signal.SIGTERM)
        row.timer = self.timers.after(LAST_GRACE, lambda: self._kill_overdue(row))

    def _kill_overdue(self, row: ProcessSlot) -> None:
        row.timer = None
        if row.living:
            self.on_deaf(row, f"{row.name} {row.pid} has not left: SIGKILL")


__all__ = ["HURRY_MARGIN", "LAST_GRACE", "MARGIN", "SpawnError", "WorkerProcesses"]
