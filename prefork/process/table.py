"""The table of children: a row each, whoever they are.

After nginx's `ngx_processes`. A row's number is its slot in the scoreboard and the number in the
worker's title, so `worker 3` means one thing in the log, in `ps` and in `prefork status`. A
respawned worker keeps its row; a new generation takes free ones beside the old.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from prefork.errors import EXIT_FATAL
from prefork.log import ErrorLog
from prefork.process.respawn import Backoff
from prefork.process.timers import Timer
from prefork.unix.channel import Channel
from prefork.unix.waitstatus import describe

if TYPE_CHECKING:
    from prefork.process.cycle import Cycle

NO_PROCESS = -1
NO_SLOT = -1  # a mold's index: it has no place in the scoreboard
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2)


class Respawn(Enum):
    """What becomes of a row (nginx: NGX_PROCESS_NORESPAWN and its fellows)."""

    NORESPAWN = auto()  # dies once
    JUST_SPAWN = auto()  # the same, and the next QUIT to all passes it by
    RESPAWN = auto()  # comes back when it dies
    JUST_RESPAWN = auto()  # the same, and the next QUIT to all passes it by: a new generation
    DETACHED = auto()  # not ours to command: the new program of an upgrade


class ProcessSlot(Struct, eq=False):
    """One row. Without a process (`pid` -1) it is free, or `held` for a worker to come back."""

    index: int
    pid: int = NO_PROCESS
    name: str = ""
    ordinal: int = 0  # the worker's place in its generation, from 0: CPU affinity goes by it
    cycle: "Cycle | None" = None
    channel: Channel | None = None
    respawn: bool = False
    just_spawn: bool = False
    waits: bool = False  # accepts nothing before the master admits it
    detached: bool = False
    exiting: bool = False
    ready: bool = False
    held: bool = False
    blameless: bool = False  # we ended it, for what a request of it did: no reason to wait
    replaced: bool = False  # another worker boots to take its place
    mold: "ProcessSlot | None" = None  # who bore it, or has been asked to
    promoted: bool = False  # when it leaves its requests it shall go on as a mold
    milestone: int = 0  # requests after which it offers itself as the next mold; 0 = never
    unborn: bool = False  # the mold has been asked for it, and it has not said its pid yet
    refork: int = 0  # a mold's: how many worked before it in its cycle, each made from a worker
    started: float = 0.0
    failure: str = ""  # what the worker said of its own boot before it died
    last_failure: str = ""  # of the life before: the same text is not logged twice
    backoff: Backoff = msgspec.field(default_factory=Backoff)
    timer: Timer | None = None  # boot deadline, then the moment a drain has lasted too long

    @property
    def living(self) -> bool:
        return self.pid != NO_PROCESS

    @property
    def taken(self) -> bool:
        """Is a process in it, or one to come?"""
        return self.living or self.held or self.unborn

    @property
    def is_mold(self) -> bool:
        return self.index == NO_SLOT

    def start(self, kind: Respawn) -> None:
        """Set the marks of a row by its kind, as `ngx_spawn_process` does."""
        self.respawn = kind in (Respawn.RESPAWN, Respawn.JUST_RESPAWN)
        self.just_spawn = kind in (Respawn.JUST_SPAWN, Respawn.JUST_RESPAWN)
        self.detached = kind is Respawn.DETACHED
        self.backoff = Backoff()
        self.last_failure = ""

    def disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def release(self) -> None:
        """Give the row back."""
        self.disarm()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.pid = NO_PROCESS
        self.cycle = None
        self.held = self.respawn = self.just_spawn = self.detached = False
        self.exiting = self.ready = self.unborn = self.promoted = False
        self.blameless = self.waits = self.replaced = False
        self.mold = None


class Order(Struct, frozen=True):
    """What a mold has to know of a worker it makes: the payload of SPAWN; its slot comes with it.

    The attributes are those of its row.
    """

    ordinal: int
    waits: bool
    milestone: int


class TableFullError(Exception):
    """Every row is taken."""


class ProcessTable:
    """All rows, in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: list[ProcessSlot] = []
        self.molds: list[ProcessSlot] = []  # beside the rows: no slot in the scoreboard, no number

    def __iter__(self) -> Iterator[ProcessSlot]:
        return iter(self._rows)

    def workers(self) -> list[ProcessSlot]:
        """Rows that hold a worker, or wait for one to come back."""
        return [row for row in self._rows if row.taken and not row.detached]

    def living(self) -> list[ProcessSlot]:
        """Rows with a process of ours in them."""
        return [row for row in self._rows if row.living and not row.detached]

    @property
    def live(self) -> bool:
        """Is any child left that a stop has to wait for? A detached one is not."""
        return any(
            row.living and (row.exiting or not row.detached) for row in (*self._rows, *self.molds)
        )

    def by_pid(self, pid: int) -> ProcessSlot | None:
        for row in (*self._rows, *self.molds):
            if row.pid == pid:
                return row
        return None

    def free(self) -> ProcessSlot:
        """The first row that nobody holds. Raises TableFullError."""
        for row in self._rows:
            if not row.taken:
                return row
        if len(self._rows) == self.size:
            raise TableFullError(f"no more than {self.size} processes can be spawned")
        row = ProcessSlot(len(self._rows))
        self._rows.append(row)
        return row


