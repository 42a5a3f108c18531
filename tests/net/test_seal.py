"""A sealed socket lets nobody new into its queue, and loses nobody who is in it."""

import socket
import sys
import threading
from pathlib import Path

import pytest

from prefork.net.seal import seal


def accept_all(listener: socket.socket) -> list[socket.socket]:
    listener.setblocking(False)
    accepted = []
    while True:
        try:
            accepted.append(listener.accept()[0])
        except BlockingIOError:
            return accepted


def served(accepted: list[socket.socket], clients: list[socket.socket]) -> bool:
    """Do bytes go both ways?"""
    for end in (*accepted, *clients):
        end.settimeout(20)
    for client in clients:
        client.sendall(b"q")
    answers = []
    for one in accepted:
        answers.append(one.recv(1))
        one.sendall(b"a")
    return answers == [b"q"] * len(accepted) and all(one.recv(1) == b"a" for one in clients)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_comes_later_is_refused_and_not_reset(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family, backlog=50) as listener:
        address = listener.getsockname()[:2]
        clients = [socket.create_connection(address, timeout=20) for _ in range(10)]
        seal(listener)
        outcomes: list[str] = []

        def come_late() -> None:
            try:
                socket.create_connection(address, timeout=20).close()
                outcomes.append("connected")
            except OSError as error:
                outcomes.append(type(error).__name__)

        late = threading.Thread(target=come_late)
        late.start()
        late.join(0.3)
        assert late.is_alive()  # its SYN was dropped, and is sent again after a second
        accepted = accept_all(listener)
        assert len(accepted) == 10
        assert served(accepted, clients)
    late.join(20)
    assert outcomes == ["ConnectionRefusedError"]
    for one in (*accepted, *clients):
        one.close()


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(50)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for client in clients:
            client.connect(path)
        seal(listener)
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(path)
        accepted = accept_all(listener)
        assert len(accepted) == 5
        assert served(accepted, clients)
    for one in (*accepted, *clients):
        one.close()


def test_where_there_are_no_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backlog is all there is: those in the queue stay."""
    monkeypatch.setattr(sys, "platform", "freebsd14")
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(10)]
        seal(listener)
        accepted = accept_all(listener)
        assert len(accepted) == 10
        assert served(accepted, clients)
    for one in (*accepted, *clients):
        one.close()
