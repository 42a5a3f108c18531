"""The flag-by-flag tables of the README, written from the tables that `prefork migrate` uses.

`python -m prefork.cli.migration.reference --write README.md` brings the page up to date; a test
compares it with what would be written.
"""

import sys
from typing import Final

from prefork.cli.migration import gunicorn, uvicorn
from prefork.cli.migration.table import Option, Server

BEGIN: Final = "<!-- migration:begin -->"
END: Final = "<!-- migration:end -->"


def tables() -> str:
    """A table for gunicorn and one for uvicorn, as Markdown."""
    return "\n".join(_table(server) for server in (gunicorn.SERVER, uvicorn.SERVER))


def _table(server: Server) -> str:
    lines = [f"| {server.name} | prefork | what differs |", "|---|---|---|"]
    lines.append(f"| TERM, QUIT, INT | `on_term: graceful` | {_cell(server.signals)} |")
    lines.append(f"| HUP | `prefork reload` | {_cell(server.reload)} |")
    for one in server.rows:
        options = ", ".join(_name(option) for option in one.options)
        keys = ", ".join(f"`{key}`" for key in one.keys) or "-"
        lines.append(f"| {options} | {keys} | {_cell(one.say)} |")
    return "\n".join(lines) + "\n"


def _name(option: Option) -> str:
    """The long flag, and the name in a configuration where it cannot be guessed from that."""
    long = [flag for flag in (*option.flags, *option.off) if flag.startswith("--")]
    if not long:
        return f"`{option.name}`"
    shown = f"`{long[0]}`"
    bare = long[0].removeprefix("--").removeprefix("no-").replace("-", "_")
    return shown if bare in (option.name, option.name + "s") else f"{shown} (`{option.name}`)"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def rewritten(page: str) -> str:
    """The README with today's tables. Raises ValueError when it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Print the tables, or bring the named page up to date after `--write`."""
    if arguments[:1] != ["--write"]:
        sys.stdout.write(tables())
        return 0
    for name in arguments[1:]:
        with open(name, encoding="utf-8") as file:
            old = file.read()
        with open(name, "w", encoding="utf-8") as file:
            file.write(rewritten(old))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
