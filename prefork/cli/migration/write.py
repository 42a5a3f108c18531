"""A finished migration as text: conf.yaml with its comments, and the list for the terminal."""

import textwrap
from collections.abc import Iterator
from typing import Final

from prefork.cli.init import schema_for
from prefork.cli.migration.table import Job, Note
from prefork.config.options import Branch, tree

_WIDTH: Final = 100


def configuration(job: Job, output: str, source: str, executed: str) -> str:
    """The text of the file; `output` is its name, "-" for stdout."""
    name = "conf.yaml" if output == "-" else output
    lines = [f"# yaml-language-server: $schema={schema_for(name)}"]
    lines += _comment(f"Written by `prefork migrate` from: {source}")
    if executed:
        lines += _comment(f"{executed} was executed for it, and says what is here.")
    lines += ["#", f"#   prefork check -c {name}      prefork start -c {name}", "#"]
    lines += [f"# What differs from {job.server.name}:"]
    for note in job.notes:
        lines += _comment(f"- {_sentence(note)}", "  ")
    lines.append("")
    lines += _section(job, tree(), "")
    if "pid_file" not in job.values:
        lines += ["", "# How `prefork reload -c` and its like find the server."]
        lines.append("# pid_file: run/prefork.pid")
    return "\n".join(lines) + "\n"


def report(job: Job, executed: str) -> str:
    """The same list for the terminal."""
    lines = [f"{executed} was executed"] if executed else []
    lines.append(f"what differs from {job.server.name}:")
    for note in job.notes:
        lines += textwrap.wrap(
            _sentence(note),
            _WIDTH,
            initial_indent="  - ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _sentence(note: Note) -> str:
    return " ".join(f"{note.about}: {note.text}.".split())


def _comment(text: str, hang: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent="# ",
        subsequent_indent=f"# {hang}",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _section(job: Job, branch: Branch, indent: str) -> Iterator[str]:
    for name, child in branch.children.items():
        prefix = f"{child.path}."
        inside = [key for key in job.values if key.startswith(prefix)]
        if child.path in job.values:
            yield from _setting(job, child.path, name, indent)
        elif inside:
            yield f"{indent}{name}:"
            if isinstance(child, Branch):
                yield from _section(job, child, indent + "  ")
            else:
                for key in inside:
                    yield from _setting(job, key, key.removeprefix(prefix), indent + "  ")


def _setting(job: Job, key: str, name: str, indent: str) -> Iterator[str]:
    from prefork.config.reader import quote

    text, why = job.values[key]
    if why:
        yield f"{indent}# {' '.join(why.split())}"
    yield f"{indent}{quote(name)}: {text}"
