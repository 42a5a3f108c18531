"""Imports go downwards only, and siblings of one level stay apart.

The levels are the architecture: bytes go up, responses come down, and a layer knows the one
above only as a callable it was given.
"""

import ast
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


def room_of(module: str) -> str:
    """`prefork.event.reactor` is in the room `event`; `prefork` itself is the public one."""
    return module.split(".")[1] if "." in module else "public"


def imports(path: Path) -> set[str]:
    """The prefork modules a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found.add(str(node.module))
            if node.module == "prefork":
                found |= {f"prefork.{a.name}" for a in node.names if a.name in LEVEL}
    return {name for name in found if name.split(".")[0] == "prefork"}


def allowed(room: str, other: str) -> bool:
    if room == other:
        return True
    if room == "apps":  # what ships as an example is written as a user would write it
        return other == "public"
    if other == "public":  # the version, for whoever prints it
        return room in ("cli", "process", "config")
    return other in LEVEL and LEVEL[other] < LEVEL[room]


def test_imports_go_downwards_only() -> None:
    upwards = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("__init__", "__main__"):
            continue  # the public entry and the program's own, both lazy
        assert parts[0] in LEVEL or parts[0] == "apps", f"{path} is in no known room"
        upwards += [
            f"{'.'.join(parts)} imports {module}"
            for module in sorted(imports(path))
            if not allowed(parts[0], room_of(module))
        ]
    assert upwards == []
