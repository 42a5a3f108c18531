"""PEP 3333, sentence by sentence, over a real socket; in the worker itself and in threads."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.asking import PATIENCE, ask, ask_raw

Hosted = Callable[..., Any]

ECHO = """
import json
from wsgiref.validate import validator

def application(environ, start_response):
    method = environ["REQUEST_METHOD"]
    read = environ["wsgi.input"].read
    size = int(environ.get("CONTENT_LENGTH") or 0)
    body = b""
    while piece := read(min(1000, size - len(body)) if size else 1000):
        body += piece
    said = {k: v for k, v in environ.items() if isinstance(v, (str, int, tuple))}
    said["body"] = body.decode("latin-1")
    text = json.dumps(said).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
    start_response("200 OK", headers)
    return [text] if method != "HEAD" else []

app = validator(application)
"""


def test_the_environ(hosted: Hosted) -> None:
    server = hosted(ECHO)
    said = json.loads(
        ask_raw(
            server.port,
            b"GET /caf%C3%A9/a%20b%2Fc?x=%20&y=1 HTTP/1.1\r\nHost: example.org:81\r\n"
            b"X-One: a\r\nX-One:  b \r\nCookie: a=1\r\nCookie: b=2\r\nX_One: evil\r\n"
            b"Proxy: http://evil\r\nX-Latin: \xe9\r\nConnection: close\r\n\r\n",
        ).partition(b"\r\n\r\n")[2]
    )
    assert said["REQUEST_METHOD"] == "GET"
    assert said["SCRIPT_NAME"] == ""
    # Bytes in disguise: UTF-8 read as latin-1.
    assert said["PATH_INFO"] == "/caf\u00c3\u00a9/a b/c"
    assert said["QUERY_STRING"] == "x=%20&y=1"
    assert said["RAW_URI"] == said["REQUEST_URI"] == "/caf%C3%A9/a%20b%2Fc?x=%20&y=1"
    assert said["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert said["SERVER_NAME"] == "127.0.0.1"
    assert said["SERVER_PORT"] == str(server.port)
    assert said["REMOTE_ADDR"] == "127.0.0.1"
    assert said["REMOTE_PORT"].isdigit()
    assert said["HTTP_HOST"] == "example.org:81"
    assert said["HTTP_X_ONE"] == "a, b"
    assert said["HTTP_COOKIE"] == "a=1; b=2"
    assert said["HTTP_X_LATIN"] == "\xe9"
    assert "HTTP_PROXY" not in said
    assert "CONTENT_LENGTH" not in said
    assert "CONTENT_TYPE" not in said
    assert said["wsgi.version"] == [1, 0]
    assert said["wsgi.url_scheme"] == "http"
    assert said["wsgi.multithread"] is (server.threads > 1)
    assert said["wsgi.multiprocess"] is True
    assert said["wsgi.run_once"] is False
    assert said["wsgi.input_terminated"] is True


def test_what_a_proxy_has_taken_off_is_the_script_name(hosted: Hosted) -> None:
    server = hosted(ECHO, root_path="/caf\u00e9")
    said = json.loads(ask(server.port, "GET", "/caf%C3%A9/x?y")[1])
    assert said["SCRIPT_NAME"] == "/caf\u00c3\u00a9"
    assert said["PATH_INFO"] == "/caf\u00c3\u00a9/x"  # it is what has come
    assert said["REQUEST_URI"] == "/caf%C3%A9/x?y"


def test_a_connection_whose_requests_differ(hosted: Hosted) -> None:
    """What is remembered of a client must not outlive what it says."""
    server = hosted(ECHO)
    head = b"Host: a\r\nX-Only: first\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as sock:
        file = sock.makefile("rb")

        def one(data: bytes) -> Any:
            sock.sendall(data)
            length = 0
            while (line := file.readline()) != b"\r\n":
                if line.startswith(b"Content-Length:"):
                    length = int(line[15:])
            return json.loads(file.read(length))

        first = one(b"GET /1 HTTP/1.1\r\n" + head)
        again = one(b"GET /2?x HTTP/1.1\r\n" + head)
        other = one(b"POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        last = one(b"GET /4 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
        absolute = one(b"GET http://other/5 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (first["PATH_INFO"], first["HTTP_X_ONLY"], first["QUERY_STRING"]) == ("/1", "first", "")
    assert (again["PATH_INFO"], again["HTTP_X_ONLY"], again["QUERY_STRING"]) == ("/2", "first", "x")
    assert "HTTP_X_ONLY" not in other
    assert (other["body"], other["CONTENT_LENGTH"]) == ("hi", "2")
    assert last["SERVER_PROTOCOL"] == "HTTP/1.0"
    assert "CONTENT_LENGTH" not in last
    assert (absolute["PATH_INFO"], absolute["HTTP_HOST"]) == ("/5", "other")


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 3_000_000])
def test_uploads(hosted: Hosted, size: int) -> None:
    server = hosted(ECHO, limits={"body": "8MiB"})
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    answer, data = ask(server.port, "POST", "/", body, {"Content-Type": "text/x"})
    said = json.loads(data)
    assert answer.status == 200
    assert said["body"].encode("latin-1") == body
    assert said["CONTENT_TYPE"] == "text/x"


def test_chunked_uploads(hosted: Hosted) -> None:
    """The input ends where the body ends, whether somebody has counted it or not."""
    server = hosted(ECHO)
    pieces = [b"a" * 1000, b"b" * 70_000, b"c"]
    _, data = ask(server.port, "POST", "/", iter(pieces), encode_chunked=True)
    said = json.loads(data)
    assert said["body"].encode() == b"".join(pieces)
    if not server.threads:
        assert said["CONTENT_LENGTH"] == "71001"
        assert "HTTP_TRANSFER_ENCODING" not in said


def test_expect_100_continue(hosted: Hosted) -> None:
    server = hosted(ECHO)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as sock:
        sock.sendall(
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        got = b""
        while more := sock.recv(65536):
            got += more
    assert json.loads(got.partition(b"\r\n\r\n")[2])["body"] == "hello"


def test_a_body_beyond_the_limit(hosted: Hosted) -> None:
    server = hosted(ECHO, limits={"body": "1KiB"})
    assert b" 413 " in ask_raw(
        server.port,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n"
        + b"x" * 0x800
        + b"\r\n0\r\n\r\n",
    )
    assert server.get().status == 200


FILES = """
import io, os, wsgiref.validate
from pathlib import Path

