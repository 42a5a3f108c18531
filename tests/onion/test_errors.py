"""Errors that leave the onion: what the client is told, and what the log."""

# ruff: noqa: ARG001 -- a layer has two arguments, whether it needs both or not

import asyncio
import sys
from typing import Any

import pytest

from prefork import Application
from prefork.errors import HttpError

TEXT = "text/plain; charset=utf-8"


def failing(serve: Any, fail: Any) -> Any:
    """A site whose handler sets a header and a body and then calls `fail(ctx)`."""
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.set("X-Lost", "1")
        ctx.type = "html"
        ctx.body = "lost"
        fail(ctx)

    return serve(app)


@pytest.mark.parametrize(
    ("args", "options", "status", "text"),
    [
        ((404,), {}, 404, "Not Found"),
        ((404, "no such page"), {}, 404, "no such page"),
        ((400, "naïve"), {}, 400, "naïve"),
        ((500, "secret"), {}, 500, "Internal Server Error"),
        ((503, "in an hour"), {"expose": True}, 503, "in an hour"),
        ((403, "secret"), {"expose": False}, 403, "Forbidden"),
        ((), {}, 500, "Internal Server Error"),
        ((799, "?"), {}, 500, "Internal Server Error"),
        ((200, "?"), {}, 500, "Internal Server Error"),
    ],
)
def test_throw(serve, args, options, status, text):
    site = failing(serve, lambda ctx: ctx.throw(*args, **options))
    answer = site.get()
    assert (answer.status, answer.text) == (status, text)
    assert answer.get("content-type") == TEXT
    assert answer.get("x-lost") is None
    # What a handler meant to say to the client is no news for the log.
    logged = text in ("Internal Server Error", "Forbidden")
    assert ("[error]" in site.errors()) == logged


def test_throw_with_headers_and_properties(serve):
    app = Application()
    seen = []

    @app.use
    async def outer(ctx, next):
        try:
            await next()
        except HttpError as error:
            seen.append(error.hint)
            raise

    @app.use
    async def inner(ctx):
        headers = {"WWW-Authenticate": "Basic", "Content-Type": "text/html", "Content-Length": "1"}
        ctx.throw(401, "who?", headers=headers, hint=7)

    answer = serve(app).get()
    assert (answer.status, answer.text, answer.get("www-authenticate")) == (401, "who?", "Basic")
    assert answer.get("content-type") == TEXT
    assert seen == [7]


def test_an_error_with_a_header_that_cannot_be_sent(serve):
    site = failing(serve, lambda ctx: ctx.throw(404, headers={"X": "a\r\nb: c"}))
    answer = site.get()
    assert (answer.status, answer.get("b")) == (500, None)
    assert "ValueError in the headers of an error" in site.errors()


def test_assert(serve):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.assert_(ctx.query.get("user"), 401, "log in")  # noqa: PT009 -- Koa's
        ctx.body = "hello"

    site = serve(app)
    assert site.get("/?user=ada").text == "hello"
    answer = site.get("/")
    assert (answer.status, answer.text) == (401, "log in")


def test_any_other_exception_is_500_and_logged_with_its_place(serve):
    def fail(ctx):
        raise KeyError("password=hunter2")

    site = failing(serve, fail)
    answer = site.get("/path?q=1")
    assert (answer.status, answer.text) == (500, "Internal Server Error")
    log = site.errors()
    assert "[error]" in log
    assert "#0: *1 KeyError: 'password=hunter2', client: unix:" in log
    assert 'request: "GET /path?q=1 HTTP/1.1"' in log
    assert "raise KeyError" in log


def test_a_missing_file_is_404(serve, tmp_path):
    def fail(ctx):
        (tmp_path / "missing").read_text()

    site = failing(serve, fail)
    assert site.get().status == 404
    assert "FileNotFoundError" in site.errors()


def test_an_error_in_a_head_request_has_no_body(serve):
    answer = failing(serve, lambda ctx: ctx.throw(404)).ask("HEAD")
    assert (answer.status, answer.body, answer.get("content-length")) == (404, b"", "9")


def test_layers_may_catch_and_answer(serve):
    app = Application()

    @app.use
    async def catch(ctx, next):
        try:
            await next()
        except ZeroDivisionError:
            ctx.status = 422
            ctx.body = {"error": "division"}

    @app.use
    async def handler(ctx):
        ctx.body = 1 // 0

    answer = serve(app).get()
    assert (answer.status, answer.body) == (422, b'{"error":"division"}')


def test_next_called_twice_is_a_500(serve):
    app = Application()

    @app.use
    async def layer(ctx, next):
        await next()
        await next()

    @app.use
    async def handler(ctx):
        ctx.body = "x"

    site = serve(app)
    assert site.get().status == 500
    assert "RuntimeError: next() called multiple times" in site.errors()


# Listeners


