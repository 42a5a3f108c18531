"""`prefork status`: what a server is doing, as a page or as JSON.

It reads shared memory and a few files in /proc, asks nobody in the server, and takes no lock that
a part of it may hold: all the workers may hang, the master may be stopped, and it answers all the
same. It is looked at while something is wrong, so what is wrong comes first.
"""

import signal
import sys
import time
from typing import Any, Final

import click

from prefork.cli.running import find_master, naming
from prefork.errors import EXIT_FAILED
from prefork.scoreboard import Scoreboard, Slot, SlotState, Verdict
from prefork.unix.proc import ProcessFacts, process_facts, proportional_set_size
from prefork.unix.tcpinfo import accept_queues
from prefork.unix.waitstatus import describe

STUCK_AFTER: Final = 1.0  # seconds in one turn of the loop, from which on a worker is called stuck
PSS_LIMIT: Final = 256 << 20  # bytes of RSS in all workers; beyond, their PSS takes too long to ask
CLASSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")
PERCENTILES: Final = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))

# A worker's state, and what stands for it where there is one character for each.
LETTERS: Final = {
    "idle": "_",
    "serving": "S",
    "busy": "B",
    "stuck": "!",
    "stopped": "T",
    "starting": "+",
    "draining": "D",
    "waiting": "z",
    "dead": "x",
}
_ENDS: Final = (signal.SIGQUIT, signal.SIGTERM, signal.SIGINT)
READY: Final = frozenset(("idle", "serving", "busy", "stuck"))


@click.command()
@naming
@click.option("--json", "as_json", is_flag=True, help="Print JSON; durations are in seconds.")
def status(config_path: str | None, pid_file: str | None, pid: int | None, as_json: bool) -> None:
    """Show what the server and its workers are doing.

    Exits with 0 while it serves, with 3 when it does not run, and with 1 when it runs and no worker
    is ready. Reads shared memory: it answers, too, when the server hangs.

    \b
    Workers are
      idle      nothing to do             serving   waiting for what their requests wait for
      busy      computing, this moment    stuck     in one step for more than a second
      stopped   by SIGSTOP                starting  importing the application
      draining  finishing what runs       waiting   to be started again after a crash
    """
    master = find_master(config_path, pid_file, pid, in_haste=True)
    facts = read(master.board)
    if as_json:
        import json

        click.echo(json.dumps(facts, indent=2))
    else:
        from prefork.cli import statuspage

        # Cut at the terminal's edge; a file or a pipe gets whole lines.
        width = None
        if sys.stdout.isatty():
            import shutil

            width = shutil.get_terminal_size().columns
        click.echo("\n".join(statuspage.lines(facts, width)))
    if not any(worker["state"] in READY for worker in facts["workers"]):
        raise SystemExit(EXIT_FAILED)


def read(board: Scoreboard) -> dict[str, Any]:
    """Everything there is to tell as plain values; the shape of `status --json`, see README.

    Keys are stable; null stands where there is nothing to tell. Durations and times are seconds,
    sizes are bytes.
    """
    header = board.header
    now = time.time_ns()
    master = process_facts(header.master_pid)
    totals = board.totals()
    workers = [_worker(slot) for slot in board.used() if slot.pid or slot.comes_back_ns]
    molds = [_mold(line) for line in header.molds.splitlines()]
    _measure_memory([*workers, *molds])
    since = _seconds(now - header.since_ns)
    old_master = board.predecessor.header.master_pid if board.predecessor else 0
    return {
        "version": header.program or None,
        "pid": header.master_pid,
        "stopped": master is not None and master.state in "Tt",
        "stopping": bool(header.command_seq) and header.command in _ENDS,
        "old_master": old_master if old_master and process_facts(old_master) else None,
        "app": header.app or None,
        "uptime": _seconds(now - header.started_ns),
        "generation": header.generation,
        "config": header.config_path or None,
        "last_reload": _last_reload(board),
        "last_command": _last_command(board),
        "target_workers": header.target_workers,
        "busy_workers": sum(worker["state"] in ("serving", "busy", "stuck") for worker in workers),
        "scoreboard": "".join(LETTERS[worker["state"]] for worker in workers),
        "running": sum(worker["running"] for worker in workers),
        "connections": sum(worker["connections"] for worker in workers),
        "listeners": _listeners(board),
        "lag_max": max((worker["lag_max"] for worker in workers), default=0.0),
        "latency": percentiles(totals.latencies),
        "totals": {
            "since": since,
            "requests_per_second": round(totals.requests / since, 2) if since else 0.0,
            "accepted": totals.accepted,
            "requests": totals.requests,
            "bytes_sent": totals.bytes_sent,
            "responses": dict(zip(CLASSES, totals.responses, strict=True)),
            "latencies": [
                [2**bucket / 1e6, count] for bucket, count in enumerate(totals.latencies)
            ],
        },
        "workers": workers,
        "molds": molds,
    }


def _mold(line: str) -> dict[str, Any]:
    """From a line that `prefork.process.molds.account` wrote."""
    pid, generation, promoted, state, started = line.split(" ")
    process = process_facts(int(pid)) if state != "waiting" else None
    if process is not None and process.state in "Tt":
        state = "stopped"
    return {
        "pid": int(pid) if process else None,
        "state": state,
        "generation": int(generation),
        "promoted": int(promoted),
        "uptime": _seconds(time.monotonic_ns() - int(started)) if process else None,
        "process_state": process.state if process else None,
        "cpu": round(process.cpu, 2) if process else None,
        "rss": process.rss if process else None,
        "pss": None,
    }


