"""The schema as a tree to walk: sections, options and free mappings, by dotted key."""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple, get_args

import msgspec
from msgspec import NODEFAULT, Struct

from prefork.config.option import Option, Section, Variables
from prefork.config.schema import Config

INCLUDE: Final = "include"
INCLUDE_MEANING: Final = (
    "More files to read as if their keys stood here: a path, a glob such as `conf.d/*.yaml`, or a "
    "list of them. Sections are merged; a key that two files set is an error."
)


class Leaf(NamedTuple):
    """One option in its place. `default` is the Struct's, None where it depends on a folder."""

    path: str
    name: str
    about: Option | Variables
    default: Any


class Branch(NamedTuple):
    """One section: its Struct, what it is for, and what is in it by name."""

    path: str
    name: str
    about: Section
    type: type[Struct]
    children: "dict[str, Leaf | Branch]"


@cache
def tree() -> Branch:
    """The whole schema; the same object each time."""
    return _branch("", "", Section("The whole configuration."), Config)


def _branch(path: str, name: str, about: Section, struct: type[Struct]) -> Branch:
    children: dict[str, Leaf | Branch] = {}
    for field in msgspec.structs.fields(struct):
        inner = f"{path}.{field.name}" if path else field.name
        kind, said = get_args(field.type)
        if isinstance(said, Section):
            children[field.name] = _branch(inner, field.name, said, kind)
        else:
            default = field.default
            if default is NODEFAULT:  # a dict, or the folder that only the loader knows
                default = {} if isinstance(said, Variables) else None
            children[field.name] = Leaf(inner, field.name, said, default)
    return Branch(path, name, about, struct, children)


def leaves(branch: Branch | None = None) -> Iterator[Leaf]:
    """Every option in the order of the schema."""
    for child in (branch or tree()).children.values():
        if isinstance(child, Branch):
            yield from leaves(child)
        else:
            yield child


def find(path: str) -> Leaf | Branch | None:
    """What stands at a dotted key."""
    found: Leaf | Branch = tree()
    for name in path.split("."):
        if not isinstance(found, Branch) or name not in found.children:
            return None
        found = found.children[name]
    return found


def default_text(leaf: Leaf) -> str:
    """The default as YAML."""
    if isinstance(leaf.about, Variables):
        return "{}"
    return leaf.about.default or leaf.about.kind.write(leaf.default)