class Death(Struct, frozen=True):
    """How a child ended: its row, the raw wait status, the seconds it lived.

    `peak_rss` is the most memory it ever had resident, in bytes.
    """

    row: ProcessSlot
    status: int
    uptime: float
    peak_rss: int = 0

    @property
    def exit_code(self) -> int | None:
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else None

    @property
    def killed(self) -> bool:
        """On SIGKILL, which leaves no trace of who sent it."""
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL

    @property
    def text(self) -> str:
        return describe(self.status)


def reap(
    table: ProcessTable,
    log: ErrorLog,
    clock: Callable[[], float] = time.monotonic,
    *,
    account: Callable[[Death], list[str]] = lambda _: [],
    on_stopped: Callable[[ProcessSlot, int], None] = lambda *_: None,
    on_continued: Callable[[ProcessSlot], None] = lambda _: None,
    look_again: Callable[[], None] = lambda: None,
) -> list[Death]:
    """Collect every child that has ended (nginx: `ngx_process_get_status`).

    Each is logged, with what `account(death)` knows of it. A child that is in no row is a stranger:
    somebody's orphan, given to us as process 1 or as a subreaper; it is collected and forgotten.
    `look_again()` comes before that: an adopted worker may have said its number a moment before it
    died. One that was stopped (by that signal) or goes on is no death, and told of apart.
    """
    deaths: list[Death] = []
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        except ChildProcessError:
            return deaths
        if pid == 0:
            return deaths
        row = table.by_pid(pid)
        if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
            if row is not None and not row.detached and not row.is_mold:
                if os.WIFSTOPPED(status):
                    on_stopped(row, os.WSTOPSIG(status))
                else:
                    on_continued(row)
            continue
        if row is None:
            look_again()
            row = table.by_pid(pid)
        if row is None:
            log.info(f"unknown process {pid} {describe(status)}")
            continue
        death = Death(row, status, clock() - row.started, usage.ru_maxrss * _RSS_UNIT)
        write = log.notice if death.exit_code is not None else log.alert
        if os.WIFSIGNALED(status) and row.exiting:
            write = log.notice  # we asked for it
        said = f"{row.name} {pid} {death.text} after {death.uptime:.1f} s"
        write(said if row.is_mold else "\n".join((said, *account(death))))
        if death.exit_code == EXIT_FATAL and row.respawn:
            log.alert(
                f"{row.name} {pid} exited with fatal code {EXIT_FATAL} and cannot be respawned"
            )
            row.respawn = False
        deaths.append(death)
