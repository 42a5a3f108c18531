"""The application: its hooks, its callback, and the task a request runs in."""

import asyncio
from contextvars import ContextVar

import pytest

import prefork
from prefork import Application
from prefork.onion.compose import compose


def test_the_public_entry_is_the_application():
    from prefork.onion.application import Application as Inner
    from prefork.onion.compose import quick

    assert Application is Inner
    assert prefork.quick is quick


def test_without_layers_everything_is_404(serve):
    assert serve(Application()).get().text == "Not Found"


def test_use_decorates_and_calls(serve):
    app = Application()

    @app.use
    async def first(ctx, next):
        ctx.body = "first"
        await next()

    async def second(ctx, next):
        ctx.body += " second"
        await next()

    assert app.use(second) is second
    app.use(compose([second, second]))
    assert callable(first)
    assert serve(app).get().text == "first second second second"


@pytest.mark.parametrize("bad", [None, "name", lambda: None])
def test_use_refuses_what_is_no_layer(bad):
    with pytest.raises(TypeError):
        Application().use(bad)


def test_one_application_may_be_a_layer_of_another(serve):
    inner = Application()

    @inner.use
    async def page(ctx, next):
        if ctx.path != "/page":
            await next()
            return
        ctx.body = "page"

    outer = Application()
    outer.use(compose(inner.layers))

    @outer.use
    async def other(ctx):
        ctx.body = "other"

    site = serve(outer)
    assert (site.get("/page").text, site.get("/").text) == ("page", "other")


def test_start_up_hooks_in_order_shut_down_hooks_in_reverse():
    app = Application()
    seen = []

    @app.on_startup
    def one():
        seen.append("start 1")

    @app.on_startup
    async def two():
        await asyncio.sleep(0)
        seen.append("start 2")

    @app.on_shutdown
    async def three():
        seen.append("stop 1")

    @app.on_shutdown
    def four():
        seen.append("stop 2")

    asyncio.run(app.startup())
    asyncio.run(app.shutdown())
    assert seen == ["start 1", "start 2", "stop 2", "stop 1"]


def test_a_start_up_hook_that_fails_ends_the_start():
    app = Application()
    seen = []

    @app.on_startup
    def broken():
        raise LookupError("no database")

    app.on_startup(lambda: seen.append("never"))
    with pytest.raises(LookupError, match="no database"):
        asyncio.run(app.startup())
    assert not seen


def test_every_shut_down_hook_runs_even_after_one_failed():
    app = Application()
    seen = []
    app.on_shutdown(lambda: seen.append("run"))

    @app.on_shutdown
    async def broken():
        raise LookupError("first")

    @app.on_shutdown
    async def more():
        raise KeyError("second")

    with pytest.raises(KeyError, match="second") as caught:
        asyncio.run(app.shutdown())
    assert seen == ["run"]
    assert "LookupError('first')" in caught.value.__notes__[0]


def test_a_request_runs_in_a_task_with_context_variables_of_its_own(serve):
    app = Application()
    user: ContextVar[str] = ContextVar("user")

    @app.use
    async def handler(ctx):
        assert asyncio.current_task() is not None
        found = user.get("nobody")
        user.set("somebody")
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        ctx.body = found

    site = serve(app)
    assert [site.get().text, site.get().text] == ["nobody", "nobody"]


def test_on_finished_runs_when_the_answer_is_out_and_when_it_cannot_be(serve):
    app = Application()
    seen: list[str] = []

    @app.use
    async def handler(ctx):
        ctx.on_finished(lambda: seen.append(f"{ctx.path} {ctx.exchange.status}"))
        if ctx.path == "/error":
            ctx.throw(400)
        if ctx.path == "/cut":
            ctx.exchange.start(200, b"", None)
            raise ConnectionAbortedError("enough")
        ctx.body = "x"

    site = serve(app)
    site.get("/ok")
    site.get("/error")
    site.get("/cut")
    site.errors()
    assert seen == ["/ok 200", "/error 400", "/cut 200"]


def test_many_requests_at_once_keep_their_contexts_apart(serve):
    app = Application()

    @app.use
    async def outer(ctx, next):
        ctx.state["n"] = ctx.query["n"]
        await next()
        ctx.body += f" {ctx.state['n']}"

    @app.use
    async def inner(ctx):
        await asyncio.sleep(0.001)
        ctx.body = ctx.state["n"]

    site = serve(app)

    async def all_of_them():
        return await asyncio.gather(*(site.asking("GET", f"/?n={n}") for n in range(50)))

    assert [a.text for a in site.run(all_of_them())] == [f"{n} {n}" for n in range(50)]


def test_a_slow_handler_is_not_in_the_way_of_others(serve):
    app = Application()
    gate = asyncio.Event()

    @app.use
    async def handler(ctx):
        if ctx.path == "/slow":
            await gate.wait()
        ctx.body = ctx.path

    site = serve(app)

    async def slow_then_quick():
        slow = asyncio.ensure_future(site.asking("GET", "/slow"))
        quick = await site.asking("GET", "/quick")
        assert not slow.done()
        gate.set()
        return quick, await slow

    assert [a.text for a in site.run(slow_then_quick())] == ["/quick", "/slow"]
