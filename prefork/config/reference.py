"""The configuration reference and the commented sample, both written from the schema.

`python -m prefork.config.reference --write README.md conf/prefork.yaml prefork/config/schema.json`
brings the files up to date; a test compares them with what would be written.
"""

import sys
import textwrap
from collections.abc import Iterator
from typing import Final

from prefork.config.option import Variables, environment_name
from prefork.config.options import INCLUDE_MEANING, Branch, Leaf, default_text, tree

BEGIN: Final = "<!-- reference:begin -->"
END: Final = "<!-- reference:end -->"

_WIDTH: Final = 96

# What the sample sets otherwise than the default does: it serves something, and can be found.
_SAMPLE: Final = {
    "app": "prefork.apps.hello:app",
    "pid_file": "run/prefork.pid",
}

_SYNTAX_NOTES: Final = """\
The file is YAML 1.2: only `true` and `false` are booleans, `on`, `no` and `12:30` are text, and an
octal number is written `0o660`. A key that is unknown, or set twice, is an error.

- **Precedence**: `--set` and the APP of the command line > environment > file > default.
  `prefork config show` prints every effective value with where it came from.
- **Durations**: `250ms`, `30s`, `5m`, `1h30m`, `1d`; a bare number is seconds.
  **Sizes**: `8KiB` or `8k`, `16MiB`, `1GiB`; a bare number is bytes.
- **Substitution** in any value: `${VAR}`, `${VAR:-default}`, `${VAR:?message}`, and `$$` for a
  dollar before a brace; `${file:/run/secrets/x}` is the content of a file, without the newline at
  its end, and is never printed.
- **Paths** are relative to the folder of the configuration file (of the outermost one, if it
  includes others); without a file, to the current folder.
- **`include`** (top level only): {include}
- **A reload** (`prefork reload`) applies every change but those marked "needs a restart".
- **`--set key=value`**: dotted keys (`--set timeouts.head=5s`). The value is text unless it begins
  with `[`, `{` or a quotation mark: `--set 'listen=[":8000", "unix:run/app.sock"]'`. The same holds
  for the variables in the environment.
"""


# The Markdown reference


def reference() -> str:
    """The reference as Markdown: the rules, then a box for each option."""
    parts = [_SYNTAX_NOTES.replace("{include}", _wrap_item(INCLUDE_MEANING)), *_boxes(tree())]
    return "\n".join(parts)


def _wrap_item(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=" " * 34, subsequent_indent="  ").lstrip()


def _boxes(branch: Branch) -> Iterator[str]:
    for child in branch.children.values():
        if isinstance(child, Branch):
            if child.path.count(".") == 0:
                yield f"#### `{child.path}`\n\n{_fill(child.about.meaning)}\n"
            yield from _boxes(child)
        else:
            yield _box(child)


def _box(leaf: Leaf) -> str:
    about = leaf.about
    default = f"default `{default_text(leaf)}`"
    if isinstance(about, Variables):
        facts = ["a mapping of names to text", default]
    else:
        facts = [about.kind.syntax, default, f"`{environment_name(leaf.path)}`"]
        if about.applies == "restart":
            facts.append("needs a restart")
    example = f"`{leaf.path.rpartition('.')[2]}: {about.example}`"
    head = f"- **`{leaf.path}`** — {'; '.join(facts)}."
    body = f"{about.meaning} Example: {example}"
    return f"{_fill_item(head)}\n\n{_fill_item(body, '  ')}\n"


def _fill(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _fill_item(text: str, first: str = "") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


# The commented sample


def sample() -> str:
    """`conf/prefork.yaml`: every option with its meaning and its default."""
    lines = [
        "# yaml-language-server: $schema=../prefork/config/schema.json",
        "#",
        "# Every setting of prefork with its default. Keep the lines you change, drop the rest.",
        "# Written from the schema by `python -m prefork.config.reference`.",
        "#",
        "#   prefork check -c FILE              is it right?",
        "#   prefork config show -c FILE        what is in effect, and where does it come from?",
        "#   prefork config explain KEY         what does a key do?",
        "#",
        "# Durations: 250ms 30s 5m 1h 1d. Sizes: 8KiB 16MiB. Paths start in this file's folder.",
        "# ${VAR}, ${VAR:-default}, ${VAR:?message} and ${file:path} are substituted in values.",
        "",
    ]
    lines += _sample_branch(tree(), "")
    lines += ["", *_comment(INCLUDE_MEANING, ""), "# include: conf.d/*.yaml"]
    return "\n".join(lines) + "\n"


def _sample_branch(branch: Branch, indent: str) -> Iterator[str]:
    first = True
    for name, child in branch.children.items():
        if not first:
            yield ""
        first = False
        if isinstance(child, Branch):
            yield from _comment(child.about.meaning, indent)
            yield f"{indent}{name}:"
            yield from _sample_branch(child, indent + "  ")
            continue
        yield from _comment(child.about.meaning, indent)
        value = _SAMPLE.get(child.path) or default_text(child)
        example = child.about.example
        if value == "null":
            yield f"{indent}{name}: null  # e.g. {example}"
        elif isinstance(child.about, Variables):
            yield f"{indent}{name}: {{}}  # e.g. {example}"
        else:
            yield f"{indent}{name}: {value}"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


# Writing


def rewritten(name: str, old: str) -> str:
    """What the file `name` should hold, given what it holds now. Raises ValueError for a file
    that is none of the three."""
    if name.endswith(".json"):
        from prefork.config.jsonschema import text

        return text()
    if name.endswith((".yaml", ".yml")):
        return sample()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{name} has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Print the reference, or bring the named files up to date after `--write`."""
    if arguments[:1] != ["--write"]:
        sys.stdout.write(reference())
        return 0
    for name in arguments[1:]:
        try:
            with open(name, encoding="utf-8") as file:
                old = file.read()
        except FileNotFoundError:
            old = ""
        new = rewritten(name, old)
        if new != old:
            with open(name, "w", encoding="utf-8") as file:
                file.write(new)
            sys.stderr.write(f"wrote {name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
