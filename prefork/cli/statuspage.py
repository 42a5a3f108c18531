"""The page of `prefork status`: who it is, how full it is, and a row for each worker.

It fits a hundred columns but for the request lines, which are cut at the terminal's edge.
"""

import re
from collections.abc import Callable
from typing import Any, Final

import click

from prefork.cli.status import LETTERS, READY

COLOURS: Final = {
    "idle": "green",
    "serving": "green",
    "busy": "cyan",
    "stuck": "red",
    "stopped": "red",
    "dead": "red",
    "starting": "yellow",
    "draining": "yellow",
    "waiting": "red",
}
LONG_LAG: Final = 0.25  # seconds, from which on a turn of the loop is worth a colour
IN_A_LINE: Final = 16  # workers whose scoreboard stands beside the counts
_ESCAPE: Final = re.compile("(\x1b\\[[0-9;]*m)")

Facts = dict[str, Any]


def lines(facts: Facts, width: int | None) -> list[str]:
    """The page; `width` is the terminal's, None when it is no terminal's business."""
    parts = (_identity(facts), [""], _saturation(facts), [""], _table(facts))
    out = [_headline(facts), *_alarms(facts), *(line for part in parts for line in part)]
    return out if width is None else [clipped(line, width) for line in out]


def _headline(facts: Facts) -> str:
    ready = any(worker["state"] in READY for worker in facts["workers"])
    state = click.style("serving", fg="green", bold=True)
    if facts["stopping"]:
        state = click.style("stopping", fg="yellow", bold=True)
    elif not ready:
        state = click.style("running", fg="red", bold=True)
    app = f" {facts['app']}" if facts["app"] else ""
    return (
        f"prefork {facts['version'] or ''} {state}{app}, pid {facts['pid']}, "
        f"up {duration(facts['uptime'])}, generation {facts['generation']}"
    )


def _alarms(facts: Facts) -> list[str]:
    """What an operator has to see first, if there is any of it."""
    states = [worker["state"] for worker in facts["workers"]]
    ready = [state for state in states if state in READY]
    waiting = sum(listener["waiting"] or 0 for listener in facts["listeners"])
    out = []
    if facts["stopped"]:
        out.append(f"the master is stopped: kill -CONT {facts['pid']}")
    command = facts["last_command"]
    if facts["stopping"]:
        pass  # which leaves no worker ready
    elif not ready and command and command["name"] == "SIGWINCH":
        out.append("no worker is ready: WINCH has drained them, HUP starts new ones")
    elif not ready:
        out.append("no worker is ready")
    elif set(ready) == {"stuck"}:
        out.append("every worker that is ready is stuck: `prefork stacks` says in which line")
    if waiting and not set(ready) & {"idle", "serving"}:
        out.append(f"{plural(waiting, 'connection')} waiting to be accepted, and no worker free")
    if any(
        listener["limit"] and listener["waiting"] > listener["limit"]
        for listener in facts["listeners"]
    ):
        out.append("an accept queue is full: clients are turned away")
    return [click.style(f"  {text}", fg="red", bold=True) for text in out]


def _identity(facts: Facts) -> list[str]:
    out = [field("configuration", facts["config"] or "none, the command line only")]
    if facts["old_master"]:
        text = f"the old master {facts['old_master']} still runs: QUIT it, or this one to go back"
        out.append(field("upgrade", click.style(text, fg="yellow")))
    reload = facts["last_reload"]
    if reload:
        verdict = _verdict(reload["verdict"])
        if reload["ago"] is None:
            when = f"{verdict} for {duration(reload['running_for'])}"
        else:
            when = f"{verdict}, {duration(reload['ago'])} ago"
        said = _first_line(reload["text"]).removeprefix("reload failed, ")
        out.append(field("last reload", f"{when}: {said}"))
    command = facts["last_command"]
    if command and command["name"] != "SIGHUP":
        said = f"{command['name']}, {_verdict(command['verdict'])}: {_first_line(command['text'])}"
        out.append(field("last command", said))
    return out


