"""What the service manager is told, and in what order, over a socket we hold ourselves."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemons


class Manager:
    """A NOTIFY_SOCKET and what came over it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(path)
        self._sock.setblocking(False)

    def read(self) -> list[dict[str, str]]:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, 4096, 4)
            except BlockingIOError:
                return self.messages
            for fd in fds:
                os.close(fd)  # a barrier: closing it says that all before it was read
            pairs = (line.partition("=")[::2] for line in data.decode().splitlines())
            self.messages.append(dict(pairs))

    def wait_for(self, key: str, value: str | None = None, since: int = 0) -> int:
        """The index of the first message from `since` on that has `key` (with `value`)."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for index, message in enumerate(self.read()):
                if index >= since and key in message and value in (None, message[key]):
                    return index
            time.sleep(0.01)
        raise AssertionError(f"{key}={value} did not come: {self.messages}")

    def count(self, key: str) -> int:
        return sum(key in message for message in self.read())

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="prefork-notify-") as directory:
        one = Manager(str(Path(directory) / "notify"))
        yield one
        one.close()


def test_ready_only_when_the_workers_are(daemon: "Daemons", manager: Manager) -> None:
    server = daemon(start=False, workers=2)
    source = (server.directory / "application.py").read_text()
    server.write_app(f"import time\ntime.sleep(1)\n{source}")
    server.start(ready=False, environ={"NOTIFY_SOCKET": manager.path})
    server.wait_for("start worker 2")
    time.sleep(0.3)
    assert manager.count("READY") == 0
    assert manager.count("EXTEND_TIMEOUT_USEC") == 1
    ready = manager.wait_for("READY", "1")
    assert "ready on" in server.log
    assert manager.messages[ready]["STATUS"] == "2 workers, generation 1"
    assert server.get("/env/NOTIFY_SOCKET").text == ""
    server.stop()
    stopping = manager.wait_for("STOPPING", "1")
    assert manager.count("READY") == 1
    assert all("READY" not in message for message in manager.messages[stopping:])
    assert manager.wait_for("EXTEND_TIMEOUT_USEC", since=stopping) > ready


def test_a_reload_says_reloading_then_ready_even_when_it_fails(
    daemon: "Daemons", manager: Manager
) -> None:
    server = daemon(environ={"NOTIFY_SOCKET": manager.path})
    first = manager.wait_for("READY")
    server.send(signal.SIGHUP)
    reloading = manager.wait_for("RELOADING", "1", since=first)
    stamp = int(manager.messages[reloading]["MONOTONIC_USEC"])
    assert abs(stamp - time.monotonic_ns() // 1000) < 20_000_000
    again = manager.wait_for("READY", since=reloading)
    assert manager.messages[again]["STATUS"].startswith("1 worker, generation 2; reloaded 20")
    steps = [message.get("STATUS", "") for message in manager.messages[reloading:again]]
    assert any(step.startswith("reloading: canary") for step in steps)
    server.config_path.write_text("workers: [")
    server.expect("reload failed")
    server.send(signal.SIGHUP)
    reloading = manager.wait_for("RELOADING", "1", since=again)
    again = manager.wait_for("READY", since=reloading)
    status = manager.messages[again]["STATUS"]
    assert status.startswith("1 worker, generation 2; 20")
    assert ": reload failed, generation 2 serves on: conf.yaml" in status
    assert "reload failed" in server.log


def test_the_watchdog_is_petted_only_when_asked(daemon: "Daemons", manager: Manager) -> None:
    server = daemon(environ={"NOTIFY_SOCKET": manager.path})
    manager.wait_for("READY")
    time.sleep(0.5)
    assert manager.count("WATCHDOG") == 0
    server.stop()
    manager.messages.clear()
    daemon(environ={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"})
    manager.wait_for("READY")
    before = manager.count("WATCHDOG")
    time.sleep(1.0)
    assert 3 <= manager.count("WATCHDOG") - before <= 6


def test_the_watchdog_bites_when_nobody_serves(daemon: "Daemons", manager: Manager) -> None:
    """A master that lives, and not one worker: not petted after a boot's time, and again later."""
    server = daemon(
        environ={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"},
        workers=2,
        timeouts={"boot": 1.5},
    )
    manager.wait_for("WATCHDOG")
    good = (server.directory / "application.py").read_text()
    server.write_app("raise RuntimeError('out of coffee')\n")
    server.expect("failed to start|exited on signal 9|no worker has been ready for 1.5 s")
    killed = server.pids()
    os.kill(killed[0], signal.SIGKILL)
    server.wait_for(r"worker 1 comes back in [12]\.\d s")
    assert "no worker has been ready" not in server.log  # one is, all the time
    os.kill(killed[1], signal.SIGKILL)
    server.wait_for(rf"worker 2 {killed[1]} exited on signal 9")
    since = manager.count("WATCHDOG")
    server.wait_for("no worker has been ready for 1.5 s")
    before = manager.count("WATCHDOG")
    assert before > since  # an ordinary restart of all of them has its time
    time.sleep(1.0)
    assert manager.count("WATCHDOG") == before
    server.write_app(good)
    server.wait_for("a worker is ready: the watchdog is fed again")
    server.wait_for(lambda: manager.count("WATCHDOG") > before)
    assert server.stop() == 0


def test_drained_workers_are_not_missed(daemon: "Daemons", manager: Manager) -> None:
    server = daemon(
        environ={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"}, timeouts={"boot": 1}
    )
    manager.wait_for("READY")
    server.send(signal.SIGWINCH)
    server.wait_for(lambda: not server.pids())
    time.sleep(1.5)
    before = manager.count("WATCHDOG")
    server.wait_for(lambda: manager.count("WATCHDOG") > before + 1)
    assert "no worker has been ready" not in server.log


def test_an_upgrade_hands_the_main_pid_over_and_back(daemon: "Daemons", manager: Manager) -> None:
    server = daemon(environ={"NOTIFY_SOCKET": manager.path})
    old = server.pid
    ready = manager.wait_for("READY")
    server.send(signal.SIGUSR2)
    server.wait_for(r"the new master \d+ is ready")
    new = server.written_pid
    given = manager.wait_for("MAINPID", str(new), since=ready)
    # Undone: the new master gives the name back, and nobody says that the service stops.
    server.send(signal.SIGQUIT, new)
    server.wait_for(lambda: manager.wait_for("MAINPID", str(old), since=given))
    server.wait_for(lambda: server.written_pid == old)
    assert manager.count("STOPPING") == 0
    # Done: the old one leaves without a word about stopping.
    since = len(manager.read())
    offset = len(server.log)
    server.send(signal.SIGUSR2)
    server.wait_for(r"the new master \d+ is ready", since=offset)
    new = server.written_pid
    manager.wait_for("MAINPID", str(new), since=since)
    assert server.stop(signal.SIGQUIT) == 0
    server.pid = new
    assert manager.count("STOPPING") == 0
    server.send(signal.SIGQUIT)
    manager.wait_for("STOPPING")


def test_the_end_is_told_before_the_delay(daemon: "Daemons", manager: Manager) -> None:
    server = daemon(
        environ={"NOTIFY_SOCKET": manager.path}, drain_delay=60, timeouts={"graceful": 7}
    )
    server.send(signal.SIGQUIT)
    server.wait_for("accepting for another 60 s")
    stopping = manager.wait_for("STOPPING")
    extended = manager.wait_for("EXTEND_TIMEOUT_USEC", since=stopping)
    assert int(manager.messages[extended]["EXTEND_TIMEOUT_USEC"]) >= 67_000_000
    assert server.get().status == 200
    server.send(signal.SIGQUIT)
    assert server.wait() == 0
