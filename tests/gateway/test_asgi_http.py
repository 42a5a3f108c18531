"""ASGI's HTTP, rule by rule, over real sockets: what the application gets and what the client."""

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefork.http.body import HIGH_WATER
from prefork.http.exchange import LAST_SECONDS

Make = Callable[..., Any]
Send = Callable[[dict[str, Any]], Any]
Receive = Callable[[], Any]
Scope = dict[str, Any]
TEXT = [(b"content-type", b"text/plain")]


def start(status: int = 200, headers: Any = TEXT, **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers, **more}


def body(data: Any = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sends(*messages: dict[str, Any]) -> Any:
    """An application that sends these."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


class Keeping:
    """An application that keeps its scopes and answers with its body."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.messages: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        data = b""
        while True:
            message = await receive()
            self.messages.append(message)
            data += message.get("body", b"")
            if not message.get("more_body"):
                break
        await send(start())
        await send(body(data))


# The scope


def test_the_scope(asgi: Make) -> None:
    app = Keeping()
    w = asgi(app)
    client = w.connect()
    client.send(
        b"GET /a%20b/%C3%A9%2Fx?q=1&r=%20 HTTP/1.1\r\nHost: example.org\r\n"
        b"X-One:  1 \r\nx-one: 2\r\nCookie: a=b\r\n\r\n"
    )
    assert client.answer().status == 200
    (scope,) = app.scopes
    assert scope["type"] == "http"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
    assert scope["http_version"] == "1.1"
    assert scope["method"] == "GET"
    assert scope["scheme"] == "http"
    assert scope["path"] == "/a b/é/x"
    assert scope["raw_path"] == b"/a%20b/%C3%A9%2Fx"
    assert scope["query_string"] == b"q=1&r=%20"
    assert scope["root_path"] == ""
    assert scope["headers"] == [
        (b"host", b"example.org"),
        (b"x-one", b"1"),
        (b"x-one", b"2"),
        (b"cookie", b"a=b"),
    ]
    assert scope["client"] == client.sock.getsockname()
    assert scope["server"] == client.sock.getpeername()
    assert scope["state"] == {}
    assert set(scope["extensions"]) == {
        "http.response.early_hint",
        "http.response.pathsend",
        "http.response.trailers",
        "http.response.zerocopysend",
    }


def test_the_scope_of_a_unix_socket(asgi: Make) -> None:
    app = Keeping()
    w = asgi(app)
    ours, theirs = socket.socketpair()
    with ours:
        theirs.setblocking(False)
        w.server.accept(theirs, "", None)
        ours.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        w.wait_for(lambda: not w.server.connections)
    assert app.scopes[0]["client"] is None
    assert app.scopes[0]["server"] == ("", None)


def test_scopes_share_nothing_that_can_be_changed(asgi: Make) -> None:
    app = Keeping()
    w = asgi(app)
    for _ in range(2):
        w.connect().get("/")
        scope = app.scopes[-1]
        assert scope["headers"] == [(b"host", b"a")]
        assert len(scope["extensions"]) == 4
        assert scope["asgi"]["spec_version"] == "2.5"
        scope["headers"].append((b"x", b"y"))
        scope["extensions"].clear()
        scope["asgi"].clear()
        scope["state"]["mine"] = 1


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", {"http_version": "1.0", "headers": [], "path": "/"}),
        (
            b"GET http://other.example:81/p?q HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n",
            {
                "path": "/p",
                "raw_path": b"/p",
                "query_string": b"q",
                "headers": [(b"host", b"other.example:81"), (b"x", b"y")],
            },
        ),
        (
            b"GET http://other.example?q HTTP/1.1\r\nHost: a\r\n\r\n",
            {"path": "/", "raw_path": b"/", "query_string": b"q"},
        ),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", {"path": "*", "raw_path": b"*"}),
        (b"GET /%ff HTTP/1.1\r\nHost: a\r\n\r\n", {"path": "/�", "raw_path": b"/%ff"}),
        (b"GET //x HTTP/1.1\r\nHost: a\r\n\r\n", {"path": "//x", "query_string": b""}),
        (
            b"GET /? HTTP/1.1\r\nHost: a\r\nEmpty:\r\n\r\n",
            {"headers": [(b"host", b"a"), (b"empty", b"")]},
        ),
    ],
)
def test_unusual_targets_and_heads(asgi: Make, head: bytes, expected: dict[str, Any]) -> None:
    app = Keeping()
    w = asgi(app)
    _, answer = w.ask(head)
    assert answer.status == 200
    for name, value in expected.items():
        assert app.scopes[0][name] == value


