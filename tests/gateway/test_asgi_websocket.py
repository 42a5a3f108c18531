"""WebSockets of ASGI applications, over real sockets, with the client side of `websockets`."""

import asyncio
import contextlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from prefork.http.exchange import LAST_SECONDS

Make = Callable[..., Any]
Send = Callable[[dict[str, Any]], Any]
Receive = Callable[[], Any]
Scope = dict[str, Any]

HANDSHAKE = (
    b"GET /chat%20room?a=b HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\n"
    b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
)


class Peer:
    """A WebSocket client on a wire's client."""

    def __init__(self, client: Any, *, fields: bytes = b"", deflate: Any = False) -> None:
        self.client = client
        if deflate is True:
            deflate = ClientPerMessageDeflateFactory(client_max_window_bits=True)
        self.frames = ClientProtocol(
            parse_uri("ws://example.org/chat%20room?a=b"),
            extensions=[deflate] if deflate else None,
            subprotocols=["a", "b"] if b"Protocol" in fields else None,  # type: ignore[list-item]
            max_size=None,
        )
        request = self.frames.connect()
        for line in fields.split(b"\r\n"):
            name, _, value = line.decode().partition(": ")
            if name and name != "Sec-WebSocket-Protocol":
                request.headers[name] = value
        self.frames.send_request(request)
        self.flush()
        self.events: list[Any] = []
        while self.frames.state is State.CONNECTING and self.frames.handshake_exc is None:
            self.pull()
        self.answer = self.events.pop(0) if self.events else None
        assert self.frames.handshake_exc is None, self.frames.handshake_exc

    def flush(self) -> None:
        for data in self.frames.data_to_send():
            if data:
                self.client.send(data)
            else:
                with contextlib.suppress(OSError):  # the server was quicker
                    self.client.half_close()

    def pull(self) -> bool:
        """Take what comes next; False at the end of the stream."""
        data = self.client.receive()
        if data:
            self.frames.receive_data(data)
        else:
            self.frames.receive_eof()
        self.events += self.frames.events_received()
        self.flush()
        return bool(data)

    def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.frames.send_text(message.encode())
        else:
            self.frames.send_binary(message)
        self.flush()

    def frame(self) -> Frame:
        while not self.events:
            assert self.pull(), "the stream has ended"
        return self.events.pop(0)  # type: ignore[no-any-return]

    def receive(self) -> str | bytes:
        frame = self.frame()
        assert frame.fin
        assert frame.opcode in (Opcode.TEXT, Opcode.BINARY), frame
        return bytes(frame.data).decode() if frame.opcode is Opcode.TEXT else bytes(frame.data)

    def closed(self) -> tuple[int, str]:
        """Read to the end; the close that the server has sent."""
        while self.pull():
            pass
        close = self.frames.close_rcvd
        return (int(close.code), close.reason) if close else (1006, "")


async def echo(_scope: Scope, receive: Receive, send: Send) -> None:
    """Accepts and gives everything back."""
    assert (await receive()) == {"type": "websocket.connect"}
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        await send({**message, "type": "websocket.send"})


class Recording:
    """`echo` that keeps its scope and what it received."""

    def __init__(self, **accept: Any) -> None:
        self.accept = {"type": "websocket.accept", **accept}
        self.scope: Scope = {}
        self.messages: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        while True:
            message = await receive()
            self.messages.append(message)
            if message["type"] == "websocket.connect":
                await send(self.accept)
            elif message["type"] == "websocket.disconnect":
                return
            else:
                await send({**message, "type": "websocket.send"})


def test_the_scope(asgi: Make) -> None:
    app = Recording()
    w = asgi(app)
    peer = Peer(w.connect(), fields=b"Sec-WebSocket-Protocol: x\r\nX-One: 1")
    scope = app.scope
    assert scope["type"] == "websocket"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
    assert scope["scheme"] == "ws"
    assert scope["http_version"] == "1.1"
    assert scope["path"] == "/chat room"
    assert scope["raw_path"] == b"/chat%20room"
    assert scope["query_string"] == b"a=b"
    assert scope["subprotocols"] == ["a", "b"]
    assert (b"x-one", b"1") in scope["headers"]
    assert scope["client"] == peer.client.sock.getsockname()
    assert scope["state"] == {}
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert "method" not in scope


