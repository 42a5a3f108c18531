"""A number or a text in shared memory, as an attribute of whoever owns the memory."""

import time
import zlib
from typing import Final, Protocol


class Owner(Protocol):
    """What has its numbers in `cells`, as u64, and its texts in `memory`."""

    @property
    def cells(self) -> memoryview: ...
    @property
    def memory(self) -> memoryview: ...


READ_ATTEMPTS: Final = 2000  # then the writer is taken for dead in the middle of its write
U64: Final = 0xFFFF_FFFF_FFFF_FFFF


CELL: Final = 8


class Cell:
    """A header or slot number: one u64 cell, read and written as a plain attribute."""

    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, owner: Owner, _type: object = None) -> int:
        return owner.cells[self._index]

    def __set__(self, owner: Owner, value: int) -> None:
        owner.cells[self._index] = value & U64


class Text:
    """A text behind its sequence lock, cut to its room at a character's edge."""

    __slots__ = ("_first", "_offset", "_room")

    def __init__(self, region: tuple[int, int, int]) -> None:
        self._first, self._offset, self._room = region

    def __get__(self, owner: Owner, _type: object = None) -> str:
        cells, first, offset = owner.cells, self._first, self._offset
        for attempt in range(READ_ATTEMPTS):
            before = cells[first]
            if not before & 1:
                data = bytes(owner.memory[offset : offset + min(cells[first + 1], self._room)])
                checksum = cells[first + 2]
                if cells[first] == before and zlib.crc32(data) == checksum:
                    return data.decode("utf-8", "replace")
            if attempt > 100:
                time.sleep(0.0001)  # the writer lost its CPU in the middle: let it have ours
        return ""

    def __set__(self, owner: Owner, value: str) -> None:
        cells, first, offset = owner.cells, self._first, self._offset
        data = value.encode("utf-8", "replace")[: self._room]
        data = data.decode("utf-8", "ignore").encode()
        cells[first] = (cells[first] | 1) & U64  # odd: being written (a dead writer left it so)
        owner.memory[offset : offset + len(data)] = data
        cells[first + 1] = len(data)
        cells[first + 2] = zlib.crc32(data)
        cells[first] = (cells[first] + 1) & U64
