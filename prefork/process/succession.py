"""The counters over an upgrade: nothing a client was answered is forgotten with the master.

Each master has a board of its own, and writes no other. The old one makes the memory for both: the
new program gets the old board to read, and an empty one to fill, whose descriptor the old master
keeps. So each can read what the other has left behind, however it ended.

- While both live, the new master's totals are its own and the old one's. When the old one is gone
  (its channel says so), they are folded into its own.
- When the new master goes first, the old one adds what was done under that to its own.

A master that was killed leaves workers that finish what they serve, and count it. Its board is read
until they have left too; a timer runs that long, and no longer than a drain may take.
"""

import os
import time
from typing import TYPE_CHECKING, Final

from prefork.errors import OperatorError
from prefork.log import ErrorLog
from prefork.process.upgrade import Predecessor
from prefork.scoreboard import Scoreboard, Totals, reserve_memory

if TYPE_CHECKING:
    from prefork.process.master import Master

LOOK_AGAIN: Final = 1.0  # seconds
MARGIN: Final = 5.0  # seconds beyond timeouts.graceful


def open_board(predecessor: Predecessor, log: ErrorLog, fallback_path: str | None) -> Scoreboard:
    """A master's board, with what its predecessor's says counted in. Raises OperatorError."""
    before = None
    if predecessor.board is not None:
        try:
            before = Scoreboard.attach_fd(predecessor.board)
        except OperatorError as error:
            log.notice(f"the totals begin anew: the old master's: {error}")
    return Scoreboard.create(
        fallback_path=fallback_path, reserved=predecessor.reserved, before=before
    )


class Succession:
    """What this master's board has to do with those of the masters before and after it."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        self._reserved: int | None = None
        self._heir: Scoreboard | None = None  # of a new master that is gone
        self._added: Totals | None = None  # what has been added of it

    # In the new master

    def begin(self) -> None:
        """Notice when the predecessor goes."""
        self._master.predecessor.watch()
        self.look()

    def look(self) -> None:
        """After a SIGIO: has the predecessor gone?"""
        if self._master.predecessor.gone():
            self._inherit(self._patience())

    def _inherit(self, until: float) -> None:
        board = self._master.board
        before = board.predecessor
        if before is None:
            return
        if before.workers_alive() and time.monotonic() < until:
            self._master.timers.after(LOOK_AGAIN, lambda: self._inherit(until))
        else:
            board.inherit()

    # In the old master

    def reserve(self) -> int | None:
        """Memory for the board of a new program that is about to be executed."""
        if self._reserved is not None:
            os.close(self._reserved)  # of an upgrade that came to nothing
        try:
            self._reserved = reserve_memory()
        except OSError:
            self._reserved = None
        return self._reserved

    def heir_died(self) -> None:
        """The new master is gone: what was done under it is ours."""
        if self._reserved is None:
            return
        fd, self._reserved = self._reserved, None
        if os.fstat(fd).st_size == 0:
            os.close(fd)  # it has not got that far
            return
        try:
            self._heir = Scoreboard.attach_fd(fd)
        except OperatorError as error:
            log = self._master.cycle.error_log
            log.notice(f"the totals are without the new master's: {error}")
            return
        self._add(self._patience())

    def _add(self, until: float) -> None:
        heir = self._heir
        if heir is None:
            return
        last = not heir.workers_alive() or time.monotonic() >= until
        done = heir.totals(alone=True)
        self._master.board.add(done if self._added is None else done.less(self._added))
        self._added = done
        if last:
            self._forget()
        else:
            self._master.timers.after(LOOK_AGAIN, lambda: self._add(until))

    def settle(self) -> None:
        """Wait for nobody any more: another upgrade begins."""
        if not self._master.predecessor.alive:
            self._inherit(0.0)
        self._add(0.0)

    def _forget(self) -> None:
        if self._heir is not None:
            self._heir.close()
        self._heir = self._added = None

    def _patience(self) -> float:
        return time.monotonic() + self._master.cycle.conf.timeouts.graceful + MARGIN
