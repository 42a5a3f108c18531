"""The same answer for every Python peer: imports nothing, so it runs in any of their rooms."""

import sys
from typing import Any

HELLO = b"Hello, world!\n"


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    del environ
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(HELLO)))])
    return [HELLO]


ASGI_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"14")],
}
ASGI_BODY = {"type": "http.response.body", "body": HELLO}


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    del receive
    if scope["type"] == "http":
        await send(ASGI_START)
        await send(ASGI_BODY)


class RSGI:
    """An object, not a function: granian 2 asks for `__rsgi__` first."""

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        del scope
        protocol.response_bytes(200, [("content-type", "text/plain")], HELLO)


rsgi = RSGI()

if __name__ == "__main__":
    import bjoern  # bjoern has no command of its own

    bjoern.run(wsgi, "127.0.0.1", int(sys.argv[1]))