@pytest.mark.parametrize(
    ("root_path", "target", "path", "raw_path"),
    [
        ("/api", b"/x?y", "/api/x", b"/api/x"),
        ("/api", b"/api/%20x", "/api/api/ x", b"/api/api/%20x"),
        ("/api", b"http://other.example?y", "/api/", b"/api/"),
        ('/caf\u00e9/a+b;c="', b"/%2F", '/caf\u00e9/a+b;c="//', b"/caf%C3%A9/a+b;c=%22/%2F"),
        ("/api", b"*", "*", b"*"),  # the server as a whole
    ],
)
def test_a_root_path_comes_before_the_path(
    asgi: Make, root_path: str, target: bytes, path: str, raw_path: bytes
) -> None:
    app = Keeping()
    asgi(app, root_path=root_path).ask(b"OPTIONS %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    assert app.scopes[0]["root_path"] == root_path
    assert app.scopes[0]["path"] == path
    assert app.scopes[0]["raw_path"] == raw_path


# receive


def test_a_request_without_a_body_is_one_empty_message(asgi: Make) -> None:
    app = Keeping()
    asgi(app).connect().get("/")
    assert app.messages == [{"type": "http.request", "body": b"", "more_body": False}]


@pytest.mark.parametrize(
    "data",
    [
        b"Content-Length: 10\r\n\r\n0123456789",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_a_body(asgi: Make, data: bytes, bytewise: bool) -> None:
    app = Keeping()
    w = asgi(app)
    client = w.connect()
    data = b"POST / HTTP/1.1\r\nHost: a\r\n" + data
    if bytewise:
        client.send_bytewise(data)
    else:
        client.send(data)
    assert client.answer().body == b"0123456789"
    assert b"".join(message["body"] for message in app.messages) == b"0123456789"
    assert [message["more_body"] for message in app.messages][-1] is False
    if not bytewise:
        assert len(app.messages) == 1


def test_no_more_of_a_body_is_taken_than_the_high_water_mark(asgi: Make) -> None:
    gate = asyncio.Event()
    sizes = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await gate.wait()
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await send(start())
        await send(body(b"%d" % sum(sizes)))

    w = asgi(app)
    client = w.connect()
    size = 8 << 20
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
    taken = client.push(bytes(size))
    assert taken < size
    gate.set()
    client.send(bytes(size - taken))
    assert client.answer().body == b"%d" % size
    assert max(sizes) <= HIGH_WATER


def test_100_continue_when_the_body_is_asked_for(asgi: Make) -> None:
    client = asgi(Keeping()).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"ab")
    assert client.answer().body == b"ab"


def test_disconnect_after_the_response(asgi: Make) -> None:
    seen = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x"))
        seen.append(await receive())

    w = asgi(app)
    assert w.connect().get("/").body == b"x"
    w.wait_for(lambda: seen)
    assert seen == [{"type": "http.disconnect"}]


def test_waiting_for_the_disconnect_ends_with_the_response(asgi: Make) -> None:
    seen = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        waiters = [asyncio.ensure_future(receive()) for _ in range(2)]
        await asyncio.sleep(0)
        await send(start())
        await send(body(b"x"))
        seen.extend(await asyncio.gather(*waiters))

    w = asgi(app)
    client = w.connect()
    assert client.get("/").body == b"x"
    w.wait_for(lambda: seen)
    assert seen == [{"type": "http.disconnect"}] * 2
    assert client.get("/").body == b"x"


@pytest.mark.parametrize("way", ["close", "cut", "half_close"])
@pytest.mark.parametrize("early", [False, True])
def test_an_early_disconnect(asgi: Make, way: str, early: bool) -> None:
    """`early`: before the application asks."""
    seen: list[Any] = []
    gate = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        seen.append(await receive())
        await gate.wait()
        seen.append(await receive())

    w = asgi(app)
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.wait_for(lambda: seen)
    if not early:
        gate.set()
    w.settle()
    getattr(client, way)()
    w.settle()
    gate.set()
    w.wait_for(lambda: len(seen) == 2)
    assert seen[1] == {"type": "http.disconnect"}
    w.wait_for(lambda: not w.server.connections)
    assert "[error]" not in w.log


def test_a_client_that_leaves_in_the_middle_of_its_body(asgi: Make) -> None:
    app = Keeping()
    w = asgi(app)
    client = w.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
    w.wait_for(lambda: app.messages)
    client.close()
    w.wait_for(lambda: len(app.messages) == 2)
    assert app.messages[1] == {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"Content-Length: 9\r\n\r\n", None),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n40\r\n" + b"x" * 64, 413),
    ],
)
def test_a_body_that_cannot_be_read_is_answered_for_the_application(
    asgi: Make, data: bytes, status: int | None
) -> None:
    app = Keeping()
    w = asgi(app, limits={"body": 50})
    client = w.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + data)
    if status is None:
        w.pass_time(31.0)
    answer = client.answer()
    assert answer.status == (status or 408)
    assert answer.closes
    assert app.messages[-1] == {"type": "http.disconnect"}
    assert "client sent an invalid request body" in w.log


