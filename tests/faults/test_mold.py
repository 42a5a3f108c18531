"""Workers that a mold forks: what changes under load, and who is killed in the middle of it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.faults.conftest import Faulty, OpenLoop

LONG = pytest.param(30, marks=[pytest.mark.stress, pytest.mark.timeout(900)])

# At the end of the application: hooks of os.register_at_fork that dawdle on demand.
DAWDLE = """

def wait(place):
    if os.path.exists("dawdle-" + place):
        time.sleep(1.5)

for place in ("before", "after_in_parent", "after_in_child"):
    os.register_at_fork(**{place: lambda place=place: wait(place)})
"""
places = pytest.mark.parametrize("place", ["before", "after_in_parent", "after_in_child"])


def titled(server: "Server", word: str) -> list[int]:
    """The master's children that call themselves so, and do not leave."""
    found = []
    for pid in server.pids():
        try:
            title = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if word in title and "draining" not in title:
            found.append(pid)
    return found


def mold(server: "Server") -> int:
    server.wait_for(lambda: titled(server, "mold"))
    return titled(server, "mold")[0]


def wait_for_workers(server: "Server", number: int) -> None:
    server.wait_for(lambda: len(titled(server, "worker")) == number, timeout=60)


@pytest.mark.parametrize("number", [3, LONG])
def test_reloads(
    faulty: "Faulty",
    open_loop: "type[OpenLoop]",
    new_version: "Callable[[Server], str]",
    number: int,
) -> None:
    server = faulty(workers=2, preload=True)
    with open_loop(server) as client:
        for _ in range(number):
            version = new_version(server)
            since = len(server.log)
            server.send(signal.SIGHUP)
            server.wait_for("reconfigured: generation", since=since, timeout=60)
        client.wait_more(50)
    client.assert_none_failed()
    assert client.result["versions"][version] > 0


def test_an_upgrade_and_a_stop(faulty: "Faulty", open_loop: "type[OpenLoop]") -> None:
    server = faulty(workers=2, preload=True)
    with open_loop(server) as client:
        old = server.pid
        server.send(signal.SIGUSR2)
        server.wait_for(r"the new master \d+ is ready", timeout=60)
        server.pid = server.written_pid
        server.send(signal.SIGQUIT, old)
        server.wait_for(f" {old}#0: exit", timeout=60)
        client.wait_more(50)
    client.assert_none_failed()
    wait_for_workers(server, 2)


@pytest.mark.parametrize("number", [1, LONG])
def test_the_mold_is_killed(faulty: "Faulty", open_loop: "type[OpenLoop]", number: int) -> None:
    """No worker notices, and whoever dies later comes back all the same."""
    server = faulty(workers=2, preload=True)
    server.expect("mold|exited on signal 9")
    with open_loop(server) as client:
        for _ in range(number):
            server.wait_for(lambda: len(server.pids()) == 3, timeout=60)  # with the mold
            before = titled(server, "worker")
            os.kill(mold(server), signal.SIGKILL)
            client.wait_more(30)
            assert titled(server, "worker") == before
            server.send(signal.SIGTTIN)
            wait_for_workers(server, 3)
            server.send(signal.SIGTTOU)
            wait_for_workers(server, 2)
            since = len(server.log)
            server.send(signal.SIGHUP)
            server.wait_for("reconfigured: generation", since=since, timeout=60)
    client.assert_none_failed()


@places
def test_the_mold_is_killed_in_the_middle_of_a_fork(
    faulty: "Faulty", open_loop: "type[OpenLoop]", place: str
) -> None:
    server = faulty(start=False, workers=2, preload=True)
    server.write_app((server.directory / "application.py").read_text() + DAWDLE)
    server.start()
    server.expect("mold|exited on signal 9")
    before = titled(server, "worker")
    with open_loop(server) as client:
        (server.directory / f"dawdle-{place}").touch()
        server.send(signal.SIGTTIN)
        time.sleep(0.5)
        os.kill(mold(server), signal.SIGKILL)
        (server.directory / f"dawdle-{place}").unlink()
        wait_for_workers(server, 3)
        client.wait_more(30)
        assert set(before) < set(titled(server, "worker"))
    client.assert_none_failed()


@places
def test_the_master_is_killed_in_the_middle_of_a_mold_s_fork(faulty: "Faulty", place: str) -> None:
    """Nobody is left: the fixture looks."""
    server = faulty(start=False, workers=2, preload=True)
    server.write_app((server.directory / "application.py").read_text() + DAWDLE)
    server.start()
    (server.directory / f"dawdle-{place}").touch()
    server.send(signal.SIGTTIN)
    time.sleep(0.5)
    server.send(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    server.exit_code = -signal.SIGKILL
    server.pid_path.unlink()
