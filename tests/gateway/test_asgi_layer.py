"""`prefork.asgi(app)` in an onion: layers see its response as they see any other."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork.event.executor import Executor
from prefork.http.exchange import LAST_SECONDS

Make = Callable[..., Any]
Send = Callable[[dict[str, Any]], Any]
Receive = Callable[[], Any]
Scope = dict[str, Any]


def start(status: int = 200, headers: Any = (), **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers, **more}


def body(data: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sends(*messages: dict[str, Any]) -> Any:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


@pytest.fixture
def onion(wire: Make) -> Make:
    """A wire that serves an application with these layers."""

    def make(*layers: Any, **settings: Any) -> Any:
        w = wire(**settings)
        app = prefork.Application()
        for layer in layers:
            app.use(layer)
        w.loop.run_until_complete(app.startup())
        w.server.handler = app.callback(executor=Executor(w.loop, 1), error_log=w.server.error_log)
        w.app = app
        return w

    return make


async def marked(ctx: Any, next: Any) -> None:
    ctx.set("X-Before", "1")
    await next()
    ctx.set("X-After", f"{ctx.status} {ctx.type}")


async def shouting(ctx: Any, next: Any) -> None:
    """Changes whatever body there is."""
    await next()
    if isinstance(ctx.body, bytes):
        ctx.body = ctx.body.upper()
    elif ctx.body is not None:
        pieces = ctx.body

        async def upper() -> Any:
            async for piece in pieces:
                yield piece.upper()

        ctx.body = upper()


WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HEADERS = [
    (b"content-type", b"text/x-own"),
    (b"content-length", b"5"),
    (b"set-cookie", b"a=1"),
    (b"set-cookie", b"b=2"),
]


@pytest.mark.parametrize(
    "messages",
    [
        [start(201, HEADERS), body(b"hello")],
        [start(201, HEADERS), body(b"he", True), body(b"llo")],
        [start(201, HEADERS), body(b"", True), body(b"hello", True), body()],
    ],
)
def test_layers_around_it(onion: Make, messages: Any) -> None:
    client = onion(marked, shouting, prefork.asgi(sends(*messages), lifespan="off")).connect()
    for _ in range(2):
        answer = client.get("/")
        assert (answer.status, answer.body) == (201, b"HELLO")
        assert answer.get("x-before") == "1"
        assert answer.get("x-after") == "201 text/x-own"
        assert answer.get("content-type") == "text/x-own"
        assert answer.get_all("set-cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(onion: Make, status: int) -> None:
    client = onion(marked, prefork.asgi(sends(start(status), body()), lifespan="off")).connect()
    assert client.get("/").status == status
    assert client.get("/").status == status


@pytest.mark.parametrize("status", [204, 205, 304])
def test_a_stream_to_nowhere_comes_to_its_end(onion: Make, status: int) -> None:
    sent = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(status))
        for number in range(4):
            await send(body(b"x", number < 3))
            sent.append(number)

    w = onion(prefork.asgi(app, lifespan="off"))
    client = w.connect()
    assert [client.get().status for _ in range(2)] == [status] * 2
    w.settle()
    assert sent == [0, 1, 2, 3] * 2


def test_a_cancellation_that_nobody_asked_for_is_an_error(onion: Make) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise asyncio.CancelledError

    w = onion(prefork.asgi(app, lifespan="off"))
    w.expect("CancelledError")
    assert w.connect().get().status == 500
    assert w.log.count("[error]") == 1


def test_head(onion: Make) -> None:
    app = sends(start(headers=HEADERS), body(b"hello"))
    empty = sends(start(headers=HEADERS), body())
    stream = sends(start(headers=HEADERS), body(b"he", True), body(b"llo"))
    for one in (app, empty, stream):
        w = onion(marked, prefork.asgi(one, lifespan="off"))
        client, answer = w.ask(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD")
        assert (answer.status, answer.body, answer.get("content-length")) == (200, b"", "5")
        client.assert_silent()


def test_no_content_type_is_added(onion: Make) -> None:
    client = onion(prefork.asgi(sends(start(), body(b"x")), lifespan="off")).connect()
    assert client.get("/").get("content-type") is None


def test_a_file(onion: Make, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(bytes(200_000))

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        assert set(scope["extensions"]) == {"http.response.pathsend"}
        await send(start(headers=[(b"content-type", b"text/x-own")]))
        await send({"type": "http.response.pathsend", "path": str(file)})

    answer = onion(marked, prefork.asgi(app, lifespan="off")).connect().get("/")
    assert answer.body == bytes(200_000)
    assert answer.get("content-type") == "text/x-own"


def test_the_request_reaches_it_as_a_layer_has_left_it(onion: Make) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        text = f"{scope['path']} {scope['query_string'].decode()} {message['body'].decode()}"
        await send(start())
        await send(body(text.encode()))

    async def rewriting(ctx: Any, next: Any) -> None:
        if ctx.path.startswith("/old"):
            ctx.path = "/new"
        await next()

    w = onion(rewriting, prefork.asgi(app, lifespan="off"))
    for path, expected in ((b"/old?a=b", b"/new a=b hi"), (b"/x?c", b"/x c hi")):
        client = w.connect()
        client.send(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi" % path)
        assert client.answer().body == expected


def test_it_is_told_what_was_taken_off_the_path(onion: Make) -> None:
    """By a proxy, or by a layer; and of WebSockets, which used to lose what a layer had done."""
    scopes: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        scopes.append(scope)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        await send(start())
        await send(body())

    async def mounting(ctx: Any, next: Any) -> None:
        ctx.path = ctx.path.removeprefix("/caf\u00e9")
        await next()

    w = onion(mounting, prefork.asgi(app, lifespan="off", root_path="/caf\u00e9"))
    for fields in (
        b"",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    ):
        for path in (b"/caf%C3%A9/x%20y", b"/x%20y"):
            w.ask(b"GET %b?z HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path, fields))
    assert [scope["type"] for scope in scopes] == ["http", "http", "websocket", "websocket"]
    for scope in scopes:
        assert scope["root_path"] == "/caf\u00e9"
        assert scope["path"] == "/caf\u00e9/x y"
        assert scope["raw_path"] == b"/caf%C3%A9/x%20y"
        assert scope["query_string"] == b"z"


@pytest.mark.parametrize("layer", [prefork.asgi, prefork.wsgi])
@pytest.mark.parametrize("wrong", ["api", "/", "/api/", "/a%20b", "/a?b", "//a", "/a/../b"])
def test_a_wrong_root_path_is_refused(layer: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match='root_path is a path such as /api, or "", not '):
        layer(sends(), root_path=wrong)


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "the application returned before its response was complete"),
        ([start()], "the application returned before its response was complete"),
        ([body(b"x")], "http.response.start comes first"),
        ([start(headers=[(b"a", b"b\r\nc")])], "invalid character in the value"),
        (
            [start(headers=[(b"content-length", b"9")]), body(b"x")],
            "the declared Content-Length is 9",
        ),
        ([start(), {"type": "http.response.trailers"}], "unknown ASGI message"),
    ],
)
def test_mistakes_are_errors_of_the_onion(onion: Make, messages: Any, match: str) -> None:
    seen = []

    async def catching(_ctx: Any, next: Any) -> None:
        try:
            await next()
        except Exception as error:
            seen.append(str(error))
            raise

    w = onion(catching, prefork.asgi(sends(*messages), lifespan="off"))
    w.expect(".")
    assert w.connect().get("/").status == 500
    assert match in seen[0]


class Custom(BaseException):
    pass


@pytest.mark.parametrize("error", [Custom("own"), GeneratorExit()])
@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_exception_is_one_here(onion: Make, error: BaseException, late: bool) -> None:
    """Its task ended with it, and the layers around waited for an answer for ever."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if late:
            await send(start())
            await send(body(b"x", True))
        raise error

    w = onion(prefork.asgi(app, lifespan="off"))
    w.expect("the application raised")
    answer = w.connect().get("/")
    assert not answer.complete if late else answer.status == 500
    assert f"RuntimeError: the application raised {type(error).__name__}" in w.log
    assert 'request: "GET / HTTP/1.1"' in w.log