def test_a_root_path_comes_before_the_path(asgi: Make) -> None:
    app = Recording()
    Peer(asgi(app, root_path="/caf\u00e9").connect())
    assert app.scope["root_path"] == "/caf\u00e9"
    assert app.scope["path"] == "/caf\u00e9/chat room"
    assert app.scope["raw_path"] == b"/caf%C3%A9/chat%20room"


@pytest.mark.parametrize("deflate", [False, True])
def test_messages(asgi: Make, deflate: bool) -> None:
    app = Recording()
    w = asgi(app)
    peer = Peer(w.connect(), deflate=deflate)
    assert bool(peer.frames.extensions) is deflate
    for message in ("hello", "é" * 1000, b"\0\xff", "", b"", bytes(100_000)):
        peer.send(message)
        received = b"" if isinstance(message, bytes) else ""
        while len(received) < len(message) or not received:
            frame = peer.frame()
            piece = bytes(frame.data) if isinstance(message, bytes) else bytes(frame.data).decode()
            received += piece  # type: ignore[operator]
            if frame.fin:
                break
        assert received == message
    peer.frames.send_close(4001, "enough")
    peer.flush()
    assert peer.closed() == (4001, "enough")
    w.wait_for(lambda: not w.server.connections)
    assert app.messages[1] == {"type": "websocket.receive", "text": "hello"}
    assert app.messages[3] == {"type": "websocket.receive", "bytes": b"\0\xff"}
    assert app.messages[-1] == {"type": "websocket.disconnect", "code": 4001, "reason": "enough"}


def test_the_answer_and_its_headers(asgi: Make) -> None:
    w = asgi(Recording(subprotocol="b", headers=[(b"x-mine", b"1")]))
    peer = Peer(w.connect(), fields=b"Sec-WebSocket-Protocol: x")
    assert peer.frames.subprotocol == "b"
    assert peer.answer.headers["x-mine"] == "1"
    assert peer.answer.headers["date"]
    assert "sec-websocket-extensions" not in peer.answer.headers


def test_fragments_pings_and_what_comes_with_the_head(asgi: Make) -> None:
    w = asgi(echo)
    peer = Peer(w.connect())
    peer.frames.send_text(b"one ", fin=False)
    peer.frames.send_ping(b"there?")
    peer.frames.send_continuation("twö".encode(), fin=True)
    peer.flush()
    pong = peer.frame()
    assert (pong.opcode, bytes(pong.data)) == (Opcode.PONG, b"there?")
    assert peer.receive() == "one twö"
    # A client that does not wait for the answer.
    client = w.connect()
    client.send(HANDSHAKE + b"\r\n" + Frame(Opcode.TEXT, b"early").serialize(mask=True))
    data = b""
    while b"early" not in data:
        data += client.receive()
    assert data.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"Version: 13", b"Version: 8"), 400),
        ((b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), 400),
        ((b"Sec-WebSocket-Key", b"X-Key"), 400),
        ((b"GET", b"POST"), 405),
    ],
)
def test_no_handshake(asgi: Make, change: tuple[bytes, bytes], status: int) -> None:
    w = asgi(echo)
    fields = b"Content-Length: 0\r\n" if status == 405 else b""
    request = HANDSHAKE.replace(*change) + fields + b"\r\n"
    client, answer = w.ask(request)
    assert answer.status == status
    assert answer.get("sec-websocket-version") == "13"
    assert b"Failed to open a WebSocket connection" in answer.body
    assert "invalid WebSocket handshake" in w.log
    client.send(request)  # it is an ordinary connection still
    assert client.answer().status == status


def test_other_upgrades_are_declined(asgi: Make) -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": scope["type"].encode()})

    w = asgi(app)
    _, answer = w.ask(HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: h2c") + b"\r\n")
    assert answer.body == b"http"


# Denials


def test_close_before_accept_is_403(asgi: Make) -> None:
    seen = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 4000})
        seen.append(await receive())

    w = asgi(app)
    client, answer = w.ask(HANDSHAKE + b"\r\n")
    assert (answer.status, answer.body) == (403, b"Forbidden")
    w.wait_for(lambda: seen)
    assert seen[0]["type"] == "websocket.disconnect"
    client.send(HANDSHAKE + b"\r\n")
    assert client.answer().status == 403


