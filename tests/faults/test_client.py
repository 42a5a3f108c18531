"""The client sees every fault: a counter that misses some would prove nothing."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CLIENT = Path(__file__).resolve().parent / "client.py"
RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER on, for no time: close() sends RST

Behave = Callable[[socket.socket, int], bool]  # false: this connection is over


@contextlib.contextmanager
def misbehaving(behave: Behave) -> Iterator[str]:
    """A server that gives every request's X-Id to `behave`; its address."""

    def serve(sock: socket.socket) -> None:
        data = b""
        with sock, contextlib.suppress(OSError):
            while True:
                while b"\r\n\r\n" not in data:
                    more = sock.recv(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                found = re.search(rb"X-Id: (\d+)", head)
                if found is None or not behave(sock, int(found[1])):
                    return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=500) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def count(target: str, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(CLIENT), "--mix", "get:1", *options, target],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ok(number: int, *, close: bool = False) -> bytes:
    body = b"1 v1 %d\n" % number
    end = b"Connection: close\r\n" if close else b""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), end, body)


def test_each_fault_is_counted_as_what_it_is() -> None:
    def behave(sock: socket.socket, number: int) -> bool:
        match number % 8:
            case 0:
                sock.sendall(ok(number))
            case 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case 2:
                pass
            case 3:
                sock.sendall(ok(number)[:-3])
            case 4:
                sock.sendall(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
            case 5:
                sock.sendall(ok(number + 1))
            case 6:
                sock.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
            case 7:
                time.sleep(3)
        return False

    with misbehaving(behave) as target:
        found = count(target, "--rate", "80", "--seconds", "1", "--fresh", "1", "--timeout", "1.5")
    each = found["requests"] // 8
    expected = ("ok", "reset_early", "closed_early", "cut", "error", "wrong", "status", "timeout")
    assert set(found["fresh"]) == set(expected), found
    assert all(each <= number <= each + 1 for number in found["fresh"].values()), found
    assert found["failed"] == found["requests"] - found["fresh"]["ok"] == len(found["failures"])


def test_a_kept_connection_that_is_closed_under_a_request() -> None:
    served: dict[socket.socket, int] = {}

    def behave(sock: socket.socket, number: int) -> bool:
        served[sock] = served.get(sock, 0) + 1
        if served[sock] == 3:
            return False
        sock.sendall(ok(number))
        return True

    with misbehaving(behave) as target:
        found = count(target, "--rate", "60", "--seconds", "1", "--fresh", "0", "--keep", "2")
    assert found["kept"]["reused_closed"] > 10, found
    assert set(found["kept"]) == {"ok", "reused_closed"}, found


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        target = f"127.0.0.1:{gone.getsockname()[1]}"
    found = count(target, "--rate", "20", "--seconds", "0.5", "--fresh", "1")
    assert set(found["fresh"]) == {"refused"}
    assert found["failed"] == found["requests"] > 5


def test_a_stall_is_felt_by_all_who_were_due_meanwhile() -> None:
    """A client that waits for its answers would have measured one slow request."""
    stall = threading.Lock()
    begun: list[float] = []

    def behave(sock: socket.socket, number: int) -> bool:
        with stall:
            if number == 20:
                begun.append(time.monotonic())
                time.sleep(1.0)
        sock.sendall(ok(number, close=True))
        return False

    with misbehaving(behave) as target:
        found = count(target, "--rate", "50", "--seconds", "2.5", "--fresh", "1")
    assert found["failed"] == 0, found
    assert found["latency"]["fresh"]["max"] > 0.9
    # 50 were due in that second; the tenth of the slowest had not yet a tenth of it behind it.
    assert len(found["worst"]) == 10
    assert found["worst"][-1]["seconds"] > 0.6, found["worst"]
    assert found["latency"]["fresh"]["p50"] < 0.6