@pytest.mark.parametrize("when", ["first", "midway", "behind", "websocket"])
def test_exit_asks_for_another_worker(onion: Make, when: str) -> None:
    asked: list[str] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if when in ("midway", "behind"):
            await send(start())
            await send(body(b"x", when == "midway"))
            await asyncio.sleep(0)
        raise SystemExit(3)

    w = onion(prefork.asgi(app, lifespan="off"))
    w.app.replace_worker = asked.append
    w.expect(r"the application called exit\(\): SystemExit\(3\)")
    _, answer = w.ask(WEBSOCKET if when == "websocket" else b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.status == (200 if when in ("midway", "behind") else 500)
    assert answer.complete == (when != "midway")
    w.wait_for(lambda: asked)
    assert asked == ["the application called exit()"]
    assert w.log.count("[error]") == 1


def test_an_error_in_the_middle_cuts(onion: Make) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x", True))
        await asyncio.sleep(0)
        raise LookupError("boom")

    w = onion(prefork.asgi(app, lifespan="off"))
    w.expect("boom")
    assert not w.connect().get("/").complete


def test_work_behind_the_answer(onion: Make) -> None:
    gate = asyncio.Event()
    done = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x"))
        await gate.wait()
        done.append(True)

    w = onion(marked, prefork.asgi(app, lifespan="off"))
    assert w.connect().get("/").body == b"x"
    gate.set()
    w.wait_for(lambda: done)


@pytest.mark.parametrize("way", ["cut", "half_close"])
@pytest.mark.parametrize("listens", [False, True])
def test_a_client_that_leaves_a_stream(onion: Make, listens: bool, way: str) -> None:
    over = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            await send(body(b"x", True))
            if listens:
                await receive()
                over.append((await receive())["type"])
            else:
                while True:
                    await send(body(bytes(1000), True))
                    await asyncio.sleep(0)
        except OSError:
            over.append("OSError")
            raise

    w = onion(marked, prefork.asgi(app, lifespan="off"))
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.receive()
    getattr(client, way)()
    if way == "half_close" and not listens:
        client.cut()  # it may have gone on reading until here
    w.wait_for(lambda: over)
    assert over == ["http.disconnect" if listens else "OSError"]
    w.settle()


def test_an_application_that_does_not_listen_is_cancelled(onion: Make) -> None:
    ended = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await send(start())
            await send(body(b"x", True))
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    w = onion(prefork.asgi(app, lifespan="off"), timeouts={"abandoned": 5.0})
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.receive()
    client.cut()
    w.settle()
    assert not ended
    w.pass_time(6.0)
    assert ended


def test_its_lifespan_runs_with_the_hooks(onion: Make) -> None:
    events = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["word"] = b"shared"
            for what in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{what}"
                events.append(what)
                await send({"type": f"lifespan.{what}.complete"})
            return
        await send(start())
        await send(body(scope["state"]["word"]))

    w = onion(prefork.compose([marked, prefork.asgi(app)]))
    assert w.connect().get("/").body == b"shared"
    w.loop.run_until_complete(w.app.shutdown())
    assert events == ["startup", "shutdown"]


def test_a_websocket_passes_through(onion: Make) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})

    w = onion(marked, prefork.asgi(app, lifespan="off"))
    client = w.connect()
    client.send(WEBSOCKET)
    data = b""
    while b"\x81\x05hello\x88\x02\x03\xe8" not in data:
        data += client.receive()
    client.send(b"\x88\x82\0\0\0\0\x03\xe8")
    w.wait_for(lambda: not w.server.connections)


