"""Libraries with connections of their own in a real application: Redis, httpx, aiohttp, anyio.

Their pools are opened in the lifespan, used by requests, WebSockets and background tasks, and
closed in the shutdown, when the last of these has ended. The Redis is a real one, started here.
"""

import contextlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conftest import free_port

Daemon = Callable[..., Any]
SLOW = 30.0

APPLICATION = """
import asyncio, contextlib, os
import aiohttp, anyio, anyio.abc, httpx
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from redis.asyncio import Redis

PEER = os.environ["PEER"]

def client(name):
    # Who waits for a message waits as long as it takes.
    return Redis.from_url(
        os.environ["REDIS"], client_name=name, decode_responses=True, socket_timeout=None
    )

async def listen(db, *, task_status):
    # What a task group of the lifespan does beside the requests.
    try:
        async with db.pubsub() as heard:
            await heard.subscribe("news")
            task_status.started()
            async for message in heard.listen():
                if message["type"] == "message":
                    await db.rpush("heard", message["data"])
    finally:
        with anyio.CancelScope(shield=True):
            await db.rpush("ends", "group")

@contextlib.asynccontextmanager
async def lifespan(app):
    async with (
        client("pool") as db,
        httpx.AsyncClient(base_url=PEER) as web,
        aiohttp.ClientSession(PEER) as session,
    ):
        async with anyio.create_task_group() as group:
            await group.start(listen, db)
            yield {"db": db, "web": web, "session": session}
            group.cancel_scope.cancel()
        await db.rpush("ends", "pools")
    async with client("last") as last:
        mine = [one for one in await last.client_list() if one["name"] == "pool"]
        await last.rpush("ends", f"{len(mine)} left, {web.is_closed}, {session.closed}")

app = FastAPI(lifespan=lifespan, default_response_class=PlainTextResponse)

@app.get("/counted")
async def counted(request: Request):
    db = request.state.db
    await asyncio.gather(*(db.incr("count") for _ in range(20)))
    async with db.pipeline(transaction=True) as pipe:
        found, _ = await pipe.get("count").delete("count").execute()
    return found

@app.get("/wait")
async def wait(request: Request):
    _, text = await request.state.db.blpop("release")
    return text

@app.get("/timeout")
async def timeout(request: Request):
    try:
        async with asyncio.timeout(0.05):
            await request.state.db.blpop("nobody-pushes-here")
    except TimeoutError:
        return "timed out"

@app.get("/later")
async def later(request: Request, tasks: BackgroundTasks):
    async def work():
        _, text = await request.state.db.blpop("later")
        await request.state.db.rpush("ends", text)
    tasks.add_task(work)
    return "answered"

@app.get("/events")
async def events(request: Request):
    async def pieces():
        async with request.state.db.pubsub() as heard:
            await heard.subscribe("events")
            yield "event: subscribed\\n\\n"
            async for message in heard.listen():
                if message["type"] == "message":
                    yield f"data: {message['data']}\\n\\n"
    return StreamingResponse(pieces(), media_type="text/event-stream")

@app.websocket("/chat")
async def chat(websocket: WebSocket):
    db = websocket.state.db

    async def hear(*, task_status):
        async with db.pubsub() as heard:
            await heard.subscribe("chat")
            task_status.started()
            async for message in heard.listen():
                if message["type"] == "message":
                    await websocket.send_text(message["data"])

    await websocket.accept()
    try:
        async with anyio.create_task_group() as group:
            await group.start(hear)
            await websocket.send_text("joined")
            async for text in websocket.iter_text():
                await db.publish("chat", text)
            group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await db.rpush("ends", "chat")

@app.get("/httpx")
async def by_httpx(request: Request):
    web = request.state.web
    answers = await asyncio.gather(*(web.get(f"/{number}") for number in range(5)))
    async with web.stream("GET", "/large") as answer:
        size = sum([len(piece) async for piece in answer.aiter_bytes()])
    said = (await web.post("/echo", content=b"x" * 100_000)).text
    try:
        await web.get("/never", timeout=0.05)
    except httpx.ReadTimeout:
        return f"{[one.text for one in answers]} {size} {len(said)} timed out"

@app.get("/aiohttp")
async def by_aiohttp(request: Request):
    session = request.state.session
    async def get(path):
        async with session.get(path) as answer:
            return await answer.text()
    answers = await asyncio.gather(*(get(f"/{number}") for number in range(5)))
    size = len(await get("/large"))
    async with session.post("/echo", data=b"x" * 100_000) as answer:
        said = await answer.text()
    try:
        async with session.get("/never", timeout=aiohttp.ClientTimeout(total=0.05)):
            pass
    except TimeoutError:
        return f"{answers} {size} {len(said)} timed out"

@app.get("/itself")
async def itself(request: Request):
    # Of the one worker that is at work on this.
    answer = await request.state.web.get(f"{request.base_url}counted")
    return answer.text
"""