def input(environ, start_response):
    how = environ["PATH_INFO"]
    stream = environ["wsgi.input"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if how == "/lines":
        return [repr([stream.readline(), stream.readline(3), stream.readline(),
                      stream.readlines(), stream.readline(), stream.read()]).encode()]
    if how == "/iterate":
        return [repr(list(stream)).encode()]
    if how == "/hint":
        return [repr([stream.readlines(2), stream.read(1), stream.read(0), stream.read()]).encode()]
    return [repr(stream.read(-1)).encode()]

app = input
"""


def test_every_way_to_read(hosted: Hosted) -> None:
    server = hosted(FILES)
    for body in (b"ab\ncdef\ng\n\nh", iter([b"ab", b"\ncd", b"ef\ng\n\n", b"h"])):
        chunked = not isinstance(body, bytes)
        _, data = ask(server.port, "POST", "/lines", body, encode_chunked=chunked)
        assert data == repr([b"ab\n", b"cde", b"f\n", [b"g\n", b"\n", b"h"], b"", b""]).encode()
    _, data = ask(server.port, "POST", "/iterate", iter([b"a\nb", b"c\n"]), encode_chunked=True)
    assert data == repr([b"a\n", b"bc\n"]).encode()
    _, data = ask(server.port, "POST", "/hint", iter([b"a\nb", b"c\n"]), encode_chunked=True)
    assert data == repr([[b"a\n"], b"b", b"", b"c\n"]).encode()
    _, data = ask(server.port, "GET", "/lines")
    assert data == repr([b"", b"", b"", [], b"", b""]).encode()
    _, data = ask(server.port, "GET", "/iterate")
    assert data == b"[]"


ANSWERS = """
import os, sys, time
from pathlib import Path

log = Path("closed.txt").open("a", buffering=1)

class Closing:
    def __init__(self, name, pieces):
        self.name, self.pieces = name, iter(pieces)
    def __iter__(self): return self
    def __next__(self): return next(self.pieces)
    def close(self): log.write(self.name + "\\n")

def app(environ, start_response):
    name = environ["PATH_INFO"][1:]
    plain = [("Content-Type", "text/plain")]
    if name == "phrase":
        start_response("200 Quite Fine", plain + [("Content-Length", "2")])
        return [b"ok"]
    if name == "number":
        start_response("299 ", plain)
        return [b"ok"]
    if name == "late":
        def later():
            start_response("201 Created", plain)
            yield b""
            yield b"late"
        return later()
    if name == "several":
        start_response("200 OK", plain)
        return [b"a", b"", bytearray(b"b"), memoryview(b"c")]
    if name == "tuple":
        start_response("200 OK", plain)
        return (b"a", b"b")
    if name == "generator":
        start_response("200 OK", plain)
        return Closing(name, [b"one ", b"", b"two ", b"three"])
    if name == "sized":
        start_response("200 OK", plain + [("Content-Length", "9")])
        return Closing(name, [b"123456789"])
    if name == "sized-pieces":
        start_response("200 OK", plain + [("Content-Length", "9")])
        return Closing(name, [b"12345", b"6789"])
    if name == "empty":
        start_response("200 OK", plain)
        return Closing(name, [])
    if name == "no-content":
        start_response("204 No Content", [])
        return Closing(name, [])
    if name == "not-modified":
        start_response("304 Not Modified", [("Content-Length", "9"), ("ETag", '"x"')])
        return []
    if name == "write":
        write = start_response("200 OK", plain)
        write(b"written ")
        write(b"and ")
        return [b"returned"]
    if name == "replaced":
        start_response("200 OK", plain)
        try:
            raise KeyError("no")
        except KeyError:
            start_response("503 Sorry", [("X-Was", "replaced")], sys.exc_info())
        return [b"sorry"]
    if name == "cookies":
        start_response("200 OK", plain + [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"),
                                          ("Date", "yesterday")])
        return [b"x"]
    if name == "errors":
        environ["wsgi.errors"].write("half a ")
        environ["wsgi.errors"].write("line\\nsecond\\nthi")
        environ["wsgi.errors"].writelines(["rd", "\\n"])
        print("printed", file=environ["wsgi.errors"])
        environ["wsgi.errors"].write("flushed")
        environ["wsgi.errors"].flush()
        start_response("200 OK", plain)
        return [b"x"]
    start_response("404 Not Found", plain)
    return [b"?"]
"""


def test_answers(hosted: Hosted) -> None:
    server = hosted(ANSWERS)
    server.expect("wsgi.errors")
    port = server.port

    def get(path: str, method: str = "GET") -> Any:
        return ask(port, method, path)

    answer, body = get("/phrase")
    assert (answer.reason, body) == ("Quite Fine", b"ok")
    answer, body = get("/number")
    assert (answer.status, answer.reason, answer.headers["Content-Length"]) == (299, "", "2")
    answer, body = get("/late")
    assert (answer.status, body) == (201, b"late")
    answer, body = get("/several")
    assert (answer.headers["Content-Length"], body) == ("3", b"abc")
    answer, body = get("/tuple")
    assert (answer.headers["Content-Length"], body) == ("2", b"ab")
    answer, body = get("/generator")
    assert (answer.headers["Transfer-Encoding"], body) == ("chunked", b"one two three")
    answer, body = get("/sized")
    assert (answer.headers["Content-Length"], body) == ("9", b"123456789")
    assert answer.headers["Transfer-Encoding"] is None
    answer, body = get("/sized-pieces")
    assert (answer.headers["Content-Length"], body) == ("9", b"123456789")
    answer, body = get("/empty")
    assert (answer.headers["Content-Length"], body) == ("0", b"")
    answer, body = get("/no-content")
    assert (answer.status, answer.headers["Content-Length"], body) == (204, None, b"")
    answer, body = get("/not-modified")
    assert (answer.status, answer.headers["ETag"], body) == (304, '"x"', b"")
    answer, body = get("/write")
    assert body == b"written and returned"
    answer, body = get("/replaced")
    assert (answer.status, answer.reason, answer.headers["X-Was"]) == (503, "Sorry", "replaced")
    assert answer.headers["Content-Type"] is None
    answer, body = get("/cookies")
    assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert len(answer.headers.get_all("Date")) == 1
    assert answer.headers["Date"] != "yesterday"
    for path in ("/generator", "/sized", "/several", "/phrase", "/write"):
        answer, body = get(path, "HEAD")
        assert (answer.status, body) == (200, b"")
    assert get("/several", "HEAD")[0].headers["Content-Length"] == "3"
    assert get("/sized", "HEAD")[0].headers["Content-Length"] == "9"
    # An answer is on its way already when what made it is closed.
    server.wait_for(lambda: (server.directory / "closed.txt").read_text().count("\n") == 8)
    closed = (server.directory / "closed.txt").read_text().split()
    assert sorted(closed) == sorted(
        ["generator", "sized", "sized-pieces", "empty", "no-content", "generator", "sized", "sized"]
    )
    get("/errors")
    records = re.findall(r"wsgi\.errors: ((?:.*)(?:\n .*)*)", server.log)
    assert [record.split() for record in records] == [
        ["half", "a", "line", "second"],
        ["third"],
        ["printed"],
        ["flushed"],
    ]


def test_an_http_1_0_client_gets_no_chunks(hosted: Hosted) -> None:
    server = hosted(ANSWERS)
    got = ask_raw(server.port, b"GET /generator HTTP/1.0\r\n\r\n")
    assert got.endswith(b"\r\n\r\none two three")
    assert b"chunked" not in got


BAD = """
import sys

plain = [("Content-Type", "text/plain")]

def after(pieces):
    yield from pieces
    raise ValueError("after the head")

class Mute(Exception):
    def __str__(self): raise ValueError("no text")

class Custom(BaseException): pass

async def later(): pass

class NeverClosed:
    def __iter__(self): return iter([b"x"])
    def close(self): raise ValueError("in close")

def app(environ, start_response):
    name = environ["PATH_INFO"][1:]
    if name == "raises": raise ValueError("before the head")
    if name == "mute": raise Mute
    if name == "stop": next(iter(()))
    if name == "interrupt": raise KeyboardInterrupt
    if name == "custom": raise Custom("own")
    if name == "coroutine": return later()
    if name == "exit": sys.exit(3)
    if name == "silent": return [b"x"]
    if name == "silent-empty": return []
    if name == "silent-generator": return iter([b"x"])
    if name == "status": start_response("OK", plain)
    if name == "status-bytes": start_response(b"200 OK", plain)
    if name == "status-interim": start_response("100 Continue", plain)
    if name == "hop": start_response("200 OK", [("Connection", "close")])
    if name == "crlf": start_response("200 OK", [("X-A", "a\\r\\nX-B: b")])
    if name == "name": start_response("200 OK", [("X A", "a")])
    if name == "pair": start_response("200 OK", ["X-A: a"])
    if name == "value": start_response("200 OK", [("X-A", 1)])
    if name == "unicode": start_response("200 OK", [("X-A", "\\u20ac")])
    if name == "twice":
        start_response("200 OK", plain)
        start_response("200 OK", plain)
    lengths = {"long": "2", "short": "9", "lengths": "9", "long-list": "2", "short-list": "9"}
    sized = [("Content-Length", lengths[name])] if name in lengths else []
    start_response("200 OK", plain + sized)
    if name == "none": return None
    if name == "number": return 7
    if name == "str": return "text"
    if name == "bytes": return b"text"
    if name == "str-piece": return ["text"]
    if name == "none-piece": return [None]
    if name == "str-yield": return iter(["text"])
    if name == "none-yield": return iter([b"a", None])
    if name == "after": return after([b"a", b"b"])
    if name == "after-first": return after([])
    if name == "long": return iter([b"a", b"b", b"c"])
    if name == "short": return iter([b"a", b"b"])
    if name == "long-list": return [b"abc"]
    if name == "short-list": return [b"ab"]
    if name == "close": return NeverClosed()
    if name == "late-exit": return (sys.exit(4) for _ in range(1))
    return [b"fine"]
"""

REFUSED = {
    "raises": "exception in the application: ValueError: before the head",
    "mute": "exception in the application: Mute: its text cannot be had",
    "stop": "exception in the application: StopIteration,",
    "interrupt": "exception in the application: KeyboardInterrupt,",
    "custom": "exception in the application: Custom: own",
    "coroutine": "returned a coroutine: if it is ASGI, write `interface: asgi`",
    "exit": r"the application called exit\(\): SystemExit\(3\)",
    "late-exit": r"the application called exit\(\): SystemExit\(4\)",
    "silent": r"start_response\(\) was not called before the body",
    "silent-empty": r"start_response\(\) was not called before the body",
    "silent-generator": r"start_response\(\) was not called before the body",
    "status": "the status must be like \"200 OK\", not 'OK'",
    "status-bytes": "the status must be a str, not bytes",
    "status-interim": "the status must be like",
    "hop": "Connection is a hop-by-hop header",
    "crlf": "invalid character in the value of header X-A",
    "name": "invalid header name 'X A'",
    "pair": r"a header must be \(name, value\)",
    "value": "a header must be two str",
    "unicode": "invalid character in the value of header X-A",
    "twice": r"start_response\(\) was called a second time",
    "none": "the application returned None, which is no iterable",
    "number": "the application returned int, which is no iterable",
    "str": "the application returned str: put it into a list",
    "bytes": "the application returned bytes: put it into a list",
    "str-piece": "a piece of the body is str: encode it",
    "none-piece": "a piece of the body is NoneType, not bytes",
    "str-yield": "a piece of the body is str: encode it",
    "after-first": "ValueError: after the head",
    "short-list": "the body has 2 of the 9 bytes of its Content-Length",
}
CUT = {
    "none-yield": "a piece of the body is NoneType",
    "after": "ValueError: after the head",
    "short": "the body has 2 of the 9 bytes of its Content-Length",
}
WHOLE = {
    "close": r"close\(\) of the body raised ValueError: in close",
    "long": "the body is longer than its Content-Length",
    "long-list": "the body is longer than its Content-Length",
}


def test_bad_applications(hosted: Hosted) -> None:
    """Each mistake is one record with the request in it, and costs that request alone."""
    server = hosted(BAD)
    server.expect("")
    worker = server.pids()
    for name, said in REFUSED.items():
        since = len(server.log)
        answer, body = ask(server.port, "GET", f"/{name}")
        assert (answer.status, body) == (500, b"Internal Server Error\n"), name
        server.wait_for(rf'\[error\].*{said}.*request: "GET /{name} HTTP/1\.1"', since=since)
    for name, said in CUT.items():
        since = len(server.log)
        got = ask_raw(server.port, f"GET /{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert not got.endswith(b"0\r\n\r\n"), name
        assert b"Internal" not in got
        server.wait_for(rf'\[error\].*{said}.*request: "GET /{name} HTTP/1\.1"', since=since)
    for name, said in WHOLE.items():
        since = len(server.log)
        answer, body = ask(server.port, "GET", f"/{name}")
        assert (answer.status, body) == (200, {"close": b"x"}.get(name, b"ab")), name
        server.wait_for(rf'\[error\].*{said}.*request: "GET /{name} HTTP/1\.1"', since=since)
    answer, body = ask(server.port, "GET", "/lengths")
    assert answer.status == 500
    answer, body = ask(server.port, "GET", "/fine")
    assert (answer.status, body) == (200, b"fine")
    assert server.pids() == worker or "exit" in server.log


FILE_APP = """
import gzip, io, tempfile
from pathlib import Path

DATA = bytes(range(256)) * 8192
Path("data").write_bytes(DATA)
Path("data.gz").write_bytes(gzip.compress(DATA))
log = Path("closed.txt").open("a", buffering=1)

class Told(io.FileIO):
    pass

def app(environ, start_response):
    name = environ["PATH_INFO"][1:]
    wrap = environ["wsgi.file_wrapper"]
    headers = [("Content-Type", "application/octet-stream")]
    if name == "part":
        headers.append(("Content-Length", "1000"))
    if name == "too-long":
        headers.append(("Content-Length", str(len(DATA) + 1)))
    start_response("200 OK", headers)
    file = Path("data").open("rb")
    if name == "offset" or name == "part":
        file.seek(256)
        file.read(3)
    elif name == "gzip":
        file = gzip.open("data.gz")
    elif name == "memory":
        file = io.BytesIO(DATA)
    elif name == "raw":
        file = open("data", "rb", buffering=0)
    close = file.close
    if name in ("whole", "offset"):
        file.close = lambda: (close(), log.write(name + "\\n"))
    return wrap(file, 1024)
"""


def test_file_wrapper(hosted: Hosted) -> None:
    server = hosted(FILE_APP)
    server.expect("has 2097152 of the 2097153 bytes")
    data = bytes(range(256)) * 8192
    answer, body = ask(server.port, "GET", "/whole")
    assert body == data
    assert answer.headers["Content-Length"] == str(len(data))  # by sendfile: the size is known
    answer, body = ask(server.port, "GET", "/offset")
    assert body == data[259:]
    answer, body = ask(server.port, "GET", "/part")
    assert body == data[259:1259]
    for name in ("gzip", "memory", "raw"):
        answer, body = ask(server.port, "GET", f"/{name}")
        assert body == data, name
    answer, body = ask(server.port, "HEAD", "/whole")
    assert answer.headers["Content-Length"] == str(len(data))
    got = ask_raw(server.port, b"GET /too-long HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert len(got) < len(data) + 1000
    server.wait_for(lambda: (server.directory / "closed.txt").read_text().count("\n") == 3)


CONTEXT = """
import asyncio, contextvars, threading

var = contextvars.ContextVar("var", default="fresh")

async def answer():
    await asyncio.sleep(0)
    return b"from asyncio.run "

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    before = var.get()
    var.set("stale")
    try:
        asyncio.get_running_loop()
        loop = b"a loop "
    except RuntimeError:
        loop = b"no loop "
    if environ["PATH_INFO"] == "/stream":
        def pieces():
            yield before.encode() + b" "
            yield var.get().encode() + b" "
            yield asyncio.run(answer())
        return pieces()
    environ["wsgi.input"].read()
    return [before.encode(), b" ", loop, asyncio.run(answer())]
"""


def test_context_variables_and_no_loop(hosted: Hosted) -> None:
    """Each request has variables of its own, and may run an event loop of its own."""
    server = hosted(CONTEXT)
    for _ in range(3):
        assert ask(server.port, "GET", "/")[1] == b"fresh no loop from asyncio.run "
        assert (
            ask(server.port, "POST", "/", b"x" * 200_000)[1] == b"fresh no loop from asyncio.run "
        )
        assert ask(server.port, "GET", "/stream")[1] == b"fresh stale from asyncio.run "


STREAM = """
import time
from pathlib import Path

log = Path("made.txt").open("a", buffering=1)

class Pieces:
    made = 0
    def __iter__(self): return self
    def __next__(self):
        self.made += 1
        log.write("x\\n")
        if self.made > 5000: raise StopIteration
        return b"x" * 65536
    def close(self): log.write("closed\\n")

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Pieces() if environ["PATH_INFO"] == "/big" else [b"small"]
"""


def test_a_client_that_does_not_read(hosted: Hosted) -> None:
    """It holds up its own answer and nobody else; when it leaves, the iterable is closed."""
    server = hosted(STREAM)
    made = server.directory / "made.txt"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for(lambda: made.read_text())
        for _ in range(20):
            began = time.monotonic()
            assert server.get().text == "small"
            assert time.monotonic() - began < PATIENCE / 2
        held = len(made.read_text())
        assert held < 1000  # of 5000: what fits into the kernel's buffers, and 64 KiB
        sock.recv(1000)
    server.wait_for(lambda: "closed" in made.read_text())
    assert len(made.read_text()) < 4000
    assert server.get().text == "small"


CROWDED = """
import os, time
ran = []

def app(environ, start_response):
    if environ["PATH_INFO"] == "/wait":
        ran.append(1)
        while not os.path.exists("gate"):
            time.sleep(0.005)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(len(ran)).encode()]