def _saturation(facts: Facts) -> list[str]:
    workers = facts["workers"]
    states = [worker["state"] for worker in workers]
    counts = ", ".join(
        click.style(f"{LETTERS[state]} {states.count(state)} {state}", fg=COLOURS[state])
        for state in LETTERS
        if state in states
    )
    busy, total = facts["busy_workers"], facts["target_workers"]
    text = f"{busy} of {total} busy"
    if total and busy >= total:
        text = click.style(text, fg="yellow", bold=True)
    board = "".join(click.style(LETTERS[state], fg=COLOURS[state]) for state in states)
    if len(states) <= IN_A_LINE:
        out = [field("workers", f"{text}  [{board}]  {counts or 'none'}")]
    else:
        out = [field("workers", f"{text}  {counts}"), field("", f"[{board}]")]
    ages = [worker["request"]["age"] for worker in workers if worker["request"]]
    oldest = f", the oldest for {duration(max(ages))}" if ages else ""
    queues, totals = facts["listeners"], facts["totals"]
    out += [
        field("accept queue", ", ".join(_queue(one) for one in queues) or "no listener"),
        field(
            "in progress",
            f"{plural(facts['running'], 'request')}{oldest}; "
            f"{plural(facts['connections'], 'connection')} open",
        ),
        field(
            "requests",
            f"{totals['requests']:,}, {totals['requests_per_second']:,.1f}/s over "
            f"{duration(totals['since'])}; {plural(totals['accepted'], 'connection')}, "
            f"{size(totals['bytes_sent'])} sent",
        ),
        field("responses", _responses(totals["responses"])),
    ]
    latency = facts["latency"]
    if latency["p50"] is not None:
        shown = "  ".join(f"{name} {duration(value)}" for name, value in latency.items())
        out.append(field("latency", shown))
    lag = duration(facts["lag_max"])
    if facts["lag_max"] >= LONG_LAG:
        lag = click.style(lag, fg="yellow")
    out.append(field("loop lag", f"{lag} at the most"))
    return out


def _queue(listener: Facts) -> str:
    if listener["limit"] is None:
        return f"unknown {listener['url']}"
    text = f"{listener['waiting']} of {listener['limit']}"
    if listener["waiting"]:
        text = click.style(text, fg="yellow" if listener["waiting"] <= listener["limit"] else "red")
    return f"{text} {listener['url']}"


def _responses(responses: dict[str, int]) -> str:
    shown = []
    for name, count in responses.items():
        if count or name != "1xx":
            text = f"{name} {count:,}"
            shown.append(click.style(text, fg="red") if count and name == "5xx" else text)
    return "  ".join(shown)


# The table

Cell = Callable[[Facts], str]

COLUMNS: Final[tuple[tuple[str, Cell], ...]] = (
    ("worker", lambda worker: str(worker["n"])),
    ("state", lambda worker: f"{LETTERS[worker['state']]} {worker['state']}"),
    ("pid", lambda worker: str(worker["pid"] or "-")),
    ("gen", lambda worker: str(worker["generation"])),
    ("age", lambda worker: optional(worker["uptime"], duration)),
    ("requests", lambda worker: f"{worker['requests']:,}"),
    ("run", lambda worker: str(worker["running"])),
    ("conns", lambda worker: str(worker["connections"])),
    ("p99", lambda worker: optional(worker["latency"]["p99"], duration)),
    ("lag", lambda worker: duration(worker["lag_max"])),
    ("cpu", lambda worker: optional(worker["cpu"], duration)),
    ("memory", lambda worker: optional(worker["pss"] or worker["rss"], size)),
    ("boots", lambda worker: str(worker["boots"])),
)


