"""Bodies that are streams or files: sent as they come, and let go of whatever happens."""

import asyncio
import io
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from prefork import Application, quick


def serving(serve: Any, make_body: Any, **options: Any) -> Any:
    """A site whose every answer has the body `make_body(ctx)`."""
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.body = make_body(ctx)

    return serve(app, **options)


# Iterators


async def pieces(closed: list[str]) -> Any:
    try:
        for piece in (b"one ", "two ", bytearray(b"three "), memoryview(b"four"), b"", ""):
            await asyncio.sleep(0)
            yield piece
    finally:
        closed.append("closed")


def test_an_async_iterator_is_streamed(serve):
    closed: list[str] = []
    answer = serving(serve, lambda _: pieces(closed)).get()
    assert (answer.status, answer.text, answer.whole) == (200, "one two three four", True)
    assert answer.get("transfer-encoding") == "chunked"
    assert answer.get("content-type") == "application/octet-stream"
    assert closed == ["closed"]


def test_a_plain_iterator_is_pulled_in_threads(serve):
    where = set()

    def rows():
        for n in range(3):
            where.add(threading.current_thread().name)
            yield f"{n}\n"

    answer = serving(serve, lambda _: rows()).get()
    assert answer.text == "0\n1\n2\n"
    assert all(name.startswith("prefork-executor") for name in where)


def test_a_quick_iterator_is_pulled_on_the_loop(serve):
    where = set()
    closed = []

    @quick
    def rows(count):
        try:
            for n in range(count):
                where.add(threading.current_thread())
                yield f"{n}\n"
        finally:
            closed.append(True)

    answer = serving(serve, lambda _: rows(3)).get()
    assert answer.text == "0\n1\n2\n"
    assert where == {threading.main_thread()}
    assert closed == [True]


def test_an_empty_stream_is_an_empty_body(serve):
    answer = serving(serve, lambda _: iter(())).get()
    assert (answer.status, answer.body, answer.whole) == (200, b"", True)


def test_a_declared_length_is_kept(serve):
    def body(ctx):
        ctx.length = 4
        return iter([b"ab", b"cd"])

    answer = serving(serve, body).get()
    assert answer.get("content-length") == "4"
    assert answer.get("transfer-encoding") is None
    assert answer.body == b"abcd"


def test_pieces_go_out_as_they_come(serve):
    gate = asyncio.Event()

    async def slow():
        yield b"first"
        await gate.wait()
        yield b"second"

    site = serving(serve, lambda _: slow())
    client = site.connect()
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    seen = b""

    async def receive(what: bytes) -> None:
        nonlocal seen
        while what not in seen:
            seen += await site.loop.sock_recv(client, 4096)

    site.run(receive(b"first"))
    assert b"second" not in seen
    gate.set()
    site.run(receive(b"second"))
    client.close()


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [200, 204])
def test_a_stream_that_is_not_sent_is_closed_all_the_same(serve, method, status):
    closed = []

    def rows():
        try:
            yield b"x"
        finally:
            closed.append("sync")

    class Own:
        def __aiter__(self):
            return self

        async def __anext__(self):
            raise StopAsyncIteration

        async def aclose(self):
            closed.append("async")

    app = Application()

    @app.use
    async def handler(ctx):
        started = rows()
        next(started)
        ctx.body = started
        ctx.body = Own()
        ctx.status = status

    answer = serve(app).ask(method)
    assert (answer.status, answer.body) == (status, b"")
    assert sorted(closed) == ["async", "sync"]


def test_a_stream_that_fails_before_its_first_piece_is_an_error_page(serve):
    async def broken():
        raise ZeroDivisionError
        yield b""

    site = serving(serve, lambda _: broken())
    assert site.get().status == 500
    assert "ZeroDivisionError" in site.errors()


@pytest.mark.parametrize("kind", ["async", "sync", "wrong piece", "too long", "too short"])
def test_a_stream_that_fails_later_is_cut(serve, kind):
    closed = []

    async def broken_async():
        try:
            yield b"half"
            raise ZeroDivisionError
        finally:
            closed.append(True)

    def broken(piece: Any = None):
        try:
            yield b"half"
            if kind == "sync":
                raise ZeroDivisionError
            if piece is not None:
                yield piece
        finally:
            closed.append(True)

    def body(ctx):
        if kind == "async":
            return broken_async()
        if kind == "too long":
            ctx.length = 5
        if kind == "too short":
            ctx.length = 50
        return broken({"wrong piece": 5, "too long": b"123"}.get(kind))

    site = serving(serve, body)
    answer = site.get()
    assert answer.status in (0, 200)  # what was written may not have been flushed when it was cut
    assert not answer.whole
    assert b"Error" not in answer.body
    site.until(lambda: closed and "[error]" in site.log)  # a body too short has closed by itself
    errors = site.errors()
    assert 'request: "GET / HTTP/1.1"' in errors


def test_an_error_after_the_body_was_set_closes_it(serve, tmp_path):
    file = (tmp_path / "a.txt").open("wb+")
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.body = file
        ctx.throw(409)

    assert serve(app).get().status == 409
    assert file.closed


def test_a_client_that_leaves_ends_the_stream_quietly(serve):
    ended = []

    async def endless():
        try:
            while True:
                yield bytes(64 * 1024)
        finally:
            ended.append(True)

    site = serving(serve, lambda _: endless())
    client = site.connect()
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    site.run(site.loop.sock_recv(client, 100))
    client.close()
    site.until(lambda: ended)
    assert "[error]" not in site.log