"""


def waiting(server: Any, number: int) -> list[socket.socket]:
    """So many requests that each take a thread until there is a file `gate`."""
    socks = [server.connect() for _ in range(number)]
    for sock in socks:
        sock.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    return socks


def test_more_requests_than_may_wait_for_a_thread(daemon: Any) -> None:
    server = daemon(app=CROWDED, threads=1)
    socks = waiting(server, 1 + 256)
    try:
        server.wait_for(lambda: server.get().status == 503)
        assert server.get().headers["retry-after"] == "1"
        assert "1 threads are busy and 256 requests wait" in server.log
        (server.directory / "gate").touch()
        for sock in socks:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.get().text == "257"
    finally:
        for sock in socks:
            sock.close()


def test_a_request_that_was_given_up_does_not_run(daemon: Any) -> None:
    """It waited for a thread for so long that it was answered 504."""
    server = daemon(app=CROWDED, threads=1, timeouts={"request": 0.5})
    server.expect("timed out")
    socks = waiting(server, 3)
    try:
        for sock in socks:
            assert sock.recv(65536).startswith(b"HTTP/1.1 504 ")
        (server.directory / "gate").touch()
        assert server.get().text == "1"
    finally:
        for sock in socks:
            sock.close()


def test_slow_clients_hold_up_nobody(daemon: Any) -> None:
    """`threads: 0` with no proxy in front: heads, bodies and answers that go byte by byte."""
    server = daemon(app=ECHO, threads=0)
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n" + b"x" * 20
    slow = [server.connect() for _ in range(50)]
    try:
        for n in range(len(request) - 1):
            for sock in slow:
                sock.sendall(request[n : n + 1])
            if n % 10 == 0:
                began = time.monotonic()
                assert server.get().status == 200
                assert time.monotonic() - began < PATIENCE / 2
        for sock in slow:
            sock.sendall(request[-1:])
        for sock in slow:
            got = b""
            while b"x" * 20 not in got:
                piece = sock.recv(7)
                assert piece
                got += piece
            assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    finally:
        for sock in slow:
            sock.close()


PACED = """
import time
from pathlib import Path

