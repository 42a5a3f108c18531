"""A slot: what one worker does, and what the master knows of it."""

import enum
import struct
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Final, NamedTuple

from prefork.scoreboard.cells import CELL, Cell, Text

# A slot's cells. The first eight are stored together, by one call a turn.
(
    BUSY_SINCE,
    CONNECTIONS,
    ACCEPTED,
    REQUESTS,
    BYTES_SENT,
    RUNNING,
    OLDEST_SINCE,
    LAG,
    STATE,
    LAG_MAX,
) = range(10)
RESPONSES: Final = 10  # five: 1xx to 5xx
OK_RESPONSES: Final = 11
OLDEST_LINE: Final = 15  # three: the text's
HISTOGRAM: Final = 18
BUCKETS: Final = 32
"""Latencies by powers of two: bucket n counts what took less than 2**n microseconds and not less
than half of that."""
LONGEST: Final = 2 ** (BUCKETS - 2) * 1e-6  # seconds; what took longer is in the last bucket
(
    PID,
    GENERATION,
    STARTED,
    BOOTS,
    LAST_EXIT,
    READY,
    COMES_BACK,
    CRASHES,
) = range(56, 64)
OWN_CELLS: Final = 56  # the worker's, cleared before each boot
NUMBERS: Final = 72
# The texts of a slot, in bytes from its beginning.
LINE_AT: Final = NUMBERS * CELL
LINE_ROOM: Final = 256
RECENT_AT: Final = LINE_AT + LINE_ROOM
RECENT: Final = 8  # requests
NOTE: Final = struct.Struct("=d248s")  # when it began (time.monotonic), how its head begins
SLOT_CELLS: Final = (RECENT_AT + RECENT * NOTE.size) // CELL
TURN: Final = struct.Struct("=8Q")
pack_turn: Final = TURN.pack
TURN_PLACE: Final = slice(0, TURN.size)

# What is counted: the cells that are added up over the workers, living and dead.
COUNTED: Final = (
    ACCEPTED,
    REQUESTS,
    BYTES_SENT,
    *range(RESPONSES, RESPONSES + 5),
    *range(HISTOGRAM, HISTOGRAM + BUCKETS),
)


class SlotState(enum.IntEnum):
    DEAD = 0
    STARTING = 1
    READY = 2
    BUSY = 3
    QUIESCING = 4


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
        """In the order of `COUNTED`."""
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

    busy_since_ns = Cell(BUSY_SINCE)
    connections = Cell(CONNECTIONS)
    accepted = Cell(ACCEPTED)
    requests = Cell(REQUESTS)
    bytes_sent = Cell(BYTES_SENT)
    running = Cell(RUNNING)
    oldest_since_ns = Cell(OLDEST_SINCE)
    lag_ns = Cell(LAG)
    state = Cell(STATE)
    lag_max_ns = Cell(LAG_MAX)
    oldest_line = Text((OLDEST_LINE, LINE_AT, LINE_ROOM))

    pid = Cell(PID)
    generation = Cell(GENERATION)
    started_ns = Cell(STARTED)
    boots = Cell(BOOTS)
    last_exit = Cell(LAST_EXIT)
    ready_ns = Cell(READY)
    comes_back_ns = Cell(COMES_BACK)
    crashes = Cell(CRASHES)

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
        self.memory[TURN_PLACE] = pack_turn(
            0, connections, accepted, requests, bytes_sent, running, oldest_since_ns, lag_ns
        )
        if lag_ns > self.cells[LAG_MAX]:
            self.cells[LAG_MAX] = lag_ns

    def answered(self, status: int, responses: int = 1) -> None:
        """Count responses with `status` in their class."""
        self.cells[RESPONSES - 1 + min(max(status // 100, 1), 5)] += responses

    def took(self, seconds: float, requests: int = 1) -> None:
        """Count requests that took so long."""
        if seconds < LONGEST:
            self.cells[HISTOGRAM + int(seconds * 1e6).bit_length()] += requests
        else:
            self.cells[HISTOGRAM + BUCKETS - 1] += requests

    @property
    def responses(self) -> tuple[int, ...]:
        """How many of each class, 1xx to 5xx."""
        return tuple(self.cells[RESPONSES : RESPONSES + 5])

    @property
    def latencies(self) -> tuple[int, ...]:
        """How many took how long, see `BUCKETS`."""
        return tuple(self.cells[HISTOGRAM : HISTOGRAM + BUCKETS])

    @classmethod
    def private(cls) -> "Slot":
        """A slot that nobody else sees, for a server without a scoreboard."""
        memory = memoryview(bytearray(SLOT_CELLS * CELL))
        return cls(0, memory.cast("Q")[:NUMBERS], memory)

    def notebook(self) -> tuple[Callable[..., None], Callable[[], int]]:
        """What the worker notes a beginning request with: `note(memory, place(), began, head)`.

        Two callables of the interpreter's own, because this is on the hot path: `note` is
        `Struct.pack_into`, `place` says where, round and round.
        """
        places = cycle(range(RECENT_AT, RECENT_AT + RECENT * NOTE.size, NOTE.size))
        return NOTE.pack_into, places.__next__

    def recent(self) -> list[tuple[float, str]]:
        """The last requests that began, the latest first: (`time.monotonic()`, request line)."""
        notes: list[tuple[float, str]] = []
        for place in range(RECENT_AT, RECENT_AT + RECENT * NOTE.size, NOTE.size):
            began, head = NOTE.unpack_from(self.memory, place)
            if began:
                line = head.rstrip(b"\0").lstrip(b"\r\n").partition(b"\r\n")[0]
                notes.append((began, line.decode("ascii", "backslashreplace")))
        return sorted(notes, reverse=True)

    def reset(self) -> None:
        """Clear the worker's part before a fork; the master's keeps its history."""
        for index in range(OWN_CELLS):
            self.cells[index] = 0
        self.memory[LINE_AT:] = bytes(len(self.memory) - LINE_AT)
