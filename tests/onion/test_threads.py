"""Plain functions in the onion: which thread they run in, and that none waits for ever."""

# ruff: noqa: ARG001, ARG005 -- a layer has two arguments, whether it needs both or not

import asyncio
import contextlib
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from prefork import Application, quick

MAIN = threading.main_thread()


def in_a_thread() -> bool:
    return threading.current_thread().name.startswith("prefork-executor")


def test_a_plain_handler_runs_in_a_thread(serve):
    app = Application()

    @app.use
    def handler(ctx):
        ctx.body = f"{in_a_thread()}"

    assert serve(app).get().text == "True"


def test_a_quick_handler_runs_on_the_loop(serve):
    app = Application()

    @app.use
    @quick
    def handler(ctx):
        ctx.body = f"{threading.current_thread() is MAIN}"

    assert serve(app).get().text == "True"


def test_a_plain_layer_waits_in_its_thread_while_the_rest_runs_on_the_loop(serve):
    app = Application()
    seen: list[Any] = []

    @app.use
    async def outer(ctx, next):
        seen.append(asyncio.current_task())
        await next()

    @app.use
    def layer(ctx, next):
        seen.append(in_a_thread())
        value = next()
        seen.append(value)
        ctx.body += " and on"

    @app.use
    async def inner(ctx, next):
        assert threading.current_thread() is MAIN
        assert asyncio.current_task() is seen[0]
        await asyncio.sleep(0.001)
        ctx.body = "in"
        return "returned"

    assert serve(app).get().text == "in and on"
    assert seen[1:] == [True, "returned"]


def test_a_plain_layer_may_end_the_way_in(serve):
    app = Application()

    @app.use
    def layer(ctx, next):
        ctx.body = "stop"

    @app.use
    async def never(ctx):
        ctx.body = "never"

    assert serve(app).get().text == "stop"


def test_an_error_of_the_rest_is_raised_by_next_in_the_thread(serve):
    app = Application()

    @app.use
    def catch(ctx, next):
        try:
            next()
        except ZeroDivisionError as error:
            ctx.body = f"caught {type(error).__name__}"

    @app.use
    async def handler(ctx):
        await asyncio.sleep(0)
        ctx.body = 1 // 0

    assert serve(app).get().text == "caught ZeroDivisionError"


def test_an_error_that_a_plain_layer_lets_pass(serve):
    app = Application()

    @app.use
    def layer(ctx, next):
        next()

    @app.use
    def handler(ctx):
        ctx.throw(409, "conflict")

    answer = serve(app).get()
    assert (answer.status, answer.text) == (409, "conflict")


@pytest.mark.parametrize("broken", [False, True])
def test_next_twice_in_a_thread(serve, broken):
    app = Application()
    calls = []

    @app.use
    def layer(ctx, next):
        with contextlib.suppress(ZeroDivisionError):
            next()
        next()

    @app.use
    async def handler(ctx):
        calls.append(1)
        if broken:
            raise ZeroDivisionError

    site = serve(app)
    assert site.get().status == 500
    assert "RuntimeError: next() called multiple times" in site.errors()
    assert calls == [1]


def test_a_plain_function_that_returns_an_awaitable(serve):
    app = Application()

    async def later(ctx):
        ctx.body = f"{ctx.body} on the loop {threading.current_thread() is MAIN}"

    app.use(lambda ctx, next: next())

    @app.use
    def handler(ctx):
        ctx.body = f"thread {in_a_thread()},"
        return later(ctx)

    assert serve(app).get().text == "thread True, on the loop True"


def test_plain_layers_nest_in_one_thread(serve):
    app = Application()
    threads = []

    def layer(ctx, next):
        threads.append(threading.get_ident())
        next()
        threads.append(threading.get_ident())

    for _ in range(5):
        app.use(layer)

    @app.use
    async def between(ctx, next):
        assert threading.current_thread() is MAIN
        await next()
        assert await ctx.run(threading.get_ident) == threads[0]

    @app.use
    def handler(ctx):
        threads.append(threading.get_ident())
        ctx.body = "core"

    assert serve(app).get().text == "core"
    assert len(threads) == 11
    assert len(set(threads)) == 1


