"""The board: header and slots in one mapping, and the sums over all of them."""

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Iterator
from typing import Final

from prefork.errors import OperatorError, errno_text
from prefork.scoreboard.cells import CELL, READ_ATTEMPTS, U64
from prefork.scoreboard.header import (
    BANKS,
    H_MAGIC,
    H_MASTER_PID,
    H_PREDECESSOR,
    H_SINCE,
    H_SLOTS,
    H_STARTED,
    H_TALLY,
    H_USED,
    H_VERSION,
    HEADER_CELLS,
    SLOTS_AT,
    Header,
)
from prefork.scoreboard.memory import (
    LAYOUT_VERSION,
    MAGIC,
    alive,
    candidates,
    create_file,
    layout_problem,
    owner_of,
    reserve_memory,
    settle_size,
)
from prefork.scoreboard.slot import COUNTED, NUMBERS, OWN_CELLS, SLOT_CELLS, Slot, Totals

PREDECESSOR: Final = 0xFFFF  # stands for the predecessor where otherwise a slot's index + 1 does


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
        self.header = Header(self._cells[:HEADER_CELLS], self._memory)
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
        size = (SLOTS_AT + slots * SLOT_CELLS) * CELL
        path = None
        fd = reserved
        try:
            if fd is None:
                fd = reserve_memory()
            if fd is None:
                fd, path = create_file(size, fallback_path)
            else:
                settle_size(fd, size)
        except OSError as exc:
            raise OperatorError(f"creating the scoreboard failed {errno_text(exc)}") from exc
        now = time.time_ns()
        # The magic is stored last: who can see it sees a whole header.
        with mmap.mmap(fd, 0, access=mmap.ACCESS_WRITE) as memory:
            for index, value in (
                (H_VERSION, LAYOUT_VERSION),
                (H_SLOTS, slots),
                (H_MASTER_PID, os.getpid()),
                (H_STARTED, now),
                (H_SINCE, now if before is None else before.header.since_ns),
                (H_PREDECESSOR, 0 if before is None else before.fd + 1),
                (H_MAGIC, MAGIC),
            ):
                struct.pack_into("=Q", memory, index * CELL, value)
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
        for candidate in candidates(master_pid, fallback_path):
            try:
                fd = os.open(candidate, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as exc:
                reason = errno_text(exc)
                continue
            # It holds the boards of the masters before and after it, too.
            owner, problem = owner_of(fd), layout_problem(fd)
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
        problem = layout_problem(fd)
        if problem is not None:
            os.close(fd)
            raise OperatorError(f"cannot read the scoreboard: {problem}")
        return cls(fd, writable=False)

    def workers_alive(self) -> bool:
        """Does a process live that writes here (or, after a while, one that got its number)?"""
        return any(slot.pid and alive(slot.pid) for slot in self.used())

    def slot(self, index: int) -> Slot:
        """Slot `index`, always the same object; IndexError beyond the board."""
        slot = self._slots.get(index)
        if slot is None:
            if not 0 <= index < self.slots:
                raise IndexError(index)
            first = SLOTS_AT + index * SLOT_CELLS
            cells = self._cells[first : first + NUMBERS]
            memory = self._memory[first * CELL : (first + SLOT_CELLS) * CELL]
            slot = self._slots[index] = Slot(index, cells, memory)
        return slot

    def take(self, index: int) -> Slot:
        """Slot `index`, cleared for a worker that is about to be made (master)."""
        slot = self.slot(index)
        slot.reset()
        if index >= self._cells[H_USED]:
            self._cells[H_USED] = index + 1
        return slot

    def used(self) -> Iterator[Slot]:
        """The slots that ever had a worker; of 1024 a reader would otherwise map every page."""
        for index in range(self._cells[H_USED]):
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
        """`instead_of` whom: a slot's index + 1, PREDECESSOR, or 0."""
        cells = self._cells
        word = cells[H_TALLY]
        bank = word & 1
        for place, (old, more) in enumerate(zip(self._bank(bank), counters, strict=True)):
            cells[BANKS[1 - bank] + place] = (old + more) & U64
        cells[H_TALLY] = (((word >> 32) + 1) << 32 | instead_of << 1 | (1 - bank)) & U64

    def _settle(self) -> None:
        """Whoever was added counts again for what comes after."""
        word = self._cells[H_TALLY]
        self._cells[H_TALLY] = (((word >> 32) + 1) << 32 | (word & 1)) & U64

    def _bank(self, bank: int) -> list[int]:
        return self._cells[BANKS[bank] : BANKS[bank] + len(COUNTED)].tolist()

    def _counted(self, index: int) -> list[int]:
        own = self.slot(index).cells[:OWN_CELLS].tolist()
        return [own[cell] for cell in COUNTED]

    def totals(self, *, alone: bool = False) -> Totals:
        """What all workers did, living and dead, here and under the masters before: never falls.

        `alone` leaves out the predecessor while that has a board of its own.
        """
        cells = self._cells
        sums: list[int] = []
        for _attempt in range(READ_ATTEMPTS):
            word = cells[H_TALLY]
            apart = word >> 1 & 0xFFFF
            parts = [self._bank(word & 1)]
            parts += [self._counted(n) for n in range(cells[H_USED]) if n + 1 != apart]
            before = None if alone or apart == PREDECESSOR else self._predecessor
            if before is not None and cells[H_PREDECESSOR]:
                parts.append(before.totals().flat())
            sums = [sum(column) for column in zip(*parts, strict=True)]
            if cells[H_TALLY] == word:
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
        self._add(before.totals().flat(), PREDECESSOR)
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
