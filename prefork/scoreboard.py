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

import contextlib
import enum
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Final, NamedTuple

from prefork.errors import OperatorError, errno_text

NAME: Final = "prefork-scoreboard"
MAGIC: Final = int.from_bytes(b"PREFORK\x01", "big")
LAYOUT_VERSION: Final = 4

_CELL: Final = 8
_HEADER_CELLS: Final = 256

# Header cells.
(
    _H_MAGIC,
    _H_VERSION,
    _H_SLOTS,
    _H_MASTER_PID,
    _H_GENERATION,
    _H_TARGET,
    _H_STARTED,
    _H_COMMAND_SEQ,
    _H_COMMAND_DONE,
    _H_COMMAND,
    _H_VERDICT,
    _H_TALLY,
    _H_USED,
    _H_SINCE,
    _H_PREDECESSOR,
) = range(15)
(
    _H_RELOAD_AT_WORK,
    _H_RELOAD_LIMIT,
    _H_RELOAD_BEGAN,
    _H_RELOAD_ENDED,
    _H_RELOAD_VERDICT,
) = range(32, 37)
# Text regions: (their three cells: sequence, length, checksum; byte offset; room in bytes).
_TEXTS_AT: Final = _HEADER_CELLS * _CELL
_TEXT: Final = (16, _TEXTS_AT, 4096)
_CONFIG_PATH: Final = (19, _TEXTS_AT + 4096, 4096)
_LISTEN: Final = (22, _TEXTS_AT + 8192, 16384)
_IDENTITY_AT: Final = _TEXTS_AT + 8192 + 16384
_PROGRAM: Final = (52, _IDENTITY_AT, 64)
_APP: Final = (55, _IDENTITY_AT + 64, 448)
_INODES: Final = (58, _IDENTITY_AT + 512, 1536)
_MOLDS: Final = (61, _IDENTITY_AT + 2048, 1024)
_RELOADS_AT: Final = _IDENTITY_AT + 3072
_RELOAD_PROGRESS: Final = (40, _RELOADS_AT, 512)
_RELOAD_TEXT: Final = (43, _RELOADS_AT + 512, 1536)
RELOAD_REPORT_ROOM: Final = 32768
_RELOAD_REPORT: Final = (46, _RELOADS_AT + 2048, RELOAD_REPORT_ROOM)
_SLOTS_AT: Final = (_RELOADS_AT + 2048 + RELOAD_REPORT_ROOM) // _CELL

# A slot's cells. The first eight are stored together, by one call a turn.
(
    BUSY_SINCE,
    _CONNECTIONS,
    _ACCEPTED,
    _REQUESTS,
    _BYTES_SENT,
    _RUNNING,
    _OLDEST_SINCE,
    _LAG,
    _STATE,
    _LAG_MAX,
) = range(10)
_RESPONSES: Final = 10  # five: 1xx to 5xx
OK_RESPONSES: Final = 11
_OLDEST_LINE: Final = 15  # three: the text's
_HISTOGRAM: Final = 18
BUCKETS: Final = 32
"""Latencies by powers of two: bucket n counts what took less than 2**n microseconds and not less
than half of that."""
_LONGEST: Final = 2 ** (BUCKETS - 2) * 1e-6  # seconds; what took longer is in the last bucket
(
    _PID,
    _GENERATION,
    _STARTED,
    _BOOTS,
    _LAST_EXIT,
    _READY,
    _COMES_BACK,
    _CRASHES,
) = range(56, 64)
_OWN_CELLS: Final = 56  # the worker's, cleared before each boot
_NUMBERS: Final = 72
# The texts of a slot, in bytes from its beginning.
_LINE_AT: Final = _NUMBERS * _CELL
_LINE_ROOM: Final = 256
_RECENT_AT: Final = _LINE_AT + _LINE_ROOM
RECENT: Final = 8  # requests
_NOTE: Final = struct.Struct("=d248s")  # when it began (time.monotonic), how its head begins
_SLOT_CELLS: Final = (_RECENT_AT + RECENT * _NOTE.size) // _CELL
_TURN: Final = struct.Struct("=8Q")
_pack_turn: Final = _TURN.pack
_TURN_PLACE: Final = slice(0, _TURN.size)