def test_asking_whether_the_client_is_there(asgi: Make) -> None:
    """As Starlette's is_disconnected does: receive() in a scope that is cancelled already."""
    there = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for _ in range(3):
            try:
                async with asyncio.timeout(0):
                    await receive()
            except TimeoutError:
                there.append(True)
        await send(start())
        await send(body(b"there"))

    assert asgi(app).connect().get("/").body == b"there"
    assert there == [True] * 3


# send


def test_head_and_body_go_out_together(asgi: Make) -> None:
    w = asgi(
        sends(start(201, [(b"x-a", b"1"), (b"x-a", b"2"), (b"X-Upper", b"\xe9")]), body(b"hello"))
    )
    client = w.connect()
    answer = client.get("/")
    assert (answer.status, answer.body) == (201, b"hello")
    assert answer.get_all("x-a") == ["1", "2"]
    assert answer.get("x-upper") == "é"
    assert answer.get("content-length") == "5"
    assert answer.get("date")
    assert client.get("/").status == 201


@pytest.mark.parametrize(
    "headers", [[], (), iter(()), [[b"x-y", b"z"]], [(b"x-y", bytearray(b"z"))]]
)
def test_headers_may_be_any_pairs(asgi: Make, headers: Any) -> None:
    assert asgi(sends(start(headers=headers), body(b"x"))).connect().get("/").body == b"x"


def test_defaults_of_the_messages(asgi: Make) -> None:
    app = sends({"type": "http.response.start", "status": 200}, {"type": "http.response.body"})
    answer = asgi(app).connect().get("/")
    assert (answer.status, answer.body, answer.get("content-length")) == (200, b"", "0")


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_bodies_of_bytes(asgi: Make, data: Any) -> None:
    assert asgi(sends(start(), body(data))).connect().get("/").body == b"abc"


def test_a_stream_is_chunked(asgi: Make) -> None:
    app = sends(start(), body(b"a", True), body(b"", True), body(b"b", True), body())
    w = asgi(app)
    client = w.connect()
    for _ in range(2):
        answer = client.get("/")
        assert answer.body == b"ab"
        assert answer.get("transfer-encoding") == "chunked"
        assert answer.complete


def test_a_stream_with_a_length_is_not(asgi: Make) -> None:
    headers = [(b"content-length", b"2")]
    answer = asgi(sends(start(headers=headers), body(b"a", True), body(b"b"))).connect().get("/")
    assert answer.body == b"ab"
    assert answer.get("content-length") == "2"
    assert answer.get("transfer-encoding") is None


def test_a_stream_to_http_1_0_ends_with_the_connection(asgi: Make) -> None:
    w = asgi(sends(start(), body(b"a", True), body(b"b")))
    client, answer = w.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert answer.body == b"ab"
    client.assert_closed()


def test_each_piece_is_sent_when_it_is_made(asgi: Make) -> None:
    gate = asyncio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"first", True))
        await gate.wait()
        await send(body(b"last"))

    w = asgi(app)
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"first" in client.receive()
    gate.set()
    assert b"last" in client.receive()


def test_a_slow_client_stops_the_application(asgi: Make) -> None:
    sent = 0
    size = 64 << 20

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start())
        while sent < size:
            await send(body(bytes(32768), True))
            sent += 32768
        await send(body())

    w = asgi(app)
    client = w.connect(narrow=True)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.settle()
    assert sent < 1 << 20
    before = sent
    w.settle()
    assert sent == before
    for _ in range(40):
        client.receive()
    w.settle()
    assert before < sent < size
    client.cut()


