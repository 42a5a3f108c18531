"""kill -9 of whomever: what it costs, and what is left."""

import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.faults.conftest import Faulty, OpenLoop

SOON = 0.3  # seconds within which a client learns that its connection has ended


def long(number: int) -> Any:
    """For the stress form alone."""
    return pytest.param(number, marks=[pytest.mark.stress, pytest.mark.timeout(900)])


# Beside the server, where Python looks for it: hooks of os.register_at_fork that dawdle on demand.
DAWDLE = """
import os, time

def wait(place):
    if os.path.exists("dawdle-" + place):
        time.sleep(1.5)

for place in ("before", "after_in_parent", "after_in_child"):
    os.register_at_fork(**{place: lambda place=place: wait(place)})
"""


def journal(server: "Server") -> tuple[dict[int, int], set[int]]:
    """Who has begun each request, by its number; and which have ended."""
    begun: dict[int, int] = {}
    ended: set[int] = set()
    for line in (server.directory / "journal").read_text().splitlines():
        sign, number, pid = line.split()
        if sign == "+":
            begun[int(number)] = int(pid)
        else:
            ended.add(int(number))
    return begun, ended


def assert_only_theirs_failed(
    server: "Server", client: "OpenLoop", killed: dict[int, float]
) -> None:
    """Each failure is of a request that one of `killed` (pid: when) had, and those have failed."""
    begun, ended = journal(server)
    for failure in client.failures:
        had = begun.get(failure["id"], failure["pid"])  # or: on a connection that it had
        accepted = not had and any(abs(failure["at"] - when) < SOON for when in killed.values())
        assert had in killed or accepted, f"{failure}\n{client.account()}"
        assert failure["outcome"] in ("reset_early", "closed_early", "reused_closed", "cut"), (
            failure
        )
    unfinished = {number for number, pid in begun.items() if pid in killed and number not in ended}
    failed = {failure["id"] for failure in client.failures}
    assert unfinished <= failed, client.account()


@pytest.mark.parametrize("number", [4, long(50)])
def test_random_workers(faulty: "Faulty", open_loop: "type[OpenLoop]", number: int) -> None:
    server = faulty(workers=3, backoff={"first": "100ms", "longest": "200ms"})
    server.expect("exited on signal 9")
    dice = random.Random(5)
    killed: dict[int, float] = {}
    with open_loop(server, rate=150) as client:
        for _ in range(number):
            server.wait_for(lambda: len(server.pids()) == 3, timeout=90)
            victim = dice.choice(server.pids())
            os.kill(victim, signal.SIGKILL)
            killed[victim] = time.monotonic()
            time.sleep(dice.random() * 0.2)
        server.wait_for(lambda: len(server.pids()) == 3, timeout=90)
    assert_only_theirs_failed(server, client, killed)


def test_the_master(faulty: "Faulty", open_loop: "type[OpenLoop]") -> None:
    """The workers finish what they have, nobody stays, and the port is free."""
    server = faulty(workers=2)
    with open_loop(server) as client:
        server.send(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        server.exit_code = -signal.SIGKILL
        time.sleep(0.2)
    begun, _ = journal(server)
    lost = [failure for failure in client.failures if failure["id"] in begun]
    assert not lost, client.account()
    server.pid_path.unlink()


@pytest.mark.parametrize("place", ["before", "after_in_parent", "after_in_child"])
def test_the_master_in_the_middle_of_a_fork(faulty: "Faulty", place: str) -> None:
    server = faulty(start=False)
    (server.directory / "sitecustomize.py").write_text(DAWDLE)
    server.start(environ={"PYTHONPATH": str(server.directory)})
    (server.directory / f"dawdle-{place}").touch()
    old = server.pids()
    server.send(signal.SIGTTIN)
    if place == "before":
        time.sleep(0.3)
    else:
        server.wait_for(lambda: len(server.pids()) > len(old))
    server.send(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    server.exit_code = -signal.SIGKILL
    server.pid_path.unlink()


@pytest.mark.parametrize("number", [2, long(40)])
def test_the_master_at_any_moment_of_a_change(faulty: "Faulty", number: int) -> None:
    """Starting, reloading, scaling: whenever it is killed, nobody is left (the fixture looks)."""
    dice = random.Random()
    for _ in range(number):
        server = faulty(workers=3)
        for change in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTIN):
            server.send(change)
            time.sleep(dice.random() * 0.05)
        time.sleep(dice.random() * 0.2)
        server.send(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        server.exit_code = -signal.SIGKILL
        server.pid_path.unlink()
        server.close()


def test_the_master_while_its_workers_import(faulty: "Faulty") -> None:
    server = faulty()
    server.write_app("import time\ntime.sleep(1000)\n")
    server.send(signal.SIGHUP)
    server.wait_for(lambda: len(server.pids()) == 2)
    server.send(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    server.exit_code = -signal.SIGKILL
    server.pid_path.unlink()


def test_a_master_that_was_stopped_is_not_missed(
    faulty: "Faulty", open_loop: "type[OpenLoop]"
) -> None:
    server = faulty(workers=2)
    before = server.pids()
    with open_loop(server) as client:
        server.send(signal.SIGSTOP)
        client.wait_more(100)
        server.send(signal.SIGCONT)
        client.wait_more(20)
    client.assert_none_failed()
    assert server.pids() == before
