"""Responses: their framing by status, method and version, and what happens to slow readers."""

import asyncio
import gc
import os
import time
import tracemalloc
from email.utils import parsedate_to_datetime

import pytest

from prefork.net.connection import BATCH, HIGH_WATER

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def replying(status, body=b"body"):
    async def reply(exchange):
        exchange.reply(status, b"X: 1\r\n", body)

    return reply


def streaming(status=200, length=None, pieces=(b"one", b"", b"two"), trailers=b""):
    async def stream(exchange):
        exchange.start(status, b"X: 1\r\n", length)
        for piece in pieces:
            exchange.write(piece)
            await exchange.drain()
        exchange.end(trailers)

    return stream


def twice(wire, handler, method="GET", version="1.1", fields=b"Connection: keep-alive\r\n"):
    """Two requests on one connection: the second answer shows where the first one ended."""
    w = wire(handler)
    client = w.connect()
    request = f"{method} / HTTP/{version}\r\nHost: a\r\n".encode() + fields + b"\r\n"
    client.send(request)
    first = client.answer(method)
    assert first.complete
    assert not first.closes
    client.send(request)
    second = client.answer(method)
    assert (second.status, second.headers) == (first.status, first.headers)
    return first


@pytest.mark.parametrize("size", [0, 1, 4, 1023, 1024, 1025, 32 * 1024 - 1, 32 * 1024, 300_000])
def test_reply(wire, size):
    answer = twice(wire, replying(200, b"a" * size))
    assert answer.body == b"a" * size
    assert answer.get("content-length") == str(size)
    assert answer.get("x") == "1"


def test_date(wire):
    answer = twice(wire, replying(200))
    stamp = parsedate_to_datetime(answer.get("date")).timestamp()
    assert abs(stamp - time.time()) < 30


@pytest.mark.parametrize("handler", [replying(200), streaming(length=6), streaming()])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_head_has_the_fields_and_no_body(wire, handler, version):
    answer = twice(wire, handler, "HEAD", version)
    assert answer.body == b""
    assert answer.get("x") == "1"
    if handler is not streaming():
        assert answer.get("content-length") in ("4", "6", None)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(wire, status, method):
    """RFC 9110 sections 15.3.5 and 15.4.5, RFC 9112 section 6.3 rule 1, whatever the handler does.

    A 204 has neither Content-Length (RFC 9110 section 8.6) nor Transfer-Encoding (RFC 9112 6.1).
    """
    for handler in (replying(status), streaming(status, 6), streaming(status)):
        answer = twice(wire, handler, method)
        assert answer.status == status
        assert answer.body == b""
        assert answer.get("transfer-encoding") is None
        if status == 204:
            assert answer.get("content-length") is None


@pytest.mark.parametrize("status", [201, 299, 404, 500, 599, 999])
def test_any_final_status(wire, status):
    assert twice(wire, replying(status)).status == status


@pytest.mark.parametrize("status", [100, 101, 199])
@pytest.mark.parametrize("make", [replying, streaming])
def test_an_interim_status_is_no_final_one(wire, make, status):
    w = wire(make(status))
    w.expect("exception in a handler")
    answer = w.connect().get()
    assert answer.status == 500
    assert answer.closes
    assert f"{status} is an interim status" in w.log


def test_chunked(wire):
    answer = twice(wire, streaming(trailers=b"X-Sum: 6\r\n"))
    assert answer.body == b"onetwo"
    assert answer.get("transfer-encoding") == "chunked"
    assert answer.get("content-length") is None
    assert answer.trailers == [("x-sum", "6")]


def test_streamed_with_a_length(wire):
    answer = twice(wire, streaming(length=6))
    assert answer.body == b"onetwo"
    assert answer.get("transfer-encoding") is None
    assert answer.get("content-length") == "6"