class _Answers(http.server.BaseHTTPRequestHandler):
    """What the applications' HTTP clients talk to."""

    protocol_version = "HTTP/1.1"
    server: "Peer"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        if self.path == "/never":
            self.rfile.read()  # until the client has left
            self.close_connection = True
            return
        self._answer(b"x" * 1_000_000 if self.path == "/large" else self.path.encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Peer(http.server.ThreadingHTTPServer):
    connections = 0


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(SLOW)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of our own, in memory, on a free port."""
    program = shutil.which("redis-server")
    if program is None:
        lack = "no redis-server (Debian: apt-get install redis-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(lack)
        pytest.skip(lack)
    room = tmp_path_factory.mktemp("redis")
    port = free_port()
    log = room / "redis.log"
    settings = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no")
    process = subprocess.Popen(
        [program, *settings, "--dir", str(room), "--logfile", str(log)],
        stdin=subprocess.DEVNULL,
    )
    try:
        _wait_for(lambda: _read(log).count("Ready to accept connections"), process, log)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(SLOW)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _wait_for(condition: Callable[[], object], process: Any, log: Path) -> None:
    deadline = time.monotonic() + SLOW
    while not condition():
        assert process.poll() is None, _read(log)
        assert time.monotonic() < deadline, _read(log)
        time.sleep(0.01)


@pytest.fixture
def db(redis_url: str) -> Iterator["redis.Redis"]:
    """The test's own client, and an empty database."""
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=SLOW) as client:
        client.flushall()
        yield client


@pytest.fixture
def site(daemon: Daemon, redis_url: str, peer: Peer) -> Any:
    host, port = "localhost", peer.server_address[1]  # a name, so that they look it up
    return daemon(
        app=APPLICATION,
        lifespan="on",
        environ={"REDIS": redis_url, "PEER": f"http://{host}:{port}"},
        timeouts={"abandoned": 0.1},
    )


def begin(server: Any, path: str) -> socket.socket:
    sock: socket.socket = server.connect()
    sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
    return sock


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    return data


def test_clients_of_redis_and_http_in_handlers(db: "redis.Redis", site: Any, peer: Peer) -> None:
    for _ in range(3):
        assert site.get("/counted").text == "20"
    assert site.get("/timeout").text == "timed out"
    for client in ("httpx", "aiohttp"):
        before = peer.connections
        for _ in range(3):
            answer = site.get(f"/{client}").text
            assert answer == "['/0', '/1', '/2', '/3', '/4'] 1000000 100000 timed out"
        # Five at once, and one for each that timed out; the others took what they found.
        assert peer.connections - before <= 8
    assert site.get("/itself").text == "20"
    # The lifespan's task group is at work.
    db.publish("news", "one")
    assert db.blpop(["heard"], timeout=SLOW) == ("heard", "one")
    # Events from another connection's hands.
    with begin(site, "/events") as sock:
        read_until(sock, b"subscribed")
        for number in range(3):
            db.publish("events", str(number))
            read_until(sock, b"data: %d\n\n" % number)
    # A client left: the subscription is given up.
    site.wait_for(lambda: db.pubsub_numsub("events") == [("events", 0)])
    # One left while its handler waits for Redis. The handler is cancelled, and the connection that
    # it waited on goes, with the answer that would have come to somebody else.
    with begin(site, "/wait"):
        site.wait_for(lambda: db.info("clients")["blocked_clients"] == 1)
    site.wait_for(lambda: db.info("clients")["blocked_clients"] == 0)
    db.rpush("release", "next")
    assert site.get("/wait").text == "next"


def test_a_worker_leaves_with_its_pools_in_order(db: "redis.Redis", site: Any) -> None:
    url = f"ws://127.0.0.1:{site.port}/chat"
    with (
        connect(url) as one,
        connect(url) as two,
        begin(site, "/events") as events,
        begin(site, "/wait") as waiting,
        contextlib.closing(site.connect()) as leaver,
    ):
        for client in (one, two):
            assert client.recv(SLOW) == "joined"
        one.send("hello")
        assert (one.recv(SLOW), two.recv(SLOW)) == ("hello", "hello")
        read_until(events, b"subscribed")
        # Its background task outlives the answer, and that client.
        leaver.sendall(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
        read_until(leaver, b"answered")
        leaver.close()
        site.wait_for(lambda: db.info("clients")["blocked_clients"] == 2)
        site.send(signal.SIGQUIT)
        for client in (one, two):
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(SLOW)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        read_until(events, b"0\r\n\r\n")
        for _ in "12":
            assert db.blpop(["ends"], timeout=SLOW) == ("ends", "chat")
        # What has begun goes on, with the pool.
        db.rpush("release", "at last")
        assert b"at last" in read_until(waiting, b"at last")
        db.rpush("later", "background task")
        assert site.wait() == 0
    ends = db.lrange("ends", 0, -1)
    assert ends == ["background task", "group", "pools", "0 left, True, True"]
