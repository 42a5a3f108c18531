"""What came of a reload, told to people, to programs, and to whoever asks later.

The master keeps the last one in the scoreboard's header (`Header.reload_*`). A reload may be asked
for while another is at work, by HUPs that carry no name: whoever sent one goes by the moment the
reload was begun, which is stored beside its outcome, and takes the first that began after his own.
"""

import re
import time
from typing import Any, Final

import msgspec
from msgspec import Struct

from prefork.config.diff import Change
from prefork.process.commands import shortened
from prefork.process.loading import foreign
from prefork.scoreboard import RELOAD_REPORT_ROOM, Header, Verdict

# How the part of a report begins that is a traceback: Python's own, an exception group's, one of
# faulthandler's, or the place of a syntax error.
_TRACEBACK: Final = ("Traceback (most recent", "(most recent call first)", '  File "')
_FRAME: Final = re.compile(r'  File "([^"]+)", line \d+ in ')
_SHORT: Final = 40  # characters of a value in a report that would be too long


class Outcome(Struct, frozen=True, kw_only=True):
    """A reload that is over: `before` and `now` are the generations that served and serve."""

    ok: bool
    before: int
    now: int
    changed: tuple[Change, ...] = ()
    started: int = 0  # workers
    draining: int = 0
    seconds: float = 0.0
    note: str = ""  # what else is to be said
    error: str | None = None
    traceback: str | None = None

    @property
    def line(self) -> str:
        """One line."""
        if self.error is not None:
            first = self.error.partition("\n")[0]
            return f"reload failed, generation {self.now} serves on: {first}"
        return self.note

    @property
    def text(self) -> str:
        """All of it, for people."""
        if self.error is not None:
            trace = f"\n{self.traceback}" if self.traceback else ""
            return f"reload failed, generation {self.now} serves on: {self.error}{trace}"
        return "\n".join((self.line, *(f"  {change.text}" for change in self.changed)))

    def facts(self) -> dict[str, Any]:
        """The shape of `prefork reload --json`."""
        return {
            "ok": self.ok,
            "generation": {"from": self.before, "to": self.now},
            "changed": [change.facts for change in self.changed],
            "workers": {"started": self.started, "draining": self.draining},
            "seconds": round(self.seconds, 3),
            "error": self.error,
            "traceback": self.traceback,
        }


def split_report(report: str) -> tuple[str, str | None]:
    """What a worker said of its boot: the error, and the traceback when there is one.

    >>> split_report('app "a:b": importing a failed\\nTraceback (most recent call last):\\n  ...')
    ('app "a:b": importing a failed', 'Traceback (most recent call last):\\n  ...')
    >>> split_report("worker 2 7 exited with code 7")
    ('worker 2 7 exited with code 7', None)
    """
    lines = report.split("\n")
    for index, line in enumerate(lines):
        if index and any(mark in line for mark in _TRACEBACK):
            return "\n".join(lines[:index]), "\n".join(filter(_operators, lines[index:]))
    return report, None


def _operators(line: str) -> bool:
    """Is it no frame of ours or of the import machinery, as faulthandler writes them?

    Those of a Python traceback are gone already.
    """
    frame = _FRAME.match(line)
    return frame is None or not foreign(frame[1])


class Account:
    """The header's account of reloads, written by the master alone."""

    def __init__(self, header: Header) -> None:
        self._header = header

    def begin(self) -> None:
        """A reload begins. What was asked for until now is asked for by it."""
        self._header.reload_progress = ""
        self._header.reload_limit_ns = 0
        self._header.reload_at_work_ns = time.monotonic_ns()

    def step(self, text: str, seconds: float) -> None:
        """What it waits for now, for `seconds` at most."""
        self._header.reload_progress = text
        self._header.reload_limit_ns = time.monotonic_ns() + int(seconds * 1e9)

    def end(self, outcome: Outcome) -> None:
        """It is over."""
        header = self._header
        header.reload_report = encoded(outcome)
        header.reload_text = outcome.line
        header.reload_verdict = Verdict.OK if outcome.ok else Verdict.FAILED
        header.reload_ended_ns = time.time_ns()
        began = header.reload_at_work_ns
        header.reload_at_work_ns = 0
        header.reload_progress = ""
        # Last of all: it is what whoever waits looks at.
        header.reload_began_ns = began


def encoded(outcome: Outcome) -> str:
    """`{"text": ..., "facts": {...}}` as JSON that surely fits its room in the header."""
    facts = outcome.facts()
    for name in ("error", "traceback"):
        if facts[name] is not None:
            facts[name] = shortened(facts[name])
    text = shortened(outcome.text)
    report = _json(text, facts)
    if len(report) > RELOAD_REPORT_ROOM:
        for change in facts["changed"]:
            for name in ("old", "new"):
                change[name] = _cut(change[name])
        while len(report := _json(text, facts)) > RELOAD_REPORT_ROOM:
            del facts["changed"][len(facts["changed"]) // 2 :]
    return report.decode()


def _json(text: str, facts: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"text": text, "facts": facts})


def _cut(value: object) -> object:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return value if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


__all__ = ["Account", "Outcome", "encoded", "split_report"]