# What is counted: the cells that are added up over the workers, living and dead.
_COUNTED: Final = (
    _ACCEPTED,
    _REQUESTS,
    _BYTES_SENT,
    *range(_RESPONSES, _RESPONSES + 5),
    *range(_HISTOGRAM, _HISTOGRAM + BUCKETS),
)
_BANKS: Final = (128, 192)  # header cells for the dead ones' sums, twice: see `Scoreboard.fold`
_PREDECESSOR: Final = 0xFFFF  # stands for the predecessor where otherwise a slot's index + 1 does

_READ_ATTEMPTS: Final = 2000  # then the writer is taken for dead in the middle of its write
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF


class SlotState(enum.IntEnum):
    DEAD = 0
    STARTING = 1
    READY = 2
    BUSY = 3
    QUIESCING = 4


class Verdict(enum.IntEnum):
    """The header's word on the last command."""

    PENDING = 0
    OK = 1
    FAILED = 2


class _Cell:
    """A header or slot number: one u64 cell, read and written as a plain attribute."""

    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, owner: "Header | Slot", _type: object = None) -> int:
        return owner.cells[self._index]

    def __set__(self, owner: "Header | Slot", value: int) -> None:
        owner.cells[self._index] = value & _U64


class _Text:
    """A text behind its sequence lock, cut to its room at a character's edge."""

    __slots__ = ("_first", "_offset", "_room")

    def __init__(self, region: tuple[int, int, int]) -> None:
        self._first, self._offset, self._room = region

    def __get__(self, owner: "Header | Slot", _type: object = None) -> str:
        cells, first, offset = owner.cells, self._first, self._offset
        for attempt in range(_READ_ATTEMPTS):
            before = cells[first]
            if not before & 1:
                data = bytes(owner.memory[offset : offset + min(cells[first + 1], self._room)])
                checksum = cells[first + 2]
                if cells[first] == before and zlib.crc32(data) == checksum:
                    return data.decode("utf-8", "replace")
            if attempt > 100:
                time.sleep(0.0001)  # the writer lost its CPU in the middle: let it have ours
        return ""

    def __set__(self, owner: "Header | Slot", value: str) -> None:
        cells, first, offset = owner.cells, self._first, self._offset
        data = value.encode("utf-8", "replace")[: self._room]
        data = data.decode("utf-8", "ignore").encode()
        cells[first] = (cells[first] | 1) & _U64  # odd: being written (a dead writer left it so)
        owner.memory[offset : offset + len(data)] = data
        cells[first + 1] = len(data)
        cells[first + 2] = zlib.crc32(data)
        cells[first] = (cells[first] + 1) & _U64


class Header:
    """What only the master writes. Numbers are u64; times are `time.time_ns()`.

    `listen` is a URL a line, `inodes` the sockets' inode numbers in the same order, with spaces
    between them; `molds` are told as `prefork.process.molds.account` says. `program` is the version
    of prefork that runs, `app` what it serves and how it is spoken to. `since_ns` is since when
    the totals are counted: the start of the first of the masters that followed one another.
    `predecessor` is the number + 1 of the master's descriptor of the old master's board while that
    is counted in (0: none is).

    Of the last reload that is over: `reload_ended_ns` (0: there was none), `reload_verdict`
    (Verdict), `reload_text` (one line for people), `reload_report` (JSON, the shape of
    `prefork reload --json`) and `reload_began_ns` (monotonic). Of the one at work:
    `reload_at_work_ns`, when it began (monotonic; 0: there is none), `reload_progress`, what it is
    waiting for, and `reload_limit_ns`, when this step will be over at the latest (monotonic).
    """

    __slots__ = ("cells", "memory")

    def __init__(self, cells: memoryview, memory: memoryview) -> None:
        self.cells = cells
        self.memory = memory

    magic = _Cell(_H_MAGIC)
    version = _Cell(_H_VERSION)
    slots = _Cell(_H_SLOTS)
    master_pid = _Cell(_H_MASTER_PID)
    predecessor = _Cell(_H_PREDECESSOR)
    generation = _Cell(_H_GENERATION)
    target_workers = _Cell(_H_TARGET)
    started_ns = _Cell(_H_STARTED)
    since_ns = _Cell(_H_SINCE)
    command_seq = _Cell(_H_COMMAND_SEQ)
    command_done = _Cell(_H_COMMAND_DONE)
    command = _Cell(_H_COMMAND)
    verdict = _Cell(_H_VERDICT)
    text = _Text(_TEXT)
    config_path = _Text(_CONFIG_PATH)
    listen = _Text(_LISTEN)
    inodes = _Text(_INODES)
    program = _Text(_PROGRAM)
    app = _Text(_APP)
    molds = _Text(_MOLDS)
    reload_at_work_ns = _Cell(_H_RELOAD_AT_WORK)
    reload_limit_ns = _Cell(_H_RELOAD_LIMIT)
    reload_began_ns = _Cell(_H_RELOAD_BEGAN)
    reload_ended_ns = _Cell(_H_RELOAD_ENDED)
    reload_verdict = _Cell(_H_RELOAD_VERDICT)
    reload_progress = _Text(_RELOAD_PROGRESS)
    reload_text = _Text(_RELOAD_TEXT)
    reload_report = _Text(_RELOAD_REPORT)