def app(environ, start_response):
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/write":
        write(b"w" * 20_000)
        wait("go-1")
        write(b"v" * 20_000)
        wait("go-2")
        return [b"end"]
    return pieces(environ["PATH_INFO"])

def pieces(path):
    for _ in range(50):
        yield b"x" * 20_000
    wait("go-1")
    yield b"y" * (4_000_000 if path == "/more" else 20_000)
    wait("go-2")
    yield b"end"

def wait(name):
    while not Path(name).exists():
        time.sleep(0.01)
"""


@pytest.mark.parametrize("path", ["/pieces", "/more", "/write"])
def test_no_block_waits_for_the_next_one(daemon: Any, path: str) -> None:
    """What an application made at once is gathered, but not while it takes its time."""
    server = daemon(app=PACED, threads=0, workers=1, timeouts={"hang": "off"})
    with server.connect() as client:
        client.settimeout(20)
        client.sendall(b"GET %b HTTP/1.0\r\nHost: a\r\n\r\n" % path.encode())
        first = 20_000 if path == "/write" else 1_000_000
        data = b""
        # The application stands still, and the worker with it.
        while not data.endswith(b"w" * first if path == "/write" else b"x" * first):
            data += client.recv(1 << 20)
        (server.directory / "go-1").touch()
        second = 4_000_000 if path == "/more" else 20_000
        # More than the kernel takes at once is sent on while the application makes the rest.
        for _ in range(second):
            if data.endswith(b"v" * second if path == "/write" else b"y" * second):
                break
            data += client.recv(1 << 20)
        (server.directory / "go-2").touch()
        while more := client.recv(1 << 20):
            data += more
        assert data.endswith(b"end")


def test_the_transmitter_is_gone_before_a_fork(daemon: Any) -> None:
    """A warmed worker that has streamed becomes the mold: no thread may be left in it."""
    app = """
