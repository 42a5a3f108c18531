"""`ctx.websocket`: the WebSocket that a request asks for, in an onion.

@app.use
async def echo(ctx, next):
    if ctx.websocket is None:
        return await next()
    ctx.websocket.accept()
    async for message in ctx.websocket:
        await ctx.websocket.send(message)

It closes with 1000 when the handler returns, with 1011 when it raises. A handler that does not
accept answers as it answers any request.
"""

from typing import TYPE_CHECKING

from prefork.errors import HttpError

if TYPE_CHECKING:
    from prefork.http.websocket import WebSocket
    from prefork.onion.context import Context


def offered_websocket(ctx: "Context") -> "WebSocket | None":
    """None when the client has not asked for one. Raises HttpError for a broken handshake."""
    if ctx.exchange.upgrade != "websocket":
        return None
    # The library is a price that only those pay who need it.
    from prefork.http.websocket import HandshakeError, WebSocket

    try:
        return WebSocket(ctx.exchange)
    except HandshakeError as error:
        fields = dict(line.split(": ", 1) for line in error.fields.decode().splitlines())
        raise HttpError(error.status, str(error).strip(), headers=fields) from None


async def close_websocket(ctx: "Context", *, failed: bool = False) -> None:
    """The handler is through: close, wait for the client's close, and end the exchange."""
    from prefork.http.websocket import INTERNAL_ERROR, NORMAL

    websocket = ctx.websocket
    assert websocket is not None
    websocket.close(INTERNAL_ERROR if failed else NORMAL)
    try:
        await websocket.wait_closed()
    finally:
        ctx.exchange.end()
