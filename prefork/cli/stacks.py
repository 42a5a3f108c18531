"""`prefork stacks`: what the workers are doing right now, down to the line.

Needs nothing from the master: the workers are found on its scoreboard, asked by a signal of their
own, and answer into memory that is read through the master's /proc entry. So it works while the
master is stopped, while a reload hangs, and on workers that are stuck in C.
"""

import fcntl
import json
import os
import time
from contextlib import suppress
from typing import Any, Final

import click
from msgspec import Struct

from prefork.cli.running import (
    LOOK_EVERY,
    RunningMaster,
    find_master,
    naming,
    say,
    state_of,
    time_limit,
)
from prefork.errors import EXIT_FAILED, OperatorError
from prefork.log import errno_text
from prefork.process import dump
from prefork.process.stacks import ASK, ASK_C, FULL, Stacks
from prefork.unix.proc import process_facts

PATIENCE: Final = 3.0  # seconds
FOR_PYTHON: Final = 2 / 3  # of them, before C is asked


class Asked(Struct):
    """A worker and what it has said so far."""

    index: int
    pid: int
    state: str
    begin: int = 0  # of its answer, in its region
    said: dump.Answer = dump.Answer("", False)
    problem: str = ""  # why there is no answer
    requests: list[str] = []  # as the scoreboard has them

    @property
    def text(self) -> list[str]:
        if self.problem:
            return [self.problem, *self.requests]
        return [*([] if self.said.whole else self.requests), *dump.lines(self.said)]


@click.command()
@click.argument("worker", type=click.IntRange(1), required=False)
@naming
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@time_limit("Wait this long for answers, 3 s by default.")
def stacks(
    worker: int | None,
    config_path: str | None,
    pid_file: str | None,
    pid: int | None,
    as_json: bool,
    timeout: float | None,
) -> None:
    """Print what the workers are doing, by line.

    The stacks of all threads, the running requests and the tree of asyncio's tasks, of WORKER (its
    number, as `prefork status` and `ps` show it) or of all. Nothing is stopped or killed. Exits
    with 1 when a worker gives no answer.
    """
    master = find_master(config_path, pid_file, pid)
    workers = found(master, worker)
    memory = Stacks.attach_pid(master.pid)
    patience = PATIENCE if timeout is None else timeout
    lock(memory, patience)
    for one in workers:
        ask(master, memory, one)
    wait(memory, workers, patience)
    if as_json:
        click.echo(json.dumps([as_dict(one) for one in workers], indent=2))
    else:
        click.echo("\n\n".join(shown(one) for one in workers))
    if any(not one.said.text for one in workers):
        raise SystemExit(EXIT_FAILED)


def lock(memory: Stacks, timeout: float) -> None:
    """One such command at a time, or answers would be taken for each other's.

    Not the scoreboard's lock, which a reload holds as long as it hangs.
    """
    deadline = time.monotonic() + timeout
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(memory.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= deadline:
            raise OperatorError("another `prefork stacks` is at work on this server; try again")
        time.sleep(LOOK_EVERY)


def found(master: RunningMaster, number: int | None) -> list[Asked]:
    """The workers that are meant. Raises OperatorError when there are none."""
    board = master.board
    workers = []
    for index in range(board.slots):
        slot = board.slot(index)
        if slot.pid == master.pid:
            raise OperatorError("a single process (master_process: false) cannot be asked")
        if slot.pid:
            state = state_of(slot).name.lower()
            workers.append(Asked(index, slot.pid, state, requests=dump.requests(slot)))
    if number is None:
        if not workers:
            raise OperatorError("no worker is running")
        return workers
    chosen = [one for one in workers if one.index == number - 1]
    if not chosen:
        running = ", ".join(str(one.index + 1) for one in workers) or "none"
        raise OperatorError(f"worker {number} is not running; these are: {running}")
    return chosen


def ask(master: RunningMaster, memory: Stacks, worker: Asked) -> None:
    """Send the signal, unless that would do harm or no good."""
    facts = process_facts(worker.pid)
    worker.begin = memory.used(worker.index)
    if facts is None or facts.state == "Z":
        worker.problem = "it has ended, and its master has not noticed yet"
    elif facts.state in dump.STOPPED:
        worker.problem = "it is stopped (SIGSTOP, or a debugger), and can answer nothing"
    elif worker.begin > FULL:
        worker.problem = "it has been asked so often, without running Python, that there is no room"
    elif facts.parent != master.pid:
        worker.problem = f"process {worker.pid} is not of this server any more"
    else:
        try:
            os.kill(worker.pid, ASK)
        except OSError as error:
            worker.problem = f"kill({worker.pid}, {int(ASK)}) failed {errno_text(error)}"


def wait(memory: Stacks, workers: list[Asked], timeout: float) -> None:
    """Read what they say, until each has said all or the time is over."""
    began = time.monotonic()
    told = asked_c = False
    while True:
        open_ = [one for one in workers if not one.problem and not one.said.whole]
        for one in open_:
            if memory.used(one.index) < one.begin:
                one.begin = 0  # it has made room, and this answer is what it kept
            one.said = dump.answer(memory.read(one.index, one.begin), one.pid)
        left = [str(one.index + 1) for one in open_ if not one.said.whole]
        waited = time.monotonic() - began
        if not left or waited >= timeout:
            return
        if waited > 0.5 and not told:
            told = True
            say(f"waiting for Python in worker {', '.join(left)}")
        if waited > timeout * FOR_PYTHON and not asked_c:
            asked_c = True
            for one in open_:
                if not one.said.whole:
                    dump.send(one.pid, ASK_C)
        time.sleep(LOOK_EVERY)


def as_dict(worker: Asked) -> dict[str, Any]:
    return {
        "n": worker.index + 1,
        "pid": worker.pid,
        "state": worker.state,
        "python_runs": worker.said.whole,
        "lines": worker.text,
    }


def shown(worker: Asked) -> str:
    head = click.style(f"worker {worker.index + 1}", bold=True)
    return "\n".join(
        (f"{head}, pid {worker.pid}, {worker.state}", *(f"  {x}" for x in worker.text))
    )
