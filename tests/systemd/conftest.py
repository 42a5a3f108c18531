"""A real systemd for a test: a small machine in namespaces of its own, up in 0.2 s.

It needs root, util-linux, the systemd package and a mounted cgroup2. Where the kernel lets us make
no namespaces these tests are skipped; where it does, CI=true turns every other lack into a failure.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
UNITS = REPOSITORY / "systemd"
CAP_SYS_ADMIN = 21
NAMESPACES = ("-m", "-u", "-i", "-p", "-C")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "SYSTEMD_COLORS": "0",
} | {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


class Machine:
    """`run` and `python` work inside; files are written by `write`, units by `install`."""

    def __init__(self, cgroup: Path, console: Path) -> None:
        self._cgroup = cgroup
        self._console = console
        self._pid1 = 0
        self._unshare: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        self._cgroup.mkdir()
        unshare = (
            "unshare --pid --fork --mount --uts --ipc --cgroup --mount-proc --kill-child=SIGKILL"
        )
        with self._console.open("wb") as console:
            self._unshare = subprocess.Popen(
                [
                    "bash",
                    "-c",
                    f'echo $$ >"$0/cgroup.procs"; exec {unshare} bash "$@"',
                    str(self._cgroup),
                    str(HERE / "machine.sh"),
                    sys.executable,
                    sys.prefix,
                    str(REPOSITORY / "prefork"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        while time.monotonic() < deadline and self._unshare.poll() is None:
            found = children.read_text().split()
            if found:
                self._pid1 = int(found[0])
                state = self.run("systemctl", "is-system-running", check=False)
                if state.stdout.strip() == "running":
                    return
            time.sleep(0.02)
        raise RuntimeError(f"systemd did not come up:\n{self._console.read_text()}")

    def run(
        self, *argv: str, check: bool = True, timeout: float = 60, cwd: str = "/"
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside. Fails with its output when `check` finds it failed."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._pid1), *NAMESPACES, f"--wdns={cwd}", "--", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=ENVIRONMENT,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(argv)} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
                f"\n{self.journal()}"
            )
        return done

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        script = 'mkdir -p "${0%/*}"; printf %s "$1" >"$0"; chmod "$2" "$0"'
        self.run("bash", "-c", script, path, text, f"{mode:o}")

    def install(self, *units: Path) -> None:
        """Copy unit files to where an administrator would, and tell systemd."""
        for unit in units:
            self.write(f"/etc/systemd/system/{unit.name}", unit.read_text())
        self.run("systemctl", "daemon-reload")

    def systemctl(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", *argv, check=check)

    def show(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", "-p", name, unit).stdout.strip()

    def wait_until(self, unit: str, name: str, value: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while (found := self.show(unit, name)) != value:
            if time.monotonic() > deadline:
                raise AssertionError(f"{unit}: {name}={found}, not {value}\n{self.journal()}")
            time.sleep(0.05)

    def journal(self, *argv: str) -> str:
        """What was logged, one message a line."""
        self.run("journalctl", "--sync", check=False)
        return self.run("journalctl", "-o", "cat", "--no-pager", *argv, check=False).stdout

    def down(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("systemctl", "stop", "*.service", "*.socket", check=False, timeout=30)
        assert self._unshare is not None
        with contextlib.suppress(ProcessLookupError):
            if self._pid1:
                os.kill(self._pid1, signal.SIGKILL)  # and the kernel ends its whole namespace
            else:
                self._unshare.kill()
        self._unshare.wait(10)
        deadline = time.monotonic() + 10
        while True:
            try:
                for folder, _, _ in os.walk(self._cgroup, topdown=False):
                    os.rmdir(folder)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return


def privileged() -> bool:
    """Whether this process may make namespaces and mounts: CAP_SYS_ADMIN is in effect."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    return False


def missing(programs: Sequence[str] = ("unshare", "nsenter", "systemctl", "journalctl")) -> str:
    """What a machine lacks for these tests, in words; empty when nothing."""
    for program in programs:
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not os.access("/lib/systemd/systemd", os.X_OK):
        return "the systemd package is not installed"
    if cgroup2() is None:
        return "no cgroup2 is mounted"
    return ""


def cgroup2() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if not sys.platform.startswith("linux") or not privileged():
        pytest.skip("a systemd of our own needs CAP_SYS_ADMIN (root, outside of most containers)")
    lack = missing()
    if lack and os.environ.get("CI") != "true":
        pytest.skip(lack)
    assert not lack, lack
    group = cgroup2()
    assert group is not None
    made = Machine(group / f"prefork-test-{os.getpid()}", tmp_path / "console")
    try:
        made.up()
        yield made
    finally:
        made.down()
