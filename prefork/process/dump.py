"""Asking a worker for its stacks, from the master: without waiting for the answer.

The worker's half is `prefork.process.witness`. The answer comes in two parts, C's at once and
Python's when it can; a worker that hangs in C gives the first only.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from prefork.process.stacks import FULL, Stacks, end_mark
from prefork.process.table import ProcessSlot
from prefork.process.timers import Timers
from prefork.scoreboard import Slot
from prefork.unix.proc import process_facts

# Below this frame a worker's stack is its master's, from before the fork.
_WORKER: Final = ("in worker_process_cycle", "in mold_process_cycle")

STOPPED: Final = ("T", "t")  # states of a process, by SIGSTOP and by a debugger

_LOOK_EVERY: Final = 0.02  # seconds, while an answer is waited for
_FOR_PYTHON: Final = 1.0  # seconds that Python has after C has answered
_FOR_C: Final = 3.0  # on a machine with much to do


class Answer(Struct, frozen=True):
    """`text` may be empty; `whole`: Python runs in it, and has said what it knows."""

    text: str
    whole: bool


def answer(data: bytes, pid: int) -> Answer:
    """What stands in a region since the question."""
    text, mark, _ = data.partition(end_mark(pid))
    return Answer(text.decode("utf-8", "replace").rstrip("\n"), bool(mark))


def lines(said: Answer) -> list[str]:
    """For the log and for people."""
    out = without_ancestors(said.text)
    if not out:
        out.append("it gives no stacks: it is stopped, or its application has taken SIGUSR2")
    elif not said.whole:
        out.append("Python does not run in it: its requests and tasks cannot be told from inside")
    return out


def requests(slot: Slot) -> list[str]:
    """What it is at, seen from outside: the request of this turn, and how many wait."""
    now = time.monotonic()
    out = []
    at = current(slot)
    if at is not None:
        began, line = at
        out.append(f'running: "{line}", {now - began:.1f} s')
    if slot.running:
        age = now - slot.oldest_since_ns / 1e9
        out.append(f'waiting: {slot.running}, the oldest "{slot.oldest_line}", {age:.1f} s')
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
    """The lines of faulthandler's `text`, without what a worker's stack has of its master's."""
    out: list[str] = []
    ancestors = False
    for line in text.splitlines():
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
    first = 0.0  # when C had answered

    def look() -> None:
        nonlocal begin, first
        if row.pid != pid:
            return
        if stacks.used(index) < begin:
            begin = 0  # it has made room, and this answer is what it kept
        said = answer(stacks.read(index, begin), pid)
        now = timers.clock()
        if said.text and not first:
            first = now
        if said.whole or (first and now - first > _FOR_PYTHON) or now - began > _FOR_C:
            on_answer(said)
        else:
            timers.after(_LOOK_EVERY, look)

    facts = process_facts(pid)
    if facts is not None and facts.state in STOPPED:
        timers.after(0.0, lambda: on_answer(Answer("", False)))
        return
    if begin < FULL:
        try:
            os.kill(pid, signal.SIGUSR2)
        except OSError:
            return  # it has ended, and its SIGCHLD is on the way
    timers.after(_LOOK_EVERY, look)