@pytest.mark.parametrize("fields", [b"", b"Connection: keep-alive\r\n"])
def test_no_chunks_for_http_1_0(wire, fields):
    w = wire(streaming())
    client = w.connect()
    client.send(b"GET / HTTP/1.0\r\n" + fields + b"\r\n")
    answer = client.answer()
    assert answer.body == b"onetwo"
    assert answer.get("transfer-encoding") is None
    assert answer.get("content-length") is None
    assert answer.closes
    assert answer.complete


def test_keep_alive_for_http_1_0(wire):
    for handler in (replying(200), streaming(length=6)):
        answer = twice(wire, handler, version="1.0")
        assert answer.get("connection") == "keep-alive"


def test_interim_responses(wire):
    async def hint(exchange):
        exchange.inform(103, b"Link: </a>\r\n")
        exchange.inform(102)
        exchange.reply(200, b"", b"ok")
        exchange.inform(103)

    w = wire(hint)
    client = w.connect()
    answer = client.get()
    assert (answer.interim, answer.body) == ([103, 102], b"ok")
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.answer().interim == []


@pytest.mark.parametrize("status", [100, 101, 200])
def test_what_is_no_interim_response(wire, status):
    async def inform(exchange):
        with pytest.raises(ValueError, match="not an interim status"):
            exchange.inform(status)
        exchange.reply(200, b"", b"")

    assert wire(inform).connect().get().interim == []


# What a handler does wrong


async def raises(_exchange):
    raise KeyError("secret")


async def forgets(_exchange):
    pass


async def cancels(_exchange):
    raise asyncio.CancelledError


async def raises_later(_exchange):
    await asyncio.sleep(0)
    raise KeyError("secret")


async def forgets_later(_exchange):
    await asyncio.sleep(0)


@pytest.mark.parametrize("handler", [raises, forgets, cancels, raises_later, forgets_later])
def test_no_answer_before_the_handler_ends(wire, handler):
    w = wire(handler)
    w.expect("exception in a handler|the handler was cancelled")
    client = w.connect()
    answer = client.get()
    assert answer.status == 500
    assert answer.closes
    assert b"secret" not in answer.body
    client.assert_closed()
    assert ("KeyError: 'secret'" in w.log) is ("raises" in handler.__name__)
    named = 'client: 127.0.0.1, request: "GET / HTTP/1.1"' in w.log
    assert named is ("forgets" not in handler.__name__)


def test_a_handler_that_exits(wire):
    """In its first step, that is: from a later one asyncio hands it to who runs the loop."""

    async def leaves(_exchange):
        raise SystemExit(3)

    w = wire(leaves)
    w.expect("exception in a handler")
    client = w.connect()
    assert client.get().status == 500
    client.assert_closed()
    assert "SystemExit: 3" in w.log
    # asyncio tells of it a second time, when the task is collected.
    gc.collect()
    assert all(isinstance(error, SystemExit) for error in w.escaped)
    w.escaped.clear()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("length", [None, 10])
