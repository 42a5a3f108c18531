"""Request bodies: a stream with a limit, back-pressure, deadlines and an honest end."""

import asyncio
import tracemalloc

import pytest

from prefork.errors import PeerError
from prefork.http.body import HIGH_WATER

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(length, extra=b""):
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n" % (length, extra)


class Gate:
    """A handler that waits, then reads the body and answers with its size."""

    def __init__(self):
        self.open = asyncio.Event()
        self.error = None
        self.exchange = None

    async def __call__(self, exchange):
        self.exchange = exchange
        await self.open.wait()
        size = 0
        try:
            async for piece in exchange.body:
                size += len(piece)
        except Exception as error:
            self.error = error
            raise
        exchange.reply(200, b"", b"%d" % size)


def test_trailers_are_not_headers(wire):
    w = wire()
    _client, answer = w.ask(
        CHUNKED + b"3\r\nabc\r\n0\r\nX-Trailer: 1 \r\nConnection: close\r\nCookie: b\r\n\r\n"
    )
    assert answer.body == b"abc"
    (request,) = w.seen
    assert request.headers == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]
    assert request.trailers == [(b"x-trailer", b"1"), (b"connection", b"close"), (b"cookie", b"b")]
    assert not answer.closes


@pytest.mark.parametrize(
    "body",
    [
        b"0\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"000000003\r\nabc\r\n00\r\n\r\n",
        b"3;a=b;c=\"d e\"\r\nabc\r\n0;last\r\n\r\n",
        b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n",
    ],
)  # fmt: skip
def test_chunks(wire, body):
    w = wire()
    client = w.connect()
    client.send(CHUNKED + body)
    client.send_bytewise(CHUNKED + body)
    first, second = client.answer(), client.answer()
    assert first.body == second.body == (b"abc" if b"a" in body.replace(b";a", b"") else b"")