def test_a_client_that_leaves_ends_a_threaded_stream(serve):
    ended = []

    def endless():
        try:
            while True:
                yield bytes(64 * 1024)
        finally:
            ended.append(threading.current_thread().name)

    site = serving(serve, lambda _: endless())
    client = site.connect()
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    site.run(site.loop.sock_recv(client, 100))
    client.close()
    site.until(lambda: ended)
    assert ended[0].startswith("prefork-executor")
    assert "[error]" not in site.log


def test_a_cancelled_request_closes_a_generator_that_a_thread_is_in(serve):
    inside, go_on = threading.Event(), threading.Event()
    ended = []

    def rows():
        try:
            inside.set()
            go_on.wait(20)
            yield b"x"
        finally:
            ended.append(True)

    site = serving(serve, lambda _: rows())
    client = site.connect()
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    site.until(inside.is_set)
    for task in asyncio.all_tasks(site.loop):
        if task.get_name() == "exchange":
            task.cancel()
    site.until(lambda: "the handler was cancelled" in site.log)
    assert not ended
    go_on.set()
    site.until(lambda: ended)
    assert "the handler was cancelled" in site.errors()
    client.close()


# Files


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_bytes(b"<p>" + b"x" * 100_000)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def test_a_path_is_sent_with_its_length_type_and_age(serve, page):
    answer = serving(serve, lambda _: page).get()
    assert answer.status == 200
    assert answer.body == page.read_bytes()
    assert answer.get("content-type") == "text/html; charset=utf-8"
    assert answer.get("content-length") == "100003"
    assert answer.get("last-modified") == "Sun, 09 Sep 2001 01:46:40 GMT"


def test_head_of_a_path(serve, page):
    answer = serving(serve, lambda _: page).ask("HEAD")
    assert (answer.status, answer.body, answer.get("content-length")) == (200, b"", "100003")


def test_what_the_handler_said_of_a_file_stays(serve, page):
    def body(ctx):
        ctx.type = "text/x-own; charset=latin-1"
        ctx.last_modified = 0
        ctx.status = 203
        return page

    answer = serving(serve, body).get()
    assert answer.status == 203
    assert answer.get("content-type") == "text/x-own; charset=latin-1"
    assert answer.get("last-modified") == "Thu, 01 Jan 1970 00:00:00 GMT"


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.tar.gz", "application/gzip"),
        ("A.PNG", "image/png"),
        ("a.woff2", "font/woff2"),
        ("README", "application/octet-stream"),
        ("data:text,html", "application/octet-stream"),
        (".gitignore", "application/octet-stream"),
    ],
)
def test_types_by_file_name(serve, tmp_path, name, content_type):
    path = tmp_path / name
    path.write_bytes(b"x")
    assert serving(serve, lambda _: path).get().get("content-type") == content_type


def test_files_that_are_not_there_or_no_files(serve, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"")
    site = serving(serve, lambda ctx: tmp_path / ctx.query["name"])
    for name in ("missing", "fifo", "", "file/below", "x" * 300, "nul%00"):
        answer = site.get(f"/?name={name}")
        assert (answer.status, answer.text) == (404, "Not Found"), name
    empty = site.get("/?name=file")
    assert (empty.status, empty.body) == (200, b"")
    assert "[error]" not in site.log


def test_an_open_file_is_sent_from_where_it_stands_and_closed(serve, page):
    file = page.open("rb")
    file.seek(3)
    answer = serving(serve, lambda _: file).get()
    assert answer.body == b"x" * 100_000
    assert answer.get("content-length") == "100000"
    assert answer.get("content-type") == "text/html; charset=utf-8"
    assert answer.get("last-modified") == "Sun, 09 Sep 2001 01:46:40 GMT"
    assert file.closed


def test_files_without_a_name_or_a_descriptor(serve):
    with tempfile.TemporaryFile() as unnamed:
        unnamed.write(b"hello")
        unnamed.seek(0)
        answer = serving(serve, lambda _: unnamed).get()
    assert (answer.body, answer.get("content-type")) == (b"hello", "application/octet-stream")
    memory = io.BytesIO(b"in memory")
    answer = serving(serve, lambda _: memory).get()
    assert (answer.body, answer.get("transfer-encoding")) == (b"in memory", "chunked")
    assert memory.closed


def test_a_pipe_is_read_to_its_end(serve):
    read_end, write_end = os.pipe()
    os.write(write_end, b"through a pipe")
    os.close(write_end)
    pipe = open(read_end, "rb")  # noqa: SIM115 -- the response closes it, which is the point
    answer = serving(serve, lambda _: pipe).get()
    assert (answer.body, answer.whole) == (b"through a pipe", True)
    assert pipe.closed


def test_a_client_that_leaves_closes_the_file(serve, tmp_path):
    path = tmp_path / "big.bin"
    with path.open("wb") as big:
        big.truncate(64 * 1024 * 1024)
    file = path.open("rb")
    site = serving(serve, lambda _: file)
    client = site.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    site.run(site.loop.sock_recv(client, 100))
    client.close()
    site.until(lambda: file.closed)
    assert "[error]" not in site.log


def test_the_same_body_set_twice_is_closed_once(serve):
    closed = []

    class File(io.BytesIO):
        def close(self):
            if not self.closed:
                closed.append(True)
            super().close()

    app = Application()

    @app.use
    async def wrap(ctx, next):
        await next()
        ctx.body = ctx.body  # what a layer does that looks for something to change

    @app.use
    async def handler(ctx):
        ctx.body = File(b"x")

    assert serve(app).get().body == b"x"
    assert closed == [True]
