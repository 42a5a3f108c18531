"""Middleware and how it is composed: an idea in thirty lines, after koa-compose.

A layer is called with the context and `next`; what it does before `await next()` happens on the
way in, what it does after on the way out. A composed stack is itself such a layer.

    async def layer(ctx, next)     the usual
    async def handler(ctx)         the innermost, which hands on to nobody
    def handler(ctx)               runs in a thread of the executor
    def layer(ctx, next)           runs in a thread; its `next()` blocks that thread until the rest
                                   of the onion, which stays on the loop, is done
    @quick                         before either `def`: it never blocks, so it runs on the loop at
                                   once. A quick layer hands on with `return next()`.

Calling `next` a second time is an error at the call, whatever became of the first: the layers
below would run twice over one response.
"""

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from prefork.onion.threads import in_thread, in_thread_with_next

if TYPE_CHECKING:
    from prefork.onion.context import Context

Next = Callable[[], Awaitable[Any]]
Layer = Callable[["Context", Next], Awaitable[Any]]
Step = Callable[["Context"], Awaitable[Any]]
Middleware = Callable[..., Any]  # any of the forms above

_QUICK: Final = "__prefork_quick__"
F = TypeVar("F", bound=Callable[..., Any])

if sys.version_info >= (3, 14):
    from annotationlib import Format

    def signature(value: Callable[..., Any]) -> inspect.Signature:
        """How `value` can be called; raises ValueError or TypeError as `inspect.signature`.

        Python 3.14 evaluates an annotation when it is asked for (PEP 649), and asks for each here.
        Some are known to a type checker alone (`if TYPE_CHECKING`): their text will do.
        """
        return inspect.signature(value, annotation_format=Format.STRING)

else:
    signature = inspect.signature


class QuickIterator:
    """A plain iterator, declared never to block, as a response body."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return self._iterator

    def __next__(self) -> Any:
        return next(self._iterator)

    def close(self) -> None:
        if isinstance(self._iterator, Generator):
            self._iterator.close()


def quick(fn: F) -> F:
    """Declare that the plain function `fn` never blocks: it runs on the loop, not in a thread.

    On a generator function: the bodies it makes are pulled on the loop.
    """
    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def body(*args: Any, **kwargs: Any) -> QuickIterator:
            return QuickIterator(fn(*args, **kwargs))

        return body  # type: ignore[return-value]  # callable as `fn` is; what it makes iterates
    setattr(fn, _QUICK, True)
    return fn


class Stack:
    """Composed layers: a middleware that runs them in turn and then what follows it.

    As a layer of an application its layers are linked with the rest, and it costs nothing itself.
    """

    __slots__ = ("layers",)

    def __init__(self, layers: Iterable[Middleware]) -> None:
        self.layers = tuple(layers)
        for layer in self.layers:
            check_middleware(layer)

    async def __call__(self, ctx: "Context", next: Next) -> Any:
        return await link(self.layers, lambda _: next())(ctx)


def compose(layers: Iterable[Middleware]) -> Stack:
    """`layers`, outermost first, as one middleware. Raises TypeError for what is none."""
    return Stack(layers)


async def _end(_ctx: "Context") -> None:
    """What the innermost `next()` runs."""


def link(layers: Iterable[Middleware], end: Step = _end) -> Step:
    """The chain of `layers` before `end`, built once; calling it with a context runs it."""
    step = end
    for layer in reversed(tuple(layers)):
        step = link(layer.layers, step) if isinstance(layer, Stack) else _link(layer, step)
    return step


def _link(middleware: Middleware, rest: Step) -> Step:
    layer, takes_next = _as_layer(middleware)
    if not takes_next:
        return layer

    # One closure per layer and request, and its only cell is `ctx`, which is at once what the rest
    # needs and the sign that it has not run. Per layer this took 250 ns, a flag beside it 280, a
    # slotted object with __call__ 300, Koa's index dispatch 290 and 500 more for the first layer,
    # and code unrolled over all layers 235, which is not worth an exec.
    def step(ctx: "Context | None") -> Awaitable[Any]:
        # The annotation is a string, for else it would be evaluated in every request (100 ns).
        def next() -> "Awaitable[Any]":
            nonlocal ctx
            passed = ctx
            if passed is None:
                raise RuntimeError("next() called multiple times")
            ctx = None
            return rest(passed)

        return layer(ctx, next)  # type: ignore[no-any-return]

    return step


def layers_of(middleware: Middleware) -> Iterator[Middleware]:
    """The layers that a middleware is made of: those of a stack, else itself."""
    if isinstance(middleware, Stack):
        for layer in middleware.layers:
            yield from layers_of(layer)
    else:
        yield middleware


def check_middleware(value: object) -> None:
    """Raise TypeError unless `value` is of one of the forms above."""
    if not isinstance(value, Stack):
        _as_layer(value)


def _as_layer(value: Any) -> tuple[Callable[..., Any], bool]:
    """(what is called on the loop and returns an awaitable, whether it takes `next`)."""
    if not callable(value):
        raise TypeError(f"middleware must be callable, not {type(value).__name__}")
    takes_next = _arity(value) == 2
    call = value
    while isinstance(call, functools.partial):
        call = call.func
    if not inspect.isroutine(call):
        call = type(call).__call__
    if inspect.isasyncgenfunction(call) or inspect.isgeneratorfunction(call):
        raise TypeError(f"{_name(value)} is a generator function; middleware awaits next() instead")
    if inspect.iscoroutinefunction(call):
        return value, takes_next
    if getattr(value, _QUICK, False):
        return _inline(value), takes_next
    return (in_thread_with_next(value) if takes_next else in_thread(value)), takes_next


def _arity(value: Callable[..., Any]) -> int:
    try:
        known = signature(value)
    except (ValueError, TypeError):
        return 2  # a callable written in C; Koa's form is the best guess
    for count in (2, 1):
        try:
            known.bind(*range(count))
        except TypeError:
            continue
        return count
    raise TypeError(f"{_name(value)}{known} cannot be called with (ctx, next) nor with (ctx)")


def _name(value: object) -> str:
    return getattr(value, "__qualname__", None) or repr(value)


def _inline(fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """A quick function as a coroutine function; what it returns is awaited when it can be."""

    @functools.wraps(fn)
    async def layer(*args: Any) -> Any:
        result = fn(*args)
        return await result if inspect.isawaitable(result) else result

    return layer
