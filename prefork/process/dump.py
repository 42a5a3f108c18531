"""Asking a worker for its stacks, from the master: without waiting for the answer.

The worker's half is `prefork.process.witness`, which says why there are two questions: Python is
asked first, and C only when Python does not answer.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from prefork.process.stacks import ASK, ASK_C, FULL, Stacks, begin_mark, end_mark
from prefork.process.table import ProcessSlot
from prefork.process.timers import Timers
from prefork.scoreboard import Slot
from prefork.unix.proc import process_facts

# Below this frame a worker's stack is its master's, from before the fork.
_WORKER: Final = ("in worker_process_cycle", "in mold_process_cycle")

_WITNESS: Final = "in _asked"

STOPPED: Final = ("T", "t")  # states of a process, by SIGSTOP and by a debugger

_LOOK_EVERY: Final = 0.02  # seconds, while an answer is waited for
FOR_PYTHON: Final = 2.0  # seconds that Python has before C is asked
_FOR_C: Final = 3.0  # seconds that C has then, on a machine with much to do
_SETTLED: Final = 0.1  # seconds that C writes on at most, once it has begun


class Answer(Struct, frozen=True):
    """`text` may be empty; `whole`: Python runs in it, and has said what it knows."""

    text: str
    whole: bool


def answer(data: bytes, pid: int) -> Answer:
    """What stands in a region since the question."""
    begin, end = begin_mark(pid), end_mark(pid)
    text, mark, after = data.partition(end)
    if mark and begin not in text:
        # The end of what an earlier question was answered; ours was asked in the middle of that.
        text, mark, _ = after.partition(end)
    # What C has said before is in there once more.
    text = text.rpartition(begin)[2] if mark else text.replace(begin, b"")
    return Answer(text.decode("utf-8", "replace").rstrip("\n"), bool(mark))


def lines(said: Answer) -> list[str]:
    """For the log and for people."""
    out = without_ancestors(said.text)
    if not out:
        out.append("it gives no stacks: it is stopped, or its application has taken SIGURG")
    elif not said.whole:
        out.append(
            "Python does not answer in it, for what it runs is C, or its application has taken"
            " SIGUSR2: of its requests and tasks more cannot be told"
        )
    return out


def requests(slot: Slot) -> list[str]:
    """What it is at, seen from outside: the request of this turn, and how many wait."""
    now = time.monotonic()
    out = []
    at = current(slot)
    if at is not None:
        began, line = at
        out.append(f'running: "{line}", {now - began:.1f} s')
    running, since = slot.running, slot.oldest_since_ns
    if running and since:  # it writes them while they are read
        age = now - since / 1e9
        out.append(f'waiting: {running}, the oldest "{slot.oldest_line}", {age:.1f} s')
    return out


def current(slot: Slot) -> tuple[float, str] | None:
    """(since when, request line) of the request that began in the turn that goes on."""
    since = slot.busy_since_ns
    recent = slot.recent()
    # Microseconds are lost on the way from the one clock's float to the other's integer.
    if since and recent and recent[0][0] >= since / 1e9 - 1e-6:
        return recent[0]
    return None


def without_ancestors(text: str) -> list[str]:
    """The lines of faulthandler's `text`, without the frames that tell nothing of the worker.

    Those are what its stack has of its master's, and of the handler that wrote the text.
    """
    out: list[str] = []
    ancestors = False
    for line in text.splitlines():
        if line.startswith("  File ") and line.endswith(_WITNESS):
            continue
        ancestors = ancestors and line.startswith("  File ")
        if not ancestors:
            out.append(line)
        ancestors = ancestors or line.endswith(_WORKER)
    return out


def region(row: ProcessSlot) -> int:
    """Where the process in `row` writes."""
    if row.is_mold and row.cycle is not None:
        return Stacks.of_mold(row.cycle.generation)
    return row.index


def ask(
    timers: Timers, stacks: Stacks, row: ProcessSlot, on_answer: Callable[[Answer], None]
) -> None:
    """Have the worker in `row` dump; `on_answer` comes later, unless the worker dies first."""
    pid = row.pid
    index = region(row)
    begin = stacks.used(index)
    began = timers.clock()
    asked_c = 0.0
    answered_c = 0.0

    def look() -> None:
        nonlocal begin, asked_c, answered_c
        if row.pid != pid:
            return
        if stacks.used(index) < begin:
            begin = 0  # it has made room, and this answer is what it kept
        said = answer(stacks.read(index, begin), pid)
        now = timers.clock()
        if said.text and asked_c and not answered_c:
            answered_c = now
        if (
            said.whole
            or (answered_c and now - answered_c > _SETTLED)
            or (asked_c and now - asked_c > _FOR_C)
        ):
            on_answer(said)
            return
        if not asked_c and now - began > FOR_PYTHON:
            asked_c = now
            if begin < FULL:
                send(pid, ASK_C)
        timers.after(_LOOK_EVERY, look)

    def says_nothing() -> None:
        if row.pid == pid:  # else its successor would be taken for it
            on_answer(Answer("", False))

    facts = process_facts(pid)
    if facts is not None and facts.state in STOPPED:
        timers.after(0.0, says_nothing)
        return
    send(pid, ASK)
    timers.after(_LOOK_EVERY, look)


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # it has ended, and its SIGCHLD is on the way
