"""Bytes up and down one socket, and its end: the order of things that only this layer knows."""

import os
import socket

import pytest

from prefork.event.bridge import ReactorLoop
from prefork.event.reactor import READABLE, WRITABLE, Reactor
from prefork.net.connection import (
    BATCH,
    HIGH_WATER,
    LINGER_SECONDS,
    LOW_WATER,
    Connection,
    Pool,
)
from prefork.net.outbuf import JOIN_BELOW, VECTORS, OutBuffer


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Recorder:
    """A protocol that keeps what it was told."""

    def __init__(self):
        self.told = []

    def data_received(self, data):
        self.told.append(data)

    def eof_received(self):
        self.told.append("eof")

    def connection_lost(self, error):
        self.told.append(("lost", type(error).__name__))


class Link:
    """A connection on a socket pair whose kernel buffers hold a few KiB, and its peer."""

    def __init__(self, family=socket.AF_UNIX):
        self.clock = Clock()
        self.reactor = Reactor(clock=self.clock)
        self.errors = []
        self.reactor.on_error = lambda error, _where: self.errors.append(error)
        self.loop = ReactorLoop(self.reactor)
        self.pool = Pool(self.reactor, self.loop, send=30.0)
        self.lost = 0
        self.pool.on_lost = self._count
        if family == socket.AF_UNIX:
            ours, self.peer = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as server:
                self.peer = socket.create_connection(server.getsockname())
                ours, _ = server.accept()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.peer.setblocking(False)
        self.protocol = Recorder()
        self.connection = Connection(self.pool, ours, "127.0.0.1", 1234)
        self.connection.protocol = self.protocol

    def _count(self):
        self.lost += 1

    def turn(self, number=1):
        for _ in range(number):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def read(self, size=1 << 20):
        self.turn()
        try:
            return self.peer.recv(size)
        except BlockingIOError:
            return None

    def read_all(self, size):
        data = b""
        for _ in range(100_000):
            if len(data) >= size:
                return data
            data += self.read() or b""
        pytest.fail(f"only {len(data)} of {size} bytes came")

    def close(self):
        if not self.connection.client_gone:
            self.connection.abort()
        self.turn(3)
        assert not self.pool.connections
        assert self.lost == 1
        assert self.reactor.watched(self.connection.fd) == 0
        assert len(self.pool.sending) == len(self.pool.lingering) == 0
        self.pool.close()
        self.loop.close()
        self.reactor.close()
        self.peer.close()
        assert not self.errors


@pytest.fixture
def link():
    link = Link()
    yield link
    link.close()


@pytest.fixture
def tcp():
    link = Link(socket.AF_INET)
    yield link
    link.close()


def read_to_the_end(sock):
    sock.settimeout(20)
    while sock.recv(65536):
        pass


# Reading


def test_reading(link):
    connection = link.connection
    link.peer.send(b"a")
    link.turn()
    assert link.protocol.told == []
    connection.resume_reading()
    connection.resume_reading()
    link.turn()
    link.peer.send(b"b")
    link.turn()
    connection.pause_reading()
    connection.pause_reading()
    link.peer.send(b"c")
    link.turn()
    assert link.protocol.told == [b"a", b"b"]
    connection.resume_reading()
    link.turn()
    assert link.protocol.told == [b"a", b"b", b"c"]


def test_an_end_of_file_is_told_once(link):
    link.connection.resume_reading()
    link.peer.shutdown(socket.SHUT_WR)
    link.turn(5)
    assert link.protocol.told == ["eof"]
    link.connection.write(b"still there")
    assert link.read() == b"still there"


def test_a_reset_is_told(tcp):
    tcp.connection.resume_reading()
    tcp.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    tcp.peer.close()
    tcp.turn(2)
    assert tcp.protocol.told == [("lost", "ConnectionResetError")]
    assert tcp.connection.client_gone
    tcp.connection.write(b"nothing")
    tcp.connection.resume_reading()
    tcp.connection.abort()
    tcp.connection.close_soon()
    tcp.turn()
    assert tcp.protocol.told == [("lost", "ConnectionResetError")]


# Writing


def test_what_one_turn_writes_leaves_in_one_piece(link):
    for piece in (b"a", b"b", b"c"):
        link.connection.write(piece)
        with pytest.raises(BlockingIOError):
            link.peer.recv(1)
    assert link.read() == b"abc"
    assert link.reactor.watched(link.connection.fd) == 0