@pytest.mark.parametrize("late", [False, True])
def test_an_exception_after_the_head_cuts_the_connection(wire, version, length, late):
    """Half an answer must not look like a whole one, nor an error page be glued to it."""

    async def broken(exchange):
        exchange.start(200, b"", length)
        exchange.write(b"half")
        if late:
            for _ in range(3):
                await asyncio.sleep(0)
        raise KeyError("secret")

    w = wire(broken)
    w.expect("exception in a handler")
    client = w.connect()
    client.send(f"GET / HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    answer = client.answer()
    assert b"secret" not in answer.body
    assert b"Internal" not in answer.body
    if version == "1.0" and length is None:
        # Only the end of the connection tells this body's end: it must not be an orderly one.
        assert client.reset
    else:
        assert not answer.complete


def test_more_than_the_declared_length(wire):
    async def more(exchange):
        exchange.start(200, b"", 3)
        exchange.write(b"abcd")

    w = wire(more)
    w.expect("exception in a handler")
    answer = w.connect().get()
    assert not answer.complete
    assert "more body than the declared Content-Length" in w.log


def test_less_than_the_declared_length(wire):
    w = wire(streaming(length=7))
    w.expect("exception in a handler")
    answer = w.connect().get()
    assert not answer.complete
    assert "1 bytes short" in w.log


def test_a_response_is_one(wire):
    errors = []

    async def two(exchange):
        for attempt in (
            lambda: exchange.write(b"early"),
            exchange.end,
            lambda: exchange.reply(200, b"", b"first"),
            lambda: exchange.reply(200, b"", b"second"),
            lambda: exchange.start(200, b"", None),
            lambda: exchange.write(b"late"),
            exchange.end,
            exchange.abort,
        ):
            try:
                attempt()
            except RuntimeError as error:
                errors.append(str(error))

    w = wire(two)
    client = w.connect()
    assert client.get().body == b"first"
    assert errors == [
        "no response is open",
        "no response is open",
        "the response has begun already",
        "the response has begun already",
        "no response is open",
    ]
    assert client.get().body == b"first"


def test_on_finished(wire):
    order = []

    async def handler(exchange):
        exchange.on_finished(lambda: order.append(("first", exchange.status)))
        exchange.on_finished(lambda: 1 / 0)
        exchange.on_finished(lambda: order.append(("second", exchange.bytes_sent)))
        exchange.reply(201, b"", b"abc")
        order.append("handler")

    w = wire(handler)
    w.expect("on_finished callback of GET /")
    client = w.connect()
    assert client.get().status == 201
    assert order == [("first", 201), ("second", 3), "handler"]
    assert client.get().status == 201


# Slow readers


def test_a_slow_reader_costs_the_high_water_mark(wire):
    total = 20_000_000
    written = []

    async def flood(exchange):
        exchange.start(200, b"", total)
        piece = b"a" * 10_000
        while sum(written) < total:
            exchange.write(piece)
            written.append(len(piece))
            await exchange.drain()
        exchange.end()

    w = wire(flood)
    client = w.connect(narrow=True)
    tracemalloc.start()
    try:
        client.send(GET)
        w.settle()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    held = next(iter(w.server.pool.connections)).out.size
    assert HIGH_WATER < held < BATCH + 20_000
    assert kept < 2 * BATCH
    assert sum(written) < 1_000_000
    # It goes on as far as the client reads.
    begun = sum(written)
    for _ in range(30):
        client.receive()
        w.settle()
    w.wait_for(lambda: sum(written) > begun)
    w.settle()
    assert next(iter(w.server.pool.connections)).out.size < HIGH_WATER + 20_000
    client.close()


@pytest.mark.parametrize("size", [100_000, 5_000_000])
def test_a_slow_reader_gets_all_of_it(wire, size):
    body = os.urandom(1000) * (size // 1000)
    for handler in (
        replying(200, body),
        streaming(200, size, [body[i : i + 7000] for i in range(0, size, 7000)]),
        streaming(200, None, [body[i : i + 70_000] for i in range(0, size, 70_000)]),
    ):
        w = wire(handler)
        client = w.connect(narrow=True)
        answer = client.get()
        assert answer.body == body
        assert client.get().body == body


def test_a_reader_that_stops_is_disconnected(wire):
    outcome = []

    async def flood(exchange):
        exchange.start(200, b"", None)
        try:
            while True:
                exchange.write(b"a" * 10_000)
                await exchange.drain()
        except ConnectionError as error:
            outcome.append((error, exchange.client_gone))

    w = wire(flood)
    client = w.connect(narrow=True)
    client.send(GET)
    w.pass_time(29)
    assert not outcome
    w.pass_time(2)
    ((error, gone),) = outcome
    assert isinstance(error, ConnectionResetError)
    assert gone
    assert w.server.connections == 0
    assert "client timed out" in w.log
    assert not client.answer().complete


def test_a_reader_that_stops_behind_a_whole_answer_is_disconnected(wire):
    w = wire(replying(200, b"a" * 10_000_000))
    client = w.connect(narrow=True)
    client.send(GET)
    w.pass_time(29)
    assert w.server.connections == 1
    out = next(iter(w.server.pool.connections)).out
    before = out.size
    w.wait_for(lambda: client.receive() and out.size < before)
    w.pass_time(29)  # it took something meanwhile
    assert w.server.connections == 1
    w.pass_time(31)
    assert w.server.connections == 0


@pytest.mark.parametrize("leave", ["close", "cut"])
def test_the_client_leaves_in_the_middle_of_the_response(wire, leave):
    outcome = []

    async def flood(exchange):
        exchange.on_finished(lambda: outcome.append("finished"))
        exchange.start(200, b"", None)
        try:
            while True:
                exchange.write(b"a" * 10_000)
                await exchange.drain()
        except ConnectionError:
            outcome.append("noticed")
            raise

    w = wire(flood)
    client = w.connect(narrow=True)
    client.send(GET)
    w.settle()
    getattr(client, leave)()
    w.wait_for(lambda: len(outcome) == 2)
    assert outcome == ["noticed", "finished"]
    assert w.server.connections == 0


def test_the_client_leaves_before_the_answer(wire):
    """The handler is not cut off in the middle of its work; its answer just goes nowhere."""
    outcome = []

    async def slow(exchange):
        await release.wait()
        outcome.append(exchange.client_gone)
        exchange.reply(200, b"", b"a" * 100_000)
        outcome.append(exchange.status)

    release = asyncio.Event()
    w = wire(slow)
    client = w.connect()
    client.send(GET)
    w.settle()
    client.cut()
    w.wait_for(lambda: not w.server.connections)
    release.set()
    w.wait_for(lambda: len(outcome) == 2)
    assert outcome == [True, 499]  # nginx's status for it


# Files


def sending(path, count=None, length=True):
    async def send(exchange):
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size if count is None else count
            exchange.start(200, b"", size if length else None)
            await exchange.send_file(fd, 0, size)
            exchange.end()
        finally:
            os.close(fd)

    return send


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [0, 1, 100_000, 7_000_000])
def test_files(wire, tmp_path, size, length):
    path = tmp_path / "file"
    path.write_bytes((os.urandom(1024) * (size // 1024 + 1))[:size])
    w = wire(sending(path, length=length))
    for client in (w.connect(), w.connect(narrow=True)):
        assert client.get().body == path.read_bytes()
        assert client.get().body == path.read_bytes()
        client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.answer("HEAD").body == b""


def test_a_part_of_a_file_between_other_pieces(wire, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    async def sandwich(exchange):
        fd = os.open(path, os.O_RDONLY)
        try:
            exchange.start(200, b"", None)
            exchange.write(b"<")
            await exchange.send_file(fd, 2, 3)
            exchange.write(b">")
            exchange.end()
            assert exchange.bytes_sent == 5
        finally:
            os.close(fd)

    assert wire(sandwich).connect().get().body == b"<234>"


@pytest.mark.parametrize("length", [True, False])
def test_a_file_that_shrinks_is_cut_short(wire, tmp_path, length):
    path = tmp_path / "file"
    path.write_bytes(b"a" * 1000)
    w = wire(sending(path, 2000, length))
    w.expect("exception in a handler")
    answer = w.connect().get()
    assert not answer.complete
    assert len(answer.body) <= 1000
    w.settle()
    assert "became shorter" in w.log


def test_the_client_leaves_in_the_middle_of_a_file(wire, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a" * 7_000_000)
    w = wire(sending(path))
    client = w.connect(narrow=True)
    client.send(GET)
    w.settle()
    client.cut()
    w.wait_for(lambda: not w.server.connections)
    stalled = w.connect(narrow=True)
    stalled.send(GET)
    w.pass_time(31)
    assert w.server.connections == 0
