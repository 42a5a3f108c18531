"""Pid files, with real masters that are really killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.errors import OperatorError
from prefork.unix import pidfile
from prefork.unix.pidfile import PidFile

# A master that locks argv[1], forks a worker that outlives it, and says both pids.
MASTER = """
import os, signal, sys
from prefork.unix.pidfile import PidFile
file = PidFile(sys.argv[1])
file.create()
ours, theirs = os.pipe()
worker = os.fork()
if worker == 0:
    os.close(theirs)
    if "drains" in sys.argv:
        signal.pause()      # until the test ends it
    os.read(ours, 1)        # until the master is gone
    os._exit(0)
print(os.getpid(), worker, flush=True)
signal.pause()
"""


@pytest.fixture
def master() -> Iterator[Callable[..., tuple["subprocess.Popen[str]", int]]]:
    started: list[tuple[subprocess.Popen[str], int]] = []

    def start(path: Path, *args: str) -> tuple["subprocess.Popen[str]", int]:
        process = subprocess.Popen(
            [sys.executable, "-c", MASTER, str(path), *args], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        pid, worker = map(int, process.stdout.readline().split())
        assert pid == process.pid
        started.append((process, worker))
        return process, worker

    yield start
    for process, worker in started:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)  # first: it holds the pipe we read to the end
        process.communicate()


def test_created_read_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "run" / "x.pid"
    file = PidFile(str(path))
    assert file.create() is None
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert pidfile.read(str(path)) == PidFile.read(str(path)) == os.getpid()
    file.unlink()
    assert not path.exists()
    assert pidfile.read(str(path)) is None
    file.unlink()  # again: nothing to do


def test_readable_by_others_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    old = os.umask(0o077)
    try:
        file = PidFile(str(path))
        file.create()
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644
    file.unlink()


def test_another_process_reads_the_pid_of_a_living_master(tmp_path: Path, master: Any) -> None:
    path = tmp_path / "x.pid"
    process, _worker = master(path)
    assert pidfile.read(str(path)) == process.pid


def test_a_second_master_is_told_the_pid_of_the_first(tmp_path: Path, master: Any) -> None:
    path = tmp_path / "x.pid"
    process, _worker = master(path)
    with pytest.raises(OperatorError, match=rf"already running: process {process.pid} holds"):
        PidFile(str(path)).create()
    assert pidfile.read(str(path)) == process.pid


def test_after_kill_9_a_new_master_starts_though_workers_still_drain(
    tmp_path: Path, master: Any
) -> None:
    """The reason for fcntl locks: a flock would be alive in the worker that drains."""
    path = tmp_path / "x.pid"
    process, worker = master(path, "drains")
    process.kill()
    process.wait()
    os.kill(worker, 0)  # it is there
    assert pidfile.read(str(path)) is None
    file = PidFile(str(path))
    notice = file.create()
    assert notice is not None
    assert f"process {process.pid}" in notice
    assert pidfile.read(str(path)) == os.getpid()
    file.unlink()


def test_a_worker_that_closes_the_file_does_not_unlock_its_master(
    tmp_path: Path, run_python: Any
) -> None:
    run_python(
        """
        import os, sys
        from prefork.unix import pidfile
        path = sys.argv[1]
        file = pidfile.PidFile(path)
        file.create()
        for way in ("close", "unlink-by-hand", "read"):
            pid = os.fork()
            if pid == 0:
                if way == "close":
                    file.close()
                elif way == "read":
                    file.close()
                assert pidfile.read(path) == os.getppid()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        assert pidfile.read(path) == os.getpid()
        import subprocess
        code = "import sys; from prefork.unix.pidfile import read; print(read(sys.argv[1]))"
        out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert out.stdout.strip() == str(os.getpid()), out
        file.unlink()
        """,
        tmp_path / "x.pid",
    )


def test_reading_ones_own_file_keeps_the_lock(tmp_path: Path) -> None:
    """POSIX drops the lock when the process closes any descriptor of the file."""
    path = tmp_path / "x.pid"
    file = PidFile(str(path))
    file.create()
    for _ in range(3):
        assert pidfile.read(str(path)) == os.getpid()
    with pytest.raises(OperatorError, match="already holds"):
        PidFile(str(path)).create()
    code = "import sys; from prefork.unix.pidfile import read; print(read(sys.argv[1]))"
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert out.stdout.strip() == str(os.getpid())
    file.unlink()


def test_a_stale_file_is_replaced_with_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    path.write_text("4194000\n")  # longer than ours: nothing of it may remain
    file = PidFile(str(path))
    notice = file.create()
    assert notice is not None
    assert "4194000" in notice
    assert path.read_text() == f"{os.getpid()}\n"
    file.unlink()


def test_a_stale_file_that_names_a_living_stranger_is_stale(tmp_path: Path) -> None:
    """Pids come round again: the lock counts, not the number."""
    path = tmp_path / "x.pid"
    path.write_text(f"{os.getppid()}\n")
    assert pidfile.read(str(path)) is None


@pytest.mark.parametrize("content", ["some notes of mine\n", "-3\n", "12345678901234\n"])
def test_a_file_that_is_no_pid_file_is_never_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(OperatorError, match="does not hold a pid"):
        PidFile(str(path)).create()
    assert path.read_text() == content


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    path = tmp_path / "x.pid"
    path.symlink_to(target)
    with pytest.raises(OperatorError, match=r"open\(\)"):
        PidFile(str(path)).create()
    assert not target.exists()


def test_a_directory_or_an_impossible_place_is_the_operators_error(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"failed \(21: Is a directory\)"):
        PidFile(str(tmp_path)).create()
    with pytest.raises(OperatorError, match=r"failed \(\d+: "):
        PidFile("/proc/nothing/x.pid").create()


def test_only_our_own_file_is_unlinked(tmp_path: Path) -> None:
    """After an upgrade the name belongs to the new master."""
    path = tmp_path / "x.pid"
    file = PidFile(str(path))
    file.create()
    path.unlink()
    path.write_text("another's\n")
    file.unlink()
    assert path.read_text() == "another's\n"


def test_the_oldbin_dance(tmp_path: Path, master: Any) -> None:
    """USR2: the old master steps aside, the new one takes the name, dies, and it goes back."""
    path = tmp_path / "x.pid"
    file = PidFile(str(path))
    file.create()
    file.rename_to_oldbin()
    assert file.path == f"{path}.oldbin"
    assert pidfile.read(f"{path}.oldbin") == os.getpid()
    new, _worker = master(path)
    assert pidfile.read(str(path)) == new.pid
    with pytest.raises(OperatorError, match=rf"held by process {new.pid}"):
        file.restore()
    new.kill()  # it leaves its pid file behind
    new.wait()
    file.restore()
    assert file.path == str(path)
    assert pidfile.read(str(path)) == os.getpid()
    assert not Path(f"{path}.oldbin").exists()
    file.unlink()
    assert not path.exists()


def test_an_old_master_that_leaves_takes_only_its_oldbin(tmp_path: Path, master: Any) -> None:
    path = tmp_path / "x.pid"
    file = PidFile(str(path))
    file.create()
    file.rename_to_oldbin()
    new, _worker = master(path)
    file.unlink()
    assert not Path(f"{path}.oldbin").exists()
    assert pidfile.read(str(path)) == new.pid


def test_of_many_that_start_at_once_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    code = """
import sys, time
from prefork.errors import OperatorError
from prefork.unix.pidfile import PidFile
sys.stdin.readline()
try:
    PidFile(sys.argv[1]).create()
except OperatorError:
    print("lost", flush=True)
else:
    print("won", flush=True)
    sys.stdin.readline()
"""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    lines = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    for racer in racers:
        racer.communicate("leave\n")
    assert sorted(lines) == ["lost"] * 5 + ["won"]


def test_readers_do_not_stand_in_a_starting_masters_way(tmp_path: Path) -> None:
    """A reader's probe takes a shared lock for a moment; the creator waits it out."""
    path = tmp_path / "x.pid"
    path.write_text("4194000\n")
    code = """
import sys
from prefork.unix.pidfile import read
print("reading", flush=True)
while True:
    read(sys.argv[1])
"""
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        reader.stdout.readline()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            file = PidFile(str(path))
            file.create()
            file.close()
    finally:
        reader.kill()
        reader.communicate()