@pytest.mark.parametrize("how", ["sends", "listens", "neither"])
def test_a_stream_of_events_ends_with_the_worker(onion: Make, how: str) -> None:
    heard = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-type", b"text/event-stream")]))
        try:
            await send(body(b"data: x\n\n", True))
            while how == "sends":
                await send(body(b"data: x\n\n", True))
                await asyncio.sleep(0)
            while how == "listens":
                if (message := await receive())["type"] == "http.disconnect":
                    heard.append(message["type"])
                    return
            await asyncio.Event().wait()
        except (OSError, asyncio.CancelledError) as error:
            heard.append(str(error))
            raise

    w = onion(marked, shouting, prefork.asgi(app, lifespan="off"))
    client = w.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.wait_for(lambda: w.server.requests_running)
    w.turn()
    w.server.begin_graceful_exit()
    answer = client.answer()
    assert answer.complete
    assert answer.body.startswith(b"DATA: X")
    assert answer.get("X-After") == "200 text/event-stream"
    client.assert_closed()
    w.wait_for(lambda: heard)
    said = {
        "sends": "the worker leaves, and the stream has ended",
        "listens": "http.disconnect",
        "neither": "the worker leaves",
    }
    assert heard == [said[how]]
    assert "[error]" not in w.log


def test_a_stream_of_events_that_has_failed_is_not_made_whole(onion: Make) -> None:
    """Its error waits behind what a slow client has not taken yet."""
    over = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-type", b"text/event-stream")]))
        await send(body(bytes(4_000_000), True))
        await send(body(b"data: x\n\n", True))
        over.append(True)
        raise LookupError("boom")

    w = onion(prefork.asgi(app, lifespan="off"))
    w.expect("boom")
    client = w.connect(narrow=True)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.wait_for(lambda: over)
    w.server.begin_graceful_exit()
    assert not client.answer().complete
    assert "LookupError: boom" in w.log


def test_what_goes_on_behind_a_stream_of_events_is_not_cancelled(onion: Make) -> None:
    """The stream was complete, and only on its way to a slow client, when the worker left."""
    gate, over = asyncio.Event(), []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-type", b"text/event-stream")]))
        await send(body(bytes(4_000_000), True))
        await send(body())
        over.append("answered")
        await gate.wait()
        over.append("worked")

    w = onion(prefork.asgi(app, lifespan="off"))
    client = w.connect(narrow=True)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    w.wait_for(lambda: over)
    w.server.begin_graceful_exit()
    passed: list[bool] = []
    w.loop.call_later(LAST_SECONDS, passed.append, True)  # behind the timer of the drain
    w.wait_for(lambda: passed)
    assert w.server.handlers()
    gate.set()
    w.wait_for(lambda: len(over) == 2)
    assert client.answer().complete
