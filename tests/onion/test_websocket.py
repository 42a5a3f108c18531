"""`ctx.websocket` in the real server, with the client of `websockets`."""

from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

Daemon = Callable[..., Any]
SLOW = 30.0

APPLICATION = """
import asyncio
from prefork import Application

app = Application()

@app.use
async def outer(ctx, next):
    await next()

@app.use
async def chat(ctx, next):
    if ctx.websocket is None:
        ctx.body = "no WebSocket"
        return
    if ctx.path == "/denied":
        ctx.throw(401, "not you")
    offered = ctx.websocket.subprotocols
    ctx.websocket.accept("chat" if "chat" in offered else None)
    if ctx.path == "/loop":
        while True:
            await ctx.websocket.send(await ctx.websocket.receive())
    if ctx.path == "/broken":
        raise LookupError("boom")
    if ctx.path == "/database":
        raise ConnectionResetError("the database is away")
    if ctx.path == "/own":
        ctx.websocket.close(4001, "enough")
        return
    async for message in ctx.websocket:
        await ctx.websocket.send(message)
"""


def test_a_websocket_in_an_onion(daemon: Daemon) -> None:
    server = daemon(app=APPLICATION)
    url = f"ws://127.0.0.1:{server.port}"
    assert server.get("/").text == "no WebSocket"
    for path in ("/", "/loop"):
        with connect(url + path, subprotocols=["chat"]) as client:  # type: ignore[list-item]
            assert client.subprotocol == "chat"
            for message in ("hello", b"\0" * 100_000):
                client.send(message)
                assert client.recv(SLOW) == message
    with pytest.raises(InvalidStatus) as refused, connect(f"{url}/denied"):
        pass
    assert refused.value.response.status_code == 401
    with connect(f"{url}/own") as client, pytest.raises(ConnectionClosed) as closed:
        client.recv(SLOW)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "enough")
    server.expect("LookupError: boom|the database is away|Traceback")
    for path, said in (("broken", "LookupError: boom"), ("database", "the database is away")):
        with connect(f"{url}/{path}") as client, pytest.raises(ConnectionClosed) as closed:
            client.recv(SLOW)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        assert said in server.log
    with connect(url) as client:
        server.send(3)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(SLOW)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    assert server.wait() == 0
    assert server.log.count("[error]") == 2


def test_a_broken_handshake_is_the_clients_mistake(daemon: Daemon) -> None:
    server = daemon(app=APPLICATION)
    with server.connect() as sock:
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Sec-WebSocket-Version: 13\r\n" in answer
    with server.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET\r\n" in answer