@pytest.mark.parametrize("way", ["close", "answer"])
def test_who_waits_for_a_message_hears_of_the_denial(asgi: Make, way: str) -> None:
    seen = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            while not seen or seen[-1] != "websocket.disconnect":
                seen.append((await receive())["type"])

        task = asyncio.create_task(listen())
        await asyncio.sleep(0)
        if way == "close":
            await send({"type": "websocket.close"})
        else:
            await send({"type": "websocket.http.response.start", "status": 403})
            await send({"type": "websocket.http.response.body"})
        await task

    _, answer = asgi(app).ask(HANDSHAKE + b"\r\n")
    assert answer.status == 403
    assert seen == ["websocket.connect", "websocket.disconnect"]


@pytest.mark.parametrize("pieces", [[b"no entry"], [b"no ", b"entry"]])
def test_a_denial_of_its_own(asgi: Make, pieces: list[bytes]) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"www-authenticate", b"Basic")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        for piece in pieces:
            more = piece is not pieces[-1]
            await send({"type": "websocket.http.response.body", "body": piece, "more_body": more})

    _, answer = asgi(app).ask(HANDSHAKE + b"\r\n")
    assert (answer.status, answer.body) == (401, b"no entry")
    assert answer.get("www-authenticate") == "Basic"


# Ends


def test_the_application_closes(asgi: Make) -> None:
    seen = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4002, "reason": "bye"})
        await receive()
        seen.append(await receive())

    w = asgi(app)
    assert Peer(w.connect()).closed() == (4002, "bye")
    w.wait_for(lambda: not w.server.connections)
    assert seen == [{"type": "websocket.disconnect", "code": 4002, "reason": "bye"}]


def test_returning_closes_and_raising_closes_with_1011(asgi: Make) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        if broken:
            raise LookupError("boom")

    w = asgi(app)
    w.expect("LookupError: boom")
    broken = False
    assert Peer(w.connect()).closed() == (1000, "")
    broken = True
    assert Peer(w.connect()).closed() == (1011, "")
    assert 'request: "GET /chat%20room?a=b HTTP/1.1"' in w.log


@pytest.mark.parametrize("accepts", [False, True])
def test_exit_asks_for_another_worker(asgi: Make, accepts: bool) -> None:
    asked: list[str] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if accepts:
            await send({"type": "websocket.accept"})
        raise SystemExit(3)

    w = asgi(app)
    w.expect(r"the application called exit\(\): SystemExit\(3\)")
    w.host.replace_worker = asked.append
    if accepts:
        assert Peer(w.connect()).closed() == (1011, "")
    else:
        assert w.ask(HANDSHAKE + b"\r\n")[1].status == 500
    w.wait_for(lambda: asked)
    assert asked == ["the application called exit()"]