@pytest.mark.parametrize("sizes", [(1_000_000,), (10, 300_000, 10), (1000,) * 500, (7,) * 50_000])
def test_all_of_it_arrives_in_order(link, sizes):
    pieces = [os.urandom(size) for size in sizes]
    for piece in pieces:
        link.connection.write(piece)
    assert link.read_all(sum(sizes)) == b"".join(pieces)
    link.turn(2)
    assert link.connection.out.size == 0
    assert link.reactor.watched(link.connection.fd) == 0
    assert len(link.pool.sending) == 0


def test_writing_on_while_the_peer_is_slow(link):
    expected = b""
    received = b""
    for number in range(300):
        piece = b"%d" % number * 300
        expected += piece
        link.connection.write(piece)
        if number % 3 == 0:
            received += link.read(2000) or b""
    received += link.read_all(len(expected) - len(received))
    assert received == expected


def test_drain(link):
    connection = link.connection
    steps = []

    async def writer():
        connection.write(b"a" * HIGH_WATER)
        await connection.drain()
        steps.append("below")
        connection.write(b"b" * BATCH)
        await connection.drain()
        steps.append(connection.out.size)
        # The kernel is full: for a peer that is behind, the mark alone counts.
        connection.write(b"c" * HIGH_WATER)
        await connection.drain()
        steps.append(connection.out.size)

    task = link.loop.create_task(writer())
    link.turn(10)
    assert steps == ["below"]
    received = 0
    while len(steps) < 2:
        assert connection.out.size > LOW_WATER or received
        received += len(link.read(1000) or b"")
    assert steps[1] <= LOW_WATER
    link.turn(5)
    assert len(steps) == 2
    link.read_all(2 * HIGH_WATER + BATCH - received)
    assert task.done()


def test_what_a_peer_that_keeps_up_is_sent_goes_out_in_batches(link):
    """Each write to the kernel wakes the peer."""
    connection = link.connection
    sizes = []

    async def writer():
        for _ in range(5):
            connection.write(b"a" * HIGH_WATER)
            await connection.drain()
            sizes.append(connection.out.size)

    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BATCH)
    link.loop.create_task(writer())
    link.turn(1)
    assert sizes[:4] == [n * HIGH_WATER for n in range(1, 5)]
    assert sizes[4] < HIGH_WATER
    link.read_all(5 * HIGH_WATER)


def test_a_push_leaves_errors_to_the_next_who_writes(link):
    connection = link.connection
    connection.write(b"held")
    assert connection.push()
    assert link.read(100) == b"held"
    assert connection.push()
    connection.write(b"a" * 1_000_000)
    assert not connection.push()
    link.peer.close()
    assert not connection.push()
    assert not connection.client_gone
    link.turn(2)
    assert connection.client_gone


def test_several_tasks_drain_one_connection(link):
    connection = link.connection
    done = []

    async def writer(name):
        connection.write(b"a" * 2 * BATCH)
        await connection.drain()
        done.append(name)

    tasks = [link.loop.create_task(writer(name)) for name in range(3)]
    link.turn(5)
    tasks[0].cancel()
    link.turn(5)
    assert done == []
    link.read_all(6 * BATCH)
    link.turn(3)
    assert sorted(done) == [1, 2]


def test_drain_wakes_when_the_peer_leaves(link):
    outcome = []

    async def writer():
        link.connection.write(b"a" * 1_000_000)
        try:
            await link.connection.drain()
        except ConnectionResetError:
            outcome.append("noticed")

    link.loop.create_task(writer())
    link.turn(5)
    link.peer.close()
    link.turn(5)
    assert outcome == ["noticed"]


def test_the_send_deadline_is_for_progress(link):
    link.connection.write(b"a" * 1_000_000)
    link.turn(3)
    for _ in range(3):
        link.clock.now += 29
        assert link.read(100_000)
        link.turn(2)
    link.clock.now += 31
    link.turn(2)
    assert link.protocol.told == [("lost", "TimeoutError")]


# Files


def test_send_file(link, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(500_000))
    sent = []

    async def send():
        with path.open("rb") as file:
            link.connection.write(b"<")
            sent.append(await link.connection.send_file(file.fileno(), 1000, 400_000))
            sent.append(await link.connection.send_file(file.fileno(), 499_000, 5000))
            link.connection.write(b">")

    task = link.loop.create_task(send())
    expected = b"<" + path.read_bytes()[1000:401_000] + path.read_bytes()[499_000:] + b">"
    assert link.read_all(len(expected)) == expected
    link.turn()
    assert task.done()
    assert sent == [400_000, 1000]


