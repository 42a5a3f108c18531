"""`prefork config show`: the effective settings, each with its origin, and no secret."""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from prefork.config.loader import Loaded
from prefork.config.option import Option
from prefork.config.options import Branch, Leaf, leaves, tree

REDACTED: Final = "[redacted]"
DEFAULT: Final = "default"

# Also when it stands in the file for all to read: a dump travels further than the file does.
_TELLING_NAME: Final = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|(API|PRIVATE|_)KEY")


class Row(NamedTuple):
    """One effective value: dotted key, Python value, YAML text, origin."""

    path: str
    value: Any
    text: str
    origin: str


def rows(loaded: Loaded, leaf: Leaf) -> Iterator[Row]:
    """One row for an option, one per variable for a free mapping."""
    value: Any = loaded.conf
    for name in leaf.path.split("."):
        value = getattr(value, name)
    if isinstance(leaf.about, Option):
        text = leaf.about.kind.write(value)
        yield _row(loaded, leaf.path, msgspec.to_builtins(value), text)
        return
    for name, inner in value.items():
        yield _row(loaded, f"{leaf.path}.{name}", inner, leaf.about.value.write(inner))


def _row(loaded: Loaded, path: str, value: Any, text: str) -> Row:
    setting = loaded.origins.get(path)
    origin = setting.text if setting is not None else DEFAULT
    if is_secret(path, loaded.secrets):
        why = ", a ${file:}" if path in loaded.secrets else ""
        return Row(path, REDACTED, f'"{REDACTED}"', origin + why)
    return Row(path, value, text, origin)


def is_secret(path: str, secrets: frozenset[str]) -> bool:
    """Must the value at a dotted key not be shown? `secrets` are those read from a `${file:}`."""
    return path in secrets or (
        path.startswith("environment.") and _TELLING_NAME.search(path.upper()) is not None
    )


def show(loaded: Loaded) -> str:
    """YAML that prefork itself would read, with the origin of each value beside it."""
    lines = list(_lines(loaded, tree(), ""))
    width = min(max((len(text) for text, origin in lines if origin), default=0), 60)
    return "".join(
        f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines
    )


def _lines(loaded: Loaded, branch: Branch, indent: str) -> Iterator[tuple[str, str]]:
    for name, child in branch.children.items():
        if isinstance(child, Branch):
            yield f"{indent}{name}:", ""
            yield from _lines(loaded, child, indent + "  ")
            continue
        found = list(rows(loaded, child))
        if isinstance(child.about, Option):
            yield f"{indent}{name}: {found[0].text}", found[0].origin
        elif not found:
            yield f"{indent}{name}: {{}}", DEFAULT
        else:
            yield f"{indent}{name}:", ""
            for row in found:
                key = child.about.value.write(row.path.removeprefix(f"{child.path}."))
                yield f"{indent}  {key}: {row.text}", row.origin


def show_json(loaded: Loaded) -> bytes:
    """Dotted key → value and origin."""
    table = {
        row.path: {"value": row.value, "origin": row.origin}
        for leaf in leaves()
        for row in rows(loaded, leaf)
    }
    return msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n"
