"""The schema for editors: yaml-language-server completes keys from it and underlines mistakes.

JSON Schema draft 7, which is the newest that yaml-language-server speaks. Any value may be text
with a `${` in it, because an editor does not know the variables.
"""

import os
from typing import Any, Final

import msgspec

from prefork.config.option import Option, Variables
from prefork.config.options import INCLUDE, INCLUDE_MEANING, Branch, Leaf, default_text, tree
from prefork.config.reader import Schema

PATH: Final = os.path.join(os.path.dirname(__file__), "schema.json")
"""The copy that is installed beside this module, for the modeline of a configuration."""

_SUBSTITUTED: Final[Schema] = {"type": "string", "pattern": r"\$\{"}


def schema() -> Schema:
    """The whole document."""
    root = _branch(tree())
    paths: Schema = {"type": "string"}
    root["properties"][INCLUDE] = {
        "description": INCLUDE_MEANING,
        "anyOf": [paths, {"type": "array", "items": paths}],
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "prefork configuration",
        **root,
    }


def text() -> str:
    """The document as it is written to `schema.json`."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n"


def _branch(branch: Branch) -> Schema:
    return {
        "description": branch.about.meaning,
        "type": ["object", "null"] if branch.path else "object",
        "additionalProperties": False,
        "properties": {
            name: _branch(child) if isinstance(child, Branch) else _leaf(child)
            for name, child in branch.children.items()
        },
    }


def _leaf(leaf: Leaf) -> Schema:
    about = leaf.about
    if isinstance(about, Variables):
        value = {"anyOf": [about.value.json_schema(), _SUBSTITUTED]}
        return {
            "description": about.meaning,
            "type": ["object", "null"],
            "additionalProperties": value,
        }
    return {
        "description": f"{about.meaning}\n\nDefault: {default_text(leaf)}",
        "anyOf": [*_alternatives(about), _SUBSTITUTED],
    }


def _alternatives(about: Option) -> list[Any]:
    """The kind's own alternatives one level up: an editor explains a flat list better."""
    made = about.kind.json_schema()
    return list(made["anyOf"]) if set(made) == {"anyOf"} else [made]
