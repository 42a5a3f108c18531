"""The reload: a new generation beside the old one, and one of the two goes (HUP).

`ngx_master_process_cycle` makes the new cycle, starts its workers, waits 100 ms and sends QUIT to
the old ones, whatever became of the new. Here it is a transaction, in steps: the configuration is
read, what is new is bound, the logs are opened; the mold boots; one worker boots ahead of the
others, who follow `reload.parallel` at a time. The old ones are told to leave only when every new
one has said READY, and whatever fails before that takes the new generation with it: the old one
serves on as if nothing had been asked. So that this is true for clients as well, a new worker
accepts nothing before the commit: an answer can be lost neither with a canary that dies, nor with
a generation that is dropped.

The master does not wait inside: it goes on reaping, reopening and stopping while others boot. What
would change the workers meanwhile (another HUP, TTIN, TTOU, USR2) waits for the end of the
reload; what ends them (QUIT, TERM, WINCH) ends the reload first.
"""

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prefork.config.diff import changes
from prefork.errors import OperatorError
from prefork.net.listener import apply_changes
from prefork.process.boot import Boot
from prefork.process.cycle import Cycle, init_cycle
from prefork.process.outcome import Outcome, split_report
from prefork.process.room import Room
from prefork.process.spawn import SpawnError
from prefork.process.table import ProcessSlot, Respawn

if TYPE_CHECKING:
    from prefork.process.master import Master


# What is obeyed when the reload is over, by the flag it has set.
_WAITING: Final = {
    "reconfigure": signal.SIGHUP,
    "change_binary": signal.SIGUSR2,
    "more": signal.SIGTTIN,
    "fewer": signal.SIGTTOU,
}


class Reload:
    """One transaction, from HUP to the commit or the roll-back."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        self._ticket = master.commands.take(signal.SIGHUP)
        self._began = time.monotonic()
        self._old = master.cycle
        self.new: Cycle | None = None
        self._room: Room | None = None
        self._boot: Boot | None = None
        self._started = 0
        self._told: set[str] = set()  # flags of _WAITING

    @classmethod
    def begin(cls, master: "Master") -> None:
        """Make the new cycle and go on from there, or say why not."""
        self = cls(master)
        log = master.cycle.error_log
        log.notice("reconfiguring")
        master.account.begin()
        master.service.reloading()
        self._step("reading the configuration, binding, opening the logs")
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
        self._room = Room(master, self.new.conf.reload.generations)
        self.look()

    @classmethod
    def refuse(cls, master: "Master", why: str) -> None:
        """Settle a HUP that is not to be obeyed."""
        master.account.begin()
        cls(master)._fail(why, write=master.cycle.error_log.notice)

    # The steps

    def look(self) -> None:
        """A worker has left: is there room now?"""
        if self._room is None:
            return
        wanting = self._room.wanting()
        if wanting:
            self._step(wanting, self._room.seconds)
            return
        self._room = None
        self._prepare()

    def _prepare(self) -> None:
        """What the workers are made from: the mold, where there is to be one."""
        new = self.new
        assert new is not None
        if new.conf.preload:
            self._step(f"mold: importing {new.conf.app}", new.conf.timeouts.boot)
        self._master.workers.prepare(new, self._send_canary, self._mold_failed)

    def _mold_failed(self, reason: str) -> None:
        if self._master.reload is self:
            self._roll_back(reason)

    def _send_canary(self) -> None:
        new = self.new
        if new is None or self._master.reload is not self:
            return
        self._boot = Boot(
            (),
            expected=new.workers,
            on_ready=self._commit,
            on_failed=self._died,
            on_step=lambda: self._spawn(new.conf.reload.parallel),
        )
        self._master.children.await_boot(self._boot)
        new.error_log.notice("start worker processes")
        self._spawn(1)

    def _spawn(self, at_a_time: int) -> None:
        """Have that many boot."""
        new, boot = self.new, self._boot
        assert new is not None
        assert boot is not None
        waits_for = ""
        while boot.missing_count > 0 and boot.booting_count < at_a_time:
            try:
                row = self._master.workers.spawn(new, Respawn.JUST_RESPAWN)
            except SpawnError as error:
                self._roll_back(f"the new workers could not be started: {error}")
                return
            self._started += 1
            boot.add(row)
            waits_for = row.name
        if boot.ready_count == 0:
            text = f"canary: {waits_for} of generation {new.generation} boots"
        else:
            text = f"{boot.ready_count} of {new.workers} workers ready"
        self._step(text, new.conf.timeouts.boot)

    def _step(self, text: str, seconds: float = 0.0) -> None:
        """Say what is waited for from now on, for `seconds` at most."""
        self._master.account.step(text, seconds)
        self._master.service.progress(f"reloading: {text}", seconds)

    def tell_waiting(self) -> None:
        """Log, once each, what has come meanwhile and has to wait."""
        for name, number in _WAITING.items():
            if getattr(self._master.flags, name) and name not in self._told:
                self._told.add(name)
                self._old.error_log.notice(f"{number.name} waits for the end of the reload")

    # The ends

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
        for row in master.table.living():
            if row.cycle is new:
                master.workers.admit(row)
        leaving = master.workers.signal_all(signal.SIGQUIT)
        master.workers.molds.discard(old)
        for row in master.table:
            # The mark has done its work; nobody of the new generation was passed by for nothing.
            row.just_spawn = False
        seconds = time.monotonic() - self._began
        outcome = Outcome(
            ok=True,
            before=old.generation,
            now=new.generation,
            changed=tuple(
                changes(
                    old.conf,
                    new.conf,
                    started_with=master.started_with,
                    secrets=old.secrets | new.secrets,
                )
            ),
            started=self._started,
            draining=leaving,
            seconds=seconds,
            note=f"generation {old.generation} -> {new.generation}, workers {before} ->"
            f" {new.workers}, {leaving} draining, {seconds:.2f} s",
        )
        new.error_log.notice(f"reconfigured: {outcome.text}")
        master.close_retired()
        old.close_logs()
        self._end(outcome)
        master.serving()  # when the very first workers had not got that far
        master.service.tell()

    def _died(self, row: ProcessSlot, reason: str) -> None:
        named = reason if reason.startswith(row.name) else f"{row.name}: {reason}"
        self._roll_back(named + (" after it had been ready" if row.ready else ""))

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
                if row.taken:
                    master.workers.drop(row)
            master.workers.molds.discard(new)
            # Its own listeners are closed when its last worker has left, as after a commit.
            master.retired.add(new.without(self._old))
            master.close_retired()
            new.close_logs()
        self._fail(reason, write)

    def _fail(self, reason: str, write: Callable[[str], None] | None = None) -> None:
        master = self._master
        generation = self._old.generation
        error, traceback = split_report(reason)
        outcome = Outcome(
            ok=False,
            before=generation,
            now=generation,
            started=self._started,
            seconds=time.monotonic() - self._began,
            error=error,
            traceback=traceback,
        )
        write = write or master.cycle.error_log.error
        # A worker's report has been logged when it came; a configuration's has not.
        write(outcome.line if self.new is not None else outcome.text)
        self._end(outcome)
        master.service.tell()  # READY=1 as well: without it the unit would stay "reloading"
        if master.stillborn and not master.served and not master.ending:
            master.no_worker(master.stillborn)

    def _end(self, outcome: Outcome) -> None:
        master = self._master
        master.commands.finish(self._ticket, ok=outcome.ok, text=outcome.line)
        master.account.end(outcome)
        master.wake()  # for what has waited for this end