def _worker(slot: Slot) -> dict[str, Any]:
    now, monotonic = time.time_ns(), time.monotonic_ns()
    pid = slot.pid
    process = process_facts(pid) if pid else None
    busy_since, running = slot.busy_since_ns, slot.running
    oldest_since = slot.oldest_since_ns
    busy_for = _seconds(monotonic - busy_since) if busy_since else None
    recent: list[dict[str, Any]] = [
        {"line": line, "age": _seconds(monotonic - began * 1e9)} for began, line in slot.recent()
    ]
    request = None
    if busy_for is not None and recent and busy_for >= recent[0]["age"] - 0.01:
        request = recent[0]  # it began in the turn that is not over, and is not counted yet
        running += 1
    elif running and oldest_since:  # it writes them while they are read
        request = {"line": slot.oldest_line, "age": _seconds(monotonic - oldest_since)}
    back = slot.comes_back_ns if not pid else 0
    return {
        "n": slot.index + 1,  # as the log and the title count them
        "pid": pid or None,
        "state": _state(slot, process, busy_for),
        "generation": slot.generation,
        "uptime": _seconds(now - slot.started_ns) if pid else None,
        "request": request,
        "running": running,
        "busy_for": busy_for,
        "connections": slot.connections,
        "accepted": slot.accepted,
        "requests": slot.requests,
        "bytes_sent": slot.bytes_sent,
        "responses": dict(zip(CLASSES, slot.responses, strict=True)),
        "latency": percentiles(slot.latencies),
        "lag": round(slot.lag_ns / 1e9, 6),
        "lag_max": max(round(slot.lag_max_ns / 1e9, 6), busy_for or 0.0),
        "process_state": process.state if process else None,
        "cpu": round(process.cpu, 2) if process else None,
        "rss": process.rss if process else None,
        "pss": None,
        "boots": slot.boots,
        "crashes": slot.crashes,
        "last_exit": describe(slot.last_exit - 1) if slot.last_exit else None,
        "comes_back_in": _seconds(back - now) if back else None,
        "recent": recent,
    }


def _state(slot: Slot, process: ProcessFacts | None, busy_for: float | None) -> str:
    """One of LETTERS. What the kernel says of the process goes before what that said itself.

    A worker writes its state when it changes for long. That it is at work, and not asleep in its
    event loop, is told by `busy_since_ns` alone, which costs one store a turn instead of two.
    """
    state = SlotState(slot.state)
    if not slot.pid:
        return "waiting"
    if process is not None and process.state in "TtZX":
        return "stopped" if process.state in "Tt" else "dead"
    if state in (SlotState.READY, SlotState.BUSY):
        if busy_for is None:
            return "serving" if slot.running else "idle"
        return "stuck" if busy_for >= STUCK_AFTER else "busy"
    if state == SlotState.QUIESCING:
        return "draining"
    return "starting" if state == SlotState.STARTING else "dead"


def _measure_memory(processes: list[dict[str, Any]]) -> None:
    """PSS is what a process costs; but the kernel counts pages for it, and holds that up."""
    if sum(one["rss"] or 0 for one in processes) <= PSS_LIMIT:
        for one in processes:
            if one["process_state"] in ("R", "S", "T"):
                one["pss"] = proportional_set_size(one["pid"])


def _listeners(board: Scoreboard) -> list[dict[str, Any]]:
    urls = board.header.listen.split("\n") if board.header.listen else []
    inodes = [int(word) for word in board.header.inodes.split()]
    queues = accept_queues(frozenset(inodes))
    found = [queues.get(inode) for inode in inodes]
    return [
        {
            "url": url,
            "waiting": queue.waiting if queue else None,
            "limit": queue.limit if queue else None,
        }
        for url, queue in zip(urls, found + [None] * len(urls), strict=False)
    ]


def _last_reload(board: Scoreboard) -> dict[str, Any] | None:
    header = board.header
    at_work, ended = header.reload_at_work_ns, header.reload_ended_ns
    if at_work:
        return {
            "verdict": "pending",
            "ago": None,
            "running_for": _seconds(time.monotonic_ns() - at_work),
            "text": header.reload_progress,
        }
    if ended:
        return {
            "verdict": Verdict(header.reload_verdict).name.lower(),
            "ago": _seconds(time.time_ns() - ended),
            "running_for": None,
            "text": header.reload_text,
        }
    return None


def _last_command(board: Scoreboard) -> dict[str, Any] | None:
    header = board.header
    if not header.command_seq:
        return None
    command = header.command
    try:
        name = signal.Signals(command).name  # which is what the master knows it by
    except ValueError:
        name = str(command)
    return {
        "number": header.command_seq,
        "name": name,
        "verdict": Verdict(header.verdict).name.lower(),
        "text": header.text,
    }


def percentiles(latencies: tuple[int, ...]) -> dict[str, float | None]:
    """Seconds that a part of the requests stayed below, from counts by powers of two.

    Bucket n holds what took at least 2**(n-1) microseconds and less than 2**n; within one the
    requests are taken for evenly spread. So a figure is off by a factor of two at the most.
    """
    total = sum(latencies)
    if not total:
        return {name: None for name, _ in PERCENTILES}
    return {name: _quantile(latencies, total * part) for name, part in PERCENTILES}


def _quantile(latencies: tuple[int, ...], rank: float) -> float:
    below = 0
    for bucket, count in enumerate(latencies):
        if count and below + count >= rank:
            high = float(1 << bucket)
            low = high / 2 if bucket else 0.0
            return round((low + (high - low) * (rank - below) / count) / 1e6, 7)
        below += count
    return float(1 << len(latencies)) / 1e6


def _seconds(nanoseconds: float) -> float:
    return round(max(nanoseconds, 0) / 1e9, 3)
