"""A WSGI application inside an onion, and what asks for another worker."""

import socket
from collections import Counter
from typing import Any

import pytest

from tests.gateway.asking import ask

LAYERED = """
from pathlib import Path
from prefork import Application, wsgi

Path("data").write_bytes(b"0123456789" * 10000)

class Closing:
    def __init__(self): self.pieces = iter([b"one ", b"two"])
    def __iter__(self): return self.pieces
    def close(self): Path("closed.txt").touch()

def inner(environ, start_response):
    path = environ["PATH_INFO"]
    plain = [("Content-Type", "text/plain")]
    if path == "/fail": raise ValueError("inside")
    if path == "/silent": return [b"x"]
    if path == "/file":
        start_response("200 OK", [("Content-Type", "a/b")])
        return environ["wsgi.file_wrapper"](open("data", "rb"))
    if path == "/pieces":
        start_response("201 Created", plain)
        return Closing()
    if path == "/echo":
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", plain + [("Content-Length", str(len(body)))])
        return [body]
    if path == "/sized":
        start_response("200 OK", [("Content-Length", "5")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"hello"]
    if path == "/short":
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hi"]
    start_response("299 Odd", plain + [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    return [path.encode("latin-1"), b"?", environ["QUERY_STRING"].encode()]

app = Application()

@app.use
async def outer(ctx, next):
    ctx.set("X-Before", "1")
    ctx.set("Content-Type", "replaced/by-the-application")
    if ctx.path == "/old": ctx.path = "/n\\u00e9w"
    await next()
    ctx.set("X-After", str(ctx.status))

app.use(wsgi(inner))
"""


def test_layers_around_a_wsgi_application(daemon: Any) -> None:
    server = daemon(app=LAYERED)
    server.expect("inside|start_response|has 2 of the 5|Traceback")
    answer, body = ask(server.port, "GET", "/old?x=1")
    assert (answer.status, body) == (299, b"/n\xc3\xa9w?x=1")
    assert answer.headers["X-Before"] == "1"
    assert answer.headers["X-After"] == "299"
    assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert answer.headers.get_all("Content-Type") == ["text/plain"]
    answer, body = ask(server.port, "GET", "/file")
    assert (answer.headers["Content-Type"], body) == ("a/b", b"0123456789" * 10000)
    answer, body = ask(server.port, "GET", "/pieces")
    assert (answer.status, body, answer.headers["X-After"]) == (201, b"one two", "201")
    server.wait_for(lambda: (server.directory / "closed.txt").exists())
    for size in (0, 5, 2_000_000):
        answer, body = ask(server.port, "POST", "/echo", b"x" * size)
        assert body == b"x" * size
    answer, body = ask(server.port, "HEAD", "/sized")
    assert (answer.headers["Content-Length"], answer.headers["Content-Type"]) == ("5", None)
    assert ask(server.port, "GET", "/sized")[1] == b"hello"
    for path in ("/fail", "/silent", "/short"):
        assert ask(server.port, "GET", path)[0].status == 500
    assert 'ValueError: inside, client: 127.0.0.1, request: "GET /fail HTTP/1.1"' in server.log


EXITS = """
import os, sys

class Leaves:
    def __iter__(self): return iter([b"whole"])
    def close(self): sys.exit("spoilt")

def app(environ, start_response):
    if environ["PATH_INFO"] == "/exit": sys.exit("spoilt")
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/close": return Leaves()
    return [str(os.getpid()).encode()]
"""


def test_exit_asks_for_another_worker(hosted: Any) -> None:
    """The request is answered, the worker serves until its successor stands, and then leaves."""
    server = hosted(EXITS)
    server.expect("called exit")
    first = server.get().text
    assert server.get("/exit").status == 500
    assert 'request: "GET /exit HTTP/1.1"' in server.log
    server.wait_for(r"worker 1 is replaced: the application called exit\(\)")
    server.wait_for(lambda: server.get().text != first)
    assert server.get().status == 200