def test_a_fast_stream_lets_others_have_their_turn(asgi: Make) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        other = asyncio.ensure_future(count())
        await send(start(304, []))  # nothing of it is sent, so the client is never slow
        for _ in range(100):
            await send(body(bytes(65536), True))
        await send(body())
        other.cancel()
        done.set()

    done = asyncio.Event()
    w = asgi(app)
    assert w.connect().get("/").status == 304
    w.wait_for(done.is_set)
    assert turns >= 8


@pytest.mark.parametrize("pieces", [(b"hello",), (b"he", b"llo")])
@pytest.mark.parametrize("length", [None, 5])
def test_head(asgi: Make, pieces: tuple[bytes, ...], length: int | None) -> None:
    headers = [] if length is None else [(b"content-length", b"%d" % length)]
    messages = [body(piece, more=True) for piece in pieces[:-1]]
    w = asgi(sends(start(headers=headers), *messages, body(pieces[-1])))
    client = w.connect()
    for _ in range(2):
        client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = client.answer("HEAD")
        assert answer.status == 200
        assert answer.body == b""
        if length or len(pieces) == 1:
            assert answer.get("content-length") == "5"


def test_head_of_an_application_that_sends_no_body(asgi: Make) -> None:
    w = asgi(sends(start(headers=[(b"content-length", b"1234")]), body()))
    client, answer = w.ask(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD")
    assert answer.get("content-length") == "1234"
    w = asgi(sends(start(), body()))
    client, answer = w.ask(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD")
    assert answer.get("content-length") is None
    client.assert_silent()


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("headers", [[], [(b"content-length", b"7")]])
@pytest.mark.parametrize("data", [b"", b"content"])
def test_statuses_without_a_body(asgi: Make, status: int, headers: Any, data: bytes) -> None:
    w = asgi(sends(start(status, headers), body(data)))
    client = w.connect()
    for _ in range(2):
        answer = client.get("/")
        assert (answer.status, answer.body) == (status, b"")
    client.assert_silent()


def test_connection_close_is_honoured_and_the_rest_is_ours(asgi: Make) -> None:
    headers = [
        (b"connection", b"close, x-y"),
        (b"transfer-encoding", b"chunked"),
        (b"keep-alive", b"timeout=5"),
        (b"date", b"never"),
    ]
    client = asgi(sends(start(headers=headers), body(b"x"))).connect()
    answer = client.get("/")
    assert answer.body == b"x"
    assert answer.get("connection") == "close"
    assert answer.get("transfer-encoding") is None
    assert answer.get("keep-alive") is None
    assert answer.get("date") != "never"
    client.assert_closed()


def test_trailers(asgi: Make) -> None:
    def trailers(*headers: tuple[bytes, bytes], more: bool = False) -> dict[str, Any]:
        return {"type": "http.response.trailers", "headers": headers, "more_trailers": more}

    app = sends(
        start(headers=[(b"content-length", b"4")], trailers=True),
        body(b"data"),
        trailers((b"x-sum", b"1"), more=True),
        trailers((b"x-more", b"2")),
    )
    client = asgi(app).connect()
    for _ in range(2):
        answer = client.get("/")
        assert answer.body == b"data"
        assert answer.trailers == [("x-sum", "1"), ("x-more", "2")]
    _, answer = asgi(app).ask(b"GET / HTTP/1.0\r\n\r\n")
    assert answer.body == b"data"


def test_early_hints(asgi: Make) -> None:
    hint = {
        "type": "http.response.early_hint",
        "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"],
    }
    w = asgi(sends(hint, start(), body(b"x")))
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    data = b""
    while b"\r\n\r\nx" not in data:
        data += client.receive()
    assert data.startswith(
        b"HTTP/1.1 103 Early Hints\r\n"
        b"Link: </a.css>; rel=preload\r\nLink: </b.js>; rel=preload\r\n\r\n"
        b"HTTP/1.1 200 OK\r\n"
    )


# Files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(300_000))
    return path


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"300000")]])
def test_pathsend(asgi: Make, file: Path, headers: Any) -> None:
    app = sends(start(headers=headers), {"type": "http.response.pathsend", "path": str(file)})
    client = asgi(app).connect()
    for _ in range(2):
        answer = client.get("/")
        assert answer.body == file.read_bytes()
        assert answer.get("content-length") == "300000"
    client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = client.answer("HEAD")
    assert (answer.body, answer.get("content-length")) == (b"", "300000")