def test_a_cancellation_that_nobody_asked_for_is_an_error(asgi: Make) -> None:
    """The application awaits a task that it has cancelled itself."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        raise asyncio.CancelledError

    w = asgi(app)
    w.expect("CancelledError")
    assert Peer(w.connect()).closed() == (1011, "")
    assert "CancelledError" in w.log


@pytest.mark.parametrize("way", ["close", "cut", "half_close"])
def test_a_client_that_only_goes_away(asgi: Make, way: str) -> None:
    app = Recording()
    w = asgi(app)
    peer = Peer(w.connect())
    getattr(peer.client, way)()
    w.wait_for(lambda: not w.server.connections)
    w.settle()
    assert app.messages[-1] == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert "[error]" not in w.log


def test_sending_to_nobody_is_an_oserror(asgi: Make) -> None:
    caught = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "x"})
                await asyncio.sleep(0)
        except OSError as error:
            caught.append(error)
            raise

    w = asgi(app)
    peer = Peer(w.connect())
    peer.client.cut()
    w.wait_for(lambda: caught)
    w.settle()
    assert "[error]" not in w.log


@pytest.mark.parametrize(("whole", "code"), [(False, 1012), (True, 1001)])
def test_the_worker_leaves(asgi: Make, whole: bool, code: int) -> None:
    """1012: the client may come back at once; 1001: nobody will be there."""
    app = Recording()
    w = asgi(app)
    peer = Peer(w.connect())
    peer.send("x")
    assert peer.receive() == "x"
    w.server.stopping = whole
    w.server.begin_graceful_exit()
    assert peer.closed() == (code, "")
    w.wait_for(lambda: not w.server.connections)
    assert app.messages[-1]["code"] == code


def test_the_worker_leaves_a_handler_that_only_sends(asgi: Make) -> None:
    over = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        try:
            await asyncio.Event().wait()  # for something to send
        finally:
            over.append(True)

    w = asgi(app)
    peer = Peer(w.connect())
    w.server.begin_graceful_exit()
    assert peer.closed()[0] == 1012
    assert not over
    w.wait_for(lambda: over)


def test_a_handler_that_has_heard_tidies_up(asgi: Make) -> None:
    """However long it takes: its worker waits."""
    gate, over = asyncio.Event(), []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        await gate.wait()
        over.append(True)

    w = asgi(app)
    peer = Peer(w.connect())
    w.server.begin_graceful_exit()
    peer.closed()
    passed: list[bool] = []
    w.loop.call_later(LAST_SECONDS, passed.append, True)  # behind the timer of the drain
    w.wait_for(lambda: passed)
    assert w.server.handlers()
    gate.set()
    w.wait_for(lambda: over)


def test_a_cancelled_handler_closes(asgi: Make) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    w = asgi(app)
    peer = Peer(w.connect())
    w.server.cancel_running()
    assert peer.closed()[0] == 1012
    w.wait_for(lambda: not w.server.connections)


def test_a_client_that_does_not_answer_the_close_is_cut(asgi: Make) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    w = asgi(app)
    client = w.connect()
    client.send(HANDSHAKE + b"\r\n")
    w.settle()
    assert w.server.connections == 1
    w.pass_time(6.0)
    assert w.server.connections == 0


# Rules of the wire


def test_a_message_beyond_the_limit(asgi: Make) -> None:
    app = Recording()
    w = asgi(app, limits={"message": 1000})
    peer = Peer(w.connect(), deflate=True)
    peer.send(bytes(1000))
    assert peer.receive() == bytes(1000)
    peer.send(bytes(1001))  # a few bytes when packed
    assert peer.closed()[0] == 1009
    w.wait_for(lambda: not w.server.connections)
    assert app.messages[-1]["code"] == 1009


@pytest.mark.parametrize(
    ("opcode", "data", "mask", "code"),
    [
        (Opcode.TEXT, b"\xff", True, 1007),
        (Opcode.TEXT, b"x", False, 1002),
        (Opcode.CONT, b"x", True, 1002),
    ],
)
def test_broken_frames(asgi: Make, opcode: Opcode, data: bytes, mask: bool, code: int) -> None:
    app = Recording()
    w = asgi(app)
    peer = Peer(w.connect())
    peer.client.send(Frame(opcode, data).serialize(mask=mask))
    assert peer.closed()[0] == code
    w.wait_for(lambda: not w.server.connections)
    assert app.messages[-1]["code"] == code


def test_a_slow_application_stops_the_client(asgi: Make) -> None:
    gate = asyncio.Event()
    taken = 0

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal taken
        await receive()
        await send({"type": "websocket.accept"})
        await gate.wait()
        while (await receive())["type"] == "websocket.receive":
            taken += 1

    w = asgi(app)
    peer = Peer(w.connect())
    one = Frame(Opcode.BINARY, bytes(10_000)).serialize(mask=True)
    pushed = peer.client.push(one * 2000)
    assert pushed < 2000 * len(one)
    gate.set()
    peer.client.send((one * 2000)[pushed:])
    w.wait_for(lambda: taken == 2000)


def test_a_slow_client_stops_the_application(asgi: Make) -> None:
    sent = 0

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "bytes": bytes(10_000)})
            sent += 1

    w = asgi(app)
    client = w.connect(narrow=True)
    client.send(HANDSHAKE + b"\r\n")
    w.settle()
    assert sent < 100
    client.cut()


def opened(w: Any, offer: bytes = b"") -> Any:
    """A client that has been told 101; nothing reads what comes to it."""
    client = w.connect(narrow=True)
    client.send(HANDSHAKE + offer + b"\r\n")
    assert client.receive().startswith(b"HTTP/1.1 101 ")
    return client


async def deaf(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Accepts, and hears nothing of what comes."""
    await send({"type": "websocket.accept"})
    await asyncio.Event().wait()


