"""Real frameworks in the real server: what their users write works, told by what clients see."""

import contextlib
import http.client
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

Daemon = Callable[..., Any]
SLOW = 30.0

STARLETTE = """
import asyncio, contextlib, os
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

@contextlib.asynccontextmanager
async def lifespan(app):
    yield {"greeting": "from the lifespan"}
    open("shut-down", "w").close()

async def state(request):
    return PlainTextResponse(request.state.greeting)

async def echo(request):
    return PlainTextResponse(await request.body())

async def upload(request):
    async with request.form() as form:
        return JSONResponse({"name": form["file"].filename, "size": form["file"].size})

async def stream(request):
    async def pieces():
        for number in range(5):
            yield f"{number} "
            await asyncio.sleep(0.001)
    return StreamingResponse(pieces())

async def events(request):
    async def pieces():
        try:
            while True:
                yield "data: tick\\n\\n"
                await asyncio.sleep(1000 if request.query_params else 0.01)
        finally:
            open("events-over", "a").write("over ")
    return StreamingResponse(pieces(), media_type="text/event-stream")

async def background(request):
    async def work():
        await asyncio.sleep(0.1)
        open("worked", "w").close()
    return PlainTextResponse("answered", background=BackgroundTask(work))

async def boom(request):
    raise LookupError("boom")

async def file(request):
    return FileResponse("application.py")

async def ws(websocket):
    offered = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol="chat" if "chat" in offered else None)
    async for text in websocket.iter_text():
        await websocket.send_json({"got": text, "state": websocket.state.greeting})

async def denied(websocket):
    await websocket.send_denial_response(PlainTextResponse("not you", 401))

class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-passed"] = "yes"
        return response

app = Starlette(lifespan=lifespan, middleware=[Middleware(Passing)], routes=[
    Route("/state", state), Route("/echo", echo, methods=["POST"]),
    Route("/upload", upload, methods=["POST"]), Route("/stream", stream),
    Route("/events", events), Route("/background", background), Route("/boom", boom),
    Route("/file", file), WebSocketRoute("/ws", ws), WebSocketRoute("/denied", denied),
    Mount("/static", StaticFiles(directory=".")),
])
"""

FASTAPI = """
import asyncio, contextlib, time
from fastapi import BackgroundTasks, Depends, FastAPI, Request, UploadFile, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

@contextlib.asynccontextmanager
async def lifespan(app):
    yield {"greeting": "from the lifespan"}
    open("shut-down", "w").close()

app = FastAPI(lifespan=lifespan)

@app.middleware("http")
async def passing(request: Request, call_next):
    response = await call_next(request)
    response.headers["x-passed"] = "yes"
    return response

class Item(BaseModel):
    name: str
    price: float

@app.post("/items")
async def items(item: Item):
    return item

@app.get("/state", response_class=PlainTextResponse)
async def state(request: Request):
    return request.state.greeting

@app.post("/echo", response_class=PlainTextResponse)
async def echo(request: Request):
    return PlainTextResponse(await request.body())

@app.post("/upload")
async def upload(file: UploadFile):
    return {"name": file.filename, "size": len(await file.read())}

@app.get("/stream")
def stream():
    def pieces():
        for number in range(5):
            yield f"{number} "
            time.sleep(0.001)
    return StreamingResponse(pieces())

@app.get("/events")
async def events(quiet: bool = False):
    async def pieces():
        try:
            while True:
                yield "data: tick\\n\\n"
                await asyncio.sleep(1000 if quiet else 0.01)
        finally:
            open("events-over", "a").write("over ")
    return StreamingResponse(pieces(), media_type="text/event-stream")

@app.get("/background", response_class=PlainTextResponse)
def background(tasks: BackgroundTasks):
    def work():
        time.sleep(0.1)
        open("worked", "w").close()
    tasks.add_task(work)
    return "answered"

@app.get("/boom")
async def boom():
    raise LookupError("boom")

@app.get("/file")
async def file():
    return FileResponse("application.py")

@app.websocket("/ws")
async def ws(websocket: WebSocket):
    offered = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol="chat" if "chat" in offered else None)
    while True:
        text = await websocket.receive_text()
        await websocket.send_json({"got": text, "state": websocket.state.greeting})

@app.websocket("/denied")
async def denied(websocket: WebSocket):
    await websocket.send_denial_response(PlainTextResponse("not you", 401))

app.mount("/static", StaticFiles(directory="."))
"""