@pytest.mark.parametrize(
    ("length", "expected"),
    [(b"5", "the body has 300000 bytes and the declared"), (b"300001", "300001")],
)
def test_pathsend_of_another_size_than_declared(
    asgi: Make, file: Path, length: bytes, expected: str
) -> None:
    app = sends(
        start(headers=[(b"content-length", length)]),
        {"type": "http.response.pathsend", "path": str(file)},
    )
    w = asgi(app)
    w.expect(expected)
    assert w.connect().get("/").status == 500


def test_pathsend_of_a_file_that_is_not_there(asgi: Make, tmp_path: Path) -> None:
    caught = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        path = str(tmp_path / scope["path"][1:])
        try:
            await send({"type": "http.response.pathsend", "path": path})
        except (OSError, ValueError) as error:
            caught.append(type(error))
            await send(body(b"instead"))

    client = asgi(app).connect()
    assert client.get("/missing").body == b"instead"
    assert client.get("/").body == b"instead"
    assert caught == [FileNotFoundError, ValueError]


def test_zerocopysend(asgi: Make, file: Path) -> None:
    content = file.read_bytes()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        with file.open("rb", buffering=0) as opened:
            await send(start())
            await send(body(b"<", True))
            opened.seek(100)
            part = {"type": "http.response.zerocopysend", "file": opened, "more_body": True}
            await send({**part, "count": 50})
            await send({**part, "count": 50})
            await send({**part, "offset": 7, "count": 3})
            await send({**part, "count": 10})
            await send({**part, "more_body": False})

    answer = asgi(app).connect().get("/")
    assert answer.body == b"<" + content[100:200] + content[7:10] + content[200:]
    assert answer.complete


# What applications get wrong


def _wrong(*messages: dict[str, Any], match: str) -> Any:
    return pytest.param(messages, match, id=re.sub(r"\W+", "-", match)[:40])


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        _wrong(body(b"x"), match="http.response.start comes first"),
        _wrong(start(), start(), match="the response was started already"),
        _wrong({"type": "http.response.begin"}, match="unknown ASGI message 'http.response.begin'"),
        _wrong({"type": "websocket.accept"}, match="unknown ASGI message 'websocket.accept'"),
        _wrong({}, match="KeyError: 'type'"),
        _wrong(start(99), match="status is an int from 200 to 999, not 99"),
        _wrong(start("200"), match="status is an int from 200 to 999, not '200'"),
        _wrong({"type": "http.response.start"}, match="status is an int from 200 to 999, not None"),
        _wrong(start(103), match="status is an int from 200 to 999, not 103"),
        _wrong(start(), body("text"), match="the body in http.response.body is bytes, not str"),
        _wrong(start(), body(None), match="the body in http.response.body is bytes, not NoneType"),
        _wrong(start(headers=[("a", "b")]), match="header names and values are bytes, not str"),
        _wrong(start(headers=[(b"a", 1)]), match="header names and values are bytes, not int"),
        _wrong(start(headers=[b"abc"]), match="a header is a pair of name and value"),
        _wrong(start(headers=5), match="TypeError: 'int' object is not iterable"),
        _wrong(start(headers=[(b"a", b"b\r\nX: y")]), match="invalid character in the value"),
        _wrong(start(headers=[(b"a", b"b\nX: y")]), match="invalid character in the value"),
        _wrong(start(headers=[(b"a", b"\0")]), match="invalid character in the value"),
        _wrong(start(headers=[(b"a b", b"c")]), match="invalid header name"),
        _wrong(start(headers=[(b"a\r\nb", b"c")]), match="invalid header name"),
        _wrong(start(headers=[(b"", b"c")]), match="invalid header name"),
        _wrong(
            start(headers=[(b"content-length", b"-1")]), match="content-length must be a number"
        ),
        _wrong(
            start(headers=[(b"content-length", b"1"), (b"content-length", b"2")]),
            match="two different content-lengths",
        ),
        _wrong(
            start(headers=[(b"content-length", b"3")]),
            body(b"more"),
            match="the body has 4 bytes and the declared Content-Length is 3",
        ),
        _wrong(
            start(headers=[(b"content-length", b"3")]),
            body(b"le"),
            match="the body has 2 bytes and the declared Content-Length is 3",
        ),
        _wrong(
            start(),
            {"type": "http.response.trailers", "headers": []},
            match="http.response.start did not announce trailers",
        ),
        _wrong(
            start(trailers=True),
            {"type": "http.response.trailers", "headers": []},
            match="the body comes first",
        ),
        _wrong(
            start(),
            {"type": "http.response.early_hint", "links": []},
            match="early hints come before http.response.start",
        ),
        _wrong(
            {"type": "http.response.early_hint", "links": [b"a\r\nb"]}, match="invalid character"
        ),
        _wrong(match="the application returned without a response"),
        _wrong(start(), match="returned after http.response.start and without a body"),
    ],
)
def test_before_the_head_the_answer_is_500(asgi: Make, messages: Any, match: str) -> None:
    w = asgi(sends(*messages))
    w.expect(re.escape(match))
    client = w.connect()
    for _ in range(2):
        answer = client.get("/path")
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
    line = next(line for line in w.log.splitlines() if match in line)
    assert 'request: "GET /path HTTP/1.1"' in line
    assert "client: 127.0.0.1" in line


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        _wrong(start(), body(b"x", True), match="returned before its response was complete"),
        _wrong(
            start(headers=[(b"content-length", b"3")]),
            body(b"x", True),
            body(b"yz!"),
            match="more body than the declared Content-Length",
        ),
        _wrong(
            start(headers=[(b"content-length", b"3")]),
            body(b"x", True),
            body(b"y"),
            match="the body ended 1 bytes short of its Content-Length",
        ),
        _wrong(start(trailers=True), body(b"x"), body(b"y"), match="the body is complete"),
        _wrong(start(trailers=True), body(b"x"), match="returned before its response was complete"),
        _wrong(
            start(),
            body(b"x", True),
            {"type": "http.response.pathsend", "path": "/"},
            match="the body has begun already",
        ),
    ],
)
def test_after_the_head_the_connection_is_cut(asgi: Make, messages: Any, match: str) -> None:
    w = asgi(sends(*messages))
    w.expect(re.escape(match))
    assert not w.connect().get("/path").complete
    assert match in w.log
    assert 'request: "GET /path HTTP/1.1"' in w.log