def test_listeners_take_the_place_of_the_log(serve):
    app = Application()
    heard: list[tuple[str, str]] = []

    @app.on_error
    def plain(error, ctx):
        heard.append(("plain", f"{error} {ctx.path}"))

    @app.on_error
    async def waiting(error, ctx):
        await asyncio.sleep(0)
        heard.append(("async", str(error)))

    @app.use
    async def handler(ctx):
        if ctx.path == "/throw":
            ctx.throw(404, "gone")
        raise ValueError("bad")

    site = serve(app)
    assert site.get("/x").status == 500
    assert heard == [("plain", "bad /x"), ("async", "bad")]
    assert "[error]" not in site.log
    assert site.get("/throw").status == 404
    assert heard[2:] == [("plain", "gone /throw"), ("async", "gone")]


def test_a_listener_that_fails_is_logged_and_the_client_answered(serve):
    app = Application()

    @app.on_error
    def broken(error, ctx):
        raise LookupError("listener")

    @app.use
    async def handler(ctx):
        raise ValueError

    site = serve(app)
    assert site.get().status == 500
    assert "LookupError in app.on_error: listener" in site.errors()


def test_nobody_is_told_of_a_client_that_left(serve):
    app = Application()
    heard: list[Exception] = []
    ended: list[bool] = []
    app.on_error(lambda error, _: heard.append(error))

    @app.use
    async def handler(ctx):
        ctx.on_finished(lambda: ended.append(True))
        await ctx.request.body()

    site = serve(app)
    client = site.connect()
    client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    site.until(lambda: site.server.requests_running)
    site.server.abort()  # the connection is lost, as by a reset
    site.until(lambda: ended)
    client.close()
    assert heard == []


# After the head


def test_an_error_after_the_head_cuts_the_connection(serve):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.exchange.start(200, b"", None)
        ctx.exchange.write(b"half")
        await asyncio.sleep(0.01)
        raise ZeroDivisionError

    site = serve(app)
    answer = site.get()
    assert (answer.status, answer.body, answer.whole) == (200, b"half", False)
    assert "ZeroDivisionError" in site.errors()


# Cancellation, and connections of others


def test_cancellation_passes_through_every_layer(serve):
    app = Application()
    seen = []

    @app.use
    async def layer(ctx, next):
        try:
            await next()
        except Exception:
            seen.append("taken for an error")
        finally:
            seen.append("left")

    @app.use
    async def handler(ctx):
        seen.append("entered")
        await asyncio.sleep(3600)

    site = serve(app)
    client = site.connect()
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    site.until(lambda: seen)
    (task,) = site._handlers()
    task.cancel()
    site.until(lambda: not site._handlers())
    assert seen == ["entered", "left"]
    assert task.cancelled()
    assert "the handler was cancelled" in site.errors()
    client.close()


def test_a_broken_connection_of_the_handlers_own_is_an_error(serve):
    def fail(ctx):
        raise ConnectionResetError("the database left")

    site = failing(serve, fail)
    assert site.get().status == 500
    assert "the database left" in site.errors()


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_cancellation_that_nobody_asked_for_is_an_error(serve, answered, at_once):
    """Behind an answer, in the first step, it once ended the worker."""
    app = Application()

    @app.use
    async def handler(ctx):
        if answered:
            ctx.exchange.reply(200, b"", b"done")
        if not at_once:
            await asyncio.sleep(0)
        raise asyncio.CancelledError

    site = serve(app)
    assert site.get().status == (200 if answered else 500)
    errors = site.errors()
    assert "the application raised CancelledError" in errors
    assert "asyncio.exceptions.CancelledError" in errors


class Leaves:
    """A body whose close() calls exit()."""

    def __init__(self):
        self.pieces = iter([b"whole"])

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.pieces)

    def close(self):
        sys.exit(3)


async def in_the_handler(ctx):
    sys.exit(3)


async def in_a_thread(ctx):
    await ctx.run(sys.exit, 3)


def in_a_plain_handler(ctx):
    sys.exit(3)


async def in_close(ctx):
    ctx.body = Leaves()


async def in_close_of_what_is_not_sent(ctx):
    ctx.body = Leaves()
    ctx.body = "other"


async def in_a_listener(ctx):
    ctx.app.error_listeners = [lambda _error, _ctx: sys.exit(3)]
    raise LookupError("boom")


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (in_the_handler, "500 Internal Server Error"),
        (in_a_thread, "500 Internal Server Error"),
        (in_a_plain_handler, "500 Internal Server Error"),
        (in_close, "200 whole"),
        (in_close_of_what_is_not_sent, "200 other"),
        (in_a_listener, "500 Internal Server Error"),
    ],
)
def test_exit_asks_for_another_worker(serve, handler, said):
    """It ends its request, and asks once."""
    app = Application()
    app.use(handler)
    asked = []
    app.replace_worker = asked.append
    site = serve(app)
    for _ in range(2):
        answer = site.get()
        assert f"{answer.status} {answer.text}" == said
        site.until(lambda: asked and not site._handlers())
    assert asked == ["the application called exit()"]
    errors = site.errors()
    assert errors.count("[error]") == 2
    assert "SystemExit: 3" in errors
    assert 'request: "GET / HTTP/1.1"' in errors


def test_an_interrupt_asks_for_nothing(serve):
    def fail(ctx):
        raise KeyboardInterrupt

    site = failing(serve, fail)
    site.app.replace_worker = lambda why: pytest.fail(why)
    assert site.get().status == 500
    assert "RuntimeError: the application raised KeyboardInterrupt" in site.errors()
