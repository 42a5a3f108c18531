"""The totals over the deaths of workers and masters: they never fall, and they add up."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from prefork.errors import OperatorError
from prefork.scoreboard import Scoreboard, Totals
from tests.process.test_upgrade import gone, upgrade, workers

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server

THREADS = 4  # of the load client: so many requests run at most at any time


def read(server: "Server") -> Totals | None:
    """The totals of the master in the pid file; None while that changes hands."""
    try:
        board = Scoreboard.attach_pid(server.written_pid)
    except OperatorError:
        return None
    with contextlib.closing(board):
        return board.totals()


def totals(server: "Server") -> Totals:
    now = read(server)
    assert now is not None
    return now


class Sampler:
    """Looks all the time, and notes what fell."""

    def __init__(self, server: "Server") -> None:
        self.samples = 0
        self.falls: list[str] = []
        self._server = server
        self._last = [0] * len(totals(server).flat())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.is_set():
            now = read(self._server)
            if now is not None:
                self.samples += 1
                self.falls += [
                    f"counter {n}: {a} -> {b}"
                    for n, (a, b) in enumerate(zip(self._last, now.flat(), strict=True))
                    if b < a
                ]
                self._last = now.flat()
            time.sleep(0.003)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def sampled(server: "Server") -> Iterator[Sampler]:
    sampler = Sampler(server)
    sampler._thread.start()
    try:
        yield sampler
    finally:
        sampler.stop()
    assert sampler.falls == []
    assert sampler.samples > 10


def settled(server: "Server", requests: int) -> None:
    """Wait for the total: the last turn of a loop is counted when it ends, and exactly."""
    server.wait_for(lambda: (read(server) or totals(server)).requests >= requests)
    assert totals(server).requests == requests


def test_exact_over_reloads_and_scaling(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=2)
    with sampled(server), load(server, threads=THREADS) as client:
        for command in (["reload"], ["scale", "3"], ["reload"], ["scale", "1"]):
            assert server.cli(*command).returncode == 0
            client.wait_more(20)
    assert not client.failures
    settled(server, len(client.answers))
    now = totals(server)
    assert now.responses == (0, len(client.answers), 0, 0, 0)
    assert sum(now.latencies) == len(client.answers)
    assert now.bytes_sent > 100 * len(client.answers)


@pytest.mark.parametrize(
    ("settings", "until"),
    [
        ({"recycle": {"max_requests": 50, "min_lifetime": 0}}, r"is replaced: \d+ requests"),
        ({"preload": True, "refork_after": [60]}, "all workers come from mold"),
    ],
    ids=["recycled", "reforked"],
)
def test_exact_over_replacements(
    daemon: "Daemons", load: "type[Load]", settings: dict[str, Any], until: str
) -> None:
    """A worker that becomes a mold leaves its counters behind, and writes no more of them."""
    server = daemon(workers=2, **settings)
    with sampled(server), load(server, threads=THREADS) as client:
        server.wait_for(until)
        client.wait_more(100)
    assert not client.failures
    settled(server, len(client.answers))
    assert totals(server).responses == (0, len(client.answers), 0, 0, 0)


def test_workers_that_are_killed(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=3)
    server.expect("exited on signal 9")
    chance = random.Random()
    kills = 0
    with sampled(server), load(server, threads=THREADS) as client:
        until = time.monotonic() + 4.0
        while time.monotonic() < until and kills < 12:
            victims = server.pids()
            if len(victims) > 1:
                server.send(signal.SIGKILL, chance.choice(victims))
                kills += 1
            client.failures.clear()
            client.wait_more(chance.randrange(30))
    answered, counted = len(client.answers), totals(server).requests
    assert kills > 2
    assert abs(answered - counted) <= kills * THREADS


def test_an_upgrade_to_the_end(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=2)
    old = server.pid
    with sampled(server), load(server, threads=THREADS) as client:
        since = totals(server).requests
        assert since > 0
        new = upgrade(server)
        assert totals(server).requests >= since
        client.wait_more(40)
        server.send(signal.SIGWINCH, old)
        server.wait_for(lambda: not workers(server, old))
        client.wait_more(20)
        server.send(signal.SIGQUIT, old)
        assert server.wait() == 0
        client.wait_more(20)
        server.pid = new
        board = Scoreboard.attach_pid(new)
        server.wait_for(lambda: board.header.predecessor == 0)  # folded in, for good
        board.close()
        client.wait_more(20)
    assert not client.failures
    settled(server, len(client.answers))
    server.send(signal.SIGQUIT)
    server.wait_for(lambda: gone(new))


def test_an_upgrade_taken_back(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=2)
    old = server.pid
    with sampled(server), load(server, threads=THREADS) as client:
        for _ in range(2):
            new = upgrade(server)
            server.send(signal.SIGWINCH, old)
            server.wait_for(lambda: not workers(server, old))
            client.wait_more(40)
            server.send(signal.SIGHUP, old)
            server.wait_for(lambda: len(workers(server, old)) == 2)
            server.send(signal.SIGQUIT, new)
            server.wait_for(lambda pid=new: gone(pid))
            server.wait_for(lambda: server.written_pid == old)
            client.wait_more(20)
    assert not client.failures
    settled(server, len(client.answers))


def test_the_new_master_is_killed(daemon: "Daemons", load: "type[Load]") -> None:
    """Its workers finish what they serve; that counts for the old master, too."""
    server = daemon(workers=2)
    server.expect("exited on signal 9")
    old = server.pid
    with sampled(server), load(server, threads=THREADS) as client:
        new = upgrade(server)
        client.wait_more(40)
        orphans = workers(server, new)
        server.send(signal.SIGKILL, new)
        server.wait_for(lambda: server.written_pid == old)
        server.wait_for(lambda: all(gone(pid) for pid in orphans))
        client.wait_more(20)
    assert not client.failures
    settled(server, len(client.answers))


def test_the_old_master_is_killed(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=2, timeouts={"graceful": 5})
    server.exit_code = -signal.SIGKILL
    server.expect("the master process is gone")
    old = server.pid
    with sampled(server), load(server, threads=THREADS) as client:
        new = upgrade(server)
        client.wait_more(40)
        orphans = workers(server, old)
        os.kill(old, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        server.pid = new
        server.wait_for(lambda: all(gone(pid) for pid in orphans))
        board = Scoreboard.attach_pid(new)
        server.wait_for(lambda: board.header.predecessor == 0)
        board.close()
        client.wait_more(20)
    assert not client.failures
    settled(server, len(client.answers))
    server.pid_path.with_name("prefork.pid.oldbin").unlink()  # as after any kill -9
    server.send(signal.SIGQUIT)
    server.wait_for(lambda: gone(new))
