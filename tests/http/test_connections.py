"""The life of a connection: pipelining, half-close, deadlines, the graceful exit, the limit."""

import asyncio
import contextlib
import gc
import socket
import tracemalloc
from collections import Counter

import pytest

from prefork.config.address import ListenAddress
from prefork.http.h1.protocol import PIPELINE_LIMIT
from prefork.net.acceptor import Acceptor
from prefork.net.connection import HIGH_WATER
from prefork.net.listener import Listener


def get(path="/", fields=""):
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode()


class Turns:
    """Answers with the path; a path that ends in a number waits that many turns first."""

    def __init__(self):
        self.running = 0
        self.order = []

    async def __call__(self, exchange):
        self.running += 1
        assert self.running == 1, "two requests of one connection at once"
        self.order.append(exchange.path)
        for _ in range(int(exchange.path.rpartition("/")[2] or 0)):
            await asyncio.sleep(0)
        body = await exchange.body.read()
        self.running -= 1
        exchange.reply(200, b"", exchange.path.encode() + body)


# Pipelining


@pytest.mark.parametrize("paths", ["/0 /0 /0", "/9 /0 /0", "/0 /9 /0", "/9 /9 /9", "/0 /0 /9"])
@pytest.mark.parametrize("cut", [0, 1, 30, 60, 100])
def test_pipelined_answers_are_in_order(wire, paths, cut):
    w = wire(Turns())
    client = w.connect()
    data = b"".join(map(get, paths.split()))
    client.send_pieces(data, cut)
    assert [client.answer().body.decode() for _ in paths.split()] == paths.split()
    client.assert_silent()


def test_pipelined_behind_bodies(wire):
    turns = Turns()
    w = wire(turns)
    client = w.connect()
    post = b"POST /%d HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n%b"
    data = b"".join(
        post % (number, fields, body) + get("/get/0")
        for number in (0, 3)
        for fields, body in (
            (b"Content-Length: 3", b"abc"),
            (b"Content-Length: 0", b""),
            (b"Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\nX: 1\r\n\r\n"),
        )
    )
    bodies = [b"/0abc", b"/0", b"/0abc", b"/3abc", b"/3", b"/3abc"]
    expected = [body for one in bodies for body in (one, b"/get/0")]
    for pieces in ((), (50, 90), range(1, len(data))):
        client.send_pieces(data, *pieces)
        assert [client.answer().body for _ in expected] == expected


def test_pipelined_behind_a_body_that_nobody_read(wire):
    async def ignore(exchange):
        exchange.reply(200, b"", exchange.path.encode())

    w = wire(ignore)
    client = w.connect()
    post = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
    client.send_pieces(post + b"abcde" + get("/2") + post, len(post) + 2)
    assert [client.answer().body for _ in range(3)] == [b"/1", b"/2", b"/1"]
    client.send(b"abcde" + get("/3"))
    assert client.answer().body == b"/3"


def test_nothing_is_served_behind_the_last_answer(wire):
    for handler in (None, Turns()):
        w = wire(handler)
        client = w.connect()
        client.send(get("/1", "Connection: close\r\n") + get("/2"))
        assert client.answer().closes
        client.half_close()
        client.assert_closed()


@pytest.mark.parametrize("wait", [0, 1])
def test_a_deep_pipeline(wire, wait):
    """More of it than is kept; the connection that was paused must go on when all is answered."""
    w = wire(Turns())
    client = w.connect()
    one = get(f"/{wait}")
    number = 3 * PIPELINE_LIMIT // len(one)
    client.send(one * number)
    for _ in range(number):
        assert client.answer().status == 200
    assert client.get(f"/{wait}").status == 200


def test_a_pipeline_is_read_no_further_than_its_limit(wire):
    release = asyncio.Event()

    async def wait(exchange):
        await release.wait()
        exchange.reply(200, b"", b"")

    w = wire(wait)
    client = w.connect(narrow=True)
    client.send(get())
    w.settle()
    data = get() * 100_000
    assert client.push(data) < len(data)
    (protocol,) = w.server._protocols()
    assert len(protocol._buffer) <= 2 * PIPELINE_LIMIT
    release.set()