@pytest.mark.parametrize("lent", [False, True])
def test_a_stop_iteration_in_a_thread(serve, lent):
    """`next(iter(()))` by mistake: asyncio's futures refuse it, and the client waited for ever."""
    app = Application()

    @app.use
    async def catch(ctx, next):
        try:
            await next()
        except RuntimeError as error:
            ctx.body = f"{error}, {type(error.__cause__).__name__}"

    if lent:

        @app.use
        def outer(ctx, next):
            next()

    @app.use
    def handler(ctx):
        next(iter(()))

    said = "a function in a thread raised StopIteration, StopIteration"
    assert serve(app).get().text == said


def test_more_plain_layers_than_threads_do_not_wait_for_each_other(serve):
    """Every thread is held by a layer in `next()`; what is further in needs a thread too."""
    app = Application()
    entered = threading.Barrier(2)

    @app.use
    def layer(ctx, next):
        entered.wait(20)  # both threads there are hold one request each
        next()

    @app.use
    async def between(ctx, next):
        await ctx.run(lambda: None)
        await next()

    @app.use
    def handler(ctx):
        ctx.body = "core"

    site = serve(app, threads=2)

    async def both() -> Any:
        return await asyncio.gather(site.asking("GET"), site.asking("GET"))

    assert [answer.text for answer in site.run(both())] == ["core", "core"]


def test_blocking_calls_below_a_plain_layer_are_one_at_a_time(serve):
    app = Application()

    @app.use
    def layer(ctx, next):
        next()

    @app.use
    async def handler(ctx):
        running: list[int] = []

        def work(n: int) -> int:
            running.append(n)
            assert len(running) == 1
            running.remove(n)
            return n

        ctx.body = await asyncio.gather(*(ctx.run(work, n) for n in range(20)))

    assert serve(app).get().text == str(list(range(20))).replace(" ", "")


def test_run_has_arguments_result_and_errors(serve):
    app = Application()

    @app.use
    async def handler(ctx):
        assert await ctx.run(divmod, 7, 2) == (3, 1)
        assert await ctx.run(sorted, [1, 2], reverse=True) == [2, 1]
        with pytest.raises(ZeroDivisionError):
            await ctx.run(divmod, 1, 0)
        ctx.body = "done"

    assert serve(app).get().text == "done"


user: ContextVar[str] = ContextVar("user", default="nobody")


@pytest.mark.parametrize("below_a_plain_layer", [False, True])
def test_threads_see_a_copy_of_the_context_variables(serve, below_a_plain_layer):
    app = Application()

    @app.use
    async def login(ctx, next):
        user.set(ctx.query["user"])
        await next()
        assert user.get() == ctx.query["user"]

    if below_a_plain_layer:

        @app.use
        def layer(ctx, next):
            assert user.get() == ctx.query["user"]
            next()

    @app.use
    async def between(ctx, next):
        ctx.state["seen"] = await ctx.run(user.get)
        await next()

    @app.use
    def handler(ctx):
        ctx.body = f"{ctx.state['seen']} {user.get()}"
        user.set("changed in the copy")

    site = serve(app)
    assert site.get("/?user=ada").text == "ada ada"
    assert site.get("/?user=bob").text == "bob bob"


def cancel_the_request(site: Any) -> None:
    (task,) = site._handlers()
    task.cancel()
    site.until(lambda: not site._handlers())
    assert "the handler was cancelled" in site.errors()


def test_a_cancelled_request_releases_the_thread_that_waits_in_next(serve):
    app = Application()
    entered = threading.Event()
    left: list[str] = []

    @app.use
    def layer(ctx, next):
        try:
            next()
        except Exception:
            left.append("taken for an error")
        finally:
            left.append("left")

    @app.use
    async def handler(ctx):
        entered.set()
        await asyncio.sleep(3600)

    site = serve(app)
    client = site.connect()
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    site.until(entered.is_set)
    cancel_the_request(site)
    site.until(lambda: left)
    assert left == ["left"]
    client.close()


def test_a_thread_that_calls_next_after_the_request_was_cancelled(serve):
    app = Application()
    entered, go_on = threading.Event(), threading.Event()
    seen: list[str] = []

    @app.use
    def layer(ctx, next):
        entered.set()
        go_on.wait(20)
        try:
            next()
        except asyncio.CancelledError:
            seen.append("cancelled")

    @app.use
    async def never(ctx):
        seen.append("never")

    site = serve(app)
    client = site.connect()
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    site.until(entered.is_set)
    cancel_the_request(site)
    go_on.set()
    site.until(lambda: seen)
    assert seen == ["cancelled"]
    client.close()
