"""What the control group knows: how often the kernel killed one of us for want of memory.

An OOM kill looks like any `kill -9` in the wait status. The memory controller counts them where the
victim was accounted, whoever's limit was hit: cgroup v2 in `memory.events` (the group's and its
descendants'), v1 in `memory.oom_control` (kernel, mm/oom_kill.c: MEMCG_OOM_KILL is charged to the
victim's group, also when the whole machine ran out). So two readings around a death tell.

In a container /proc/self/cgroup may name a path of the host; the mount's own root, as mountinfo
tells it, is what of that path is out of sight. A group without the file (the controller is not
enabled there) is accounted to the nearest one above that has it.
"""

import os
from typing import Final

_ESCAPES: Final = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


def oom_kills(root: str = "/") -> int | None:
    """How many processes of this process's memory cgroup the OOM killer has ended, ever.

    None where no cgroup tells. A difference of two readings is what to look at: the group may be
    older than the server, and in v2 its descendants count. `root` is where /proc and /sys are
    looked up.
    """
    paths = _own_paths(_text(f"{root}/proc/self/cgroup"))
    for line in _text(f"{root}/proc/self/mountinfo").splitlines():
        # proc_pid_mountinfo(5): id parent dev ROOT POINT options [fields...] - TYPE source SUPER
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            path, name = paths.get(""), "memory.events"
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            path, name = paths.get("memory"), "memory.oom_control"
        else:
            continue
        if path is None:
            continue
        count = _nearest(root + _unescaped(fields[4]), _below(path, _unescaped(fields[3])), name)
        if count is not None:
            return count
    return None


def _own_paths(text: str) -> dict[str, str]:
    """Our group in cgroup v2 (key "") and in v1's memory hierarchy (key "memory")."""
    paths = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[""] = path
        elif "memory" in controllers.split(","):
            paths["memory"] = path
    return paths


def _below(path: str, mounted: str) -> list[str]:
    """The steps from a mount, which shows `mounted`, down to `path`; none when it is elsewhere."""
    if mounted != "/":
        if path != mounted and not path.startswith(f"{mounted}/"):
            return []
        path = path[len(mounted) :]
    parts = [part for part in path.split("/") if part]
    return [] if ".." in parts else parts


def _nearest(mount: str, parts: list[str], name: str) -> int | None:
    for depth in range(len(parts), -1, -1):
        for line in _text(os.path.join(mount, *parts[:depth], name)).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.isdigit():
                return int(value)
    return None


def _unescaped(path: str) -> str:
    if "\\" in path:
        for escape, character in _ESCAPES.items():
            path = path.replace(escape, character)
    return path


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