def test_pipelined_answers_leave_together(wire):
    """One system call for the answers of one turn."""
    w = wire()
    client = w.connect()
    client.send(get() * 10)
    w.settle()
    assert client.receive().count(b"HTTP/1.1 200 OK") == 10


def test_the_next_request_while_the_handler_goes_on(wire):
    """A handler may end its answer before its work; its end is not the next one's."""
    ends = []

    async def work_on(exchange):
        if exchange.path == "/first":
            exchange.reply(200, b"", b"first")
            await first.wait()
            ends.append("first")
            raise KeyError("late")
        await second.wait()
        exchange.reply(200, b"", b"second")

    first, second = asyncio.Event(), asyncio.Event()
    w = wire(work_on)
    w.expect("exception in a handler")
    client = w.connect()
    assert client.get("/first").body == b"first"
    client.send(get("/second"))
    w.settle()
    first.set()
    w.wait_for(lambda: ends)
    client.assert_silent()
    second.set()
    assert client.answer().body == b"second"


# Half-close


@pytest.mark.parametrize("wait", [0, 1, 9])
@pytest.mark.parametrize("number", [1, 3])
def test_who_half_closes_is_answered(wire, wait, number):
    w = wire(Turns())
    client = w.connect()
    client.send(get(f"/{wait}") * number)
    client.half_close()
    for _ in range(number):
        answer = client.answer()
        assert answer.body == f"/{wait}".encode()
    client.assert_closed()