def test_another_task_does_not_write_into_a_file(asgi: Make, tmp_path: Path) -> None:
    data = bytes(4_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    caught = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        with path.open("rb") as file:
            message = {"type": "http.response.zerocopysend", "file": file, "more_body": True}
            task = asyncio.create_task(send(message))
            await asyncio.sleep(0)
            for other in (body(b"x", True), body(b"x"), message):
                try:
                    await send(other)
                except RuntimeError as error:
                    caught.append(str(error))
            await task
        await send(body(b"end"))

    answer = asgi(app).connect(narrow=True).get()
    assert answer.complete
    assert answer.body == data + b"end"
    assert len(caught) == 3
    assert all("a file is being sent" in one for one in caught)


@pytest.mark.parametrize("wrong", [{"count": -1}, {"offset": -5}])
def test_a_range_below_nothing(asgi: Make, file: Path, wrong: dict[str, int]) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        with file.open("rb") as opened:
            await send({"type": "http.response.zerocopysend", "file": opened, **wrong})

    w = asgi(app)
    w.expect("are not negative")
    assert w.connect().get().status == 500


def test_a_cancellation_that_nobody_asked_for_is_an_error(asgi: Make) -> None:
    """The application awaits a task that it has cancelled itself, before or behind its answer."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send(start())
            await send(body(b"done"))
        task = asyncio.ensure_future(asyncio.sleep(60))
        if scope["path"] == "/waits":
            await asyncio.sleep(0)
        task.cancel()
        await task

    w = asgi(app)
    w.expect("CancelledError")
    client = w.connect()
    for number, path in enumerate(("/", "/waits", "/late"), 1):
        assert client.get(path).status == (200 if path == "/late" else 500)
        w.wait_for(lambda number=number: w.log.count("[error]") == number)
    assert w.log.count("Traceback") == 3


def test_what_comes_after_the_end(asgi: Make) -> None:
    w = asgi(sends(start(), body(b"x"), body(b"y")))
    w.expect("the response is complete, after the response was complete")
    client = w.connect()
    for _ in range(2):
        assert client.get("/").body == b"x"
    client.assert_silent()


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["before", "started", "streaming", "after"])
@pytest.mark.parametrize("late", [False, True])
def test_an_exception(asgi: Make, error: BaseException, when: str, late: bool) -> None:
    """`late`: not in the handler's first step."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["path"] == "/fine":
            await send(start())
            await send(body(b"fine"))
            return
        if late:
            await asyncio.sleep(0)
        if when != "before":
            await send(start())
        if when == "streaming":
            await send(body(b"x", True))
        if when == "after":
            await send(body(b"x"))
        raise error

    w = asgi(app)
    said = {
        ValueError: "ValueError: boom",
        SystemExit: "the application called exit(): SystemExit(3)",
        KeyboardInterrupt: "KeyboardInterrupt",
    }[type(error)]
    w.expect(re.escape(said))
    client = w.connect()
    answer = client.get("/")
    if when in ("before", "started"):
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
    else:
        assert answer.complete is (when == "after")
    assert w.connect().get("/fine").body == b"fine"
    assert w.log.count("[error]") == 1
    assert 'request: "GET / HTTP/1.1"' in w.log
    assert "Traceback" in w.log


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Custom(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MuteError(), "MuteError: its text cannot be had"),
        (Custom("own"), "exception in a handler"),
        (GeneratorExit(), "exception in a handler"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
)
def test_what_is_seldom_raised(asgi: Make, error: BaseException, said: str) -> None:
    """Each is logged with its request, and answered."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.sleep(0)
        raise error

    w = asgi(app)
    w.expect(said)
    assert w.connect().get("/").status == 500
    assert f'{said}, client: 127.0.0.1, request: "GET / HTTP/1.1"' in w.log


# Clients that leave


@pytest.mark.parametrize("how", ["stream", "start"])
@pytest.mark.parametrize("reaction", ["raise", "return", "wrap", "group"])
def test_sending_to_nobody_is_an_oserror(asgi: Make, how: str, reaction: str) -> None:
    caught: list[OSError] = []
    gate = asyncio.Event()

    class ClientDisconnectedError(Exception):
        pass

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            if how == "start":
                await gate.wait()
            await send(start())
            while True:
                await send(body(bytes(1000), True))
                await asyncio.sleep(0)
        except OSError as error:
            caught.append(error)
            if reaction == "raise":
                raise
            if reaction == "wrap":
                raise ClientDisconnectedError from None
            if reaction == "group":
                raise ExceptionGroup("many", [error]) from None

    w = asgi(app)
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    if how == "stream":
        client.receive()
    w.turn()
    client.cut()
    w.wait_for(lambda: not w.server.connections)
    gate.set()
    w.wait_for(lambda: caught)
    w.settle()
    assert "[error]" not in w.log
    assert ("the client left" in w.log) is (reaction != "return")


def test_a_mistake_after_the_client_left_is_still_one(asgi: Make) -> None:
    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ZeroDivisionError("in the clean-up")

    w = asgi(app)
    w.expect("ZeroDivisionError: in the clean-up")
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.settle()
    client.cut()
    w.wait_for(lambda: "in the clean-up" in w.log)


def test_a_handler_that_does_not_listen_is_cancelled(asgi: Make) -> None:
    cancelled = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    w = asgi(app, timeouts={"abandoned": 5.0})
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.settle()
    client.close()
    w.pass_time(4.0)
    assert not cancelled
    w.pass_time(2.0)
    assert cancelled
    assert "[error]" not in w.log


def test_background_work_goes_on_behind_the_answer(asgi: Make) -> None:
    order = []
    gate = asyncio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x"))
        order.append("answered")
        await gate.wait()
        order.append("worked")

    w = asgi(app)
    client = w.connect()
    assert client.get("/").body == b"x"
    assert client.get("/").body == b"x"
    assert order == ["answered"] * 2
    gate.set()
    w.settle()
    assert order[2:] == ["worked"] * 2


# The worker's end


EVENTS = [(b"content-type", b"text/event-stream")]


def test_a_stream_of_events_ends_with_the_worker(asgi: Make) -> None:
    caught = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(headers=EVENTS))
        try:
            while True:
                await send(body(b"data: x\n\n", True))
                await asyncio.sleep(0)
        except OSError as error:
            caught.append(str(error))
            raise

    w = asgi(app)
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.wait_for(lambda: w.server.requests_running)
    w.turn()
    w.server.begin_graceful_exit()
    answer = client.answer()
    assert answer.complete
    assert answer.body.startswith(b"data: x")
    client.assert_closed()
    assert caught == ["the worker leaves, and the stream has ended"]


def test_a_stream_of_events_may_say_its_last_word_to_nobody(asgi: Make) -> None:
    """The end of the body that its `finally` sends is no mistake: the worker was quicker."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-type", b"text/event-stream")]))
        try:
            while True:
                await send(body(b"data: x\n\n", True))
                await asyncio.sleep(0)
        finally:
            await send(body())

    w = asgi(app)
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.receive()
    w.server.begin_graceful_exit()
    data = b""
    while more := client.receive():
        data += more
    assert data.endswith(b"0\r\n\r\n")
    w.settle()
    assert "[error]" not in w.log


