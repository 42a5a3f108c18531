"""What is wrong with a configuration, where, and what to write instead.

All problems of one run are collected and shown together, each as

    conf.yaml:3:1: error: unknown key "wrokers" (did you mean "workers"?)
         3 | wrokers: 4
           | ^~~~~~~
"""

import re
from typing import Final, Literal

from msgspec import Struct

from prefork.errors import EXIT_CONFIG, OperatorError

Severity = Literal["error", "warning"]

# Where pyyaml and libyaml count a line (YAML 1.1, section 4.1.4); str.splitlines() has others.
_BREAK: Final = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_WIDTH: Final = 100  # of a quoted source line; longer ones are cut around the caret
_SHOWN: Final = 50  # problems printed in one run; a broken template can make thousands


class Source(Struct, frozen=True, eq=False):
    """A text that settings come from: a file, one `--set`, one variable of the environment.

    `name` is what an operator recognises: the path as it was given, `--set`, the variable's
    name. `shown` is quoted below a message in place of numbered lines, where there are none.
    """

    name: str
    text: str
    shown: str | None = None

    @property
    def numbered(self) -> bool:
        return self.shown is None

    def line(self, number: int) -> str:
        """Line `number`, counted from 0 as pyyaml's marks do; empty beyond the end."""
        lines = _BREAK.split(self.text)
        return lines[number] if 0 <= number < len(lines) else ""


class Place(Struct, frozen=True, eq=False):
    """A stretch of one line of a source; line and column are counted from 0."""

    source: Source
    line: int = 0
    column: int = 0
    width: int = 1

    def __str__(self) -> str:
        if self.source.numbered:
            return f"{self.source.name}:{self.line + 1}:{self.column + 1}"
        return self.source.name


class Problem(Struct, frozen=True, kw_only=True):
    """One thing to mend. Line and column are counted from 1; None without a place in a text."""

    message: str
    suggestion: str | None = None
    file: str | None = None
    line: int | None = None
    column: int | None = None
    width: int = 1
    source_line: str | None = None
    severity: Severity = "error"

    @property
    def headline(self) -> str:
        """`conf.yaml:3:1: error: unknown key …`."""
        where = self.file or ""
        if self.file is not None and self.line is not None:
            where = f"{self.file}:{self.line}:{self.column}"
        return f"{where}: {self.severity}: {self.message}" if where else self.message

    def __str__(self) -> str:
        if self.source_line is None:
            return self.headline
        # What follows the first line of a message (a traceback) follows the quotation too.
        first, *rest = self.headline.split("\n")
        return "\n".join((first, *_quote(self), *rest))


def problem_at(
    place: Place | None,
    message: str,
    suggestion: str | None = None,
    severity: Severity = "error",
) -> Problem:
    """A problem at `place`, or one that has no place in any text."""
    message = "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in message)
    if place is None:
        return Problem(message=message, suggestion=suggestion, severity=severity)
    return Problem(
        message=message,
        suggestion=suggestion,
        severity=severity,
        file=place.source.name,
        line=place.line + 1 if place.source.numbered else None,
        column=place.column + 1 if place.source.numbered else None,
        width=place.width,
        source_line=_line_shown(place),
    )


def quoted(text: str) -> str:
    """Text of the operator's in a message: one line, and not too long a one."""
    import json  # a configuration with nothing wrong does without

    return json.dumps(text if len(text) <= 60 else text[:57] + "…", ensure_ascii=False)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


class ConfigError(OperatorError):
    """Every problem of one run. `str()` is the whole report, ready to print."""

    exit_code = EXIT_CONFIG

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__(report(problems))


def report(problems: tuple[Problem, ...]) -> str:
    """The problems one under the other."""
    shown = [str(problem) for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        shown.append(f"and {len(problems) - _SHOWN} more problems")
    return "\n".join(shown)


def _line_shown(place: Place) -> str:
    source = place.source
    return source.line(place.line) if source.shown is None else source.shown


def _cells(text: str) -> int:
    """How many terminal cells `text` fills: a caret must stand below its character."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(
        0 if category(c) in ("Mn", "Me") else 2 if east_asian_width(c) in "WF" else 1 for c in text
    )


def _printable(text: str) -> str:
    """Tabs become one space; what would move the cursor becomes a question mark."""
    return "".join(c if c.isprintable() else " " if c == "\t" else "?" for c in text)


def _quote(problem: Problem) -> list[str]:
    """The source line and, below it, the caret."""
    line = _printable(problem.source_line or "")
    if problem.column is None:  # `--set workers=two`, `PREFORK_WORKERS=two`: all of it is meant
        return [f"      {_cut(line, 0)[0]}"]
    column = min(problem.column - 1, len(line))
    line, column = _cut(line, column)
    width = max(1, min(problem.width, len(line) - column))
    tail = _cells(line[column : column + width]) if width > 1 else 1
    return [
        f"  {problem.line:>4} | {line}",
        f"       | {' ' * _cells(line[:column])}^{'~' * (tail - 1)}",
    ]


def _cut(line: str, column: int) -> tuple[str, int]:
    """At most `_WIDTH` characters of the line, with the column well inside."""
    if len(line) <= _WIDTH:
        return line, column
    start = max(0, min(column - _WIDTH // 2, len(line) - _WIDTH))
    cut = line[start : start + _WIDTH]
    if start:
        cut = "…" + cut[1:]
    if start + _WIDTH < len(line):
        cut = cut[:-1] + "…"
    return cut, column - start
