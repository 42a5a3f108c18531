"""Hello, an upload, a streamed download and an echo, for every server of WSGI or ASGI."""

from collections.abc import Iterable, Iterator
from typing import Any

HELLO = b"Hello, world!\n"
PIECE = b"x" * 65536
PIECES = 16

Fields = list[tuple[str, str]]
PLAIN: Fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(HELLO)))]
ASGI_PLAIN = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(HELLO))]


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/download":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return pieces()
    if environ["REQUEST_METHOD"] == "POST":
        left = int(environ["CONTENT_LENGTH"])
        while left:
            left -= len(environ["wsgi.input"].read(min(left, 65536)))
    start_response("200 OK", PLAIN)
    return [HELLO]


def pieces() -> Iterator[bytes]:
    for _ in range(PIECES):
        yield PIECE


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await echo(receive, send)
    elif scope["type"] == "http":
        if scope["path"] == "/download":
            await download(send)
            return
        if scope["method"] == "POST":
            while (await receive()).get("more_body"):
                pass
        await send({"type": "http.response.start", "status": 200, "headers": ASGI_PLAIN})
        await send({"type": "http.response.body", "body": HELLO})


async def download(send: Any) -> None:
    headers = [(b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(PIECES):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def echo(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"]})
