"""The chain itself, without a server: any object will do for a context."""

# ruff: noqa: ARG001 -- a layer has two arguments, whether it needs both or not

import asyncio
import functools
import sys
from contextvars import ContextVar
from typing import Any

import pytest

from prefork.onion.compose import Stack, compose, link, quick


def run(stack: Any, ctx: Any = None) -> Any:
    async def main() -> Any:
        return await link([stack])(ctx if ctx is not None else [])

    return asyncio.run(main())


def noting(name: str) -> Any:
    async def layer(ctx, next):
        ctx.append(f"{name} in")
        await next()
        ctx.append(f"{name} out")

    return layer


def test_layers_run_inwards_then_outwards():
    seen: list[str] = []
    run(compose([noting("a"), noting("b"), noting("c")]), seen)
    assert seen == ["a in", "b in", "c in", "c out", "b out", "a out"]


def test_an_empty_stack_hands_on():
    seen: list[str] = []
    run(compose([noting("a"), compose([]), noting("b")]), seen)
    assert seen == ["a in", "b in", "b out", "a out"]


def test_a_stack_is_a_layer_and_nests():
    seen: list[str] = []
    run(compose([noting("a"), compose([noting("b"), compose([noting("c")])]), noting("d")]), seen)
    assert seen == ["a in", "b in", "c in", "d in", "d out", "c out", "b out", "a out"]


def test_a_stack_can_be_called_like_any_layer():
    seen: list[str] = []

    async def choose(ctx, next):
        await inner(ctx, next)

    inner = compose([noting("b")])
    run(compose([choose, noting("c")]), seen)
    assert seen == ["b in", "c in", "c out", "b out"]


def test_next_gives_what_the_rest_returned():
    async def outer(ctx, next):
        return f"<{await next()}>"

    async def inner(ctx):
        return "core"

    assert run(compose([outer, outer, inner])) == "<<core>>"


def test_a_layer_may_end_the_way_in():
    seen: list[str] = []

    async def stop(ctx, next):
        ctx.append("stop")

    run(compose([noting("a"), stop, noting("b")]), seen)
    assert seen == ["a in", "stop", "a out"]


def test_an_error_unwinds_through_every_layer():
    seen: list[str] = []

    async def catch(ctx, next):
        try:
            await next()
        except ZeroDivisionError:
            ctx.append("caught")

    async def core(ctx):
        1 / 0  # noqa: B018

    run(compose([catch, noting("a"), core]), seen)
    assert seen == ["a in", "caught"]


def test_all_layers_share_the_context_variables():
    user: ContextVar[str] = ContextVar("user")

    async def outer(ctx, next):
        await next()
        return user.get()

    async def login(ctx):
        user.set("ada")

    assert run(compose([outer, login])) == "ada"


# next(), twice


async def noop(ctx):
    ctx.append("core")


def test_next_twice_in_a_row():
    async def layer(ctx, next):
        await next()
        await next()

    seen: list[str] = []
    with pytest.raises(RuntimeError, match=r"next\(\) called multiple times"):
        run(compose([layer, noop]), seen)
    assert seen == ["core"]


def test_next_twice_after_an_await():
    async def layer(ctx, next):
        await next()
        await asyncio.sleep(0)
        await next()

    with pytest.raises(RuntimeError, match="multiple times"):
        run(compose([layer, noop]))


def test_next_twice_at_once():
    async def layer(ctx, next):
        first = asyncio.ensure_future(next())
        try:
            with pytest.raises(RuntimeError, match="multiple times"):
                next()
        finally:
            await first
        ctx.append("refused")

    seen: list[str] = []
    run(compose([layer, noop]), seen)
    assert seen == ["core", "refused"]


def test_next_twice_when_the_first_raised():
    calls = []

    async def retry(ctx, next):
        try:
            await next()
        except ZeroDivisionError:
            await next()

    async def core(ctx):
        calls.append(1)
        1 / 0  # noqa: B018

    with pytest.raises(RuntimeError, match="multiple times"):
        run(compose([retry, core]))
    assert calls == [1]


def test_next_twice_where_nothing_follows():
    async def layer(ctx, next):
        await next()
        await next()

    with pytest.raises(RuntimeError, match="multiple times"):
        run(compose([layer]))


def test_next_twice_in_a_quick_layer():
    @quick
    def layer(ctx, next):
        first = next()
        try:
            next()
        finally:
            first.close()

    with pytest.raises(RuntimeError, match="multiple times"):
        run(compose([layer, noop]))


def test_two_layers_may_each_call_next_once_at_any_depth():
    seen: list[str] = []
    run(compose([noting(str(n)) for n in range(200)]), seen)
    assert len(seen) == 400


def test_one_chain_serves_many_at_once():
    async def main() -> list[list[str]]:
        async def wait(ctx, next):
            await asyncio.sleep(0)
            await next()

        chain = link([wait, noting("a"), wait, noting("b")])
        all_seen: list[list[str]] = [[] for _ in range(50)]
        await asyncio.gather(*(chain(seen) for seen in all_seen))
        return all_seen

    assert all(seen == ["a in", "b in", "b out", "a out"] for seen in asyncio.run(main()))


# The forms of a layer


def test_quick_handlers_and_layers_run_on_the_loop():
    @quick
    def layer(ctx, next):
        ctx.append("layer")
        return next()

    @quick
    def handler(ctx):
        ctx.append("handler")

    seen: list[str] = []
    run(compose([layer, handler]), seen)
    assert seen == ["layer", "handler"]


def test_methods_partials_and_callable_objects_are_layers():
    class Greeter:
        async def layer(self, ctx, next):
            ctx.append("method")
            await next()

        async def __call__(self, ctx, next):
            ctx.append("object")
            await next()

    async def with_option(option, ctx, next):
        ctx.append(option)
        await next()

    seen: list[str] = []
    greeter = Greeter()
    run(compose([greeter.layer, greeter, functools.partial(with_option, "partial")]), seen)
    assert seen == ["method", "object", "partial"]


def test_a_defaulted_second_parameter_is_next():
    async def layer(ctx, next=None):
        assert next is not None
        await next()

    seen: list[str] = []
    run(compose([layer, noop]), seen)
    assert seen == ["core"]


def test_annotations_may_name_what_a_type_checker_alone_knows():
    # Python 3.14 evaluates them no longer where the function is made, but where it is looked at.
    eager = sys.version_info < (3, 14)
    source = "from __future__ import annotations\n" if eager else ""
    source += "async def layer(ctx: Context, next: Next) -> Missing[int] | None: await next()"
    names: dict[str, Any] = {}
    exec(source, names)
    seen: list[str] = []
    run(compose([names["layer"], noop]), seen)
    assert seen == ["core"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (None, "callable"),
        ("layer", "callable"),
        (lambda: None, "cannot be called"),
        (lambda a, b, c: (a, b, c), "cannot be called"),
    ],
)
def test_what_is_no_layer_is_refused_when_it_is_given(bad, why):
    with pytest.raises(TypeError, match=why):
        compose([bad])


def test_generators_are_no_layers():
    async def stream(ctx, next):
        yield b""

    def old(ctx, next):
        yield

    for bad in (stream, old):
        with pytest.raises(TypeError, match="generator"):
            compose([bad])


def test_a_stack_tells_its_layers():
    stack = compose([noop])
    assert isinstance(stack, Stack)
    assert stack.layers == (noop,)
