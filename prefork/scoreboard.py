"""Shared memory that tells how the server is doing, readable while every worker hangs.

One mapping, made by the master before the first fork: a header that only the master writes, and
one slot per worker. A slot's first cache line is written by its worker, its second by the
master; everyone else reads. One writer per cell is what makes plain stores enough: an aligned
8-byte store through `memoryview.cast("Q")` never tears on the CPUs CPython runs on, while an
increment from two processes loses counts.

Text cannot be stored in one go, so it is guarded by a sequence lock: the counter is odd while
the writer works, and a reader whose two readings of it differ starts again. A checksum stands
beside it, because a sequence lock alone relies on the CPU's store order, which Python gives us
no barrier to ask for; and because a writer killed half-way leaves the counter odd for ever.

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
from typing import Final

from prefork.errors import OperatorError
from prefork.log import errno_text

NAME: Final = "prefork-scoreboard"
MAGIC: Final = int.from_bytes(b"PREFORK\x01", "big")
LAYOUT_VERSION: Final = 1

_CELL: Final = 8
_SLOT_CELLS: Final = 16  # two cache lines: the worker's, the master's
_HEADER_CELLS: Final = 64

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
    _H_TOTALS_SEQ,
    _H_ACCEPTED,
    _H_REQUESTS,
) = range(14)
# Text regions: (their three cells: sequence, length, checksum; byte offset; room in bytes).
_TEXTS_AT: Final = _HEADER_CELLS * _CELL
_TEXT: Final = (16, _TEXTS_AT, 4096)
_CONFIG_PATH: Final = (19, _TEXTS_AT + 4096, 4096)
_LISTEN: Final = (22, _TEXTS_AT + 8192, 16384)
_SLOTS_AT: Final = (_TEXTS_AT + 8192 + 16384) // _CELL

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
    """A header text behind its sequence lock, cut to its room at a character's edge."""

    __slots__ = ("_first", "_offset", "_room")

    def __init__(self, region: tuple[int, int, int]) -> None:
        self._first, self._offset, self._room = region

    def __get__(self, owner: "Header", _type: object = None) -> str:
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

    def __set__(self, owner: "Header", value: str) -> None:
        cells, first, offset = owner.cells, self._first, self._offset
        data = value.encode("utf-8", "replace")[: self._room]
        data = data.decode("utf-8", "ignore").encode()
        cells[first] = (cells[first] | 1) & _U64  # odd: being written (a dead writer left it so)
        owner.memory[offset : offset + len(data)] = data
        cells[first + 1] = len(data)
        cells[first + 2] = zlib.crc32(data)
        cells[first] = (cells[first] + 1) & _U64


class Header:
    """What only the master writes. Numbers are u64; times are `time.time_ns()`."""

    __slots__ = ("cells", "memory")

    def __init__(self, cells: memoryview, memory: memoryview) -> None:
        self.cells = cells
        self.memory = memory

    magic = _Cell(_H_MAGIC)
    version = _Cell(_H_VERSION)
    slots = _Cell(_H_SLOTS)
    master_pid = _Cell(_H_MASTER_PID)
    generation = _Cell(_H_GENERATION)
    target_workers = _Cell(_H_TARGET)
    started_ns = _Cell(_H_STARTED)
    command_seq = _Cell(_H_COMMAND_SEQ)
    command_done = _Cell(_H_COMMAND_DONE)
    command = _Cell(_H_COMMAND)
    verdict = _Cell(_H_VERDICT)
    text = _Text(_TEXT)
    config_path = _Text(_CONFIG_PATH)
    listen = _Text(_LISTEN)


