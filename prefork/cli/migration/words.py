"""Another server's command line → the options that are set on it."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefork.cli.migration.table import FLAG, LIST, MODE, Found, Option, Server
from prefork.errors import OperatorError

# What may follow gunicorn's --proxy-protocol, which until its version 24 nothing did.
_MODES = ("off", "auto", "v1", "v2", "false", "true", "none", "0", "1")
_APP = re.compile(r"[^\W\d][\w./-]*:[^\s]+|[^\W\d]\w*(?:\.\w+)+")


class CommandLine(NamedTuple):
    """What was understood, the applications that were named, and the words nobody knows."""

    found: dict[str, Found]
    targets: list[str]
    unknown: list[str]


def parse(server: Server, arguments: Sequence[str]) -> CommandLine:
    """Read `arguments`, which follow the server's name. Raises OperatorError for an option whose
    value is missing."""
    line = CommandLine({}, [], [])
    long = {
        flag: option
        for option in server.options()
        for flag in (*option.flags, *option.off)
        if flag.startswith("--")
    }
    short = {flag: option for option in server.options() for flag in option.flags if flag[1] != "-"}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            line.targets.extend(left)
            break
        if word.startswith("--"):
            _long(server, long, word, left, line)
        elif word.startswith("-") and len(word) > 1:
            _short(short, word, left, line)
        else:
            line.targets.append(word)
    return line


def _long(
    server: Server, known: dict[str, Option], word: str, left: list[str], line: CommandLine
) -> None:
    flag, equals, value = word.partition("=")
    if flag not in known and server.abbreviates:
        # argparse takes any beginning that only one option has.
        meant = [name for name in known if name.startswith(flag)]
        flag = meant[0] if len(meant) == 1 else flag
    option = known.get(flag)
    if option is None:
        # Whether it takes a value nobody can know: what looks like the application is none.
        follows = left[0] if left and not equals else "--"
        if (follows == "-" or not follows.startswith("-")) and not _APP.fullmatch(follows):
            word += f" {left.pop(0)}"
        line.unknown.append(word)
    elif flag in option.off:
        line.found[option.name] = Found(False, word)
    elif option.takes == FLAG:
        line.found[option.name] = Found(value if equals else True, word)
    elif option.takes == MODE:
        if not equals and left and left[0].lower() in _MODES:
            value = left.pop(0)
            word += f" {value}"
        line.found[option.name] = Found(value or True, word)
    else:
        _take(option, flag, value if equals else _next(flag, left), line, "=" if equals else " ")


def _short(known: dict[str, Option], word: str, left: list[str], line: CommandLine) -> None:
    """`-w4`, `-w 4`, `-w=4`, and flags in one word: `-Dw4`."""
    rest = word[1:]
    while rest:
        flag, rest = f"-{rest[0]}", rest[1:]
        option = known.get(flag)
        if option is None:
            line.unknown.append(word)
            return
        if option.takes in (FLAG, MODE):
            line.found[option.name] = Found(True, flag)
            continue
        _take(option, flag, rest.removeprefix("=") or _next(flag, left), line, " ")
        return


def _next(flag: str, left: list[str]) -> str:
    if not left:
        raise OperatorError(f"{flag} needs a value")
    return left.pop(0)


def _take(option: Option, flag: str, value: str, line: CommandLine, between: str) -> None:
    said = f"{flag}{between}{value}"
    earlier = line.found.get(option.name)
    if option.takes == LIST and earlier is not None and isinstance(earlier.value, list):
        line.found[option.name] = Found([*earlier.value, value], f"{earlier.said} {said}")
    else:
        line.found[option.name] = Found([value] if option.takes == LIST else value, said)


def environment(server: Server, environ: Mapping[str, str]) -> dict[str, Found]:
    """What the server reads from variables that bear its name: UVICORN_HOST."""
    if not server.prefix:
        return {}
    found = {}
    for option in server.options():
        name = server.prefix + option.name.upper()
        if environ.get(name):
            value = environ[name]
            several = option.takes == LIST
            found[option.name] = Found(value.split() if several else value, f"{name}={value}")
    return found


def split(
    command: Sequence[str], servers: Mapping[str, object]
) -> tuple[dict[str, str], list[str], str, list[str]]:
    """`A=1 poetry run /srv/bin/gunicorn -w 4` → variables, what stood before the name, the name,
    its arguments. The name is empty when no server is there."""
    variables: dict[str, str] = {}
    before: list[str] = []
    for number, word in enumerate(command):
        name = os.path.basename(word)
        if name in servers:
            return variables, before, name, list(command[number + 1 :])
        assignment = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL)
        if assignment:
            variables[assignment[1]] = assignment[2]
        else:
            before.append(word)
    return variables, before, "", []
