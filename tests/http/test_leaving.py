"""A client that leaves before its answer: who is told, and how long its handler goes on."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from prefork.http.exchange import Exchange
from prefork.http.headers import KnownLines

Wire = Callable[..., Any]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Waiting:
    """A handler that waits for ever and notes what becomes of it."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self.told = 0
        self.cancelled = False

    async def __call__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        exchange.on_client_left = self.left
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def left(self) -> None:
        self.told += 1


@pytest.mark.parametrize("way", ["close", "cut", "half_close"])
def test_a_handler_is_told_at_once_and_cancelled_later(wire: Wire, way: str) -> None:
    handler = Waiting()
    w = wire(handler, timeouts={"abandoned": 5.0})
    client = w.connect()
    client.send(GET)
    w.wait_for(lambda: handler.exchange is not None)
    assert not handler.exchange.client_left
    getattr(client, way)()
    w.wait_for(lambda: handler.told)
    assert handler.exchange.client_left
    assert not handler.cancelled
    w.pass_time(4.0)
    assert not handler.cancelled
    w.pass_time(2.0)
    assert handler.cancelled
    assert handler.told == 1
    assert "the client left 5 s ago: its handler is cancelled, client: 127.0.0.1" in w.log


def test_nobody_is_cancelled_when_it_is_off(wire: Wire) -> None:
    handler = Waiting()
    w = wire(handler, timeouts={"abandoned": 0.0})
    client = w.connect()
    client.send(GET)
    w.wait_for(lambda: handler.exchange is not None)
    client.close()
    w.wait_for(lambda: handler.told)
    w.pass_time(1000.0)
    assert not handler.cancelled


def test_a_client_that_only_closed_its_side_gets_a_late_answer(wire: Wire) -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await gate.wait()
        exchange.reply(200, b"", b"late")

    w = wire(handler, timeouts={"abandoned": 5.0})
    client = w.connect()
    client.send(GET)
    client.half_close()
    w.pass_time(3.0)
    gate.set()
    assert client.answer().body == b"late"


def test_what_goes_on_behind_an_answer_is_not_cancelled(wire: Wire) -> None:
    ended = []

    async def handler(exchange: Exchange) -> None:
        await asyncio.sleep(0)
        exchange.reply(200, b"", b"done")
        w.clock.advance(6.0)
        await gate.wait()
        ended.append(True)

    gate = asyncio.Event()
    w = wire(handler, timeouts={"abandoned": 5.0})
    client = w.connect()
    client.send(GET)
    client.half_close()
    assert client.answer().body == b"done"
    w.pass_time(60.0)
    gate.set()
    w.wait_for(lambda: ended)


def test_a_body_is_read_by_what_has_come(wire: Wire) -> None:
    pieces: list[bytes] = []
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await gate.wait()
        while piece := await exchange.body.read_some():
            pieces.append(piece)
        assert exchange.body.exhausted
        exchange.reply(200, b"", b"")

    w = wire(handler)
    client = w.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(3):
        client.send(b"3\r\nabc\r\n")
        w.settle()
    gate.set()
    w.settle()
    client.send(b"1\r\nd\r\n0\r\n\r\n")
    assert client.answer().status == 200
    assert pieces == [b"abcabcabc", b"d"]


def test_known_lines_are_bounded_and_hold_no_secret() -> None:
    known = KnownLines()
    assert known[b"Accept:  */* \t"] == (b"accept", b"*/*")
    assert b"Accept:  */* \t" in known
    assert known[b"Cookie: id=1"] == (b"cookie", b"id=1")
    assert known[b"Authorization: Basic eDp5"] == (b"authorization", b"Basic eDp5")
    assert known[b"X: " + b"y" * 300] == (b"x", b"y" * 300)
    assert list(known) == [b"Accept:  */* \t"]
    for number in range(5000):
        known[b"X-Number: %d" % number]
    assert len(known) <= 1024
