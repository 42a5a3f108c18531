import os
import socket
from contextlib import ExitStack
from pathlib import Path

from prefork.unix.tcpinfo import AcceptQueue, accept_queues


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_the_queues_of_all_families(tmp_path: Path) -> None:
    with ExitStack() as open_ones:

        def listening(family: int, address: object, backlog: int) -> socket.socket:
            sock = open_ones.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.bind(address)
            sock.listen(backlog)
            return sock

        def connect(to: socket.socket) -> None:
            client = open_ones.enter_context(socket.socket(to.family, socket.SOCK_STREAM))
            client.connect(to.getsockname())

        four = listening(socket.AF_INET, ("127.0.0.1", 0), 7)
        six = listening(socket.AF_INET6, ("::1", 0), 8)
        unix = listening(socket.AF_UNIX, str(tmp_path / "s"), 9)
        other = listening(socket.AF_INET, ("127.0.0.1", 0), 10)
        asked = {inode(four), inode(six), inode(unix)}
        assert accept_queues(asked) == {
            inode(four): AcceptQueue(0, 7),
            inode(six): AcceptQueue(0, 8),
            inode(unix): AcceptQueue(0, 9),
        }
        for sock, number in ((four, 3), (six, 2), (unix, 4), (other, 1)):
            for _ in range(number):
                connect(sock)
        assert accept_queues(asked) == {
            inode(four): AcceptQueue(3, 7),
            inode(six): AcceptQueue(2, 8),
            inode(unix): AcceptQueue(4, 9),
        }
        accepted, _ = four.accept()
        accepted.close()
        assert accept_queues({inode(four)}) == {inode(four): AcceptQueue(2, 7)}


def test_many_that_listen(tmp_path: Path) -> None:
    """More than fit into one answer of the kernel's."""
    with ExitStack() as open_ones:
        inodes = set()
        for number in range(400):
            sock = open_ones.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.bind(str(tmp_path / f"{number}"))
            sock.listen(number + 1)
            inodes.add(inode(sock))
        queues = accept_queues(inodes)
    assert sorted(queue.limit for queue in queues.values()) == list(range(1, 401))


def test_a_socket_that_does_not_listen_has_none() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert accept_queues({inode(sock)}) == {}
