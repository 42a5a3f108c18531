"""Shared memory that tells how the server is doing, readable while every worker hangs.

One mapping, made by the master before the first fork: a header that only the master writes, and
one slot per worker. Most of a slot's cells are written by its worker, the last eight by the
master; everyone else reads. One writer per cell is what makes plain stores enough: an aligned
8-byte store through `memoryview.cast("Q")` never tears on the CPUs CPython runs on, while an
increment from two processes loses counts.

Text cannot be stored in one go, so it is guarded by a sequence lock: the counter is odd while
the writer works, and a reader whose two readings of it differ starts again. A checksum stands
beside it, because a sequence lock alone relies on the CPU's store order, which Python gives us
no barrier to ask for; and because a writer killed half-way leaves the counter odd for ever.

What a worker is doing is told by the heads of its last eight requests, stored as they begin, each
in one call; a worker that hangs or dies in the middle of one has left its request line behind.

The memory is a memfd called `prefork-scoreboard`. A control command finds it in
`/proc/<master>/fd`, where it can be opened by whoever may ptrace the master (its own user and
root) and by nobody else: no file to choose a place for, none left behind. Where memfd or /proc
is missing, a file beside the pid file does the same work (`fallback_path`).

Opening through /proc makes a new open file description, hence `flock(board.fd)` serialises the
control commands: the lock is between them, the master never takes it.
"""

from prefork.scoreboard.board import Scoreboard
from prefork.scoreboard.header import RELOAD_REPORT_ROOM, Header, Verdict
from prefork.scoreboard.memory import LAYOUT_VERSION, fallback_path_beside, reserve_memory
from prefork.scoreboard.slot import BUSY_SINCE, CONNECTIONS, OK_RESPONSES, Slot, SlotState, Totals

__all__ = [
    "BUSY_SINCE",
    "CONNECTIONS",
    "LAYOUT_VERSION",
    "OK_RESPONSES",
    "RELOAD_REPORT_ROOM",
    "Header",
    "Scoreboard",
    "Slot",
    "SlotState",
    "Totals",
    "Verdict",
    "fallback_path_beside",
    "reserve_memory",
]
