"""What arrives while a worker leaves, at the worst of moments."""

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import socket

    from tests.conftest import Server
    from tests.faults.conftest import Faulty

Leave = Callable[["Server"], None]


def by_reload(server: "Server") -> None:
    since = len(server.log)
    server.send(signal.SIGHUP)
    server.wait_for("gracefully shutting down", since=since)


def by_stop(server: "Server") -> None:
    server.send(signal.SIGQUIT)
    server.wait_for("gracefully shutting down")


leaving = pytest.mark.parametrize("leave", [by_reload, by_stop])


def ask(sock: "socket.socket", path: str = "/", number: int = 1) -> None:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Id: {number}\r\n\r\n".encode())


def answer(sock: "socket.socket") -> str:
    """The next answer, head and body; an empty one is a closed connection."""
    text = b""
    while b"\r\n\r\n" not in text or not text.endswith(b"\n"):
        data = sock.recv(65536)
        if not data:
            break
        text += data
    return text.decode()


@leaving
def test_a_request_that_came_while_another_had_the_loop(faulty: "Faulty", leave: Leave) -> None:
    """It lay in the kernel, in time, when the idle time of its connection was found to be over."""
    server = faulty(timeouts={"keep_alive_min": "1s"})
    with server.connect() as kept, server.connect() as other:
        for sock in (kept, other):
            ask(sock)
            assert answer(sock)
        leave(server)
        ask(other, "/block/1.5")
        time.sleep(0.3)
        ask(kept, number=2)
        assert answer(kept).endswith(" 2\n")
        assert "connection: close" in answer(other).lower()


@leaving
def test_a_request_that_came_in_the_turn_that_ends_its_connection(
    faulty: "Faulty", leave: Leave
) -> None:
    """Out of time, strictly; but it was there when the connection was about to be closed."""
    server = faulty(timeouts={"keep_alive_min": "1s"})
    with server.connect() as kept, server.connect() as one, server.connect() as another:
        for sock in (kept, one, another):
            ask(sock)
            assert answer(sock)
        leave(server)
        ask(one, "/block/1.3")
        time.sleep(0.3)
        ask(another, "/block/2")
        time.sleep(1.4)  # the first is over, and so is the time of `kept`; the second has the loop
        ask(kept, number=2)
        assert answer(kept).endswith(" 2\n")


@leaving
def test_the_rest_of_a_head_and_of_a_body(faulty: "Faulty", leave: Leave) -> None:
    server = faulty()
    with server.connect() as head, server.connect() as body:
        head.sendall(b"GET / HTTP/1.1\r\nHo")
        body.sendall(b"POST /post HTTP/1.1\r\nHost: a\r\nX-Id: 8\r\nContent-Length: 6\r\n\r\nabc")
        server.wait_for(lambda: "+ 8 " in (server.directory / "journal").read_text())
        leave(server)
        time.sleep(1.2)  # longer than an idle connection is kept
        head.sendall(b"st: a\r\nX-Id: 7\r\n\r\n")
        assert answer(head).endswith(" 7\n")
        body.sendall(b"def")
        assert " 8\n6 " in answer(body)


@leaving
def test_a_connection_that_has_said_nothing_yet(faulty: "Faulty", leave: Leave) -> None:
    server = faulty(timeouts={"keep_alive_min": "2s"})
    with server.connect() as sock:
        server.get()  # it has been accepted by now
        leave(server)
        time.sleep(0.5)
        ask(sock, number=3)
        assert answer(sock).endswith(" 3\n")


@leaving
def test_what_is_pipelined_is_answered_or_told(faulty: "Faulty", leave: Leave) -> None:
    """The last answer says so; what is behind it is not half served, and destroys nothing."""
    server = faulty()
    with server.connect() as sock:
        ask(sock, "/slow/0.5", 1)
        for number in range(2, 6):
            ask(sock, number=number)
        server.wait_for(lambda: "+ 1 " in (server.directory / "journal").read_text())
        leave(server)
        text = ""
        while data := sock.recv(65536):
            text += data.decode()
    answers = text.split("HTTP/1.1 200 OK")[1:]
    assert "connection: close" in answers[-1].lower(), text
    assert answers[0].endswith(" 1\n")
    begun = (server.directory / "journal").read_text().count("+")
    assert begun == len(answers)
