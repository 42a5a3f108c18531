"""How many workers `auto` is, and the warnings."""

import os
from pathlib import Path
from typing import Any

import pytest

from prefork.config.checks import cpu_quota, worker_count
from prefork.config.schema import Config

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        # v2, in a container with its own cgroup namespace
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        # v2, a unit with CPUQuota= inside a slice with a tighter one
        (
            {
                "proc/self/cgroup": "0::/web.slice/prefork.service\n",
                "sys/fs/cgroup/web.slice/prefork.service/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/web.slice/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        # a path of the host that cannot be seen from here: the mount's own root counts
        ({"proc/self/cgroup": "0::/docker/12ab\n", "sys/fs/cgroup/cpu.max": "1500 1000\n"}, 1.5),
        # v1, mounted by the pair's name
        (
            {
                "proc/self/cgroup": "7:memory:/\n4:cpu,cpuacct:/docker/12ab\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/12ab/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/12ab/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        # v1 without a limit
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/cpu.max": "200000\n"}, 2.0),
        ({"proc/self/cgroup": "garbage\n", "sys/fs/cgroup/cpu.max": "1 0\n"}, None),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(tree(tmp_path, files)) == quota


def test_workers(tmp_path: Path) -> None:
    assert worker_count(Config(workers=7)) == (7, "7: as configured")
    assert worker_count(Config(workers=7, master_process=False))[0] == 1
    count, why = worker_count(Config(), str(tmp_path))
    assert count == CPUS
    assert why.startswith(f"{CPUS}: ")
    assert why.endswith("by affinity, no cgroup quota")
    half = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    count, why = worker_count(Config(), tree(tmp_path, half))
    assert count == 1
    assert why.startswith("1: ")
    assert why.endswith("by affinity, cgroup quota 0.5")


def test_warnings(folder: Any) -> None:
    loaded = folder.read(
        "app: a:b\ndaemon: true\nrlimits: {nofile: 1024}\ntimeouts: {graceful: 500ms}\n"
    )
    assert [warning.headline.partition(" warning: ")[::2] for warning in loaded.warnings] == [
        (
            "conf.yaml:4:22:",
            '"timeouts.graceful" (500ms) is shorter than "timeouts.keep_alive_min" (1s): '
            "idle connections would be cut",
        ),
        (
            "conf.yaml:3:19:",
            '"rlimits.nofile" (1024) is too few for "limits.connections" (10000) and the files '
            "of a worker: set it to 11024",
        ),
        ("conf.yaml:2:9:", '"log.error.path" is stderr, which a daemon does not have: name a file'),
    ]


def test_a_single_process_is_not_replaced(folder: Any) -> None:
    (warning,) = folder.read(
        "app: a:b\nmaster_process: false\nrecycle: {max_requests: 100}\n"
    ).warnings
    assert warning.headline == (
        'conf.yaml:3:25: warning: "recycle.max_requests" means nothing to a single process'
        " (master_process: false), and is ignored"
    )


def test_a_user_without_root_is_warned_about(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (warning,) = folder.read("app: a:b\nuser: root\n").warnings
    assert "started by root" in warning.message


def test_who_and_where(folder: Any) -> None:
    (folder.path / "folder").mkdir()
    (folder.path / "folder2").mkdir()
    report = folder.errors(
        "app: a:b\nuser: roott\ngroup: rooot\nworking_directory: nowhere\n"
        "log: {error: {path: no/e.log}, access: {path: folder}}\npid_file: folder2\n"
        "cpu_affinity: [8000]\n"
    )
    for says in (
        'conf.yaml:2:7: error: "user": there is no user "roott" (did you mean "root"?)',
        'conf.yaml:3:8: error: "group": there is no group "rooot" (did you mean "root"?)',
        f'conf.yaml:4:20: error: "working_directory" {folder.path}/nowhere is not a folder',
        f'conf.yaml:5:21: error: "log.error.path": the folder {folder.path}/no does not exist',
        f'conf.yaml:5:47: error: "log.access.path" {folder.path}/folder is ',
        f'conf.yaml:6:11: error: "pid_file" {folder.path}/folder2 is a folder',
        'conf.yaml:7:15: error: "cpu_affinity": none of CPU 8000 can be used here, only ',
    ):
        assert says in report


@pytest.mark.parametrize(
    ("listen", "wrong"),
    [
        ('[":80", "127.0.0.1:80"]', True),
        ('[":80", "[::]:80"]', False),
        ('[":80", {address: "[::]:80", v6only: false}]', True),
        ('["[::]:80", "[::1]:80"]', True),
        ('[":80", "127.0.0.1:81", "unix:x"]', False),
        ('[":0", ":0"]', False),
    ],
)
def test_one_port_twice(folder: Any, listen: str, wrong: bool) -> None:
    text = f"app: a:b\nlisten: {listen}\n"
    if wrong:
        assert "already includes" in folder.errors(text)
    else:
        folder.read(text)