def test_send_file_ends_when_the_peer_leaves(link, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a" * 1_000_000)

    async def send():
        with path.open("rb") as file:
            await link.connection.send_file(file.fileno(), 0, 1_000_000)

    task = link.loop.create_task(send())
    link.turn(3)
    link.peer.close()
    link.turn(3)
    assert isinstance(task.exception(), ConnectionResetError)


# Ending


def test_close_soon_sends_what_is_left(link):
    link.connection.write(b"a" * 300_000)
    link.connection.close_soon()
    assert not link.protocol.told
    assert link.read_all(300_000) == b"a" * 300_000
    assert link.read() == b""
    assert link.protocol.told == [("lost", "NoneType")]


def test_close_soon_with_nothing_left(link):
    link.connection.close_soon()
    assert link.protocol.told == [("lost", "NoneType")]
    assert link.read() == b""


def test_lingering_reads_what_still_comes(tcp):
    tcp.peer.send(b"unread" * 1000)
    tcp.connection.write(b"the answer")
    tcp.connection.close_soon(linger=True)
    assert tcp.read() == b"the answer"
    assert tcp.read() == b""
    tcp.peer.send(b"more" * 1000)
    tcp.turn(3)
    assert tcp.pool.connections
    tcp.peer.close()
    tcp.turn(3)
    assert not tcp.pool.connections


def test_lingering_ends_in_time(tcp):
    tcp.connection.close_soon(linger=True)
    for _ in range(int(LINGER_SECONDS)):
        tcp.turn(2)
        assert tcp.pool.connections
        tcp.peer.send(b"and more")  # which buys no time
        tcp.clock.now += 1.0
    tcp.turn(3)
    assert not tcp.pool.connections


def test_abort_is_seen_as_a_cut(tcp):
    """What was promised did not all go: the peer must not take it for an orderly end."""
    tcp.connection.write(b"a" * 5_000_000)
    tcp.turn()
    tcp.connection.abort()
    assert tcp.protocol.told == [("lost", "NoneType")]
    with pytest.raises(ConnectionResetError):
        read_to_the_end(tcp.peer)


def test_abort_with_nothing_left_is_orderly_unless_told(tcp):
    tcp.connection.abort()
    assert tcp.read() == b""


def test_abort_by_reset(tcp):
    tcp.connection.write(b"a")
    tcp.turn()
    assert tcp.connection.out.size == 0
    tcp.connection.abort(reset=True)
    with pytest.raises(ConnectionResetError):
        read_to_the_end(tcp.peer)


def test_numbers_and_addresses(tcp):
    connection = tcp.connection
    assert connection.number == 1
    assert connection.local_address() == tcp.peer.getpeername()
    assert (connection.peer, connection.peer_port) == ("127.0.0.1", 1234)


def test_nobody_waits_in_a_pool_that_is_empty(link):
    assert link.reactor.watched(link.connection.fd) == 0
    link.connection.resume_reading()
    assert link.reactor.watched(link.connection.fd) == READABLE
    link.connection.write(b"a" * 1_000_000)
    link.turn()
    assert link.reactor.watched(link.connection.fd) == READABLE | WRITABLE


# The buffer


def test_outbuf_sends_by_few_calls():
    left, right = socket.socketpair()
    with left, right:
        for pieces in ([b"a"], [b"a", b"b"], [b"a" * JOIN_BELOW, b"b"], [b"c" * 300] * VECTORS * 3):
            out = OutBuffer()
            for piece in pieces:
                out.append(piece)
            total = out.size
            calls = 0
            while out.size:
                out.send(left)
                calls += 1
            assert not out.pieces
            assert right.recv(1 << 20, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == b"".join(pieces)
            assert calls <= 1 + total // (VECTORS * 300)


@pytest.mark.parametrize("taken", range(13))
def test_outbuf_keeps_what_was_not_taken(taken):
    out = OutBuffer()
    for piece in (b"abc", memoryview(b"defg"), bytearray(b"h"), b"ijkl"):
        out.append(piece)
    out.dropped(taken)
    assert out.size == 12 - taken
    assert b"".join(out.pieces) == b"abcdefghijkl"[taken:]
