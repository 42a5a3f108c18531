"""What client.py asks for: says who answers, and keeps a journal of what has begun and ended.

Copied into the directory of the server that is tested. The first line of every answer is `PID
VERSION ID`; VERSION is what a test changes to see new code.
"""

import asyncio
import os
import time
import zlib

from prefork import Application

VERSION = "v1"

app = Application()
journal = os.open("journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)


@app.use
async def serve(ctx, _):
    number, pid = ctx.get("x-id"), os.getpid()
    os.write(journal, b"+ %s %d\n" % (number.encode(), pid))
    ctx.on_finished(lambda: os.write(journal, b"- %s %d\n" % (number.encode(), pid)))
    first = f"{pid} {VERSION} {number}\n"
    _, name, *rest = ctx.path.split("/")
    if name == "slow":
        await asyncio.sleep(float(rest[0]))
        ctx.body = first
    elif name == "block":
        time.sleep(float(rest[0]))
        ctx.body = first
    elif name == "post":
        body = await ctx.request.body()
        ctx.body = f"{first}{len(body)} {zlib.crc32(body)}\n"
    elif name == "stream":
        ctx.body = lines(first, int(rest[0]), float(rest[1]))
    else:
        ctx.body = first


async def lines(first, number, pause):
    yield first
    for _ in range(number):
        await asyncio.sleep(pause)
        yield "." * 999 + "\n"
