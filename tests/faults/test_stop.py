"""A stop at full load: every connection that stood before the signal gets its answer."""

import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.faults.conftest import Faulty, OpenLoop

# The handlers that block keep the accept queue full: half of what the workers can do, and more.
FULL = "get:6,block:5,post:2,half:1,upload:1,stream:2"
LONG = pytest.param(20, marks=[pytest.mark.stress, pytest.mark.timeout(900)])
once_and_often = pytest.mark.parametrize("number", [1, LONG])


def stop(server: "Server", client: "OpenLoop", word: signal.Signals) -> float:
    """When it was told; it has ended when this returns."""
    told = time.monotonic()
    server.send(word)
    assert server.wait(60) == 0, client.account()
    return told


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def assert_all_were_answered(client: "OpenLoop", told: float) -> None:
    for failure in client.failures:
        # Later ones may be refused.
        made = failure["connected"] and failure["connected"] < told
        assert not made, f"told at {told}: {failure}\n{client.account()}"


@once_and_often
@pytest.mark.parametrize("word", [signal.SIGTERM, signal.SIGQUIT])
def test_at_full_load(
    faulty: "Faulty", open_loop: "type[OpenLoop]", word: signal.Signals, number: int
) -> None:
    for _ in range(number):
        server = faulty(workers=2, on_term="graceful")
        with open_loop(server, rate=110, mix=FULL) as client:
            client.wait_more(60)
            told = stop(server, client, word)
        assert_all_were_answered(client, told)
        server.close()


@once_and_often
def test_a_lame_duck(faulty: "Faulty", open_loop: "type[OpenLoop]", number: int) -> None:
    """For drain_delay it serves whoever comes."""
    for _ in range(number):
        server = faulty(workers=2, drain_delay="1s")
        with open_loop(server, rate=110, mix=FULL) as client:
            client.wait_more(60)
            told = stop(server, client, signal.SIGQUIT)
        assert_all_were_answered(client, told + 0.8)
        early = [one for one in client.failures if one["due"] < told + 0.8]
        assert not early, client.account()
        server.close()


@once_and_often
def test_two_listeners(faulty: "Faulty", open_loop: "type[OpenLoop]", number: int) -> None:
    for _ in range(number):
        server = faulty(start=False)
        unix = server.directory / "app.sock"
        server.write_config(workers=2, listen=[f"127.0.0.1:{server.port}", f"unix:{unix}"])
        server.start()
        targets = f"127.0.0.1:{server.port}", f"unix:{unix}"
        with open_loop(server, *targets, rate=110, mix=FULL) as client:
            client.wait_more(60)
            told = stop(server, client, signal.SIGQUIT)
        assert_all_were_answered(client, told)
        server.close()


@once_and_often
def test_while_much_else_is_under_way(
    faulty: "Faulty", open_loop: "type[OpenLoop]", number: int
) -> None:
    """Two generations, a worker that leaves, one that boots: the last of them drains the queue."""
    dice = random.Random()
    for _ in range(number):
        server = faulty(workers=2)
        with open_loop(server, rate=110, mix=FULL) as client:
            client.wait_more(60)
            for change in dice.choices((signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU), k=3):
                server.send(change)
                time.sleep(dice.random() * 0.2)
            told = stop(server, client, signal.SIGQUIT)
        assert_all_were_answered(client, told)
        server.close()


@once_and_often
def test_the_old_master_leaves_the_queue_to_the_new_one(
    faulty: "Faulty", open_loop: "type[OpenLoop]", number: int
) -> None:
    server = faulty(workers=2)
    with open_loop(server, rate=110, mix=FULL) as client:
        client.wait_more(30)
        for _ in range(number):
            since, old = len(server.log), server.pid
            server.send(signal.SIGUSR2)
            server.wait_for(r"the new master \d+ is ready", since=since, timeout=60)
            server.pid = server.written_pid
            server.send(signal.SIGQUIT, old)
            server.wait_for(lambda old=old: gone(old), timeout=60)
        client.wait_more(50)
    client.assert_none_failed()
