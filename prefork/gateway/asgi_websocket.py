"""One WebSocket as ASGI 3 sees it (ASGI WebSocket 2.5). Imported when a worker sees its first.

Until the application accepts it, the request is one that can be answered: `websocket.close` does so
with 403, the extension `websocket.http.response` with whatever the application likes.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from prefork.event.bridge import is_cancelled
from prefork.gateway.asgi_fields import lines_of
from prefork.gateway.asgi_http import (
    ClientDisconnectedError,
    HttpTalk,
    Message,
)
from prefork.gateway.failure import request_text
from prefork.http.websocket import (
    ABNORMAL,
    GOING_AWAY,
    INTERNAL_ERROR,
    NORMAL,
    SERVICE_RESTART,
    HandshakeError,
    WebSocket,
    WebSocketClosedError,
)
from prefork.net.connection import HIGH_WATER

if TYPE_CHECKING:
    from prefork.http.exchange import Exchange
    from prefork.log import ErrorLog

TEXT: Final = b"Content-Type: text/plain; charset=utf-8\r\n"
_SCHEMES: Final = {"http": "ws", "https": "wss"}
_RESPONSE: Final = "websocket.http.response"
# These lines are the handshake's own.
_HANDSHAKE: Final = (b"sec-websocket-", b"upgrade:")


class WebSocketTalk(HttpTalk):
    """`receive` and `send` of one WebSocket; those of HTTP for the answer that denies it."""

    __slots__ = ("_connected", "_heard", "_websocket")

    def __init__(self, exchange: "Exchange", log: "ErrorLog", websocket: WebSocket) -> None:
        super().__init__(exchange, log)
        self._websocket = websocket
        self._connected = False  # websocket.connect was received
        self._heard = False  # websocket.disconnect was

    async def receive(self) -> Message:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        websocket = self._websocket
        if not websocket.accepted and self._denied:
            await self._disconnect()
            return self._disconnected(ABNORMAL, "")
        try:
            # WebSocket.receive, without a coroutine of its own.
            while not (websocket.inbox or websocket.code):
                await websocket.arrival()
            message = websocket.next_message()
        except WebSocketClosedError as closed:
            return self._disconnected(closed.code, closed.reason)
        if isinstance(message, str):
            return {"type": "websocket.receive", "text": message}
        return {"type": "websocket.receive", "bytes": message}

    @property
    def _denied(self) -> bool:
        return not self._websocket.accepted and (self.started or self.exchange.finished)

    def _disconnected(self, code: int, reason: str) -> Message:
        self.told = self._heard = True
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        websocket = self._websocket
        if kind == "websocket.send" and websocket.accepted:
            data = message.get("bytes")
            if data.__class__ is not bytes or message.get("text") is not None:
                data = _payload(message)
            try:
                websocket.post(data)
                if websocket.connection.out.size > HIGH_WATER:
                    await websocket.drain()
            except WebSocketClosedError:
                raise self._closed(kind) from None
        elif kind == "websocket.close" and websocket.accepted:
            if websocket.code:
                raise self._closed(kind)
            code = message.get("code")
            websocket.close(NORMAL if code is None else code, message.get("reason") or "")
        elif kind.startswith(_RESPONSE) and not websocket.accepted:
            await super().send({**message, "type": kind.removeprefix("websocket.")})
            if self.exchange.finished:
                websocket.denied()
        elif kind in ("websocket.accept", "websocket.close") and not (
            websocket.accepted or self._denied
        ):
            if websocket.code or self.exchange.client_gone:
                raise self._closed(kind)
            if kind == "websocket.close":
                self.exchange.reply(403, TEXT, b"Forbidden")
                self._wake()
                websocket.denied()  # another task may wait for a message
            else:
                self._accept(message)
        else:
            raise RuntimeError(f"ASGI message {kind!r} is not expected now: {self._where()}")

    def _where(self) -> str:
        websocket = self._websocket
        if self._denied:
            return "the WebSocket was denied"
        if not websocket.accepted:
            return (
                "a WebSocket begins with websocket.accept, websocket.close or"
                " websocket.http.response.start"
            )
        return "the WebSocket is accepted, and takes websocket.send and websocket.close"

    def _accept(self, message: Message) -> None:
        fields, _, _ = lines_of(message.get("headers") or ())
        lower = b"\r\n" + fields.lower()
        for name in _HANDSHAKE:
            if b"\r\n" + name in lower:
                raise ValueError(
                    "websocket.accept: Upgrade and Sec-WebSocket-* are the server's headers"
                    " (name the subprotocol in `subprotocol`)"
                )
        self._websocket.accept(message.get("subprotocol"), fields)

    def _closed(self, kind: str) -> Exception:
        """What a message to a closed WebSocket raises: whose mistake it is."""
        websocket = self._websocket
        if websocket.closed_by_us and self._heard is False and not self.exchange.draining:
            return RuntimeError(f"ASGI message {kind!r} is not expected now: it is closed")
        self.told = True
        return ClientDisconnectedError("the client has left")


def _payload(message: Message) -> str | bytes:
    text, data = message.get("text"), message.get("bytes")
    if (text is None) == (data is None):
        raise ValueError("websocket.send has either `text` or `bytes`")
    payload = data if text is None else text
    if isinstance(payload, bytearray | memoryview):
        payload = bytes(payload)
    if not isinstance(payload, str if data is None else bytes):
        raise TypeError(
            f"websocket.send: `text` is str and `bytes` is bytes, not {type(payload).__name__}"
        )
    return payload


async def serve_websocket(
    app: Any, exchange: "Exchange", scope: dict[str, Any], log: "ErrorLog"
) -> bool:
    """Answer a request that offers to become a WebSocket; `scope` is what HTTP would be given.

    Whether the application called exit().
    """
    from prefork.gateway.asgi import failed, unfinished

    try:
        websocket = WebSocket(exchange)
    except HandshakeError as error:
        log.info(
            f"client sent an invalid WebSocket handshake: {str(error).strip()}, "
            f"{request_text(exchange)}",
            connection=exchange.connection_number,
        )
        exchange.reply(error.status, TEXT + error.fields, str(error).encode())
        return False
    scope["type"] = "websocket"
    scope["scheme"] = _SCHEMES[exchange.scheme]
    scope["subprotocols"] = websocket.subprotocols
    scope["extensions"] = {_RESPONSE: {}}
    del scope["method"]
    talk = WebSocketTalk(exchange, log, websocket)
    code = NORMAL
    exits = False
    try:
        await app(scope, talk.receive, talk.send)
    except GeneratorExit:
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            # The worker ends, or the client has left long ago.
            if websocket.accepted:
                websocket.close(GOING_AWAY if exchange.stopping else SERVICE_RESTART)
                websocket.connection.flush()
                exchange.end()
            raise
        code = INTERNAL_ERROR
        exits = isinstance(error, SystemExit)
        failed(talk, error, log)
    if not websocket.accepted:
        if not exchange.finished:
            unfinished(talk, log)
        return exits
    websocket.close(code)
    try:
        await websocket.wait_closed()
    finally:
        exchange.end()
    return exits
