"""Workers replaced one at a time, the new one ready before the old one leaves.

Who asks (`process.recycle`) waits in a queue. One replacement boots; when it is READY the old
worker gets QUIT, and only when that has left the next one's turn comes: never fewer workers than
configured, never more than one above, never a burst of boots. A replacement that cannot boot
leaves the old worker serving, and is tried again after a while (`backoff`). A reload replaces
everybody anyway, so it puts an end to what is under way; the others' wishes are kept for the case
that it fails.
"""

from typing import TYPE_CHECKING

from prefork.process.boot import Boot
from prefork.process.respawn import Backoff
from prefork.process.spawn import SpawnError
from prefork.process.table import ProcessSlot, Respawn
from prefork.process.timers import Timer

if TYPE_CHECKING:
    from prefork.process.master import Master


class Replacements:
    """The master's queue of those who asked to be replaced."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        self._wishes: dict[int, tuple[ProcessSlot, str]] = {}  # by pid, in the order they came
        self._boot: Boot | None = None
        self._old: ProcessSlot | None = None
        self._new: ProcessSlot | None = None
        self._leaving: tuple[ProcessSlot, int] | None = None  # the last one, and its pid
        self._backoff = Backoff()
        self._failure = ""  # what the last one said that failed: it is logged once
        self._timer: Timer | None = None  # runs before the next attempt

    def ask(self, row: ProcessSlot, reason: str) -> None:
        """A worker wants to go."""
        self._wishes.setdefault(row.pid, (row, reason))

    def withdraw(self, row: ProcessSlot) -> None:
        """It need not go after all, unless its replacement boots already."""
        if row is not self._old:
            self._wishes.pop(row.pid, None)

    def step(self) -> None:
        """Begin the next replacement if it may begin; to be called after whatever has happened."""
        master = self._master
        if self._boot is not None:
            if self._new not in master.table.workers():
                self._boot.abandon()  # it was not even made when all were told to leave
                self._end()
            elif master.reload is not None:
                self.abandon()
            return
        if not self._wishes or self._timer is not None:
            return
        if master.reload is not None or master.noaccepting or master.ending or not master.served:
            return
        if self._leaving is not None and self._leaving[0].pid == self._leaving[1]:
            return
        for pid, (row, reason) in list(self._wishes.items()):
            del self._wishes[pid]
            if row.pid == pid and row.respawn and not row.exiting:
                self._begin(row, reason)
                return

    def abandon(self) -> None:
        """Something has come that needs all workers as they are; the wish is kept."""
        if self._boot is None or self._new is None:
            return
        self._boot.abandon()
        self._master.workers.drop(self._new)
        self._end()

    def _begin(self, old: ProcessSlot, reason: str) -> None:
        master = self._master
        pid = old.pid
        master.cycle.error_log.notice(f"{old.name} is replaced: {reason}")
        old.replaced = True
        self._wishes = {pid: (old, reason), **self._wishes}  # until it is done
        try:
            new = master.workers.spawn(master.cycle, Respawn.RESPAWN)
        except SpawnError as error:
            old.replaced = False
            self._try_again(old, str(error))
            return
        new.last_failure = self._failure
        self._old, self._new = old, new
        self._boot = Boot([new], on_ready=self._ready, on_failed=self._failed)
        master.children.await_boot(self._boot)

    def _ready(self) -> None:
        """One worker too many serves now: as a rule the old one goes."""
        master, old, new = self._master, self._old, self._new
        assert old is not None
        assert new is not None
        self._end()
        self._backoff.forget()
        self._failure = ""
        staying = [
            row
            for row in master.table.workers()
            if row.respawn and not row.exiting and row.cycle is master.cycle
        ]
        if len(staying) <= master.target:
            return  # one has gone for another reason meanwhile
        # The old one may have died, too: then its row boots again, or waits to, and is not needed.
        leaves = old if old in staying else new
        if leaves is old:
            master.cycle.error_log.notice(f"{new.name} {new.pid} takes the place of {old.name}")
        self._wishes.pop(leaves.pid, None)
        self._leaving = (leaves, leaves.pid) if leaves.living else None
        master.workers.retire(leaves)

    def _failed(self, new: ProcessSlot, reason: str) -> None:
        old = self._old
        assert old is not None
        asked_to_leave = new.exiting
        new.respawn = False
        if new.held:  # it could not even be made
            self._master.workers.forget(new)
        self._failure = new.last_failure
        self._end()
        if not asked_to_leave and not self._master.ending:
            self._try_again(old, reason.partition("\n")[0])

    def _end(self) -> None:
        if self._old is not None:
            self._old.replaced = False
        self._boot = self._old = self._new = None

    def _try_again(self, old: ProcessSlot, reason: str) -> None:
        master = self._master
        conf = master.cycle.conf.backoff
        wait = self._backoff.delay(conf, was_ready=False, uptime=0.0)
        master.cycle.error_log.error(
            f"{old.name} serves on, its replacement failed: {reason};"
            f" the next attempt comes in {wait:.1f} s (backoff)"
        )

        def again() -> None:
            self._timer = None  # the cycle's next `step` begins

        self._timer = master.timers.after(wait, again)