class Slot:
    """One worker's row.

    Worker-written: `state` (SlotState), `busy_since_ns` (`time.monotonic_ns()`, 0 = idle),
    `connections`, `accepted`, `requests`. Master-written: `pid`, `generation`, `started_ns`
    (`time.time_ns()`), `boots`, `last_exit` (raw wait status + 1; 0 = it never exited).
    """

    __slots__ = ("cells", "index")

    def __init__(self, index: int, cells: memoryview) -> None:
        self.index = index
        self.cells = cells

    state = _Cell(0)
    busy_since_ns = _Cell(1)
    connections = _Cell(2)
    accepted = _Cell(3)
    requests = _Cell(4)

    pid = _Cell(8)
    generation = _Cell(9)
    started_ns = _Cell(10)
    boots = _Cell(11)
    last_exit = _Cell(12)

    def publish(self, connections: int, accepted: int, requests: int) -> None:
        """The worker's three counters, once per turn of its loop."""
        cells = self.cells
        cells[2] = connections
        cells[3] = accepted
        cells[4] = requests

    def reset(self) -> None:
        """Clear the worker's half before a fork; the master's half keeps its history."""
        for index in range(8):
            self.cells[index] = 0


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

    @classmethod
    def create(cls, slots: int = 1024, fallback_path: str | None = None) -> "Scoreboard":
        """A fresh board. Raises OperatorError when the memory cannot be had."""
        size = (_SLOTS_AT + slots * _SLOT_CELLS) * _CELL
        path = None
        try:
            fd = _create_memfd(size)
            if fd is None:
                fd, path = _create_file(size, fallback_path)
        except OSError as exc:
            raise OperatorError(f"creating the scoreboard failed {errno_text(exc)}") from exc
        # The magic is stored last: who can see it sees a whole header.
        with mmap.mmap(fd, 0, access=mmap.ACCESS_WRITE) as memory:
            for index, value in (
                (_H_VERSION, LAYOUT_VERSION),
                (_H_SLOTS, slots),
                (_H_MASTER_PID, os.getpid()),
                (_H_STARTED, time.time_ns()),
                (_H_MAGIC, MAGIC),
            ):
                struct.pack_into("=Q", memory, index * _CELL, value)
        return cls(fd, writable=True, path=path)

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
            problem = _layout_problem(fd, master_pid)
            if problem is None:
                return cls(fd, writable=False)
            os.close(fd)
            reason = problem
        raise OperatorError(f"cannot read the scoreboard of process {master_pid}: {reason}")

    def slot(self, index: int) -> Slot:
        """Slot `index`, always the same object; IndexError beyond the board."""
        slot = self._slots.get(index)
        if slot is None:
            if not 0 <= index < self.slots:
                raise IndexError(index)
            first = _SLOTS_AT + index * _SLOT_CELLS
            slot = self._slots[index] = Slot(index, self._cells[first : first + _SLOT_CELLS])
        return slot

    def fold(self, index: int) -> None:
        """Add a dead worker's counters to the totals and clear them (master, at reap)."""
        cells, slot = self._cells, self.slot(index)
        cells[_H_TOTALS_SEQ] = (cells[_H_TOTALS_SEQ] | 1) & _U64
        cells[_H_ACCEPTED] = (cells[_H_ACCEPTED] + slot.accepted) & _U64
        cells[_H_REQUESTS] = (cells[_H_REQUESTS] + slot.requests) & _U64
        slot.reset()
        cells[_H_TOTALS_SEQ] = (cells[_H_TOTALS_SEQ] + 1) & _U64

    def totals(self) -> tuple[int, int]:
        """(connections accepted, requests) of all workers, living and dead: never falls."""
        cells = self._cells
        accepted = requests = 0
        for _attempt in range(_READ_ATTEMPTS):
            before = cells[_H_TOTALS_SEQ]
            accepted, requests = cells[_H_ACCEPTED], cells[_H_REQUESTS]
            for first in range(_SLOTS_AT, _SLOTS_AT + self.slots * _SLOT_CELLS, _SLOT_CELLS):
                accepted += cells[first + 3]
                requests += cells[first + 4]
            if cells[_H_TOTALS_SEQ] == before and not before & 1:
                break
        return accepted, requests

    def close(self) -> None:
        """Unmap. The other processes keep theirs; the fallback file goes with the writer."""
        if self.fd < 0:
            return
        for slot in self._slots.values():
            slot.cells.release()
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


def _create_memfd(size: int) -> int | None:
    if not hasattr(os, "memfd_create"):
        return None
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    # A reader must never meet SIGBUS because somebody changed the size under its mapping.
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


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


def _layout_problem(fd: int, pid: int) -> str | None:
    try:
        head = os.pread(fd, 4 * _CELL, 0)
    except OSError as exc:
        return errno_text(exc)
    if len(head) < 4 * _CELL:
        return "it is not a scoreboard"
    magic, version, slots, master = struct.unpack("=4Q", head)
    if magic != MAGIC:
        return "it is not a scoreboard"
    if version != LAYOUT_VERSION:
        return f"it is of layout {version}, this prefork reads layout {LAYOUT_VERSION}"
    if master != pid:
        return f"it belongs to process {master}"
    if os.fstat(fd).st_size < (_SLOTS_AT + slots * _SLOT_CELLS) * _CELL:
        return "it is cut short"
    return None