QUART = """
import asyncio
from quart import Quart, Response, jsonify, request, send_file, websocket

app = Quart(__name__, static_folder=".", static_url_path="/static")
greeting = ""

@app.before_serving
async def up():
    global greeting
    greeting = "from the lifespan"

@app.after_serving
async def down():
    open("shut-down", "w").close()

@app.after_request
async def passing(response):
    response.headers["x-passed"] = "yes"
    return response

@app.get("/state")
async def state():
    return greeting

@app.post("/echo")
async def echo():
    return Response(await request.get_data(), mimetype="text/plain")

@app.post("/upload")
async def upload():
    file = (await request.files)["file"]
    return jsonify(name=file.filename, size=len(file.read()))

@app.get("/stream")
async def stream():
    async def pieces():
        for number in range(5):
            yield f"{number} "
            await asyncio.sleep(0.001)
    return pieces()

@app.get("/events")
async def events():
    pause = 1000 if request.args else 0.01
    async def pieces():
        try:
            while True:
                yield "data: tick\\n\\n"
                await asyncio.sleep(pause)
        finally:
            open("events-over", "a").write("over ")
    response = Response(pieces(), mimetype="text/event-stream")
    response.timeout = None
    return response

@app.get("/background")
async def background():
    async def work():
        await asyncio.sleep(0.1)
        open("worked", "w").close()
    app.add_background_task(work)
    return "answered"

@app.get("/boom")
async def boom():
    raise LookupError("boom")

@app.get("/file")
async def file():
    return await send_file("application.py")

@app.websocket("/ws")
async def ws():
    offered = websocket.requested_subprotocols
    await websocket.accept(subprotocol="chat" if "chat" in offered else None)
    while True:
        await websocket.send_json({"got": await websocket.receive(), "state": greeting})

@app.websocket("/denied")
async def denied():
    return "not you", 401
"""

LITESTAR = """
import asyncio, contextlib
from typing import Annotated
from litestar import Litestar, Request, Response, WebSocket, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.params import Body
from litestar.response import File, Stream
from litestar.static_files import create_static_files_router

@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.greeting = "from the lifespan"
    yield
    open("shut-down", "w").close()

def passing(response: Response) -> Response:
    response.headers["x-passed"] = "yes"
    return response

@get("/state", media_type="text/plain")
async def state(request: Request) -> str:
    return request.app.state.greeting

@post("/echo", media_type="text/plain", status_code=200)
async def echo(request: Request) -> bytes:
    return await request.body()

@post("/upload", status_code=200)
async def upload(
    data: Annotated[dict[str, UploadFile], Body(media_type=RequestEncodingType.MULTI_PART)],
) -> dict:
    file = data["file"]
    return {"name": file.filename, "size": len(await file.read())}

@get("/stream")
async def stream() -> Stream:
    async def pieces():
        for number in range(5):
            yield f"{number} "
            await asyncio.sleep(0.001)
    return Stream(pieces())

@get("/events")
async def events(quiet: bool = False) -> Stream:
    async def pieces():
        try:
            while True:
                yield "data: tick\\n\\n"
                await asyncio.sleep(1000 if quiet else 0.01)
        finally:
            open("events-over", "a").write("over ")
    return Stream(pieces(), media_type="text/event-stream")

@get("/background")
async def background() -> Response[str]:
    async def work():
        await asyncio.sleep(0.1)
        open("worked", "w").close()
    return Response("answered", media_type="text/plain", background=BackgroundTask(work))

@get("/boom")
async def boom() -> None:
    raise LookupError("boom")

@get("/file")
async def file() -> File:
    return File("application.py", filename="application.py")

@websocket("/ws")
async def ws(socket: WebSocket) -> None:
    offered = socket.scope["subprotocols"]
    await socket.accept(subprotocols="chat" if "chat" in offered else None)
    while True:
        text = await socket.receive_text()
        await socket.send_json({"got": text, "state": socket.app.state.greeting})

app = Litestar(
    [state, echo, upload, stream, events, background, boom, file, ws,
     create_static_files_router(path="/static", directories=["."])],
    lifespan=[lifespan], after_request=passing,
)
"""