import threading

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/threads":
        return [" ".join(sorted(one.name for one in threading.enumerate())).encode()]
    return (b"x" * 20_000 for _ in range(100))
"""
    server = daemon(app=app, threads=0, workers=1)
    assert len(server.get("/").body) == 2_000_000
    server.wait_for(lambda: server.get("/threads").body == b"MainThread")


def test_answers_of_a_turn_do_not_wait_for_its_last_request(daemon: Any) -> None:
    app = """
import time
from pathlib import Path

seen = 0

def app(environ, start_response):
    global seen
    seen += 1
    while seen == 6 and not Path("go").exists():
        time.sleep(0.01)
    time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
"""
    server = daemon(app=app, threads=0, workers=1, timeouts={"hang": "off"})
    (worker,) = server.pids()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(3)]
        request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        for client in clients:
            client.settimeout(20)
            client.sendall(request)
            assert client.recv(1000).endswith(b"ok")
        # While it sleeps all three come, so that it finds them in one turn.
        os.kill(worker, signal.SIGSTOP)
        for client in clients:
            client.sendall(request)
        os.kill(worker, signal.SIGCONT)
        waiting = set(clients)
        while len(waiting) > 1:
            ready, _, _ = select.select(list(waiting), [], [], 20)
            assert ready, "the answers wait for the last request"
            for client in ready:
                assert client.recv(1000).endswith(b"ok")
                waiting.discard(client)
        (server.directory / "go").touch()
        assert waiting.pop().recv(1000).endswith(b"ok")