def test_pings_of_a_client_that_takes_no_pongs(asgi: Make) -> None:
    w = asgi(echo)
    client = opened(w)
    (connection,) = w.server.pool.connections
    flood = Frame(Opcode.PING, bytes(125)).serialize(mask=True) * 20_000
    pushed = client.push(flood)
    assert pushed < len(flood)
    assert connection.out.size < 256 * 1024
    # Once it takes them, all are there, and so is the answer to what it has to say next.
    rest = flood[pushed:] + Frame(Opcode.TEXT, b"done").serialize(mask=True)
    size = 0
    while size < 20_000 * 127 + 6:
        with contextlib.suppress(BlockingIOError):
            rest = rest[client.sock.send(rest) :] if rest else rest
        size += len(client.receive())
    assert not rest


def test_fragments_of_nothing_take_no_memory(asgi: Make) -> None:
    tracemalloc.start()
    try:
        w = asgi(deaf)
        client = opened(w)
        client.send(Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True))
        before, _ = tracemalloc.get_traced_memory()
        client.send(Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 20_000)
        w.settle()
        assert tracemalloc.get_traced_memory()[0] - before < 80_000
    finally:
        tracemalloc.stop()


def test_what_packed_messages_unpack_to_is_bounded(asgi: Make) -> None:
    """Sixty of them fit into what is read at once."""
    gate = asyncio.Event()
    taken = 0

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal taken
        await send({"type": "websocket.accept"})
        await gate.wait()
        await receive()
        while (await receive())["type"] == "websocket.receive":
            taken += 1

    tracemalloc.start()
    try:
        w = asgi(app)
        peer = Peer(w.connect(), deflate=True)
        for _ in range(60):
            peer.frames.send_binary(bytes(1 << 20))
        packed = b"".join(peer.frames.data_to_send())
        assert len(packed) < 65536
        before, _ = tracemalloc.get_traced_memory()
        peer.client.send(packed)
        w.settle()
        assert tracemalloc.get_traced_memory()[0] - before < 10 << 20
    finally:
        tracemalloc.stop()
    gate.set()
    w.wait_for(lambda: taken == 60)


def test_messages_that_come_with_the_handshake_are_bounded_too(asgi: Make) -> None:
    w = asgi(deaf)
    client = w.connect()
    early = Frame(Opcode.BINARY, b"").serialize(mask=True) * 1000
    client.send(HANDSHAKE + b"\r\n" + early)
    flood = Frame(Opcode.BINARY, bytes(10_000)).serialize(mask=True) * 2000
    assert client.push(flood) < len(flood)


def test_a_worker_that_drains_accepts_before_it_closes(asgi: Make) -> None:
    gate = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await gate.wait()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    w = asgi(app)
    client = w.connect()
    client.send(HANDSHAKE + b"\r\n")
    w.settle()
    w.server.begin_graceful_exit()
    gate.set()
    data = b""
    while not data.endswith(b"\x88\x02\x03\xf4"):  # 1012
        data += client.receive()
    assert data.startswith(b"HTTP/1.1 101 ")
    client.close()