def test_a_file_in_a_stream_of_events_is_sent_whole(asgi: Make, tmp_path: Path) -> None:
    """The end of the body would land in the middle of the file's chunk."""
    data = bytes(4_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(headers=EVENTS))
        with path.open("rb") as file:
            await send({"type": "http.response.zerocopysend", "file": file, "more_body": True})
        await send(body(b"more"))

    w = asgi(app)
    client = w.connect(narrow=True)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.settle()
    w.server.begin_graceful_exit()
    answer = client.answer()
    assert answer.complete
    assert answer.body == data
    client.assert_closed()
    assert "[error]" not in w.log


def test_a_quiet_stream_of_events_hears_of_the_drain(asgi: Make) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(headers=EVENTS))
        await send(body(b"", True))
        while (await receive())["type"] != "http.disconnect":
            pass
        await send(body(b"bye"))

    w = asgi(app)
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.settle()
    w.server.begin_graceful_exit()
    assert client.answer().complete
    client.assert_closed()


def test_one_that_neither_sends_nor_listens_is_cancelled(asgi: Make) -> None:
    """Starlette's, between two events, held its client and its worker to the last second."""
    over = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(headers=EVENTS))
        await send(body(b"data: x\n\n", True))
        try:
            await asyncio.Event().wait()
        finally:
            over.append(True)

    w = asgi(app)
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.settle()
    w.server.begin_graceful_exit()
    answer = client.answer()
    assert (answer.complete, answer.body) == (True, b"data: x\n\n")
    client.assert_closed()
    assert not over
    w.wait_for(lambda: over)