def test_half_close_behind_a_body_and_a_part_of_a_request(wire):
    w = wire(Turns())
    client = w.connect()
    client.send(b"POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + get("/2") + b"GET")
    client.half_close()
    assert [client.answer().body for _ in range(2)] == [b"/3abc", b"/2"]
    client.assert_closed()


def test_half_close_in_a_pipelined_body(wire):
    w = wire(Turns())
    client = w.connect()
    client.send(get("/3") + b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
    client.half_close()
    assert client.answer().body == b"/3"
    assert client.answer().status == 500
    client.assert_closed()


@pytest.mark.parametrize("data", [b"", b"GET / HT", b"\r\n"])
def test_half_close_without_a_request(wire, data):
    w = wire()
    client = w.connect()
    client.send(data)
    client.half_close()
    client.assert_closed()
    assert w.log == ""


# Deadlines


def test_the_time_for_a_head_is_from_its_first_byte(wire):
    w = wire()
    client = w.connect()
    client.send(b"GET / ")
    w.pass_time(9)
    client.send(b"HTTP/1.1\r\n")  # a byte now and then does not buy time
    client.assert_silent()
    w.pass_time(2)
    answer = client.answer()
    assert answer.status == 408
    assert answer.closes
    client.half_close()
    client.assert_closed()


def test_the_time_for_a_later_head(wire):
    w = wire()
    client = w.connect()
    for _ in range(2):
        assert client.get().status == 200
        w.pass_time(60)
        client.send(b"G")
        w.pass_time(9)
        client.send(get()[1:])
        assert client.answer().status == 200
    client.send(b"GET")
    w.pass_time(11)
    assert client.answer().status == 408


def test_who_says_nothing_is_closed_without_a_word(wire):
    w = wire()
    client = w.connect()
    w.pass_time(9)
    client.assert_silent()
    w.pass_time(2)
    client.assert_closed()


def test_keep_alive(wire):
    """The time of the first head, counted from the accept, used to end the idle time of all."""
    w = wire()
    client = w.connect()
    for _ in range(3):
        assert client.get().status == 200
        w.pass_time(74)
        client.assert_silent()
    w.pass_time(2)
    client.assert_closed()


def test_a_long_request_does_not_count_as_idle(wire):
    release = asyncio.Event()

    async def wait(exchange):
        await release.wait()
        exchange.reply(200, b"", b"")

    w = wire(wait)
    client = w.connect()
    client.send(get())
    w.pass_time(200)
    release.set()
    assert client.answer().status == 200
    w.pass_time(74)
    assert client.get().status == 200


def test_keep_alive_off(wire):
    w = wire(timeouts={"keep_alive": 0.0})
    client = w.connect()
    assert client.get().closes
    client.assert_closed()


def test_a_deadline_that_is_met_in_the_same_turn(wire):
    """Bytes that are there count, however late the loop comes to read them."""
    w = wire()
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\n")
    w.settle()
    w.clock.advance(100)
    client.send(b"Host: a\r\n\r\n")
    assert client.answer().status == 200


# The graceful exit


def test_graceful_exit(wire):
    release = asyncio.Event()
    empty = []

    async def wait(exchange):
        if exchange.path == "/wait":
            await release.wait()
        exchange.reply(200, b"", b"done")

    w = wire(wait)
    w.server.on_empty = lambda: empty.append(w.server.connections)
    busy, idle, begun, new = (w.connect() for _ in range(4))
    assert not busy.get().closes
    busy.send(get("/wait"))
    assert not idle.get().closes
    begun.send(b"GET / HTTP/1.1\r\n")
    w.settle()
    assert w.server.requests_running == 1

    w.server.begin_graceful_exit()
    # One whose request was on its way is served for keep_alive_min seconds, and told to go.
    w.pass_time(0.5)
    idle.assert_silent()
    answer = idle.get()
    assert answer.closes
    idle.assert_closed()
    w.pass_time(0.6)
    new.assert_closed()
    # What has begun is finished.
    begun.send(b"Host: a\r\n\r\n")
    assert begun.answer().closes
    begun.assert_closed()
    late = w.connect()
    assert late.get().closes
    assert not empty
    assert w.server.requests_running == 1
    release.set()
    answer = busy.answer()
    assert (answer.body, answer.closes) == (b"done", True)
    busy.assert_closed()
    w.settle()
    assert empty == [0]


def test_graceful_exit_with_nobody_there(wire):
    w = wire()
    empty = []
    w.server.on_empty = lambda: empty.append(True)
    w.server.begin_graceful_exit()
    assert empty == [True]


def test_graceful_exit_closes_who_is_idle_already(wire):
    w = wire()
    client = w.connect()
    client.get()
    w.pass_time(30)
    w.server.begin_graceful_exit()
    w.settle()
    client.assert_closed()


def test_graceful_exit_answers_what_is_pipelined_once(wire):
    """The answer that says "close" is the last; the client repeats the rest elsewhere."""
    w = wire(Turns())
    client = w.connect()
    client.send(get("/9") + get("/0"))
    w.turn()
    w.server.begin_graceful_exit()
    assert client.answer().closes
    client.half_close()
    client.assert_closed()


def test_a_streamed_answer_ends_whole_in_a_graceful_exit(wire):
    release = asyncio.Event()

    async def stream(exchange):
        exchange.start(200, b"", None)
        exchange.write(b"a")
        await release.wait()
        exchange.write(b"b")
        exchange.end()

    w = wire(stream)
    client = w.connect()
    client.send(get())
    w.settle()
    w.server.begin_graceful_exit()
    w.pass_time(5)
    release.set()
    answer = client.answer()
    assert (answer.body, answer.complete) == (b"ab", True)
    client.assert_closed()


def test_abort(wire):
    w = wire(Turns())
    clients = [w.connect() for _ in range(3)]
    clients[0].get("/0")
    clients[1].send(get("/9"))
    w.turn()
    w.server.abort()
    assert w.server.connections == 0
    for client in clients:
        assert client.receive() == b""


# Counting and the limit


def test_the_connection_limit(wire):
    w = wire(limits={"connections": 2})
    calls = []
    w.server.accepting(lambda: calls.append("pause"), lambda: calls.append("resume"))
    first = w.connect()
    assert calls == []
    second = w.connect()
    assert calls == ["pause"]
    assert "2 connections are open (limits.connections)" in w.log
    assert first.get().status == second.get().status == 200
    first.close()
    w.settle()
    assert calls == ["pause", "resume"]
    w.connect()
    assert calls == ["pause", "resume", "pause"]


def test_a_connection_leaves_nothing_behind(wire):
    """No cycle keeps a dead connection: its memory goes when it goes, without the collector."""
    w = wire(Turns())

    def visit():
        client = w.connect()
        client.get("/1")
        client.send(b"POST /0 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde")
        assert client.answer().status == 200
        client.close()
        w.settle()

    def alive():
        return Counter(type(one).__name__ for one in gc.get_objects())

    visit()
    gc.collect()
    gc.disable()
    try:
        before = alive()  # other tests of this process may have left some
        for _ in range(20):
            visit()
        after = alive()
    finally:
        gc.enable()
    for kind in ("Connection", "H1Protocol", "H1Exchange", "Body"):
        assert after[kind] - before[kind] < 10, kind


def test_at_the_limit_others_wait_in_the_queue(wire):
    """And are served as soon as one leaves: nobody is refused."""
    w = wire(limits={"connections": 2})
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        listener = Listener(ListenAddress(kind="inet", host="127.0.0.1", port=0), sock, "bound")
        acceptor = Acceptor(w.reactor, listener, w.server.accept, w.server.error_log)
        w.server.accepting(acceptor.pause, acceptor.resume)
        acceptor.start()
        clients = []
        for _ in range(5):
            one = socket.create_connection(sock.getsockname())
            one.sendall(get())
            one.setblocking(False)
            clients.append(one)
        w.settle()
        for number, one in enumerate(clients):
            assert w.server.connections == min(2, 5 - number)
            assert one.recv(1000).startswith(b"HTTP/1.1 200 OK")
            one.close()
            w.settle()
        acceptor.stop()


def test_an_idle_connection_is_small(wire):
    """At most 3 KiB of Python memory each: ten thousand of them are 30 MB."""
    w = wire()
    with contextlib.ExitStack() as stack:

        def visit():
            client = w.connect()
            stack.callback(client.close)
            client.get("/", "User-Agent: x\r\n" * 20)
            return client.sock

        for _ in range(20):
            visit()
        w.seen.clear()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        ours = [visit() for _ in range(200)]
        w.seen.clear()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The client's half is in it, too.
        assert (after - before) / len(ours) < 3072


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("size", [100, 10_000, 300_000])
@pytest.mark.parametrize("pipelined", [False, True])
def test_who_asks_without_reading_costs_the_high_water_mark(wire, size, wait, pipelined):
    """Answers to a pipeline used to pile up without a bound; only the send deadline ended it."""
    served = []

    async def reply(exchange):
        served.append(1)
        if wait:
            await asyncio.sleep(0)
        exchange.reply(200, b"", b"a" * size)

    number = min(3000, 20_000_000 // size)
    w = wire(reply)
    client = w.connect(narrow=True)
    if pipelined:
        client.push(get() * number)
    else:
        # Each in a turn of its own, until the kernel's buffers are full as well.
        while number and client.push(get()) == len(get()):
            w.settle()
            number -= 1
    w.settle()
    for connection in w.server.pool.connections:
        assert connection.out.size <= HIGH_WATER + size + 300
    if size >= 10_000:
        assert len(served) < 50
    before = len(served)
    answers = 0
    while answers < before:
        assert client.answer().body == b"a" * size
        answers += 1


def test_a_pipeline_goes_on_when_its_answers_are_read(wire):
    async def reply(exchange):
        exchange.reply(200, b"", b"a" * 100_000)

    w = wire(reply)
    client = w.connect(narrow=True)
    client.send(get() * 200)
    for _ in range(200):
        assert client.answer().body == b"a" * 100_000
    assert client.get().status == 200