def test_nobody_asks_after_a_client_that_was_cut(asgi: Make) -> None:
    """It sent something after our close, and never its own."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    w = asgi(app, timeouts={"ping": 10.0, "pong": 5.0})
    client = opened(w)
    client.send(Frame(Opcode.TEXT, b"late").serialize(mask=True))
    w.pass_time(6.0)
    assert w.server.connections == 0
    keepalive = w.server.websockets
    for deadlines in (keepalive.silent, keepalive.asked, keepalive.closing):
        assert len(deadlines) == 0


def test_a_handler_that_does_not_notice_the_end_is_cancelled(asgi: Make) -> None:
    ended = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await deaf(scope, receive, send)
        finally:
            ended.append(True)

    w = asgi(app, timeouts={"abandoned": 7.0})
    peer = Peer(w.connect())
    peer.client.send(Frame(Opcode.TEXT, b"x").serialize(mask=False))
    assert peer.closed()[0] == 1002
    peer.client.close()
    w.wait_for(lambda: not w.server.connections)
    assert not ended
    w.pass_time(8.0)
    assert ended


def test_a_silent_client_is_asked_and_then_gone(asgi: Make) -> None:
    app = Recording()
    w = asgi(app, timeouts={"ping": 10.0, "pong": 5.0})
    peer = Peer(w.connect())
    client = w.connect()
    client.send(HANDSHAKE + b"\r\n")
    client.receive()
    for _ in range(3):
        w.pass_time(11.0)
        peer.pull()  # the ping, which it answers
        w.settle()
    assert w.server.connections == 1
    assert "has not answered a ping" in w.log
    peer.send("there")
    while (frame := peer.frame()).opcode is not Opcode.TEXT:
        assert frame.opcode is Opcode.PING
    peer.frames.send_close(1000)
    peer.flush()
    assert peer.closed() == (1000, "")


def test_a_slow_client_is_not_asked_while_it_takes_a_message(asgi: Make) -> None:
    size = 1_000_000

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.send", "bytes": bytes(size)})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    w = asgi(app, timeouts={"ping": 10.0, "pong": 5.0, "send": 30.0})
    client = opened(w)
    client.send(Frame(Opcode.TEXT, b"now").serialize(mask=True))
    got = 0
    for _ in range(6):
        for _ in range(8):
            got += len(client.receive())
        w.pass_time(11.0)
    assert got < size
    assert w.server.connections == 1
    while got < size:
        got += len(client.receive())
    w.pass_time(11.0)
    assert client.receive().endswith(b"\x89\x00")  # now
    w.pass_time(6.0)
    assert "has not answered a ping" in w.log


# What applications get wrong


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([{"type": "websocket.send", "text": "x"}], "begins with websocket.accept"),
        ([{"type": "http.response.start", "status": 200}], "begins with websocket.accept"),
        ([{"type": "websocket.accept", "subprotocol": "a b"}], "is a token"),
        ([{"type": "websocket.accept", "headers": [(b"a", b"b\r\nc: d")]}], "invalid character"),
        (
            [{"type": "websocket.accept", "headers": [(b"sec-websocket-protocol", b"a")]}],
            "are the server's headers",
        ),
        ([], "the application returned without a response"),
    ],
)
def test_before_accept_the_answer_is_500(asgi: Make, messages: Any, match: str) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    w = asgi(app)
    w.expect(match)
    _, answer = w.ask(HANDSHAKE + b"\r\n")
    assert answer.status == 500
    assert match in w.log


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([{"type": "websocket.accept"}], "is accepted, and takes websocket.send"),
        ([{"type": "http.response.body"}], "is accepted, and takes websocket.send"),
        ([{"type": "websocket.send"}], "has either `text` or `bytes`"),
        ([{"type": "websocket.send", "text": "a", "bytes": b"b"}], "has either"),
        ([{"type": "websocket.send", "text": b"a"}], "`text` is str"),
        ([{"type": "websocket.send", "bytes": "a"}], "`text` is str"),
        ([{"type": "websocket.close", "code": 17}], "cannot be closed with 17"),
    ],
)
def test_after_accept_it_is_closed_with_1011(asgi: Make, messages: Any, match: str) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        for message in messages:
            await send(message)

    w = asgi(app)
    w.expect(match)
    assert Peer(w.connect()).closed()[0] == 1011
    assert match in w.log


def test_sending_after_its_own_close(asgi: Make) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        await send({"type": "websocket.send", "text": "x"})

    w = asgi(app)
    w.expect("it is closed")
    assert Peer(w.connect()).closed()[0] == 1000
    w.wait_for(lambda: "it is closed" in w.log)
