"""Everything changes under load, and nobody notices: reloads, upgrades, scaling, all at once."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.faults.conftest import Faulty, OpenLoop


def short_and_long(few: int, many: int) -> pytest.MarkDecorator:
    """`few` in the suite, `many` in the stress form."""
    long = pytest.param(many, marks=[pytest.mark.stress, pytest.mark.timeout(900)])
    return pytest.mark.parametrize("number", [few, long])


def reload(server: "Server") -> None:
    since = len(server.log)
    server.send(signal.SIGHUP)
    server.wait_for("reconfigured: generation", since=since, timeout=60)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def workers(server: "Server", master: int) -> list[int]:
    """The workers of a master, without those that leave."""
    found = []
    for pid in server.pids(master):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "worker" in title and "draining" not in title:
            found.append(pid)
    return found


def wait_for_workers(server: "Server", number: int) -> None:
    """Wait until so many serve; others may still leave."""
    server.wait_for(lambda: len(workers(server, server.pid)) == number, timeout=60)


def exec_anew(server: "Server") -> int:
    """USR2; the old master's pid when the new one is ready. `server.pid` is the new one's."""
    old, since = server.pid, len(server.log)
    server.send(signal.SIGUSR2)
    server.wait_for(r"the new master \d+ is ready", since=since, timeout=60)
    server.pid = server.written_pid
    assert server.pid != old
    return old


@short_and_long(5, 100)
def test_reloads(
    faulty: "Faulty",
    open_loop: "type[OpenLoop]",
    new_version: "Callable[[Server], str]",
    number: int,
) -> None:
    server = faulty(workers=2)
    with open_loop(server) as client:
        for _ in range(number):
            version = new_version(server)
            reload(server)
        client.wait_more(50)
    client.assert_none_failed()
    assert client.result["versions"][version] > 0
    assert f"generation {number} -> {number + 1}" in server.log


@short_and_long(3, 20)
def test_binary_upgrades(
    faulty: "Faulty",
    open_loop: "type[OpenLoop]",
    new_version: "Callable[[Server], str]",
    number: int,
) -> None:
    server = faulty(workers=2)
    with open_loop(server) as client:
        for turn in range(number):
            version = new_version(server)
            old = exec_anew(server)
            if turn % 2:  # with the half-way house, and without
                server.send(signal.SIGWINCH, old)
                server.wait_for(lambda old=old: not workers(server, old), timeout=60)
            server.send(signal.SIGQUIT, old)
            server.wait_for(lambda old=old: gone(old), timeout=60)
        client.wait_more(50)
    client.assert_none_failed()
    assert client.result["versions"][version] > 0


@short_and_long(6, 20)
def test_scale_steps(faulty: "Faulty", open_loop: "type[OpenLoop]", number: int) -> None:
    server = faulty(workers=2)
    dice = random.Random(7)
    target = 2
    with open_loop(server) as client:
        for _ in range(number):
            step = 1 if target < 2 or (target < 5 and dice.random() < 0.5) else -1
            server.send(signal.SIGTTIN if step > 0 else signal.SIGTTOU)
            server.wait_for(f"workers: {target} -> {target + step}", timeout=60)
            target += step
            wait_for_workers(server, target)
        client.wait_more(50)
    client.assert_none_failed()


def test_two_listeners_and_old_fashioned_clients(
    faulty: "Faulty", open_loop: "type[OpenLoop]"
) -> None:
    server = faulty(start=False)
    unix = server.directory / "app.sock"
    server.write_config(workers=2, listen=[f"127.0.0.1:{server.port}", f"unix:{unix}"])
    server.start()
    targets = f"127.0.0.1:{server.port}", f"unix:{unix}"
    with open_loop(server, *targets, mix="get:3,old:3,half:3,pipe:2,upload:1,stream:2") as client:
        reload(server)
        old = exec_anew(server)
        server.send(signal.SIGQUIT, old)
        server.wait_for(lambda: gone(old), timeout=60)
        reload(server)
        client.wait_more(50)
    client.assert_none_failed()


@short_and_long(2, 15)
def test_a_storm_of_reloads(faulty: "Faulty", open_loop: "type[OpenLoop]", number: int) -> None:
    """HUP every 50 ms, for `number` seconds."""
    server = faulty(workers=2)
    end = time.monotonic() + number
    with open_loop(server) as client:
        while time.monotonic() < end:
            server.send(signal.SIGHUP)
            time.sleep(0.05)
        client.wait_more(50)
        wait_for_workers(server, 2)
    client.assert_none_failed()
    assert "reload failed" not in server.log


@short_and_long(1, 15)
@pytest.mark.parametrize("preload", [False, True])
def test_everything_at_once(
    faulty: "Faulty", open_loop: "type[OpenLoop]", preload: bool, number: int
) -> None:
    """Reloads, scaling and recycling for `number` seconds, and an upgrade into the midst of it."""
    recycle = {"max_requests": 50, "min_lifetime": "0s"}
    server = faulty(workers=2, preload=preload, recycle=recycle)
    dice = random.Random(3)
    calm = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1)
    server.expect("changing binary signal is ignored")
    with open_loop(server) as client:
        for _ in range(1 if number == 1 else 3):
            end = time.monotonic() + number
            while time.monotonic() < end:
                server.send(dice.choice(calm))
                time.sleep(dice.random() * 0.15)
            server.send(signal.SIGHUP)
            old = exec_anew(server)  # while that reload is under way
            server.send(signal.SIGHUP)
            server.send(signal.SIGQUIT, old)
            server.wait_for(lambda old=old: gone(old), timeout=60)
        client.wait_more(50)
    client.assert_none_failed()
    assert os.path.exists(server.pid_path)


@short_and_long(3, 20)
def test_a_request_on_its_way_when_the_worker_leaves(
    faulty: "Faulty", open_loop: "type[OpenLoop]", number: int
) -> None:
    """Kept connections idle about as long as a drain leaves them: some requests meet its end."""
    server = faulty(workers=2, timeouts={"keep_alive_min": "200ms"})
    # 30 connections, a request each every 150 ms or so.
    options = {"keep": 30, "fresh": 0.05, "mix": "get:8,post:2", "idle": 60}
    with open_loop(server, rate=200, **options) as client:
        for _ in range(number):
            before = server.pids()
            reload(server)
            server.wait_for(lambda before=before: not set(before) & set(server.pids()), timeout=60)
        client.wait_more(50)
    # What meets a close on its way is lost to HTTP/1.1 itself, but only when the connection had
    # been idle for long enough; and the server has looked once more before, so it is rare.
    for failure in client.failures:
        assert failure["outcome"] == "reused_closed", client.account()
        assert failure["idle"] > 0.15, client.account()
    assert len(client.failures) <= number // 4 + 1, client.account()
