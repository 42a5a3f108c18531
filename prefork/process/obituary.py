"""What the error log says when a worker dies that nobody asked to.

A wait status says how, and seldom why. The slot of the dead still has its last requests, the
kernel its peak of memory, the control group whether memory was what it died of, and a crash has
left the stacks of all its threads.
"""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prefork.process.dump import without_ancestors
from prefork.unix.cgroup import oom_kills

if TYPE_CHECKING:
    from prefork.process.stacks import Stacks
    from prefork.process.table import Death
    from prefork.scoreboard import Scoreboard

# How faulthandler begins; what a worker was asked to write meanwhile does not.
_CRASH: Final = b"Fatal Python error"


class Obituaries:
    """Made before the first worker, for what is counted from then on."""

    def __init__(
        self,
        board: "Scoreboard",
        stacks: "Stacks",
        count_oom_kills: Callable[[], int | None] = oom_kills,
    ) -> None:
        self._board = board
        self._stacks = stacks
        self._count_oom_kills = count_oom_kills
        self._oom_kills = count_oom_kills() or 0

    def write(self, death: "Death", *, ours: bool) -> list[str]:
        """The lines below "worker 1 exited on signal 9"; none for an end that was asked for.

        `ours`: we ended it, and have said why. To be called before the slot is cleared.
        """
        row = death.row
        index = row.index
        lines: list[str] = []
        if row.detached or (row.exiting and not ours) or (not row.ready and row.failure):
            return lines
        slot = self._board.slot(index)
        lines.append(
            f"{slot.requests} request{'s'[: slot.requests != 1]},"
            f" peak RSS {death.peak_rss / 2**20:.1f} MiB"
        )
        kills = self._count_oom_kills() or 0
        if kills > self._oom_kills and death.killed:
            lines.append("oom_kill: the control group ran out of memory, and the kernel chose it")
        self._oom_kills = kills
        if ours:
            return lines
        now = time.monotonic()
        if slot.running:
            age = now - slot.oldest_since_ns / 1e9
            lines.append(f'waiting: {slot.running}, the oldest "{slot.oldest_line}", {age:.1f} s')
        for began, line in slot.recent():
            lines.append(f'last requests: "{line}", begun {now - began:.1f} s ago')
        if os.WIFSIGNALED(death.status):
            _, crash, stacks = self._stacks.read(index).partition(_CRASH)
            text = (crash + stacks).decode("utf-8", "replace")
            lines += [line for line in without_ancestors(text) if line]
        return lines
