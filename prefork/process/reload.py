"""The reload: a new generation beside the old one, and one of the two goes (HUP).

`ngx_master_process_cycle` makes the new cycle, starts its workers, waits 100 ms and sends QUIT to
the old ones, whatever became of the new. Here the old ones are told only when every new worker has
said READY, and a new worker that dies first takes its generation with it. The master does not wait
inside: it goes on reaping, reopening and stopping while the new workers boot.
"""

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prefork.config.schema import Config
from prefork.errors import OperatorError
from prefork.net.listener import apply_changes
from prefork.process.boot import Boot
from prefork.process.commands import Ticket
from prefork.process.cycle import Cycle, init_cycle
from prefork.process.spawn import SpawnError
from prefork.process.table import ProcessSlot, Respawn

if TYPE_CHECKING:
    from prefork.process.master import Master

# What the master itself was started with: a new value is read but cannot take effect.
_NEEDS_RESTART = ("daemon", "master_process", "pid_file")


class Reload:
    """One transaction, from HUP to the commit or the roll-back."""

    def __init__(self, master: "Master", ticket: Ticket) -> None:
        self._master = master
        self._ticket = ticket
        self._began = time.monotonic()
        self._old = master.cycle
        self.new: Cycle | None = None
        self._boot: Boot | None = None

    @classmethod
    def begin(cls, master: "Master") -> None:
        """Make the new cycle and start its workers, or say why not."""
        self = cls(master, master.commands.take(signal.SIGHUP))
        log = master.cycle.error_log
        log.notice("reconfiguring")
        master.service.reloading()
        try:
            self.new = init_cycle(
                self._old.source,
                inherited=master.inherited,
                old=self._old,
                retired=master.retired,
            )
        except OperatorError as error:
            self._fail(str(error))
            return
        for warning in self.new.warnings:
            log.warn(warning)
        master.reload = self
        master.service.extend(self.new.conf.timeouts.boot)
        try:
            rows = master.workers.start(self.new, self.new.workers, Respawn.JUST_RESPAWN)
        except SpawnError as error:
            self._roll_back(f"the new workers could not be started: {error}")
            return
        self._boot = Boot(rows, on_ready=self._commit, on_failed=self._died)
        master.children.await_boot(self._boot)

    def abandon(self, why: str) -> None:
        """Something stronger has come."""
        self._roll_back(why, write=self._old.error_log.notice)

    def _commit(self) -> None:
        master, old, new = self._master, self._old, self.new
        assert new is not None
        before = master.target
        master.reload = None
        master.noaccepting = False
        master.cycle = new
        apply_changes(new.listeners, new.conf.listen)
        if master.in_background:
            new.error_log.redirect_stderr()
        master.set_target(new.workers)
        master.tell_header()
        master.retired.add(old.without(new))
        leaving = master.workers.signal_all(signal.SIGQUIT)
        for row in master.table:
            # The mark has done its work; nobody of the new generation was passed by for nothing.
            row.just_spawn = False
        text = (
            f"generation {old.generation} -> {new.generation}, workers {before} -> {new.workers},"
            f" {leaving} draining, {time.monotonic() - self._began:.2f} s"
        )
        for key in needs_restart(old.conf, new.conf):
            text += f"\n{key} has changed: that takes effect with a restart"
        new.error_log.notice(f"reconfigured: {text}")
        master.retired.close_unused(new.listeners, new.error_log)
        old.close_logs()
        master.commands.finish(self._ticket, ok=True, text=text)
        master.serving()  # when the very first workers had not got that far
        master.service.tell()

    def _died(self, _row: ProcessSlot, reason: str) -> None:
        self._roll_back(reason)

    def _roll_back(self, reason: str, write: Callable[[str], None] | None = None) -> None:
        master, new = self._master, self.new
        master.reload = None
        if self._boot is not None:
            self._boot.abandon()
        if new is not None:
            for row in master.table:
                if row.cycle is not new:
                    continue
                row.respawn = False  # the one whose death is being told, too: it stays dead
                if row.living or row.held:
                    master.workers.drop(row)
            # Its own listeners are closed when its last worker has left, as after a commit.
            master.retired.add(new.without(self._old))
            new.close_logs()
        self._fail(reason, write)

    def _fail(self, reason: str, write: Callable[[str], None] | None = None) -> None:
        master = self._master
        generation = self._old.generation
        first, _, _rest = reason.partition("\n")
        # A worker's report has been logged when it came; a configuration's has not.
        said = first if self.new is not None else reason
        write = write or master.cycle.error_log.error
        write(f"reload failed, generation {generation} serves on: {said}")
        master.commands.finish(
            self._ticket,
            ok=False,
            text=f"reload failed, generation {generation} serves on: {reason}",
        )
        master.service.tell()  # READY=1 as well: without it the unit would stay "reloading"
        if master.stillborn and not master.served and not master.ending:
            master.no_worker(master.stillborn)


def needs_restart(old: Config, new: Config) -> list[str]:
    """The keys whose change this master cannot follow."""
    return [key for key in _NEEDS_RESTART if getattr(old, key) != getattr(new, key)]