FALCON = """
import asyncio, os
import falcon
import falcon.asgi
from falcon.asgi import SSEvent

class Life:
    async def process_startup(self, scope, event):
        scope["state"]["greeting"] = "from the lifespan"

    async def process_shutdown(self, scope, event):
        open("shut-down", "w").close()

    async def process_response(self, req, resp, resource, succeeded):
        resp.set_header("x-passed", "yes")

class State:
    async def on_get(self, req, resp):
        resp.text = req.scope["state"]["greeting"]

class Echo:
    async def on_post(self, req, resp):
        resp.data = await req.stream.read()

class Upload:
    async def on_post(self, req, resp):
        async for part in await req.get_media():
            size = len(await part.stream.read())
            resp.media = {"name": part.filename, "size": size}

class Stream:
    async def on_get(self, req, resp):
        async def pieces():
            for number in range(5):
                yield f"{number} ".encode()
                await asyncio.sleep(0.001)
        resp.stream = pieces()

class Events:
    async def on_get(self, req, resp):
        async def pieces():
            try:
                while True:
                    yield SSEvent(text="tick")
                    await asyncio.sleep(1000 if req.query_string else 0.01)
            finally:
                open("events-over", "a").write("over ")
        resp.sse = pieces()

class Background:
    async def on_get(self, req, resp):
        async def work():
            await asyncio.sleep(0.1)
            open("worked", "w").close()
        resp.text = "answered"
        resp.schedule(work)

class Boom:
    async def on_get(self, req, resp):
        raise LookupError("boom")

class Source:
    def __init__(self):
        self.file = open("application.py", "rb")

    async def read(self, size=-1):
        return await asyncio.to_thread(self.file.read, size)

    async def close(self):
        self.file.close()

class File:
    async def on_get(self, req, resp):
        resp.set_stream(Source(), os.path.getsize("application.py"))

class Ws:
    async def on_websocket(self, req, ws):
        await ws.accept(subprotocol="chat" if "chat" in ws.subprotocols else None)
        while True:
            text = await ws.receive_text()
            await ws.send_media({"got": text, "state": req.scope["state"]["greeting"]})

app = falcon.asgi.App(middleware=[Life()])
for path, resource in {
    "/state": State(), "/echo": Echo(), "/upload": Upload(), "/stream": Stream(),
    "/events": Events(), "/background": Background(), "/boom": Boom(), "/file": File(),
    "/ws": Ws(),
}.items():
    app.add_route(path, resource)
app.add_static_route("/static", os.getcwd())
"""

SOURCES = {
    "starlette": STARLETTE,
    "fastapi": FASTAPI,
    "quart": QUART,
    "litestar": LITESTAR,
    "falcon": FALCON,
}


@pytest.fixture(params=sorted(SOURCES))
def site(request: pytest.FixtureRequest, daemon: Daemon) -> Any:
    server = daemon(
        app=SOURCES[request.param], lifespan="on" if request.param != "quart" else "auto"
    )
    server.framework = request.param
    return server


def ask(
    server: Any, method: str, path: str, body: Any = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", server.port, timeout=SLOW)
    ) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=named)
        answer = connection.getresponse()
        return answer, answer.read()


def multipart(name: str, content: bytes) -> tuple[bytes, str]:
    body = (
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n%b\r\n--edge--\r\n"
        % (name.encode(), content)
    )
    return body, "multipart/form-data; boundary=edge"