def test_chunks_of_a_byte_are_not_quadratic(wire):
    """They used to cost a copy of the rest of the read each: a second for a megabyte."""
    w = wire()
    client = w.connect()
    client.send(CHUNKED + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")
    assert client.answer().body == b"a" * 100_000


def test_no_more_is_taken_than_the_high_water_mark(wire):
    gate = Gate()
    w = wire(gate)
    client = w.connect(narrow=True)
    client.send(post(4_000_000))
    w.settle()
    tracemalloc.start()
    try:
        pushed = client.push(b"a" * 4_000_000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert gate.exchange.body.received <= HIGH_WATER
    assert pushed < 1_000_000
    assert kept < 4 * HIGH_WATER
    gate.open.set()
    client.send(b"a" * (4_000_000 - pushed))
    assert client.answer().body == b"4000000"
    # The connection that was paused lives on.
    assert client.get().body == b"0"


def test_a_body_that_came_whole_while_it_was_paused(wire):
    """The last bytes used to pause the connection for ever: the next request hung."""
    gate = Gate()
    w = wire(gate)
    client = w.connect()
    client.send(post(70_000) + b"a" * 70_000)
    w.settle()
    gate.open.set()
    assert client.answer().body == b"70000"
    assert client.get().status == 200


def test_a_slow_handler_is_not_a_slow_client(wire):
    gate = Gate()
    w = wire(gate)
    client = w.connect(narrow=True)
    client.send(post(1_000_000))
    pushed = client.push(b"a" * 1_000_000)
    w.pass_time(100)
    gate.open.set()
    client.send(b"a" * (1_000_000 - pushed))
    assert client.answer().body == b"1000000"


def test_a_slow_body_is_answered_with_408(wire):
    w = wire()
    client = w.connect()
    client.send(post(100) + b"abc")
    w.pass_time(29)
    client.assert_silent()
    client.send(b"abc")  # each piece gives it the time anew
    w.pass_time(29)
    client.assert_silent()
    w.pass_time(2)
    answer = client.answer()
    assert answer.status == 408
    assert answer.closes
    client.half_close()
    client.assert_closed()


def test_100_continue_is_sent_when_the_body_is_read(wire):
    gate = Gate()
    w = wire(gate)
    client = w.connect()
    client.send(post(3, b"Expect: 100-Continue\r\n"))
    client.assert_silent()
    w.pass_time(100)  # the client waits for us: it is not slow
    client.assert_silent()
    gate.open.set()
    assert client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
    w.pass_time(29)
    client.send(b"abc")
    assert client.answer().body == b"3"
    assert client.get().status == 200


def test_after_100_continue_the_time_of_the_body_runs(wire):
    w = wire()
    client = w.connect()
    client.send(post(3, b"Expect: 100-continue\r\n"))
    assert client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
    w.pass_time(31)
    assert client.answer().status == 408


def test_no_100_continue_when_the_body_is_there(wire):
    w = wire()
    _client, answer = w.ask(post(3, b"Expect: 100-continue\r\n") + b"abc")
    assert answer.interim == []
    assert answer.body == b"abc"


def test_no_100_continue_for_http_1_0(wire):
    w = wire()
    client = w.connect()
    client.send(b"POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    client.assert_silent()
    client.send(b"abc")
    assert client.answer().body == b"abc"


def test_a_refused_body_is_not_asked_for(wire):
    async def refuse(exchange):
        exchange.reply(403, b"", b"no")

    w = wire(refuse)
    client = w.connect()
    client.send(post(3, b"Expect: 100-continue\r\n"))
    answer = client.answer()
    assert answer.status == 403
    assert answer.interim == []
    # The client may send the body all the same, or not: what follows could be either.
    assert answer.closes
    client.send(b"abc")
    client.half_close()
    client.assert_closed()


def test_no_100_continue_inside_a_response(wire):
    async def start_first(exchange):
        exchange.start(200, b"", None)
        exchange.write(b"begin ")
        exchange.write(await exchange.body.read())
        exchange.end()

    w = wire(start_first)
    client = w.connect()
    client.send(post(3, b"Expect: 100-continue\r\n"))
    w.settle()
    client.send(b"abc")
    answer = client.answer()
    assert answer.interim == []
    assert answer.body == b"begin abc"


async def ignore(exchange):
    exchange.reply(200, b"", b"read nothing")


def test_a_small_unread_body_is_drained(wire):
    w = wire(ignore)
    client = w.connect()
    client.send(post(50_000))
    answer = client.answer()
    assert not answer.closes
    client.send(b"a" * 50_000 + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.answer().body == b"read nothing"


def test_a_drained_body_has_a_deadline(wire):
    w = wire(ignore)
    client = w.connect()
    client.send(post(50_000))
    assert client.answer().status == 200
    w.pass_time(31)
    client.assert_closed()


def test_a_large_unread_body_closes_and_the_answer_arrives(wire):
    """Its unread bytes would make the close a reset, which destroys the answer (RFC 9112 9.6)."""
    w = wire(ignore)
    client = w.connect()
    client.send(post(8_000_000))
    client.send(b"a" * 8_000_000)  # all of it before it reads, like many a client
    assert not client.reset
    answer = client.answer()
    assert answer.body == b"read nothing"
    assert answer.closes
    client.half_close()
    client.assert_closed()


def test_a_refused_large_body_gets_its_413(wire):
    w = wire()
    client = w.connect()
    client.send(post(20_000_000))
    client.send(b"a" * 20_000_000)
    assert not client.reset
    assert client.answer().status == 413
    client.half_close()
    client.assert_closed()


def test_lingering_ends(wire):
    w = wire(ignore)
    client = w.connect()
    client.send(post(8_000_000))
    assert client.answer().status == 200
    w.pass_time(6)
    assert w.server.connections == 0


def test_the_client_leaves_in_the_middle_of_the_body(wire):
    gate = Gate()
    w = wire(gate)
    gate.open.set()
    for leave in ("half_close", "close", "cut"):
        gate.error = None
        client = w.connect()
        client.send(post(100) + b"abc")
        w.settle()
        getattr(client, leave)()
        w.wait_for(lambda: gate.error)
        assert isinstance(gate.error, ConnectionResetError)
        if leave == "half_close":
            assert client.answer().status == 500
        w.wait_for(lambda: not w.server.connections)
    # It is not our error, and no line of ours says so.
    assert "exception" not in w.log


def test_what_came_before_the_break_is_read(wire):
    pieces = []

    async def collect(exchange):
        async for piece in exchange.body:
            pieces.append(piece)

    w = wire(collect)
    client = w.connect()
    client.send(CHUNKED + b"3\r\nabc\r\n")
    w.settle()
    client.send(b"3\r\ndef\r\nx\r\n")
    assert client.answer().status == 400
    assert b"".join(pieces) == b"abcdef"


def test_the_handler_may_answer_a_broken_body_itself(wire):
    async def own_words(exchange):
        try:
            await exchange.body.read()
        except PeerError as error:
            exchange.reply(error.status, b"", b"my words")

    w = wire(own_words, limits={"body": 5})
    _client, answer = w.ask(CHUNKED + b"6\r\n")
    assert (answer.status, answer.body, answer.closes) == (413, b"my words", True)


def test_two_readers_are_told(wire):
    async def both(exchange):
        async def read():
            return await exchange.body.read()

        results = await asyncio.gather(read(), read(), return_exceptions=True)
        exchange.reply(200, b"", b", ".join(repr(one).encode() for one in results))

    w = wire(both)
    client = w.connect()
    client.send(post(3))
    w.settle()
    client.send(b"abc")
    assert client.answer().body == b"b'abc', RuntimeError('two tasks read one body')"


def test_body_of_a_request_without_one(wire):
    async def read_twice(exchange):
        body = await exchange.body.read() + await exchange.body.read()
        body += b"".join([piece async for piece in exchange.body])
        exchange.reply(200, b"", body + b"%d" % exchange.body.length)

    w = wire(read_twice)
    assert w.connect().get().body == b"0"
