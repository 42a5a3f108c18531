"""`ctx.sse`: what an event looks like, and how its stream begins, lives and ends."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from prefork.onion.events import event

Daemon = Callable[..., Any]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hello", b"data: hello\n\n"),
        ("", b"data: \n\n"),
        ("a\nb\r\nc\rd", b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        ({"n": 1} | {}, None),
        ([1, "é"], 'data: [1,"é"]\n\n'.encode()),
        ({"data": {"n": 1}}, b'data: {"n":1}\n\n'),
        (
            {"data": "x", "event": "tick", "id": 7, "retry": 1000},
            b"event: tick\nid: 7\nretry: 1000\ndata: x\n\n",
        ),
        ({"data": "x", "event": None, "id": None, "retry": None}, b"data: x\n\n"),
        ({"data": "x", "id": ""}, b"id: \ndata: x\n\n"),
        ({"event": "a\nb"}, None),
        ({"data": "x", "retry": 1.5}, None),
        ({"data": "x", "retry": "soon"}, None),
        ({"id": "a\0"}, None),
        ({}, None),
    ],
)
def test_an_event(value: object, expected: bytes | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="event"):
            event(value)
    else:
        assert event(value) == expected


APPLICATION = """
import asyncio
from prefork import Application

app = Application()

async def count(ctx):
    try:
        for number in range(3):
            yield {"data": {"number": number}, "id": number}
        if ctx.path == "/short":
            return
        if ctx.path == "/broken":
            raise LookupError("boom")
        await asyncio.Event().wait()
    finally:
        open("over", "w").close()

@app.use
async def events(ctx, next):
    ctx.sse(count(ctx), keep_alive=0.05)
"""

THREE = b"".join(b'id: %d\ndata: {"number":%d}\n\n' % (n, n) for n in range(3))


def test_a_stream_that_ends(daemon: Daemon) -> None:
    server = daemon(app=APPLICATION)
    answer = server.get("/short")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.body == b":\n\n" + THREE
    assert (server.directory / "over").exists()


def test_a_quiet_stream_is_kept_alive_and_ends_with_its_client(daemon: Daemon) -> None:
    server = daemon(app=APPLICATION)
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while data.count(b":\n\n") < 4:
            data += sock.recv(65536)
        assert not (server.directory / "over").exists()
    server.wait_for(lambda: (server.directory / "over").exists())


def test_a_stream_ends_with_the_worker(daemon: Daemon) -> None:
    server = daemon(app=APPLICATION)
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while b'"number":2' not in data:
            data += sock.recv(65536)
        server.send(signal.SIGQUIT)
        while more := sock.recv(65536):
            data += more
    assert data.endswith(b"0\r\n\r\n")
    assert server.wait() == 0
    assert (server.directory / "over").exists()


def test_a_stream_that_breaks_is_cut(daemon: Daemon) -> None:
    server = daemon(app=APPLICATION)
    server.expect("LookupError: boom|Traceback")
    with server.connect() as sock:
        sock.sendall(b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        try:
            while more := sock.recv(65536):
                data += more
        except ConnectionResetError:
            pass
    assert not data.endswith(b"0\r\n\r\n")
    server.wait_for("LookupError: boom")


VARIABLES = """
from contextvars import ContextVar
from prefork import Application

app = Application()
step = ContextVar("step", default=0)

async def count():
    token = step.set(1)
    try:
        yield step.get()
        step.set(step.get() + 1)
        yield step.get()
    finally:
        step.reset(token)
        open("over", "w").close()

@app.use
async def events(ctx, next):
    step.set(7)
    ctx.sse(count())
"""


def test_context_variables_last_from_one_event_to_the_next(daemon: Daemon) -> None:
    server = daemon(app=VARIABLES)
    assert server.get("/").body == b":\n\ndata: 1\n\ndata: 2\n\n"
    assert (server.directory / "over").exists()
    with server.connect() as sock:
        (server.directory / "over").unlink()
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.wait_for(lambda: (server.directory / "over").exists())
