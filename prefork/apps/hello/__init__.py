"""The application that `conf/prefork.yaml` serves: a little of everything, in an afternoon's size.

    /           what there is to try          /upload     PUT or POST: counts and digests a body
    /json       JSON                          /throw      an error meant for the client: 404, 418
    /stream     a body made piece by piece    /error      a bug: 500, and the traceback in the log
    /file       this file, by sendfile        /blocking   a plain function, in a thread
    /onion      the order of the layers, drawn and timed

Layers come first, outermost at the top; the handlers they wrap are below.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from prefork import Application, Context, Next, __version__
from prefork.apps.hello.pages import index_page, index_text, onion_page
from prefork.apps.hello.trace import Trace, watched

app = Application()
started = time.time()


async def timing(ctx: Context, next: Next) -> None:
    """Say how long everything further in took."""
    before = time.perf_counter_ns()
    await next()
    taken = time.perf_counter_ns() - before
    ctx.set("Server-Timing", f"onion;dur={taken / 1e6:.3f}")


async def headers(ctx: Context, next: Next) -> None:
    """What every answer of this application carries."""
    ctx.set("X-Content-Type-Options", "nosniff")
    ctx.set("Cache-Control", "no-store")
    await next()


async def errors(ctx: Context, next: Next) -> None:
    """Give clients that ask for JSON their errors as JSON."""
    try:
        await next()
    except Exception as error:
        status = getattr(error, "status", 500)
        if status >= 500 or ctx.accepts("text", "json") != "json":
            raise  # the onion's own answer is text, and it logs what is our fault
        ctx.status = status
        ctx.body = {"error": str(error) or ctx.message, "status": status}


async def routes(ctx: Context, next: Next) -> None:
    """Find the handler of a path. Without one the answer stays what it was: 404."""
    handler, methods = ROUTES.get(ctx.path, (None, ""))
    if handler is None:
        await next()
        return
    if ctx.method not in methods:
        ctx.throw(405, f"{ctx.path} takes {methods}", headers={"Allow": methods})
    await handler(ctx)


LAYERS = (timing, headers, errors, routes)


@app.use
async def draw(ctx: Context, next: Next) -> None:
    """On /onion: watch the layers further in at work, and answer with the picture."""
    if ctx.path != "/onion":
        await next()
        return
    trace = ctx.state["trace"] = Trace()
    await next()
    if ctx.status != 200:
        return
    ctx.vary("Accept")
    if ctx.accepts("html", "json") == "json":
        ctx.body = {"steps": trace.steps()}
    else:
        ctx.type = "html"
        ctx.body = onion_page(trace, LAYERS, core, ctx.origin)


for layer in LAYERS:
    app.use(watched(layer))  # as it is, but for /onion, where it is timed


@app.on_startup
def say_hello() -> None:
    """Open connections to databases here; each worker has its own."""
    global started
    started = time.time()


# The handlers


async def index(ctx: Context) -> None:
    ctx.vary("Accept")
    if ctx.accepts("text", "html") == "html":
        ctx.type = "html"
        ctx.body = index_page(os.getpid(), ctx.origin)
    else:
        ctx.body = index_text(os.getpid(), ctx.origin)


async def json(ctx: Context) -> None:
    ctx.body = {
        "hello": ctx.query.get("name", "world"),
        "server": f"prefork {__version__}",
        "worker": {"pid": os.getpid(), "up": round(time.time() - started, 3)},
        "you": {"address": ctx.ip, "agent": ctx.get("User-Agent") or None},
    }


async def stream(ctx: Context) -> None:
    """Ten lines, one every `?every=0.2` seconds; `curl -N` shows them as they come."""
    try:
        pause = min(max(float(ctx.query.get("every", "0.2")), 0.0), 5.0)
    except ValueError:
        ctx.throw(400, "every: a number of seconds")

    async def lines() -> AsyncIterator[str]:
        before = time.perf_counter()
        for number in range(1, 11):
            yield f"{number:2} of 10 after {time.perf_counter() - before:6.3f} s\n"
            if number < 10:
                await asyncio.sleep(pause)

    ctx.type = "text"
    ctx.body = lines()


async def upload(ctx: Context) -> None:
    """Read the body as it comes: a gigabyte takes no more memory than a kilobyte."""
    digest = hashlib.sha256()
    size = pieces = 0
    async for chunk in ctx.request:
        digest.update(chunk)
        size += len(chunk)
        pieces += 1
    ctx.status = 201
    ctx.body = {"bytes": size, "pieces": pieces, "sha256": digest.hexdigest()}


async def throw(ctx: Context) -> None:
    """An error made for the client: `?status=418&message=...`, message shown below 500."""
    status = ctx.query.get("status", "418")
    if not status.isdecimal() or not 400 <= int(status) <= 599:
        ctx.throw(400, "status: a number from 400 to 599")
    ctx.throw(int(status), ctx.query.get("message"))


async def error(ctx: Context) -> None:
    """A bug. The client learns nothing of it, the error log everything."""
    apples: dict[str, int] = {}
    ctx.body = apples["pear"]


async def file(ctx: Context) -> None:
    ctx.type = "text"
    ctx.body = Path(__file__)


def checksum(rounds: int) -> str:
    """Work that would hold up every other request of this worker if it ran on the loop."""
    return hashlib.pbkdf2_hmac("sha256", b"prefork", b"onion", rounds).hex()


async def blocking(ctx: Context) -> None:
    before = time.perf_counter()
    result = await ctx.run(checksum, 50_000)
    ctx.body = {"result": result, "seconds": round(time.perf_counter() - before, 4)}


async def core(ctx: Context) -> None:
    """The innermost: something to wait for, so that the picture has something to show."""
    with ctx.state["trace"].ring("core"):
        await ctx.run(checksum, 500)
        ctx.body = "drawn on the way out"


READ = "GET, HEAD"
ROUTES: dict[str, tuple[Callable[[Any], Awaitable[None]], str]] = {
    "/": (index, READ),
    "/json": (json, READ),
    "/stream": (stream, READ),
    "/upload": (upload, "POST, PUT"),
    "/throw": (throw, READ),
    "/error": (error, READ),
    "/file": (file, READ),
    "/blocking": (blocking, READ),
    "/onion": (core, READ),
}
