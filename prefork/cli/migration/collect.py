"""From what the operator named, a file or a command line, to the options that are in force."""

import os
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Final, NamedTuple

import click

from prefork.cli.migration import confpy
from prefork.cli.migration.table import Found, Note, Server
from prefork.cli.migration.words import CommandLine, environment, parse, split
from prefork.config.reader import did_you_mean, guess
from prefork.errors import OperatorError

SERVERS: Final = {name: name for name in ("gunicorn", "uvicorn", "granian", "hypercorn")}

_DEFAULT_FILE: Final = "gunicorn.conf.py"
_SAID_MAX: Final = 90
_NOT_IN_FILE: Final = (
    "the file names none, which is gunicorn's sync for WSGI. If gunicorn is started with more than "
    "the file (-k, -w), migrate that command line: `prefork migrate -- gunicorn -c FILE -k …`"
)


class Collected(NamedTuple):
    """All that was found. `executed` is the configuration that ran, `source` names it all."""

    server: Server
    found: dict[str, Found]
    notes: list[Note]
    environ: Mapping[str, str]
    executed: str
    source: str


def server(name: str) -> Server:
    """The table of one server; the others' are not imported."""
    found = import_module(f"prefork.cli.migration.{SERVERS[name]}").SERVER
    assert isinstance(found, Server)
    return found


def collect(
    command: Sequence[str], cwd: str, environ: Mapping[str, str], timeout: float
) -> Collected:
    """Read `gunicorn.conf.py [APP]`, or a server's command line. Raises OperatorError.

    Passwords are left out of everything that is going to be printed.
    """
    collected = _collect(command, cwd, environ, timeout)
    source = collected.source
    for name, one in collected.found.items():
        if "password" in name:
            source = source.replace(shlex.quote(str(one.value)), "…")
            hidden = one.said.replace(str(one.value), "…")
            collected.found[name] = one._replace(said=hidden)
    return collected._replace(source=source)


def _collect(
    command: Sequence[str], cwd: str, environ: Mapping[str, str], timeout: float
) -> Collected:
    first = command[0]
    source = shlex.join(command)
    if first.endswith(".py") or first.startswith(("python:", "file:")):
        if len(command) > 2:
            raise click.UsageError("after a configuration comes the application, and no more")
        collected = _gunicorn(["-c", *command], environ, cwd, timeout, source, [])
        if "worker_class" not in collected.found:
            collected.notes.append(Note("worker_class", _NOT_IN_FILE))
        return collected
    variables, before, name, arguments = split(command, SERVERS)
    if not name:
        raise click.UsageError(_unknown(first))
    environ = {**environ, **variables}
    notes = []
    if before and before[-1] != "-m":
        notes.append(Note(shlex.join(before), "is no part of the configuration: left out"))
    if name == "gunicorn":
        return _gunicorn(arguments, environ, cwd, timeout, source, notes)
    chosen = server(name)
    line = parse(chosen, arguments)
    found = {**environment(chosen, environ), **line.found}
    if name == "uvicorn":
        _fall_back(found, environ, "workers", "WEB_CONCURRENCY")
        _fall_back(found, environ, "forwarded_allow_ips", "FORWARDED_ALLOW_IPS")
    _targets(chosen, line, found, notes)
    return Collected(chosen, found, notes, environ, "", source)


def _unknown(word: str) -> str:
    hint = did_you_mean(guess(os.path.basename(word), tuple(SERVERS)))
    return (
        f"{word!r} is no server and no configuration that prefork knows{hint}: name "
        f"gunicorn.conf.py, or the command line of {', '.join(SERVERS)} after --"
    )


def _gunicorn(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    cwd: str,
    timeout: float,
    source: str,
    notes: list[Note],
) -> Collected:
    """By gunicorn's precedence: command line > GUNICORN_CMD_ARGS > file > other variables."""
    chosen = server("gunicorn")
    found: dict[str, Found] = {}
    _fall_back(found, environ, "workers", "WEB_CONCURRENCY")
    _fall_back(found, environ, "forwarded_allow_ips", "FORWARDED_ALLOW_IPS")
    line = parse(chosen, arguments)
    extra = parse(chosen, shlex.split(environ.get("GUNICORN_CMD_ARGS", "")))
    named = line.found.get("config") or extra.found.get("config")
    executed = str(named.value) if named else ""
    if not executed and os.path.isfile(os.path.join(cwd, _DEFAULT_FILE)):
        executed = _DEFAULT_FILE
    if executed:
        found |= _globals(chosen, executed, cwd, environ, timeout, notes)
    for name, one in extra.found.items():
        found[name] = one._replace(said=f"{one.said} (GUNICORN_CMD_ARGS)")
    found |= line.found
    found.pop("config", None)
    line.unknown.extend(extra.unknown)
    _targets(chosen, line, found, notes)
    return Collected(chosen, found, notes, environ, executed, source)


def _fall_back(
    found: dict[str, Found], environ: Mapping[str, str], name: str, variable: str
) -> None:
    if environ.get(variable) and name not in found:
        found[name] = Found(environ[variable], f"{variable}={environ[variable]}")


def _targets(chosen: Server, line: CommandLine, found: dict[str, Found], notes: list[Note]) -> None:
    if line.targets:
        found[chosen.rows[0].options[0].name] = Found(line.targets[0], line.targets[0])
    for word in line.targets[1:]:
        notes.append(Note(word, f"is a second application to {chosen.name}: left out"))
    flags = tuple(flag for option in chosen.options() for flag in option.flags)
    for word in line.unknown:
        near = did_you_mean(guess(word.partition("=")[0].partition(" ")[0], flags))
        notes.append(Note(word, f"is no option of {chosen.name} that prefork knows{near}"))


def _globals(
    chosen: Server,
    name: str,
    cwd: str,
    environ: Mapping[str, str],
    timeout: float,
    notes: list[Note],
) -> dict[str, Found]:
    """The settings that the file sets to something."""
    names = tuple(option.name for option in chosen.options())
    found = {}
    for key, (value, kind, source, used) in confpy.read(name, cwd, environ, timeout).items():
        if key not in names:
            if used:
                continue
            # Functions and classes of its own are the file's business, unless they look like a
            # slip: nearer than `guess` asks for, because cpu_count is not capture_output.
            close = get_close_matches(key, names, n=1, cutoff=0.75)
            near = did_you_mean(close[0] if close else None)
            if near or kind == "":
                notes.append(Note(key, f"is no setting of gunicorn's, which ignores it{near}"))
            continue
        empty = value is False or value is None or value in ("", [], {})
        if empty and not kind and key != "sendfile":
            continue
        said = f"{key} = {source or repr(value)}" if kind != "function" else f"{key}()"
        if kind == "subclass" and key == "worker_class":
            notes.append(Note(said, "is a class of its own: what it overrides is not translated"))
        if kind not in ("", "class", "subclass", "function"):
            raise OperatorError(f"{name}: {key} is a {kind}, which gunicorn does not take")
        found[key] = Found(value, said if len(said) <= _SAID_MAX else said[: _SAID_MAX - 1] + "…")
    return found
