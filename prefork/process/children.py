"""What the children say, how they end, and who comes back.

After `ngx_reap_children`. Words come over the channel: READY, or FAILED with a report. A death
comes by SIGCHLD, and is always the later of the two: whatever a child has said is read before it
is buried.
"""

import time
from typing import TYPE_CHECKING

from prefork.errors import EXIT_OK
from prefork.process.boot import Boot
from prefork.process.spawn import SpawnError
from prefork.process.table import NO_PROCESS, Death, ProcessSlot, Respawn, reap
from prefork.unix.channel import Command, Message

if TYPE_CHECKING:
    from prefork.process.master import Master


class Children:
    """The master's ears."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        self._boots: list[Boot] = []

    def await_boot(self, boot: Boot) -> None:
        """Let `boot` hear who gets ready and who dies."""
        self._boots = [one for one in self._boots if not one.decided]
        self._boots.append(boot)

    def read_channels(self) -> None:
        """A SIGIO says that somebody wrote; not who."""
        # The molds first: one that could not make a worker says why, and then its channel ends.
        for row in (*self._master.table.molds, *self._master.table):
            if row.living or row.unborn:
                self._read_channel(row)
        self._master.succession.look()

    def _read_channel(self, row: ProcessSlot) -> None:
        if row.channel is None:
            return
        for message in row.channel.receive():
            if not row.detached:
                self._heard(row, message)
            elif message.command is Command.READY:
                self._master.upgrade.ready(row)
        if row.unborn and row.channel is not None and row.channel.eof:
            self._master.workers.unheard(row)

    def _look_again(self) -> None:
        for row in self._master.table:
            if row.unborn:
                self._read_channel(row)

    def _heard(self, row: ProcessSlot, message: Message) -> None:
        if row.is_mold:
            self._master.workers.molds.heard(row, message)
        elif message.command is Command.HELLO:
            self._master.workers.born(row, message.pid)
        elif message.command is Command.READY:
            row.ready = True
            self._master.board.slot(row.index).ready_ns = time.time_ns()
            row.last_failure = ""
            self._forget_crashes(row)
            self._master.interface = message.payload.decode()
            if not row.exiting:
                row.disarm()
            for boot in list(self._boots):
                boot.ready(row)
        elif message.command is Command.RECYCLE:
            self._master.replacements.ask(row, message.payload.decode(errors="replace"))
        elif message.command is Command.FAILED:
            row.failure = message.payload.decode(errors="replace")
            self._say_failure(row)
        elif message.command is Command.RIPE:
            self._master.refork.offered(row)
        elif message.command is Command.PROMOTE:
            self._master.refork.promoted(row)
        elif message.command is Command.BUSY:
            self._master.watchdog.busy(row)
        elif message.command is Command.STUCK:
            self._master.watchdog.stuck(row, message.payload.decode(errors="replace"))

    def _say_failure(self, row: ProcessSlot) -> None:
        """One traceback, not one per worker and not one per attempt."""
        log = self._master.cycle.error_log
        others = (other for other in self._master.table if other is not row)
        if row.failure in (row.last_failure, *(other.failure for other in others)):
            log.notice(f"{row.name} {row.pid} failed to start for the same reason")
        else:
            log.error(f"{row.name} {row.pid} failed to start: {row.failure}")
        row.last_failure = row.failure

    def reap(self) -> None:
        """Collect the dead, and fill their rows again."""
        master = self._master
        for death in reap(
            master.table,
            master.cycle.error_log,
            account=master.watchdog.account,
            on_stopped=master.watchdog.stopped,
            on_continued=master.watchdog.continued,
            look_again=self._look_again,
        ):
            self._read_channel(death.row)  # its last words are still in there
            if death.row.detached:
                master.upgrade.died(death.row, death.text)
            elif death.row.is_mold:
                self._look_again()  # it may have made what it was asked for
                master.workers.molds.died(death)
            else:
                self._bury(death)
        if master.reload is not None:
            master.reload.look()
        master.close_retired()

    def _bury(self, death: Death) -> None:
        master, row = self._master, death.row
        slot = master.board.slot(row.index)
        slot.last_exit = death.status + 1
        slot.pid = 0
        master.board.fold(row.index)
        master.watchdog.forget(row)
        row.disarm()
        if row.channel is not None:
            row.channel.close()
            row.channel = None
        reason = row.failure or f"{row.name} {row.pid} {death.text}"
        row.pid = NO_PROCESS
        if row.exiting and not row.ready:
            reason = f"{row.name} was told to leave before it was ready"
        for boot in list(self._boots):
            boot.died(row, reason)  # which may end a reload, or everything
        stops = master.flags.terminate or (master.flags.quit and not master.graceful.delaying)
        if row.respawn and not row.exiting and not stops:
            row.held = True
            if not any(boot.postpone(lambda: self._bring_back(row, death)) for boot in self._boots):
                self._bring_back(row, death)
        else:
            slot.crashes = 0
            row.release()
            if not master.table.workers() and master.wants_workers:
                master.cycle.error_log.alert(
                    "no worker is left and none may be respawned; HUP starts new ones"
                )

    def unmade(self, row: ProcessSlot, reason: str) -> None:
        """Neither its mold nor the master could make a worker: for want of processes, perhaps."""
        for boot in list(self._boots):
            boot.died(row, f"{row.name} could not be made: {reason}")
        if row.held and row.cycle is not None:
            conf = row.cycle.conf.backoff
            self._hold(row, row.backoff.delay(conf, was_ready=False, uptime=0.0))

    def _bring_back(self, row: ProcessSlot, death: Death) -> None:
        if row.cycle is None or not row.held:
            return  # a reload has given the row away meanwhile
        well = row.blameless or (row.ready and death.exit_code == EXIT_OK)
        row.blameless = False
        conf = row.cycle.conf.backoff
        wait = row.backoff.delay(conf, was_ready=row.ready, uptime=death.uptime, well=well)
        if wait:
            crashes = row.backoff.crashes
            self._master.cycle.error_log.notice(
                f"{row.name} comes back in {wait:.1f} s, after"
                f" {crashes} crash{'es'[: 2 * (crashes != 1)]} (backoff)"
            )
            self._hold(row, wait)
        else:
            self._respawn(row)

    def _hold(self, row: ProcessSlot, seconds: float) -> None:
        slot = self._master.board.slot(row.index)
        slot.crashes = row.backoff.crashes
        slot.comes_back_ns = time.time_ns() + int(seconds * 1e9)
        row.timer = self._master.timers.after(seconds, lambda: self._respawn(row))

    def _respawn(self, row: ProcessSlot) -> None:
        row.timer = None
        if row.cycle is None or not row.held:
            return
        try:
            self._master.workers.spawn(row.cycle, Respawn.RESPAWN, row)
        except SpawnError:
            # No process can be made at all: a reason of the machine's, not of the application's.
            conf = row.cycle.conf.backoff
            self._hold(row, row.backoff.delay(conf, was_ready=False, uptime=0.0))

    def _forget_crashes(self, row: ProcessSlot) -> None:
        """A worker that is ready has a past: see that status does not show it for ever."""
        if row.cycle is None or not row.backoff.crashes:
            return
        pid = row.pid

        def forget() -> None:
            if row.pid == pid:
                row.backoff.forget()
                self._master.board.slot(row.index).crashes = 0

        self._master.timers.after(row.cycle.conf.backoff.forget_after, forget)
