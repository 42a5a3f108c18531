"""Accepting: fair among workers, at rest when there is nothing to accept with."""

import contextlib
import errno
import os
import resource
import socket
import subprocess
import sys

import pytest

from prefork.config.address import ListenAddress
from prefork.event.poller import PollPoller, best_poller
from prefork.event.reactor import Reactor
from prefork.log import ErrorLog, LogFile
from prefork.net.acceptor import (
    FIRST_WORD_SECONDS,
    HANDSHAKE_SECONDS,
    REORDER_EVERY,
    REST_SECONDS,
    SILENT_IN_A_ROW,
    Acceptor,
)
from prefork.net.connection import Connection, Pool
from prefork.net.listener import Listener

PATIENCE = 20.0
LOOPBACK = ListenAddress(kind="inet", host="127.0.0.1", port=0)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Door:
    """A listener on loopback, a reactor, an acceptor; keeps what was accepted."""

    def __init__(self, tmp_path, poller, *, exclusive=True):
        sock = socket.create_server(("127.0.0.1", 0), backlog=100)
        sock.setblocking(False)
        self.address = sock.getsockname()
        self.listener = Listener(LOOPBACK, sock, "bound")
        self.log_path = tmp_path / "error.log"
        self.log_file = LogFile(str(self.log_path))
        self.log_file.open()
        self.clock = Clock()
        self.reactor = Reactor(poller, self.clock)
        self.errors = []
        self.reactor.on_error = lambda error, _where: self.errors.append(error)
        self.accepted = []
        self.acceptor = Acceptor(
            self.reactor,
            self.listener,
            lambda sock, address, listener: self.accepted.append((sock, address, listener)),
            ErrorLog(self.log_file, "info"),
            exclusive=exclusive,
        )
        self.clients = []

    def connect(self):
        client = socket.create_connection(self.address)
        self.clients.append(client)
        return client

    def turns(self, number=10):
        return sum(self.reactor.process_events(0) for _ in range(number))

    @property
    def log(self):
        return self.log_path.read_text()

    def close(self):
        self.acceptor.stop()
        assert not self.reactor._files
        for sock, _, _ in self.accepted:
            sock.close()
        for client in self.clients:
            client.close()
        self.reactor.close()
        self.listener.close()
        self.log_file.close()
        assert not self.errors


@pytest.fixture(params=[(best_poller, True), (best_poller, False), (PollPoller, True)])
def door(request, tmp_path):
    poller, exclusive = request.param
    door = Door(tmp_path, poller(), exclusive=exclusive)
    yield door
    door.close()


def test_accepted_sockets_are_ready_for_use(door):
    door.acceptor.start()
    client = door.connect()
    door.turns()
    ((sock, address, listener),) = door.accepted
    assert sock.getblocking() is False
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not os.get_inheritable(sock.fileno())
    assert address == client.getsockname()
    assert listener is door.listener


def test_every_connection_is_accepted_once(door):
    door.acceptor.start()
    for _ in range(3):
        for _ in range(30):
            door.connect()
        door.turns(40)
    assert len(door.accepted) == 90
    assert door.turns() == 0


def test_pause_and_resume(door):
    door.acceptor.start()
    door.acceptor.pause()
    door.connect()
    assert door.turns() == 0
    door.acceptor.resume()
    door.acceptor.resume()
    door.turns()
    assert len(door.accepted) == 1


def test_paused_from_the_callback(door):
    """The connection limit is found when a connection is handed on: not one more is taken."""
    accept = door.acceptor._on_connection

    def take_one(*args):
        accept(*args)
        door.acceptor.pause()

    door.acceptor._on_connection = take_one
    door.acceptor.start()
    for _ in range(40):
        door.connect()
    for number in range(1, 41):
        door.turns()
        assert len(door.accepted) == number
        door.acceptor.resume()


def test_stop_leaves_the_queue_to_others(door):
    """A worker that leaves must not reset who waits: another worker takes them."""
    door.acceptor.start()
    door.acceptor.stop()
    client = door.connect()
    door.turns()
    assert not door.accepted
    other = Acceptor(
        door.reactor, door.listener, door.acceptor._on_connection, door.acceptor._error_log
    )
    other.start()
    door.turns()
    other.stop()
    ((sock, _, _),) = door.accepted
    sock.send(b"here")
    client.settimeout(PATIENCE)
    assert client.recv(10) == b"here"


def test_resume_without_start_watches_nothing(door):
    door.acceptor.pause()
    door.acceptor.resume()
    door.connect()
    assert door.turns() == 0


def test_a_connection_that_is_gone_already(door):
    client = door.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    door.connect()
    door.acceptor.start()
    door.turns()
    assert 1 <= len(door.accepted) <= 2
    assert "[crit]" not in door.log
    assert "[alert]" not in door.log


