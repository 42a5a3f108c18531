"""sd_notify against a real datagram socket in the manager's place."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.unix.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "n") if request.param == "path" else f"@prefork-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        sock.settimeout(10)
        yield sock, name


def test_messages_and_their_fields(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready(status="2 workers\nWATCHDOG=trigger", mainpid=77)
    assert sock.recv(4096) == b"READY=1\nSTATUS=2 workers WATCHDOG=trigger\nMAINPID=77"
    notifier.stopping()
    assert sock.recv(4096) == b"STOPPING=1"
    notifier.status("générer")
    assert sock.recv(4096) == "STATUS=générer".encode()
    notifier.mainpid(12)
    assert sock.recv(4096) == b"MAINPID=12"
    notifier.watchdog()
    assert sock.recv(4096) == b"WATCHDOG=1"
    notifier.extend(5_000_000)
    assert sock.recv(4096) == b"EXTEND_TIMEOUT_USEC=5000000"
    notifier.close()
    notifier.ready()


def test_reloading_carries_the_monotonic_time_in_the_same_datagram(
    manager: tuple[socket.socket, str],
) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    first, second = sock.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    key, _, value = second.partition("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.close()


def test_without_a_manager_nothing_happens() -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}):
        notifier = Notifier(environ)
        assert not notifier.enabled
        assert notifier.watchdog_interval is None
        notifier.ready(status="x")
        notifier.reloading()
        assert not notifier.barrier(0.01)
        notifier.forget()


def test_a_manager_that_is_gone_or_does_not_read_stops_nothing(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    notifier.ready()
    assert not notifier.barrier(0.01)
    notifier.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "deaf"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "deaf")})
        for _ in range(2000):  # far beyond what its queue takes
            notifier.status("x" * 500)
        notifier.close()


def test_the_watchdog_is_fed_at_half_its_time_and_only_by_the_one_it_watches() -> None:
    base = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "3000000"}
    for pid, interval in (("", 1.5), (str(os.getpid()), 1.5), ("1", None)):
        notifier = Notifier({**base, "WATCHDOG_PID": pid})
        assert notifier.watchdog_interval == interval
        notifier.close()
    notifier = Notifier({**base, "WATCHDOG_USEC": "soon"})
    assert notifier.watchdog_interval is None
    notifier.close()


def test_the_variables_are_forgotten_but_can_be_handed_to_a_new_binary() -> None:
    environ = {
        "NOTIFY_SOCKET": "/nowhere",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/root",
    }
    notifier = Notifier(environ)
    notifier.forget()
    assert environ == {"HOME": "/root"}
    assert notifier.environment == {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "3000000"}
    notifier.close()


def test_the_barrier_waits_until_the_manager_has_read(run_python: Any) -> None:
    run_python(
        """
        import array, os, signal, socket
        from prefork.unix.notify import Notifier
        name = f"prefork-barrier-{os.getpid()}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind("\\0" + name)
        notifier = Notifier({"NOTIFY_SOCKET": "@" + name})
        assert not notifier.barrier(0.02), "nobody has read it yet"
        notifier.mainpid(5)
        pid = os.fork()
        if pid == 0:  # the manager: reads everything, then drops the descriptors
            signal.alarm(10)  # whatever does not come and whoever is gone: it does not stay
            notifier.close()
            seen = []
            while len(seen) < 3:
                data, ancillary, *_ = sock.recvmsg(4096, socket.CMSG_SPACE(4))
                seen.append(data)
                for _level, _kind, fds in ancillary:
                    os.close(array.array("i", fds)[0])
            os._exit(seen != [b"BARRIER=1", b"MAINPID=5", b"BARRIER=1"])
        sock.close()
        try:
            assert notifier.barrier(5)
            assert os.waitpid(pid, 0)[1] == 0
            pid = 0
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
        notifier.close()
        """
    )
