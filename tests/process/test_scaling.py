"""One worker more or fewer: the idle go first, a busy one is asked, nobody is killed."""

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server

BUSY = """
import asyncio, os, time
from prefork import Application

app = Application()

@app.use
async def serve(ctx, next):
    if ctx.path == "/wait":
        await asyncio.sleep(2)
    elif ctx.path == "/block":
        time.sleep(2)
    ctx.body = str(os.getpid())
"""


def get(server: "Server", path: str) -> bytes:
    with server.connect() as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    return answer


@pytest.mark.parametrize("path", ["/wait", "/block"])
def test_the_idle_goes_first(daemon: "Daemons", path: str) -> None:
    server = daemon(app=BUSY, workers=2)
    with server.connect() as client, contextlib.ExitStack() as stack:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(0.3)
        # Connections that only wait are no work, however many.
        for _ in range(4):
            stack.enter_context(server.connect())
        time.sleep(0.2)
        server.send(signal.SIGTTOU)
        server.wait_for("workers: 2 -> 1")
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 ")
    server.wait_for(lambda: len(server.pids()) == 1)
    busy = answer.rpartition(b"\r\n")[2].decode()
    assert server.pids() == [int(busy)]  # the one that was busy is the one that stayed


def test_a_busy_one_is_asked(daemon: "Daemons") -> None:
    """Both serve somebody: the one that has to go finishes first."""
    server = daemon(app=BUSY, workers=2)
    clients = [server.connect() for _ in range(4)]
    for client in clients:
        client.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(0.3)
    assert server.cli("scale", "-1").returncode == 0
    for client in clients:
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        client.close()
    server.wait_for(lambda: len(server.pids()) == 1)
    assert "exited with code 0" in server.log
    assert "exited on signal" not in server.log


def test_up_and_down_under_load(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(app=BUSY, workers=2)
    with load(server, threads=6) as client:
        for number in (4, 1, 3, 2):
            assert server.cli("scale", str(number)).returncode == 0
            client.wait_more(30)
    assert not client.failures, server.account()
    server.wait_for(lambda: len(server.pids()) == 2)


def test_one_fewer_while_one_is_replaced(daemon: "Daemons") -> None:
    server = daemon(
        app="import time\ntime.sleep(1)\n" + BUSY,
        workers=2,
        recycle={"max_requests": 3, "min_lifetime": 0, "jitter": "0%"},
    )
    while "is replaced" not in server.log:
        server.get()
    server.send(signal.SIGTTOU)
    server.wait_for("workers: 2 -> 1")
    server.wait_for(lambda: len(server.pids()) == 1)
    assert server.get().status == 200
