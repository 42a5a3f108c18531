"""An upgrade that goes wrong, or is undone: two masters on the same sockets, and one too few."""

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.faults.conftest import Faulty, OpenLoop

LONG = pytest.param(15, marks=[pytest.mark.stress, pytest.mark.timeout(900)])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def exec_anew(server: "Server") -> int:
    """USR2; the new master's pid, when it is ready."""
    since = len(server.log)
    server.send(signal.SIGUSR2)
    server.wait_for(r"the new master \d+ is ready", since=since, timeout=60)
    return server.written_pid


def workers(server: "Server", master: int) -> int:
    found = 0
    for pid in server.pids(master):
        try:
            found += "worker" in Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            pass
    return found


@pytest.mark.parametrize("number", [1, LONG])
def test_undone(faulty: "Faulty", open_loop: "type[OpenLoop]", number: int) -> None:
    """The old one has sent its workers home, and calls new ones."""
    server = faulty(workers=2)
    with open_loop(server) as client:
        for _ in range(number):
            new = exec_anew(server)
            server.send(signal.SIGWINCH)
            server.wait_for(lambda: workers(server, server.pid) == 0, timeout=60)
            server.send(signal.SIGHUP)
            server.wait_for(lambda: workers(server, server.pid) == 2, timeout=60)
            server.send(signal.SIGQUIT, new)
            server.wait_for(lambda new=new: gone(new), timeout=60)
            server.wait_for(lambda: server.written_pid == server.pid, timeout=60)
        client.wait_more(50)
    client.assert_none_failed()


@pytest.mark.parametrize("number", [1, LONG])
@pytest.mark.parametrize("drained", [False, True])
def test_the_new_master_is_killed(
    faulty: "Faulty", open_loop: "type[OpenLoop]", drained: bool, number: int
) -> None:
    """Its workers finish what they have; the old master's go on, or begin again."""
    server = faulty(workers=2)
    server.expect("new binary process .* exited on signal 9")
    with open_loop(server) as client:
        for _ in range(number):
            new = exec_anew(server)
            if drained:
                server.send(signal.SIGWINCH)
                server.wait_for(lambda: workers(server, server.pid) == 0, timeout=60)
            os.kill(new, signal.SIGKILL)
            server.wait_for(lambda: server.written_pid == server.pid, timeout=60)
            server.wait_for(lambda: workers(server, server.pid) == 2, timeout=60)
        client.wait_more(50)
    client.assert_none_failed()


@pytest.mark.parametrize("number", [1, LONG])
def test_the_old_master_is_killed_at_any_moment(
    faulty: "Faulty", open_loop: "type[OpenLoop]", number: int
) -> None:
    """The new program starts, whatever becomes of the old one meanwhile."""
    dice = random.Random()
    for _ in range(number):
        server = faulty(workers=2)
        old, since = server.pid, len(server.log)
        with open_loop(server) as client:
            server.send(signal.SIGUSR2)
            server.wait_for(r"start new binary process \d+", since=since)
            new = re.findall(r"start new binary process (\d+)", server.log)[-1]
            time.sleep(dice.random() * 0.5)
            os.kill(old, signal.SIGKILL)
            assert server.wait() == -signal.SIGKILL
            server.exit_code = -signal.SIGKILL
            server.pid = int(new)
            server.wait_for(f" {new}#0: ready on ", since=since, timeout=60)
            client.wait_more(50)
        client.assert_none_failed()
        server.send(signal.SIGQUIT)
        server.wait_for(lambda server=server: gone(server.pid), timeout=60)
        server.pid_path.with_name("prefork.pid.oldbin").unlink()
        server.close()
