"""`prefork status`: the scoreboard of a running master, as a table or as JSON.

Reads shared memory only: it works on a server that hangs, and costs the server nothing.
"""

import os
import signal
import time
from typing import Any, Final

import click

from prefork.cli.running import find_master, naming, state_of
from prefork.scoreboard import Scoreboard, Verdict

COLUMNS: Final = (
    ("worker", "n"),
    ("pid", "pid"),
    ("gen", "generation"),
    ("state", "state"),
    ("up", "uptime"),
    ("busy for", "busy_for"),
    ("conns", "connections"),
    ("accepted", "accepted"),
    ("requests", "requests"),
    ("boots", "boots"),
    ("last exit", "last_exit"),
)
BUSY_FOR_LONG: Final = 0.1  # seconds; a shorter turn of the loop is no news, it is serving
COLOURS: Final = {"ready": "green", "busy": "cyan", "starting": "yellow", "quiescing": "yellow"}


@click.command()
@naming
@click.option("--json", "as_json", is_flag=True, help="Print JSON; durations are in seconds.")
def status(config_path: str | None, pid_file: str | None, pid: int | None, as_json: bool) -> None:
    """Show the master and its workers.

    Exits with 0 while the server runs and with 3 when it does not.
    """
    master = find_master(config_path, pid_file, pid)
    facts = read(master.board)
    if as_json:
        import json

        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo("\n".join(lines(facts)))


def read(board: Scoreboard) -> dict[str, Any]:
    """Everything on the scoreboard as plain values; the shape of `status --json`.

    Keys are stable; `busy_for` and `last_exit` are null where there is nothing to tell.
    """
    header = board.header
    now, monotonic = time.time_ns(), time.monotonic_ns()
    command = header.command
    workers = []
    for slot in board.used():
        if slot.pid == 0:
            continue
        busy_since = slot.busy_since_ns
        workers.append(
            {
                "n": slot.index + 1,  # as the log and the title count them
                "pid": slot.pid,
                "generation": slot.generation,
                "state": state_of(slot).name.lower(),
                "uptime": round(max(now - slot.started_ns, 0) / 1e9, 3),
                "busy_for": round(max(monotonic - busy_since, 0) / 1e9, 3) if busy_since else None,
                "connections": slot.connections,
                "accepted": slot.accepted,
                "requests": slot.requests,
                "boots": slot.boots,
                "last_exit": ending(slot.last_exit - 1) if slot.last_exit else None,
            }
        )
    return {
        "pid": header.master_pid,
        "generation": header.generation,
        "uptime": round(max(now - header.started_ns, 0) / 1e9, 3),
        "config": header.config_path or None,
        "listen": header.listen.split("\n") if header.listen else [],
        "target_workers": header.target_workers,
        "last_command": {
            "number": header.command_seq,
            "name": command_name(command),
            "verdict": Verdict(header.verdict).name.lower(),
            "text": header.text,
        }
        if header.command_seq
        else None,
        "workers": workers,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The table for people. Click takes the colours out again where there is no terminal."""
    workers: list[dict[str, Any]] = facts["workers"]
    out = [
        f"prefork {click.style('running', fg='green', bold=True)}, master pid {facts['pid']}, "
        f"generation {facts['generation']}, up {duration(facts['uptime'])}",
        f"  configuration  {facts['config'] or 'none, the command line only'}",
        f"  listening      {', '.join(facts['listen']) or 'nowhere'}",
        f"  workers        {len(workers)} of {facts['target_workers']}",
    ]
    last = facts["last_command"]
    if last:
        colour = {"ok": "green", "failed": "red"}.get(last["verdict"], "yellow")
        verdict = click.style(last["verdict"], fg=colour)
        out.append(f"  last command   {last['name']}, {verdict}: {last['text']}")
    rows = [[cell(worker, key) for _, key in COLUMNS] for worker in workers]
    widths = [max(map(len, column)) for column in zip([t for t, _ in COLUMNS], *rows, strict=True)]
    if rows:
        out.append("")
        titles = (t.rjust(w) for (t, _), w in zip(COLUMNS, widths, strict=True))
        out.append(click.style("  ".join(titles), bold=True))
    for row in rows:
        padded = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        state = row[3]
        padded[3] = click.style(padded[3], fg=COLOURS.get(state, "red"))
        out.append("  ".join(padded))
    return out


def cell(worker: dict[str, Any], key: str) -> str:
    value = worker[key]
    if value is None or (key == "busy_for" and value < BUSY_FOR_LONG):
        return "-"
    return duration(value) if key in ("uptime", "busy_for") else str(value)


def duration(seconds: float) -> str:
    """Two figures at most: `0.4s`, `12s`, `3m20s`, `5h02m`, `4d07h`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def ending(wait_status: int) -> str:
    """A raw wait status in words: `exit 1`, `SIGKILL`."""
    code = os.waitstatus_to_exitcode(wait_status)
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def command_name(number: int) -> str:
    """The last command as its signal's name, which is what the master knows it by."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
