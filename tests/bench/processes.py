"""Start a server, wait for its first answer, look at what it uses, end it. Linux only.

Everything here goes by process id, and everything is bounded in time.
"""

import contextlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HELLO = b"Hello, world!\n"
BOOT_SECONDS = 20.0
STOP_SECONDS = 5.0
TICK = 1.0 / os.sysconf("SC_CLK_TCK")


class ServeError(Exception):
    """A server did not start, did not answer or answered something else."""


@dataclass(frozen=True)
class Running:
    name: str
    pid: int
    port: int
    room: Path  # a temporary directory: configuration, logs
    first_answer: float  # seconds from exec

    def tree(self) -> list[int]:
        """The process and all it has forked, parents first."""
        children: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    stat = Path(f"/proc/{entry}/stat").read_text()
                    parent = int(stat.rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry))
        found = [self.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def workers(self) -> list[int]:
        return self.tree()[1:]

    def cpu(self) -> float:
        """Seconds of CPU, user and system, that the whole tree has used."""
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total * TICK

    def memory(self, pid: int) -> dict[str, int]:
        """Bytes: `rss`, `pss`, and `private` (pages that no other process maps)."""
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        kib = {
            line.split(":")[0]: int(line.split()[1])
            for line in text.splitlines()[1:]
            if ":" in line
        }
        return {
            "rss": kib["Rss"] * 1024,
            "pss": kib["Pss"] * 1024,
            "private": (kib["Private_Clean"] + kib["Private_Dirty"]) * 1024,
        }


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def allow_many_files() -> None:
    """As many descriptors as the hard limit lets us have; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def ask(port: int, path: str = "/", timeout: float = 5.0) -> tuple[int, str, bytes]:
    """Status, Content-Type and body of one GET. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read()
    finally:
        connection.close()


@contextlib.contextmanager
def run(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    room: Path,
    core: int | None,
    env: Mapping[str, str],
    cwd: Path,
    stop: int = signal.SIGTERM,
) -> Iterator[Running]:
    """The server, from its first right answer until the block ends."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    log = room / "output"
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=pin,
            start_new_session=True,
        )
    running = Running(name, process.pid, port, room, 0.0)
    try:
        answered = _first_answer(name, process, port, log, started)
        yield Running(name, process.pid, port, room, answered - started)
    finally:
        _end(process, running, stop)


@contextlib.contextmanager
def temporary_room() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prefork-bench-") as path:
        os.chmod(path, 0o755)  # nginx's worker is another user
        yield Path(path)


def _first_answer(
    name: str, process: "subprocess.Popen[bytes]", port: int, log: Path, started: float
) -> float:
    while True:
        try:
            status, kind, body = ask(port)
            now = time.monotonic()
            break
        except (OSError, http.client.HTTPException) as problem:
            if process.poll() is not None or time.monotonic() - started > BOOT_SECONDS:
                said = log.read_text(errors="replace").split("\n")
                last = next((line.strip() for line in reversed(said) if line.strip()), "")
                why = f"exit code {process.returncode}" if process.returncode else repr(problem)
                raise ServeError(f"{name} does not serve: {why}: {last[:200]}") from None
            time.sleep(0.001)
    if status != 200 or body != HELLO or not kind.startswith("text/plain"):
        raise ServeError(f"{name} answers {status} {kind} {body[:80]!r}")
    return now


def _end(process: "subprocess.Popen[bytes]", running: Running, stop: int) -> None:
    family = running.tree() if process.poll() is None else []
    if process.poll() is None:
        process.send_signal(stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    for pid in family:  # who did not go by himself
        with contextlib.suppress(OSError):
            # A pid that was given away since is not in the session we made.
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
    process.wait()