def _table(facts: Facts) -> list[str]:
    workers = facts["workers"]
    if not workers:
        return ["no worker"]
    titles = [title for title, _ in COLUMNS]
    if titles[-2] == "memory":
        titles[-2] = "pss" if all(worker["pss"] for worker in workers if worker["pid"]) else "rss"
    rows = [[text(worker) for _, text in COLUMNS] for worker in workers]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    head = "  ".join(
        _padded(title, width, n)
        for n, (title, width) in enumerate(zip(titles, widths, strict=True))
    )
    out = [click.style(head, bold=True)]
    for worker, row in zip(workers, rows, strict=True):
        cells = [
            _padded(text, width, n) for n, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        cells[1] = click.style(cells[1], fg=COLOURS[worker["state"]])
        out.append("  ".join(cells))
        out += [f"{'':{widths[0]}}    {note}" for note in _notes(worker)]
    return out + [_mold(mold) for mold in facts["molds"]]


def _mold(mold: Facts) -> str:
    text = f"  mold of generation {mold['generation']}, {mold['state']}"
    if mold["pid"]:
        memory = f"pss {size(mold['pss'])}" if mold["pss"] else f"rss {size(mold['rss'])}"
        text += f", pid {mold['pid']}, {duration(mold['uptime'])} old, {memory}"
    if mold["promoted"]:
        text += f", made from a worker, {plural(mold['promoted'], 'time')}"
    colour = {"ready": None, "starting": "yellow", "leaving": "yellow"}.get(mold["state"], "red")
    return click.style(text, fg=colour) if colour else text


def _padded(text: str, width: int, column: int) -> str:
    return text.ljust(width) if COLUMNS[column][0] == "state" else text.rjust(width)


def _notes(worker: Facts) -> list[str]:
    """What there is to say below a worker's row."""
    notes = []
    request, others = worker["request"], worker["running"]
    if request:
        more = f", and {others - 1} more" if others > 1 else ""
        notes.append(f"{request['line']}, for {duration(request['age'])}{more}")
    elif worker["state"] == "stuck":
        notes.append(f"in one step for {duration(worker['busy_for'])}, of no request that it knows")
    crashes = worker["crashes"]
    ended = f"the last one {worker['last_exit']}" if worker["last_exit"] else ""
    if worker["state"] == "waiting":
        said = f"comes back in {duration(worker['comes_back_in'])}"
        said += f" after {plural(crashes, 'crash')}, {ended}" if crashes else f", {ended}"
        notes.append(click.style(said, fg="red"))
    elif crashes:
        notes.append(f"{ended}, {plural(crashes, 'crash')} lately")
    return notes


# Words and numbers


def field(name: str, text: str) -> str:
    return f"  {name:<14} {text}"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _verdict(verdict: str) -> str:
    return click.style(verdict, fg={"ok": "green", "failed": "red"}.get(verdict, "yellow"))


def plural(number: int, noun: str) -> str:
    """`1 request`, `2 crashes`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith('sh') else 's'}"


def optional(value: Any, text: Callable[[Any], str]) -> str:
    return "-" if value is None else text(value)


def duration(seconds: float) -> str:
    """Two or three figures: `40us`, `1.2ms`, `250ms`, `4.0s`, `12s`, `3m20s`, `5h02m`, `4d07h`."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}us" if seconds else "0"
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f}ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def size(number: float) -> str:
    """Three figures or four: `812B`, `45.1M`, `1.2G`, powers of 1024."""
    for unit in "BKMGT":
        if number < 1000 or unit == "T":
            break
        number /= 1024
    return f"{number:.0f}{unit}" if unit == "B" or number >= 100 else f"{number:.1f}{unit}"


def clipped(line: str, width: int) -> str:
    """The first `width` characters, colours not counted."""
    left, out = width, []
    for part in _ESCAPE.split(line):
        if part.startswith("\x1b"):
            out.append(part)
        else:
            out.append(part[:left])
            left -= len(out[-1])
    return "".join(out)
