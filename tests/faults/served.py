"""The application that prefork's peers serve in peers.py: application.py's answers, ASGI and WSGI.

Imports nothing but the standard library, so that it runs in any of their rooms.
"""

import asyncio
import os
import time
import zlib
from typing import Any

VERSION = "v1"
IMPORT_SECONDS = 1.0  # of an application of some size

time.sleep(IMPORT_SECONDS)


def hang_here() -> None:
    """What a watchdog should find."""
    with open("hung", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)


def answer(path: str, number: str, body: bytes) -> bytes:
    first = f"{os.getpid()} {VERSION} {number}\n"
    if path == "/post":
        first += f"{len(body)} {zlib.crc32(body)}\n"
    elif path == "/hang":
        hang_here()
    return first.encode()


def pause(path: str) -> float:
    return float(path.rpartition("/")[2]) if path.startswith("/slow/") else 0.0


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise RuntimeError("HTTP only")
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await asyncio.sleep(pause(scope["path"]))
    number = dict(scope["headers"]).get(b"x-id", b"").decode()
    text = answer(scope["path"], number, body)
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    time.sleep(pause(path))
    text = answer(path, environ.get("HTTP_X_ID", ""), body)
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))]
    start_response("200 OK", headers)
    return [text]


try:
    from prefork import Application
except ImportError:
    pass  # a peer's room
else:
    app = Application()

    @app.use
    async def serve(ctx: Any, _: Any) -> None:
        body = await ctx.request.body()
        await asyncio.sleep(pause(ctx.path))
        ctx.body = answer(ctx.path, ctx.get("x-id"), body).decode()
