"""Real frameworks in the real server, the WSGI way."""

import json
from collections.abc import Callable
from typing import Any

from tests.gateway.asking import FORM, MULTIPART, ask

Hosted = Callable[..., Any]

FLASK = """
import io
from flask import (
    Flask, Response, redirect, request, send_file, session, stream_with_context, url_for
)

app = Flask(__name__, static_folder=".", static_url_path="/static")
app.secret_key = "k"

@app.get("/")
def hello():
    return "hello"

@app.get("/async")
async def asynchronous():
    return {"async": True}

@app.get("/stream")
def stream():
    def pieces():
        for n in range(3):
            yield f"{n} {request.path} "
    return Response(stream_with_context(pieces()), mimetype="text/plain")

@app.post("/upload")
def upload():
    file = request.files["file"]
    return {"name": file.filename, "size": len(file.read()), "more": request.form["more"]}

@app.post("/json")
def as_json():
    return request.get_json()

@app.get("/file")
def file():
    return send_file(__file__, mimetype="text/plain", conditional=True)

@app.get("/count")
def count():
    session["n"] = session.get("n", 0) + 1
    return str(session["n"])

@app.get("/links")
def links():
    return [url_for("hello"), url_for("static", filename="a.css"), request.url, request.root_path]

@app.get("/folder/")
def folder():
    return redirect(url_for("hello"))

@app.get("/fail")
def fail():
    raise ValueError("in a view")
"""


def test_flask_below_a_prefix(hosted: Hosted) -> None:
    """As behind nginx's `proxy_pass http://…/;`: its links have what its paths come without."""
    port = hosted(FLASK, root_path="/old/shop").port
    prefix = "/old/shop"
    host = {"Host": "example.org"}
    links = json.loads(ask(port, "GET", "/links?q=1", headers=host)[1])
    assert links[:2] == [f"{prefix}/", f"{prefix}/static/a.css"]
    assert links[2] == f"http://example.org{prefix}/links?q=1"
    assert links[3] == prefix
    answer, _ = ask(port, "GET", "/folder", headers=host)  # the slash is the router's
    assert answer.headers["Location"] == f"http://example.org{prefix}/folder/"
    assert ask(port, "GET", "/folder/")[0].headers["Location"] == f"{prefix}/"
    assert ask(port, "GET", f"{prefix}/links")[0].status == 404  # not what that proxy sends


def test_flask(hosted: Hosted) -> None:
    server = hosted(FLASK)
    server.expect("in a view|Exception on /fail")
    port = server.port
    assert "WSGI, from its two-argument callable" in server.log
    answer, body = ask(port, "GET", "/")
    assert (answer.status, body, answer.headers["Content-Length"]) == (200, b"hello", "5")
    assert json.loads(ask(port, "GET", "/async")[1]) == {"async": True}
    assert ask(port, "GET", "/stream")[1] == b"0 /stream 1 /stream 2 /stream "
    said = json.loads(ask(port, "POST", "/upload", FORM, MULTIPART)[1])
    assert said == {"name": "a.bin", "size": 200_000, "more": "yes"}
    # Chunked: nobody said how long it is.
    said = json.loads(ask(port, "POST", "/upload", iter([FORM]), MULTIPART, encode_chunked=True)[1])
    assert said["size"] == 200_000
    kind = {"Content-Type": "application/json"}
    assert json.loads(ask(port, "POST", "/json", b'{"a": [1]}', kind)[1]) == {"a": [1]}
    answer, body = ask(port, "GET", "/file")
    assert body == (server.directory / "application.py").read_bytes()
    assert ask(port, "GET", "/file", headers={"Range": "bytes=1-6"})[1] == body[1:7]
    tag = {"If-None-Match": answer.headers["ETag"]}
    assert ask(port, "GET", "/file", headers=tag)[0].status == 304
    assert ask(port, "GET", "/static/application.py")[1] == body
    answer, body = ask(port, "GET", "/count")
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    assert ask(port, "GET", "/count", headers={"Cookie": cookie})[1] == b"2"
    answer, body = ask(port, "GET", "/nowhere")
    assert (answer.status, answer.reason) == (404, "NOT FOUND")
    assert ask(port, "HEAD", "/")[0].headers["Content-Length"] == "5"
    assert ask(port, "GET", "/fail")[0].status == 500
    assert "Exception on /fail [GET]" in server.log
    assert "ValueError: in a view" in server.log


FALCON = """
import os
import falcon

class Hello:
    def on_get(self, req, resp):
        resp.text = "hello"

    def on_post(self, req, resp):
        resp.media = {"got": req.get_media(), "path": req.path, "query": req.query_string}

class Stream:
    def on_get(self, req, resp):
        resp.content_type = "text/plain"
        resp.stream = iter([b"one ", b"two"])

    def on_put(self, req, resp):
        resp.media = len(req.bounded_stream.read())

class Upload:
    def on_post(self, req, resp):
        resp.media = {part.filename or part.name: len(part.stream.read())
                      for part in req.get_media()}

class Fail:
    def on_get(self, req, resp):
        raise falcon.HTTPConflict(title="no")

app = falcon.App()
app.add_route("/", Hello())
app.add_route("/stream", Stream())
app.add_route("/upload", Upload())
app.add_route("/fail", Fail())
app.add_static_route("/static", os.getcwd())
"""


def test_falcon(hosted: Hosted) -> None:
    server = hosted(FALCON)
    port = server.port
    assert ask(port, "GET", "/")[1] == b"hello"
    kind = {"Content-Type": "application/json"}
    said = json.loads(ask(port, "POST", "/?a=1", b'{"b": 2}', kind)[1])
    assert said == {"got": {"b": 2}, "path": "/", "query": "a=1"}
    assert ask(port, "GET", "/stream")[1] == b"one two"
    assert json.loads(ask(port, "PUT", "/stream", b"x" * 3_000_000)[1]) == 3_000_000
    said = json.loads(ask(port, "POST", "/upload", FORM, MULTIPART)[1])
    assert said == {"more": 3, "a.bin": 200_000}
    source = (server.directory / "application.py").read_bytes()
    assert ask(port, "GET", "/static/application.py")[1] == source
    assert ask(port, "GET", "/fail")[0].status == 409