def test_unix_sockets(tmp_path):
    path = tmp_path / "s"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    sock.setblocking(False)
    log = LogFile(str(tmp_path / "log"))
    log.open()
    reactor = Reactor()
    accepted = []
    listener = Listener(ListenAddress(kind="unix", path=str(path)), sock, "bound")
    acceptor = Acceptor(reactor, listener, lambda *args: accepted.append(args), ErrorLog(log))
    acceptor.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        reactor.process_events(5.0)
    ((one, address, _),) = accepted
    assert not address
    one.close()
    acceptor.stop()
    reactor.close()
    listener.close(unlink=True)
    log.close()


def test_without_descriptors_it_rests(door):
    """The socket stays readable: a loop that just went on would take all of the CPU."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    door.acceptor.start()
    door.connect()
    door.reactor.process_events(0)
    for _ in range(3):
        door.connect()
    highest = os.open("/dev/null", os.O_RDONLY)
    try:
        # The limit is a number that no new descriptor may reach, so only gaps could be left.
        fillers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            while True:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            problem = error.errno
        assert door.turns(50) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in (highest, *fillers):
            os.close(fd)
    assert problem == errno.EMFILE
    (line,) = door.log.splitlines()
    assert "[crit]" in line
    assert "accept() failed (24: Too many open files), accepting again in 0.5 s" in line
    assert "raise rlimits.nofile" in line
    # Neither a resume nor a pause cuts the rest short or loses its end.
    door.acceptor.pause()
    door.acceptor.resume()
    assert door.turns() == 0
    door.clock.now += REST_SECONDS
    door.turns()
    assert len(door.accepted) == 4


def test_stopped_at_rest(door):
    door.acceptor.start()
    door.acceptor._rest(OSError(errno.ENOBUFS, "No buffer space available"))
    door.acceptor.stop()
    door.clock.now += 1
    door.connect()
    assert door.turns() == 0
    assert "rlimits" not in door.log


# Who is accepted is listened to


class Ears:
    """What the clients of a door have said, in the order it was heard."""

    def __init__(self, door):
        self.heard = []
        self.pool = Pool(door.reactor, None, send=30.0)
        self.connections = []
        door.acceptor._on_connection = self.accept
        door.acceptor.start()

    def accept(self, sock, _address, _listener):
        connection = Connection(self.pool, sock, "127.0.0.1", 0)
        connection.protocol = self
        connection.resume_reading()
        self.connections.append(connection)
        return connection

    def data_received(self, data):
        self.heard.append(data)

    def eof_received(self):
        self.heard.append(b"")

    def connection_lost(self, _error):
        self.heard.append(None)

    def close(self):
        for connection in self.connections:
            connection.abort()


@pytest.fixture
def ears(tmp_path):
    door = Door(tmp_path, best_poller())
    ears = Ears(door)
    yield door, ears
    ears.close()
    door.close()


def test_what_waits_with_its_request_is_served_in_the_turn_it_is_accepted(ears):
    door, ears = ears
    for number in range(3):
        door.connect().send(b"%d" % number)
    for number in range(1, 4):
        door.turns(1)
        assert ears.heard == [b"0", b"1", b"2"][:number]
        assert len(ears.connections) == number


def test_a_silent_client_leaves_the_listener_to_the_others(ears):
    door, ears = ears
    first, second = door.connect(), door.connect()
    second.send(b"two")
    assert door.turns() == 1
    assert len(ears.connections) == 1
    first.send(b"one")
    door.turns(1)
    assert ears.heard == [b"one"]
    door.turns(1)
    assert ears.heard == [b"one", b"two"]
    first.send(b"more")
    door.turns(2)
    assert ears.heard == [b"one", b"two", b"more"]


def test_a_silent_client_is_waited_for_a_moment_only(ears):
    door, ears = ears
    first, second = door.connect(), door.connect()
    door.turns()
    assert len(ears.connections) == 1
    door.clock.now += FIRST_WORD_SECONDS
    door.turns()
    assert len(ears.connections) == 2
    first.send(b"late")
    door.turns()
    assert ears.heard == [b"late"]
    second.close()
    door.turns()
    assert ears.heard == [b"late", b""]


def test_many_silent_clients_are_let_in_without_waiting(ears):
    door, ears = ears
    for _ in range(SILENT_IN_A_ROW + 20):
        door.connect()
    for _ in range(SILENT_IN_A_ROW):
        door.turns(2)
        door.clock.now += FIRST_WORD_SECONDS
    door.turns(21)
    assert len(ears.connections) == SILENT_IN_A_ROW + 20
    door.connect().send(b"a word")
    door.turns(2)
    door.connect()
    door.connect()
    door.turns()
    assert len(ears.connections) == SILENT_IN_A_ROW + 22


@pytest.mark.parametrize("end", ["stop", "drain", "pause", "lost"])
def test_a_silent_client_is_read_from_whatever_becomes_of_the_listener(ears, end):
    door, ears = ears
    client = door.connect()
    door.turns()
    if end == "drain":
        door.acceptor.drain(lambda: None, sealed=False)
    elif end == "lost":
        ears.connections[0].abort()
    else:
        getattr(door.acceptor, end)()
    door.clock.now += FIRST_WORD_SECONDS
    door.turns()
    if end != "lost":
        client.send(b"here")
        door.turns()
        assert ears.heard == [b"here"]
    if end in ("stop", "drain"):
        assert not door.reactor.watched(door.acceptor._fd)
        return
    door.acceptor.resume()
    door.connect()
    door.turns()
    assert len(ears.connections) == 2


WORKER = """
import socket, sys
from prefork.config.address import ListenAddress
from prefork.event.reactor import READABLE, Reactor
from prefork.log import ErrorLog, LogFile
from prefork.net.acceptor import Acceptor
from prefork.net.listener import Listener

sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(False)
listener = Listener(ListenAddress(kind="inet", host="127.0.0.1", port=0), sock, "inherited")
reactor = Reactor()
count = 0

def answer(accepted, _address, _listener):
    global count
    count += 1
    accepted.send(b".")
    accepted.close()

running = [True]
reactor.create_file_event(0, READABLE, running.clear)  # its stdin is closed: it is over
Acceptor(reactor, listener, answer, ErrorLog(LogFile("stderr"))).start()
print("ready", flush=True)
while running:
    reactor.process_events()
print(count)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="EPOLLEXCLUSIVE is Linux's")
def test_four_workers_share_the_connections():
    """One that is quick used to get them all; the re-adding every 16 accepts moves it back."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=500))
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, str(sock.fileno())],
                    pass_fds=[sock.fileno()],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for _ in range(400):
            with socket.create_connection(sock.getsockname(), PATIENCE) as client:
                assert client.recv(1) == b"."
        shares = [int(worker.communicate(timeout=PATIENCE)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    assert sum(shares) == 400
    # A quarter each when nothing disturbs them; on a busy machine all still get their turns.
    assert min(shares) >= 2 * REORDER_EVERY, shares


# The queue at the end of the server


def drain(door, *, sealed):
    dry = []
    door.acceptor.drain(lambda: dry.append(door.listener.fileno()), sealed=sealed)
    return dry


def test_what_waits_is_taken_one_a_turn_and_then_the_socket_is_closed(door):
    for _ in range(5):
        door.connect()
    dry = drain(door, sealed=True)
    door.turns(1)
    assert len(door.accepted) == 1
    door.turns(10)
    assert len(door.accepted) == 5
    assert not dry
    door.connect()  # the end of a handshake that was under way
    door.clock.now += HANDSHAKE_SECONDS
    door.turns(2)
    assert len(door.accepted) == 6
    assert dry == [-1]  # closed before anybody is told
    with pytest.raises(ConnectionRefusedError):
        door.connect()


def test_what_is_not_sealed_is_left_when_it_is_empty(door):
    door.acceptor.start()
    door.connect()
    dry = drain(door, sealed=False)
    door.turns(4)
    assert len(door.accepted) == 1
    assert dry == [-1]


def test_a_drain_waits_for_room(door):
    for _ in range(3):
        door.connect()
    dry = drain(door, sealed=True)
    door.turns(1)
    door.acceptor.pause()
    door.turns(10)
    assert len(door.accepted) == 1
    door.acceptor.resume()
    door.turns(10)
    assert len(door.accepted) == 3
    door.acceptor.pause()
    door.clock.now += HANDSHAKE_SECONDS
    door.turns(10)
    assert not dry
    door.acceptor.resume()
    door.turns(1)
    door.clock.now += HANDSHAKE_SECONDS
    door.turns(2)
    assert dry


def test_a_drain_rests_where_there_are_no_descriptors(door):
    door.connect()
    dry = drain(door, sealed=False)
    door.acceptor._rest(OSError(errno.ENOBUFS, "No buffer space available"))
    door.turns(10)
    assert not door.accepted
    door.clock.now += REST_SECONDS
    door.turns(10)
    assert len(door.accepted) == 1
    assert dry


def test_a_drain_that_is_stopped_tells_nobody(door):
    door.connect()
    dry = drain(door, sealed=True)
    door.acceptor.stop()
    door.clock.now += 1
    door.turns(10)
    assert not dry
    assert not door.accepted
