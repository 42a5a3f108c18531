"""The applications prefork is measured with: the same answer through 1, 2 and 10 onion layers.

Every layer is an `async def`; all but the last do nothing except hand on to the next.
"""

from typing import Any

from prefork import Application

HELLO = "Hello, world!\n"


async def through(ctx: Any, next: Any) -> None:
    del ctx
    await next()


async def hello(ctx: Any, next: Any) -> None:
    del next
    ctx.body = HELLO


async def traced(ctx: Any, next: Any) -> None:
    """Answer with the worker's pid and the bytes tracemalloc has seen allocated and not freed."""
    if ctx.path != "/traced":
        await next()
        return
    import gc  # here: what this file imports is private memory of every worker measured
    import os
    import tracemalloc

    gc.collect()
    ctx.body = {"pid": os.getpid(), "bytes": tracemalloc.get_traced_memory()[0]}


def onion(*layers: Any) -> Application:
    app = Application()
    for layer in layers:
        app.use(layer)
    return app


one = onion(hello)
two = onion(through, hello)
ten = onion(*[through] * 9, hello)
memory = onion(traced, hello)
