from pathlib import Path

import pytest

from prefork.unix.cgroup import oom_kills

V2 = "30 23 0:28 {mounted} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = "35 31 0:32 {mounted} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
OTHER = "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
EVENTS = "low 0\nhigh 0\nmax 7\noom 5\noom_kill {n}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {n}\n"


def machine(root: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> str:
    for name, text in {
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": mountinfo,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "files", "expected"),
    [
        pytest.param(
            "0::/system.slice/web.service\n",
            V2.format(mounted="/"),
            {
                "system.slice/memory.events": EVENTS.format(n=9),
                "system.slice/web.service/memory.events": EVENTS.format(n=2),
            },
            2,
            id="v2-own",
        ),
        pytest.param(
            "0::/system.slice/web.service/sub\n",
            V2.format(mounted="/"),
            {"system.slice/web.service/memory.events": EVENTS.format(n=3)},
            3,
            id="v2-the-controller-ends-above",
        ),
        pytest.param(
            "0::/docker/abc/app\n",
            V2.format(mounted="/docker/abc"),
            {"memory.events": EVENTS.format(n=8), "app/memory.events": EVENTS.format(n=4)},
            4,
            id="v2-container-without-a-namespace",
        ),
        pytest.param(
            "0::/../other\n",
            V2.format(mounted="/"),
            {"memory.events": EVENTS.format(n=1)},
            1,
            id="v2-outside-the-namespace",
        ),
        pytest.param(
            "4:memory:/box\n2:cpu:/x\n0::/\n",
            OTHER + V1.format(mounted="/") + V2.format(mounted="/"),
            {"memory/box/memory.oom_control": CONTROL.format(n=6)},
            6,
            id="v1-in-a-hybrid",
        ),
        pytest.param(
            "4:memory:/box\n",
            V1.format(mounted="/"),
            {"memory/box/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"},
            None,
            id="v1-of-an-old-kernel",
        ),
        pytest.param("", "", {}, None, id="nothing"),
    ],
)
def test_oom_kills(
    tmp_path: Path, cgroup: str, mountinfo: str, files: dict[str, str], expected: int | None
) -> None:
    assert oom_kills(machine(tmp_path, cgroup, mountinfo, files)) == expected


def test_this_machine() -> None:
    count = oom_kills()
    assert count is None or count >= 0
