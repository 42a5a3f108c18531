"""The header: what the master says of the server, and of the last command."""

import enum
from typing import Final

from prefork.scoreboard.cells import CELL, Cell, Text

HEADER_CELLS: Final = 256

# Header cells.
(
    H_MAGIC,
    H_VERSION,
    H_SLOTS,
    H_MASTER_PID,
    H_GENERATION,
    H_TARGET,
    H_STARTED,
    H_COMMAND_SEQ,
    H_COMMAND_DONE,
    H_COMMAND,
    H_VERDICT,
    H_TALLY,
    H_USED,
    H_SINCE,
    H_PREDECESSOR,
) = range(15)
(
    H_RELOAD_AT_WORK,
    H_RELOAD_LIMIT,
    H_RELOAD_BEGAN,
    H_RELOAD_ENDED,
    H_RELOAD_VERDICT,
) = range(32, 37)
# Text regions: (their three cells: sequence, length, checksum; byte offset; room in bytes).
TEXTS_AT: Final = HEADER_CELLS * CELL
TEXT_REGION: Final = (16, TEXTS_AT, 4096)
CONFIG_PATH: Final = (19, TEXTS_AT + 4096, 4096)
LISTEN: Final = (22, TEXTS_AT + 8192, 16384)
IDENTITY_AT: Final = TEXTS_AT + 8192 + 16384
PROGRAM: Final = (52, IDENTITY_AT, 64)
APP: Final = (55, IDENTITY_AT + 64, 448)
INODES: Final = (58, IDENTITY_AT + 512, 1536)
MOLDS: Final = (61, IDENTITY_AT + 2048, 1024)
RELOADS_AT: Final = IDENTITY_AT + 3072
RELOAD_PROGRESS: Final = (40, RELOADS_AT, 512)
RELOAD_TEXT: Final = (43, RELOADS_AT + 512, 1536)
RELOAD_REPORT_ROOM: Final = 32768
RELOAD_REPORT: Final = (46, RELOADS_AT + 2048, RELOAD_REPORT_ROOM)
SLOTS_AT: Final = (RELOADS_AT + 2048 + RELOAD_REPORT_ROOM) // CELL
BANKS: Final = (128, 192)  # header cells for the dead ones' sums, twice: see `Scoreboard.fold`


class Verdict(enum.IntEnum):
    """The header's word on the last command."""

    PENDING = 0
    OK = 1
    FAILED = 2


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

    magic = Cell(H_MAGIC)
    version = Cell(H_VERSION)
    slots = Cell(H_SLOTS)
    master_pid = Cell(H_MASTER_PID)
    predecessor = Cell(H_PREDECESSOR)
    generation = Cell(H_GENERATION)
    target_workers = Cell(H_TARGET)
    started_ns = Cell(H_STARTED)
    since_ns = Cell(H_SINCE)
    command_seq = Cell(H_COMMAND_SEQ)
    command_done = Cell(H_COMMAND_DONE)
    command = Cell(H_COMMAND)
    verdict = Cell(H_VERDICT)
    text = Text(TEXT_REGION)
    config_path = Text(CONFIG_PATH)
    listen = Text(LISTEN)
    inodes = Text(INODES)
    program = Text(PROGRAM)
    app = Text(APP)
    molds = Text(MOLDS)
    reload_at_work_ns = Cell(H_RELOAD_AT_WORK)
    reload_limit_ns = Cell(H_RELOAD_LIMIT)
    reload_began_ns = Cell(H_RELOAD_BEGAN)
    reload_ended_ns = Cell(H_RELOAD_ENDED)
    reload_verdict = Cell(H_RELOAD_VERDICT)
    reload_progress = Text(RELOAD_PROGRESS)
    reload_text = Text(RELOAD_TEXT)
    reload_report = Text(RELOAD_REPORT)
