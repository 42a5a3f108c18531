"""Imports go downwards only, and siblings of one level stay apart.

The levels are the architecture: bytes go up, responses come down, and a layer knows the one
above only as a callable it was given. A sibling may be named in an annotation, no more.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

LEVELS = (
    ("errors",),
    ("log",),
    ("scoreboard",),
    ("config", "unix"),
    ("event",),
    ("net",),
    ("http",),
    ("onion",),
    ("middleware", "gateway"),
    ("process",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
PACKAGE = Path(__file__).parents[1] / "prefork"


def imports(node: ast.AST, *, for_types: bool = False) -> Iterator[tuple[str, bool]]:
    """The prefork modules a tree imports, wherever it does so: (name, in annotations only)."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for_types = True
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        # `from prefork import log` names the room in the alias.
        rooms = [f"prefork.{alias.name}" for alias in node.names if alias.name in LEVEL]
        names = rooms if node.module == "prefork" and rooms else [str(node.module)]
    yield from ((name, for_types) for name in names if name.split(".")[0] == "prefork")
    for child in ast.iter_child_nodes(node):
        yield from imports(child, for_types=for_types)


def allowed(room: str, module: str, for_types: bool) -> bool:
    other = module.split(".")[1] if "." in module else "public"
    if room == other:
        return True
    if room == "apps":  # what ships as an example is written as a user would write it
        return other == "public"
    if other == "public":  # the version, for whoever prints it
        return room in ("cli", "process", "config")
    return LEVEL[other] < LEVEL[room] + (for_types and room not in ("middleware", "gateway"))


def test_imports_go_downwards_only() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("__init__", "__main__"):
            continue  # the public entry and the program's own, both lazy
        assert parts[0] in LEVEL or parts[0] == "apps", f"{path} is in no known room"
        wrong += [
            f"{'.'.join(parts)} imports {module}"
            for module, for_types in imports(ast.parse(path.read_text()))
            if not allowed(parts[0], module, for_types)
        ]
    assert wrong == []