def test_what_their_users_write(site: Any) -> None:
    answer, body = ask(site, "GET", "/state")
    assert (answer.status, body) == (200, b"from the lifespan")
    assert answer.headers["x-passed"] == "yes"
    assert ask(site, "POST", "/echo", b"x" * 300_000)[1] == b"x" * 300_000
    pieces: Iterator[bytes] = iter([b"in ", b"chunks"])
    assert ask(site, "POST", "/echo", pieces)[1] == b"in chunks"
    form, kind = multipart("report.pdf", bytes(200_000))
    answer, body = ask(site, "POST", "/upload", form, content_type=kind)
    assert json.loads(body) == {"name": "report.pdf", "size": 200_000}
    assert ask(site, "GET", "/stream")[1] == b"0 1 2 3 4 "
    source = (site.directory / "application.py").read_bytes()
    assert ask(site, "GET", "/file")[1] == source
    answer, body = ask(site, "GET", "/static/application.py")
    assert body == source
    answer, body = ask(site, "GET", "/static/application.py", range="bytes=10-19")
    assert body in (source[10:20], source)  # not all of them know ranges
    answer, body = ask(site, "HEAD", "/static/application.py")
    assert (answer.status, body) == (200, b"")
    assert ask(site, "GET", "/nowhere")[0].status == 404
    assert ask(site, "GET", "/background")[1] == b"answered"
    site.wait_for(lambda: (site.directory / "worked").exists())
    site.expect("LookupError|Traceback|boom|Unhandled exception")
    assert ask(site, "GET", "/boom")[0].status == 500
    assert ask(site, "GET", "/state")[0].status == 200
    assert site.stop() == 0
    assert (site.directory / "shut-down").exists()


def test_a_client_leaves_its_events(site: Any) -> None:
    with site.connect() as sock:
        sock.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while data.count(b"tick") < 3:
            data += sock.recv(65536)
    site.wait_for(lambda: (site.directory / "events-over").exists())
    assert ask(site, "GET", "/state")[0].status == 200


def test_events_end_with_the_server(site: Any) -> None:
    with site.connect() as ticking, site.connect() as quiet:
        for sock, query in ((ticking, b""), (quiet, b"?quiet=1")):
            sock.sendall(b"GET /events%b HTTP/1.1\r\nHost: a\r\n\r\n" % query)
            data = b""
            while b"tick" not in data:
                data += sock.recv(65536)
        site.send(signal.SIGQUIT)
        for sock in (ticking, quiet):
            data = b""
            while more := sock.recv(65536):
                data += more
            assert data.endswith(b"0\r\n\r\n")  # whole, in HTTP's eyes
    assert site.wait() == 0
    assert (site.directory / "events-over").read_text() == "over over "
    assert "cancelled" not in site.log  # that is for what takes all of timeouts.graceful


def test_websockets(site: Any) -> None:
    url = f"ws://127.0.0.1:{site.port}"
    with connect(f"{url}/ws", subprotocols=["chat"]) as client:  # type: ignore[list-item]
        assert client.subprotocol == "chat"
        assert client.protocol.extensions  # permessage-deflate
        for text in ("hello", "x" * 100_000):
            client.send(text)
            assert json.loads(client.recv(SLOW)) == {"got": text, "state": "from the lifespan"}
    site.expect("falcon: .*404 Not Found")  # it says so itself
    with pytest.raises(InvalidStatus) as refused, connect(f"{url}/missing"):
        pass
    assert refused.value.response.status_code in (403, 404)
    if site.framework not in ("litestar", "falcon"):  # these know no denial response
        with pytest.raises(InvalidStatus) as refused, connect(f"{url}/denied"):
            pass
        assert refused.value.response.status_code == 401
        assert refused.value.response.body == b"not you"
    with connect(f"{url}/ws") as client:
        site.send(signal.SIGQUIT)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(SLOW)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    assert site.wait() == 0


# falcon.asgi.App routes by the whole path and takes no prefix off: README says to leave it empty.
@pytest.mark.parametrize("framework", sorted(SOURCES.keys() - {"falcon"}))
def test_below_a_prefix(daemon: Daemon, framework: str) -> None:
    """As behind nginx's `proxy_pass http://…/;`: every route is where it was."""
    site = daemon(app=SOURCES[framework], root_path="/caf\u00e9/v1")
    assert ask(site, "GET", "/state")[1] == b"from the lifespan"
    source = (site.directory / "application.py").read_bytes()
    assert ask(site, "GET", "/static/application.py")[1] == source
    assert ask(site, "GET", "/nowhere")[0].status == 404
    with connect(f"ws://127.0.0.1:{site.port}/ws") as client:
        client.send("hello")
        assert json.loads(client.recv(SLOW)) == {"got": "hello", "state": "from the lifespan"}