def test_one_whose_send_has_raised_tidies_up(asgi: Make) -> None:
    gate, over = asyncio.Event(), []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(headers=EVENTS))
        with contextlib.suppress(OSError):
            while True:
                await send(body(b"data: x\n\n", True))
                await asyncio.sleep(0)
        await gate.wait()
        over.append(True)

    w = asgi(app)
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.wait_for(lambda: w.server.requests_running)
    w.server.begin_graceful_exit()
    assert client.answer().complete
    passed: list[bool] = []
    w.loop.call_later(LAST_SECONDS, passed.append, True)  # behind the timer of the drain
    w.wait_for(lambda: passed)
    assert w.server.handlers()
    gate.set()
    w.wait_for(lambda: over)


def test_one_that_begins_when_the_worker_leaves_already(asgi: Make) -> None:
    gate = asyncio.Event()
    caught = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await gate.wait()
        await send(start(headers=EVENTS))
        try:
            await send(body(b"data: x\n\n", True))
        except OSError as error:
            caught.append(str(error))

    w = asgi(app)
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.settle()
    w.server.begin_graceful_exit()
    gate.set()
    assert client.answer().complete
    client.assert_closed()
    assert caught == ["the worker leaves, and the stream has ended"]


def test_other_responses_run_to_their_end(asgi: Make) -> None:
    gate = asyncio.Event()
    heard = []

    async def listen(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        heard.append(not gate.is_set())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        listener = asyncio.ensure_future(listen(receive))
        if scope["path"] == "/stream":
            await send(start())
            await send(body(b"first", True))
        await gate.wait()
        if scope["path"] != "/stream":
            await send(start())
        await send(body(b"last"))
        await listener

    w = asgi(app)
    clients = [w.connect(), w.connect()]
    for client, path in zip(clients, (b"/stream", b"/"), strict=True):
        client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
    w.settle()
    w.server.begin_graceful_exit()
    w.settle()
    gate.set()
    assert clients[0].answer().body == b"firstlast"
    assert clients[1].answer().body == b"last"
    w.settle()
    assert heard == [False, False]
