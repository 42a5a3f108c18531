"""A worker that leaves: which requests are told, and what their answers say."""

import asyncio
from collections.abc import Callable
from typing import Any

from prefork.http.exchange import Exchange

Wire = Callable[..., Any]
GET = b"GET /a?b=1 HTTP/1.1\r\nHost: a\r\n\r\n"


class Polling:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self.told: list[str] = []
        self.cleaned = False

    async def __call__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        over = asyncio.Event()
        exchange.on_drain(lambda: self.told.append("first"))
        exchange.on_drain(over.set)
        try:
            await over.wait()
        finally:
            self.cleaned = True
        exchange.reply(200, b"", b"over")


def test_a_request_is_told_once_and_answers_for_the_last_time(wire: Wire) -> None:
    handler = Polling()
    w = wire(handler)
    client = w.connect()
    client.send(GET)
    w.wait_for(lambda: handler.exchange is not None)
    assert not handler.exchange.draining
    w.server.begin_graceful_exit()
    assert handler.told == ["first"]
    assert handler.exchange.draining
    answer = client.answer()
    assert answer.status == 200
    assert answer.closes
    assert not w.server.drain_calls


def test_who_asks_later_is_told_at_once(wire: Wire) -> None:
    handler = Polling()
    w = wire(handler)
    client = w.connect()
    w.server.begin_graceful_exit()
    client.send(GET)
    assert client.answer().status == 200
    assert handler.told == ["first"]


def test_nobody_is_told_after_the_answer(wire: Wire) -> None:
    told = []

    async def handler(exchange: Exchange) -> None:
        exchange.on_drain(lambda: told.append(exchange))
        exchange.reply(200, b"", b"")
        exchange.on_drain(lambda: told.append(exchange))

    w = wire(handler)
    client = w.connect()
    client.send(GET)
    assert client.answer().status == 200
    w.server.begin_graceful_exit()
    assert not told
    assert not w.server.drain_calls


def test_a_callback_that_breaks_harms_nobody(wire: Wire) -> None:
    handler = Polling()

    async def broken(exchange: Exchange) -> None:
        exchange.on_drain(lambda: 1 / 0)
        await handler(exchange)

    w = wire(broken)
    w.expect("exception in an on_drain callback")
    client = w.connect()
    client.send(GET)
    w.wait_for(lambda: handler.exchange is not None)
    w.server.begin_graceful_exit()
    assert client.answer().status == 200
    assert "exception in an on_drain callback of GET /a?b=1" in w.log


def test_one_that_is_cancelled_unanswered_gets_503(wire: Wire) -> None:
    cleaned = []

    async def deaf(exchange: Exchange) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(exchange.target)

    w = wire(deaf)
    client = w.connect()
    client.send(GET)
    w.wait_for(lambda: w.server.waiting)
    w.server.begin_graceful_exit()
    assert w.server.cancel_running() == 1
    answer = client.answer()
    assert answer.status == 503
    assert answer.closes
    assert cleaned == ["/a?b=1"]


def test_a_farewell_leaves_the_door_open(wire: Wire) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.reply(200, b"", b"ready" if not exchange.stopping else b"leaving")

    w = wire(handler)
    old = w.connect()
    old.send(GET)
    answer = old.answer()
    assert answer.body == b"ready"
    assert not answer.closes
    w.server.stopping = True
    w.server.say_farewell()
    for client in (old, w.connect()):
        client.send(GET)
        answer = client.answer()
        assert answer.body == b"leaving"
        assert answer.closes
