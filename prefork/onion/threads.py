"""Plain functions in the onion: blocking code runs in threads, the onion stays on the loop.

A plain layer's `next()` has to block its thread, because a plain function has no other way to
wait. That is dangerous: with as many such requests as the executor has threads, each would hold
one, and whatever blocks further in (a plain handler, `ctx.run`) would wait for a thread that never
comes. So a thread that waits in `next()` is lent back to its own request, and what blocks further
in runs there. A request then never needs more than one thread to get on. The price: below a plain
layer the blocking calls of one request run one after the other, even under `asyncio.gather`.

The rest of the onion runs in the request's own Task, so `current_task()`, timeouts and what it
sets in context variables are those of any other request. A thread sees a copy of the variables.
"""

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from prefork.onion.context import Context

P = ParamSpec("P")
R = TypeVar("R")
Job = tuple["Future[Any]", Callable[[], Any]]


async def run_blocking(ctx: "Context", fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of `fn(*args, **kwargs)`, run in a thread with a copy of the context variables."""
    lent: LentThread | None = getattr(ctx, "_lent", None)
    if lent is not None:
        return await lent.run(functools.partial(fn, *args, **kwargs))
    return await ctx._service.executor.run(fn, *args, **kwargs)


class LentThread:
    """A thread that waits in `next()` and meanwhile runs what else its request has to block on."""

    __slots__ = ("_asked", "_called", "_error", "_jobs", "_loop", "_value", "over")

    def __init__(self, loop: asyncio.AbstractEventLoop, asked: "asyncio.Future[None]") -> None:
        self._loop = loop
        self._asked = asked  # set, on the loop, when the thread calls next()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._called = False
        self._value: Any = None
        self._error: BaseException | None = None
        self.over = False  # the rest has ended, or will never run

    # On the loop

    async def run(self, call: Callable[[], R]) -> R:
        future: Future[R] = Future()
        context = contextvars.copy_context()
        self._jobs.put((future, functools.partial(context.run, call)))
        return await asyncio.wrap_future(future, loop=self._loop)

    def resume(self, value: Any = None, error: BaseException | None = None) -> None:
        """Let `next()` return `value` in the thread, or raise `error` there."""
        self.over = True
        self._value = value
        self._error = error
        self._jobs.put(None)

    def _ask(self) -> None:
        if not self._asked.done():
            self._asked.set_result(None)

    # In the thread

    def next(self) -> Any:
        """Run the rest of the onion on the loop and wait for it."""
        if self._called:
            raise RuntimeError("next() called multiple times")
        self._called = True
        self._loop.call_soon_threadsafe(self._ask)
        while (job := self._jobs.get()) is not None:
            future, call = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except StopIteration as error:
                mistake = RuntimeError("a function in a thread raised StopIteration")
                mistake.__cause__ = error  # see _Call of the executor
                future.set_exception(mistake)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
        if self._error is not None:
            raise self._error
        return self._value


def in_thread(handler: Callable[["Context"], Any]) -> Callable[["Context"], Awaitable[Any]]:
    """A plain `handler(ctx)` as a step that runs it in a thread."""

    @functools.wraps(handler)
    async def step(ctx: "Context") -> Any:
        result = await run_blocking(ctx, handler, ctx)
        # An async function in a wrapper that is none itself: the thread made its coroutine.
        return await result if inspect.isawaitable(result) else result

    return step


def in_thread_with_next(
    middleware: Callable[["Context", Callable[[], Any]], Any],
) -> Callable[["Context", Callable[[], Awaitable[Any]]], Awaitable[Any]]:
    """A plain `middleware(ctx, next)` as a layer that runs it in a thread."""

    @functools.wraps(middleware)
    async def layer(ctx: "Context", proceed: Callable[[], Awaitable[Any]]) -> Any:
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[None] = loop.create_future()
        lent = LentThread(loop, asked)
        running = asyncio.ensure_future(run_blocking(ctx, middleware, ctx, lent.next))
        outer = getattr(ctx, "_lent", None)
        try:
            await asyncio.wait((running, asked), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                ctx._lent = lent
                try:
                    value = await proceed()
                except Exception as error:
                    lent.resume(error=error)
                else:
                    lent.resume(value)
                finally:
                    ctx._lent = outer
            result = await running
        finally:
            if not lent.over:
                # Cancelled, or the thread is done without next(); should it still call it, it must
                # not wait for a rest that nobody runs.
                lent.resume(error=asyncio.CancelledError())
            running.cancel()
        return await result if inspect.isawaitable(result) else result

    return layer