class Totals(NamedTuple):
    """What workers did: connections accepted, requests answered, bytes sent.

    `responses` counts by class, 1xx to 5xx; `latencies` by bucket, see `BUCKETS`.
    """

    accepted: int
    requests: int
    bytes_sent: int
    responses: tuple[int, ...]
    latencies: tuple[int, ...]

    @classmethod
    def of(cls, counters: Sequence[int]) -> "Totals":
        """From all of them in a row, as `flat` gives them."""
        accepted, requests, bytes_sent, *rest = counters
        return cls(accepted, requests, bytes_sent, tuple(rest[:5]), tuple(rest[5:]))

    def flat(self) -> list[int]:
        """In the order of `_COUNTED`."""
        return [self.accepted, self.requests, self.bytes_sent, *self.responses, *self.latencies]

    def less(self, earlier: "Totals") -> "Totals":
        """What was added since `earlier`."""
        return Totals.of([a - b for a, b in zip(self.flat(), earlier.flat(), strict=True)])


class Slot:
    """One worker's row.

    Worker-written: `state` (SlotState); `busy_since_ns` (`time.monotonic_ns()`, 0 = asleep);
    `connections` open, `accepted`, `requests` answered, `bytes_sent`; `running`: requests that were
    in progress when it last slept, `oldest_since_ns` (monotonic) and `oldest_line` of the oldest of
    them; `lag_ns` and `lag_max_ns`: how long the last and the longest turn of its loop took.

    Master-written: `pid`, `generation`, `started_ns` and `ready_ns` (`time.time_ns()`), `boots`,
    `last_exit` (raw wait status + 1; 0 = it never exited), `crashes` in a row, `comes_back_ns`
    (`time.time_ns()` of the next attempt to start it; 0 = none is waited for).
    """

    __slots__ = ("cells", "index", "memory")

    def __init__(self, index: int, cells: memoryview, memory: memoryview) -> None:
        self.index = index
        self.cells = cells
        self.memory = memory

    busy_since_ns = _Cell(BUSY_SINCE)
    connections = _Cell(_CONNECTIONS)
    accepted = _Cell(_ACCEPTED)
    requests = _Cell(_REQUESTS)
    bytes_sent = _Cell(_BYTES_SENT)
    running = _Cell(_RUNNING)
    oldest_since_ns = _Cell(_OLDEST_SINCE)
    lag_ns = _Cell(_LAG)
    state = _Cell(_STATE)
    lag_max_ns = _Cell(_LAG_MAX)
    oldest_line = _Text((_OLDEST_LINE, _LINE_AT, _LINE_ROOM))

    pid = _Cell(_PID)
    generation = _Cell(_GENERATION)
    started_ns = _Cell(_STARTED)
    boots = _Cell(_BOOTS)
    last_exit = _Cell(_LAST_EXIT)
    ready_ns = _Cell(_READY)
    comes_back_ns = _Cell(_COMES_BACK)
    crashes = _Cell(_CRASHES)

    def publish(
        self,
        connections: int,
        accepted: int,
        requests: int,
        bytes_sent: int = 0,
        running: int = 0,
        oldest_since_ns: int = 0,
        lag_ns: int = 0,
    ) -> None:
        """The end of a turn: the worker's counters, and that it goes to sleep."""
        # Not pack_into: that clears all bytes before it stores, and whoever looks (or is killed)
        # in between sees counters fall to nothing.
        self.memory[_TURN_PLACE] = _pack_turn(
            0, connections, accepted, requests, bytes_sent, running, oldest_since_ns, lag_ns
        )
        if lag_ns > self.cells[_LAG_MAX]:
            self.cells[_LAG_MAX] = lag_ns

    def answered(self, status: int, responses: int = 1) -> None:
        """Count responses with `status` in their class."""
        self.cells[_RESPONSES - 1 + min(max(status // 100, 1), 5)] += responses

    def took(self, seconds: float, requests: int = 1) -> None:
        """Count requests that took so long."""
        if seconds < _LONGEST:
            self.cells[_HISTOGRAM + int(seconds * 1e6).bit_length()] += requests
        else:
            self.cells[_HISTOGRAM + BUCKETS - 1] += requests

    @property
    def responses(self) -> tuple[int, ...]:
        """How many of each class, 1xx to 5xx."""
        return tuple(self.cells[_RESPONSES : _RESPONSES + 5])

    @property
    def latencies(self) -> tuple[int, ...]:
        """How many took how long, see `BUCKETS`."""
        return tuple(self.cells[_HISTOGRAM : _HISTOGRAM + BUCKETS])

    @classmethod
    def private(cls) -> "Slot":
        """A slot that nobody else sees, for a server without a scoreboard."""
        memory = memoryview(bytearray(_SLOT_CELLS * _CELL))
        return cls(0, memory.cast("Q")[:_NUMBERS], memory)

    def notebook(self) -> tuple[Callable[..., None], Callable[[], int]]:
        """What the worker notes a beginning request with: `note(memory, place(), began, head)`.

        Two callables of the interpreter's own, because this is on the hot path: `note` is
        `Struct.pack_into`, `place` says where, round and round.
        """
        places = cycle(range(_RECENT_AT, _RECENT_AT + RECENT * _NOTE.size, _NOTE.size))
        return _NOTE.pack_into, places.__next__

    def recent(self) -> list[tuple[float, str]]:
        """The last requests that began, the latest first: (`time.monotonic()`, request line)."""
        notes: list[tuple[float, str]] = []
        for place in range(_RECENT_AT, _RECENT_AT + RECENT * _NOTE.size, _NOTE.size):
            began, head = _NOTE.unpack_from(self.memory, place)
            if began:
                line = head.rstrip(b"\0").lstrip(b"\r\n").partition(b"\r\n")[0]
                notes.append((began, line.decode("ascii", "backslashreplace")))
        return sorted(notes, reverse=True)

    def reset(self) -> None:
        """Clear the worker's part before a fork; the master's keeps its history."""
        for index in range(_OWN_CELLS):
            self.cells[index] = 0
        self.memory[_LINE_AT:] = bytes(len(self.memory) - _LINE_AT)


class Scoreboard:
    """`create` in the master, `attach_pid` in a control command (read-only)."""

    def __init__(self, fd: int, *, writable: bool, path: str | None = None) -> None:
        """Map `fd`, which becomes ours to close. `path` is unlinked by a writable `close`."""
        self.fd = fd
        self._path = path
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._mmap = mmap.mmap(fd, 0, access=access)
        self._memory = memoryview(self._mmap)
        self._cells = self._memory.cast("Q")
        self.header = Header(self._cells[:_HEADER_CELLS], self._memory)
        self.slots = self.header.slots
        self._slots: dict[int, Slot] = {}
        self._predecessor: Scoreboard | None = None

    @classmethod
    def create(
        cls,
        slots: int = 1024,
        fallback_path: str | None = None,
        reserved: int | None = None,
        before: "Scoreboard | None" = None,
    ) -> "Scoreboard":
        """A fresh board. Raises OperatorError when the memory cannot be had.

        `reserved` is a descriptor from `reserve_memory` of the master we come after; `before` is
        that one's board, to be counted in from the first moment, and ours to close.
        """
        size = (_SLOTS_AT + slots * _SLOT_CELLS) * _CELL
        path = None
        fd = reserved
        try:
            if fd is None:
                fd = reserve_memory()
            if fd is None:
                fd, path = _create_file(size, fallback_path)
            else:
                _settle_size(fd, size)
        except OSError as exc:
            raise OperatorError(f"creating the scoreboard failed {errno_text(exc)}") from exc
        now = time.time_ns()
        # The magic is stored last: who can see it sees a whole header.
        with mmap.mmap(fd, 0, access=mmap.ACCESS_WRITE) as memory:
            for index, value in (
                (_H_VERSION, LAYOUT_VERSION),
                (_H_SLOTS, slots),
                (_H_MASTER_PID, os.getpid()),
                (_H_STARTED, now),
                (_H_SINCE, now if before is None else before.header.since_ns),
                (_H_PREDECESSOR, 0 if before is None else before.fd + 1),
                (_H_MAGIC, MAGIC),
            ):
                struct.pack_into("=Q", memory, index * _CELL, value)
        board = cls(fd, writable=True, path=path)
        board._predecessor = before
        return board

    @classmethod
    def attach_pid(cls, master_pid: int, fallback_path: str | None = None) -> "Scoreboard":
        """The board of the running master `master_pid`, read-only.

        Raises OperatorError when there is none: no such process, not ours to look into, not a
        prefork master.
        """
        reason = "it has none"
        for candidate in _candidates(master_pid, fallback_path):
            try:
                fd = os.open(candidate, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as exc:
                reason = errno_text(exc)
                continue
            # It holds the boards of the masters before and after it, too.
            owner, problem = _owner(fd), _layout_problem(fd)
            if owner == master_pid and problem is None:
                board = cls(fd, writable=False)
                try:
                    board._find_predecessor()
                except (OSError, OperatorError) as exc:
                    board.close()
                    reason = errno_text(exc) if isinstance(exc, OSError) else str(exc)
                    break
                return board
            os.close(fd)
            reason = problem or f"it belongs to process {owner}"
            if owner == master_pid:
                break
        raise OperatorError(f"cannot read the scoreboard of process {master_pid}: {reason}")

    @classmethod
    def attach_fd(cls, fd: int) -> "Scoreboard":
        """The board in `fd`, read-only; the descriptor becomes ours. Raises OperatorError."""
        problem = _layout_problem(fd)
        if problem is not None:
            os.close(fd)
            raise OperatorError(f"cannot read the scoreboard: {problem}")
        return cls(fd, writable=False)

    def workers_alive(self) -> bool:
        """Does a process live that writes here (or, after a while, one that got its number)?"""
        return any(slot.pid and _alive(slot.pid) for slot in self.used())

    def slot(self, index: int) -> Slot:
        """Slot `index`, always the same object; IndexError beyond the board."""
        slot = self._slots.get(index)
        if slot is None:
            if not 0 <= index < self.slots:
                raise IndexError(index)
            first = _SLOTS_AT + index * _SLOT_CELLS
            cells = self._cells[first : first + _NUMBERS]
            memory = self._memory[first * _CELL : (first + _SLOT_CELLS) * _CELL]
            slot = self._slots[index] = Slot(index, cells, memory)
        return slot

    def take(self, index: int) -> Slot:
        """Slot `index`, cleared for a worker that is about to be made (master)."""
        slot = self.slot(index)
        slot.reset()
        if index >= self._cells[_H_USED]:
            self._cells[_H_USED] = index + 1
        return slot

    def used(self) -> Iterator[Slot]:
        """The slots that ever had a worker; of 1024 a reader would otherwise map every page."""
        for index in range(self._cells[_H_USED]):
            yield self.slot(index)

    def fold(self, index: int) -> None:
        """Add a dead worker's counters to the totals and clear them (master, at reap).

        Nobody may ever see a worker counted twice or not at all, be the master killed or stopped
        after any of these stores. So there are two banks of sums, and one cell that says which of
        them counts, and whose own counters do not count beside it.
        """
        self._add(self._counted(index), index + 1)
        self.slot(index).reset()
        self._settle()

    def add(self, totals: "Totals") -> None:
        """Count in what others have done whose boards are not read any more (master)."""
        self._add(totals.flat(), 0)

    def _add(self, counters: list[int], instead_of: int) -> None:
        """`instead_of` whom: a slot's index + 1, _PREDECESSOR, or 0."""
        cells = self._cells
        word = cells[_H_TALLY]
        bank = word & 1
        for place, (old, more) in enumerate(zip(self._bank(bank), counters, strict=True)):
            cells[_BANKS[1 - bank] + place] = (old + more) & _U64
        cells[_H_TALLY] = (((word >> 32) + 1) << 32 | instead_of << 1 | (1 - bank)) & _U64

    def _settle(self) -> None:
        """Whoever was added counts again for what comes after."""
        word = self._cells[_H_TALLY]
        self._cells[_H_TALLY] = (((word >> 32) + 1) << 32 | (word & 1)) & _U64

    def _bank(self, bank: int) -> list[int]:
        return self._cells[_BANKS[bank] : _BANKS[bank] + len(_COUNTED)].tolist()

    def _counted(self, index: int) -> list[int]:
        own = self.slot(index).cells[:_OWN_CELLS].tolist()
        return [own[cell] for cell in _COUNTED]

    def totals(self, *, alone: bool = False) -> Totals:
        """What all workers did, living and dead, here and under the masters before: never falls.

        `alone` leaves out the predecessor while that has a board of its own.
        """
        cells = self._cells
        sums: list[int] = []
        for _attempt in range(_READ_ATTEMPTS):
            word = cells[_H_TALLY]
            apart = word >> 1 & 0xFFFF
            parts = [self._bank(word & 1)]
            parts += [self._counted(n) for n in range(cells[_H_USED]) if n + 1 != apart]
            before = None if alone or apart == _PREDECESSOR else self._predecessor
            if before is not None and cells[_H_PREDECESSOR]:
                parts.append(before.totals().flat())
            sums = [sum(column) for column in zip(*parts, strict=True)]
            if cells[_H_TALLY] == word:
                break
        return Totals.of(sums)

    # The masters before and after

    @property
    def predecessor(self) -> "Scoreboard | None":
        """The old master's board, until `inherit`."""
        return self._predecessor

    def inherit(self) -> None:
        """Fold the old master's totals in for good: neither it nor a worker of it is left."""
        before = self._predecessor
        if before is None:
            return
        self._add(before.totals().flat(), _PREDECESSOR)
        self.header.predecessor = 0
        self._settle()
        self._predecessor = None
        before.close()

    def _find_predecessor(self) -> None:
        """A reader's own mapping of it. Raises OSError or OperatorError when the master is gone."""
        header = self.header
        if header.predecessor:
            name = f"/proc/{header.master_pid}/fd/{header.predecessor - 1}"
            try:
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                if header.predecessor:  # it was not folded in meanwhile
                    raise
            else:
                self._predecessor = Scoreboard.attach_fd(fd)

    def close(self) -> None:
        """Unmap. The other processes keep theirs; the fallback file goes with the writer."""
        if self.fd < 0:
            return
        if self._predecessor is not None:
            self._predecessor.close()
            self._predecessor = None
        for slot in self._slots.values():
            slot.cells.release()
            slot.memory.release()
        self._slots.clear()
        self.header.cells.release()
        self._cells.release()
        self._memory.release()
        self._mmap.close()
        os.close(self.fd)
        self.fd = -1
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def fallback_path_beside(pid_file: str) -> str:
    """Where the board lies when there is no memfd: the pid file's neighbour."""
    return f"{pid_file}.scoreboard"


def reserve_memory() -> int | None:
    """A descriptor of memory for a board that is yet to be made; None where there is no memfd.

    The size is for whoever makes it: a newer program's board may be larger than ours.
    """
    if not hasattr(os, "memfd_create"):
        return None
    return os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _settle_size(fd: int, size: int) -> None:
    os.ftruncate(fd, size)
    # A reader must never meet SIGBUS because somebody changed the size under its mapping.
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)


def _create_file(size: int, path: str | None) -> tuple[int, str | None]:
    if path is None:
        import tempfile

        fd, path = tempfile.mkstemp(prefix=NAME)
        os.unlink(path)
        os.ftruncate(fd, size)
        return fd, None
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left by a master that was killed; its readers keep their mapping
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, size)
    return fd, path


def _candidates(pid: int, fallback_path: str | None) -> list[str]:
    folder = f"/proc/{pid}/fd"
    found = []
    try:
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{NAME}"):
                    found.append(f"{folder}/{name}")
    except PermissionError:
        found.append(folder)  # opening it says why
    except OSError:
        pass
    if fallback_path is not None:
        found.append(fallback_path)
    return found


def _layout_problem(fd: int) -> str | None:
    try:
        head = os.pread(fd, 4 * _CELL, 0)
    except OSError as exc:
        return errno_text(exc)
    if len(head) < 4 * _CELL:
        return "it is not a scoreboard"
    magic, version, slots, _master = struct.unpack("=4Q", head)
    if magic != MAGIC:
        return "it is not a scoreboard"
    if version != LAYOUT_VERSION:
        return f"it is of layout {version}, this prefork reads layout {LAYOUT_VERSION}"
    if os.fstat(fd).st_size < (_SLOTS_AT + slots * _SLOT_CELLS) * _CELL:
        return "it is cut short"
    return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it belongs to somebody else
    return True


def _owner(fd: int) -> int:
    """The master whose board this is; 0 when that cannot be told."""
    try:
        head = os.pread(fd, 4 * _CELL, 0)
    except OSError:
        return 0
    return 0 if len(head) < 4 * _CELL else int(struct.unpack("=4Q", head)[3])