def test_exit_in_close_does_so_too(hosted: Any) -> None:
    server = hosted(EXITS)
    server.expect(r"close\(\) of the body raised SystemExit: spoilt")
    first = server.get().text
    assert server.get("/close").text == "whole"
    server.wait_for(r"worker 1 is replaced: the application called exit\(\)")
    server.wait_for(lambda: server.get().text != first)


LAYERED_EXITS = f"""
from prefork import Application, wsgi
{EXITS}
inner, app = app, Application()
app.use(wsgi(inner))
"""


@pytest.mark.parametrize(("path", "status"), [("/exit", 500), ("/close", 200)])
def test_exit_behind_layers_does_so_too(daemon: Any, path: str, status: int) -> None:
    server = daemon(app=LAYERED_EXITS)
    server.expect("called exit")
    first = server.get().text
    assert server.get(path).status == status
    server.wait_for(r"the application called exit\(\): SystemExit\('spoilt'\), client: ")
    server.wait_for(r"worker 1 is replaced: the application called exit\(\)")
    server.wait_for(lambda: server.get().text != first)


MANY = """
import time

def app(environ, start_response):
    time.sleep(0.3)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
"""


def test_more_requests_than_may_wait(daemon: Any) -> None:
    server = daemon(app=MANY, threads=1, timeouts={"graceful": 3})
    clients = [server.connect() for _ in range(260)]
    try:
        for sock in clients:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for(
            r"\[warn\].*all 1 threads are busy and 256 requests wait: answered 503 \(threads\)"
        )
        refused = clients[-1].recv(1000)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in refused
        assert clients[0].recv(1000).endswith(b"done")
    finally:
        for sock in clients:
            sock.close()


BLOCKS = """
import time

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/slow":
        time.sleep(1)
        return [b"done all the same"]
    if environ["PATH_INFO"] == "/stuck": time.sleep(60)
    return [b"x"]
"""


def test_a_graceful_stop_waits_for_threads_within_its_time(daemon: Any) -> None:
    server = daemon(app=BLOCKS, threads=2, timeouts={"graceful": 3})
    with server.connect() as slow, server.connect() as stuck:
        slow.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        stuck.sendall(b"GET /stuck HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for(lambda: server.get("/slow").status == 200)
        assert slow.recv(1000).endswith(b"done all the same")
        assert server.stop() == 0
        assert b" 503 " in stuck.recv(1000)


MOUNTED = """
from prefork import Application, wsgi

def shop(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr([environ[name] for name in ("SCRIPT_NAME", "PATH_INFO", "REQUEST_URI")]).encode()]

app = Application()

@app.use
async def mounting(ctx, next):
    ctx.path = ctx.path.removeprefix("/shop")
    await next()

app.use(wsgi(shop, root_path="/shop"))
"""


def test_it_is_told_what_was_taken_off_the_path(daemon: Any) -> None:
    server = daemon(app=MOUNTED)
    assert ask(server.port, "GET", "/shop/x")[1] == b"['/shop', '/x', '/shop/x']"
    assert ask(server.port, "GET", "/x")[1] == b"['/shop', '/x', '/x']"


BUSY = """
import os, time

def app(environ, start_response):
    time.sleep(0.005)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"pid %d" % os.getpid()]
"""


def test_a_burst_is_shared_by_the_workers(daemon: Any) -> None:
    """All connect, and ask a moment later: the worker that was awake used to take most of them."""
    server = daemon(app=BUSY, workers=4)
    clients = [socket.socket() for _ in range(200)]
    for sock in clients:
        sock.connect(("127.0.0.1", server.port))
    shares: Counter[bytes] = Counter()
    for sock in clients:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    for sock in clients:
        with sock, sock.makefile("rb") as answer:
            shares[answer.read().rpartition(b"\r\n")[2]] += 1
    assert sum(shares.values()) == 200
    assert max(shares.values()) <= 80, shares