def test_links_of_fastapi_below_a_prefix(daemon: Daemon) -> None:
    links = """
@app.get("/links/")
def links(request: Request):
    static = request.url_for("static", path="a.css")
    return [str(request.url), str(request.base_url), str(request.url_for("links")), str(static)]
"""
    source = FASTAPI.replace('app.mount("/static", StaticFiles(directory="."))', "")
    source += links + 'app.mount("/static", StaticFiles(directory="."), name="static")\n'
    site = daemon(app=source, root_path="/api")
    assert json.loads(ask(site, "GET", "/links/?q", Host="example.org")[1]) == [
        "http://example.org/api/links/?q",
        "http://example.org/api/",
        "http://example.org/api/links/",
        "http://example.org/api/static/a.css",
    ]
    answer, _ = ask(site, "GET", "/links", Host="example.org")
    assert answer.headers["Location"] == "http://example.org/api/links/"
    assert b"url: '/api/openapi.json'" in ask(site, "GET", "/docs")[1]
    assert json.loads(ask(site, "GET", "/openapi.json")[1])["servers"] == [{"url": "/api"}]


LIBRARIES = '''
import asyncio, os, sys
import anyio
import anyio.abc

async def app(scope, receive, send):
    assert scope["type"] == "http"
    text = await globals()[scope["path"][1:]](scope)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text.encode()})

async def timeout(scope):
    try:
        async with asyncio.timeout(0.05):
            await asyncio.sleep(30)
    except TimeoutError:
        return "timed out"

async def subprocess(scope):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print('child', input())",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(b"lives\\n")
    return f"{out.decode().strip()} {process.returncode}"

async def groups(scope):
    seen = []
    async def one(number):
        await anyio.sleep(0.01)
        seen.append(number)
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(one, number)
    with anyio.move_on_after(0.05) as scope:
        await anyio.sleep(30)
    return f"{sorted(seen)} {scope.cancelled_caught}"

async def thread(scope):
    one = await asyncio.to_thread(os.getpid)
    two = await anyio.to_thread.run_sync(os.getpid)
    return str(one == two == os.getpid())

async def client(scope):
    """A client of its own, to its own worker's peer: a raw asyncio connection."""
    host, port = (await asyncio.to_thread(open, "peer")).read().split()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"ping\\n")
    await writer.drain()
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line.decode().strip()

async def server(scope):
    async def pong(reader, writer):
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
    made = await asyncio.start_server(pong, "127.0.0.1", 0)
    async with made:
        reader, writer = await asyncio.open_connection(*made.sockets[0].getsockname())
        writer.write(b"served\\n")
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
    return line.decode().strip()
'''


def test_asyncio_libraries_in_handlers(daemon: Daemon) -> None:
    server = daemon(app=LIBRARIES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        (server.directory / "peer").write_text(f"{host} {port}")

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"PONG " + sock.recv(100))

        peer = threading.Thread(target=answer)
        peer.start()
        assert server.get("/client").text == "PONG ping"
        peer.join(SLOW)
    assert server.get("/timeout").text == "timed out"
    assert server.get("/subprocess").text == "child lives 0"
    assert server.get("/groups").text == "[0, 1, 2, 3, 4] True"
    assert server.get("/thread").text == "True"
    assert server.get("/server").text == "SERVED"


def test_a_reload_closes_websockets_with_1012_and_the_new_worker_takes_them(daemon: Daemon) -> None:
    server = daemon(app=FASTAPI)
    url = f"ws://127.0.0.1:{server.port}/ws"
    with connect(url) as client:
        client.send("before")
        assert json.loads(client.recv(SLOW))["got"] == "before"
        server.send(signal.SIGHUP)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(SLOW)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        with connect(url) as again:
            again.send("after")
            assert json.loads(again.recv(SLOW))["got"] == "after"
    server.wait_for("reconfigured")
