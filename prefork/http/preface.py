"""What a connection speaks before HTTP on a listener with `proxy_protocol`: one PROXY header.

It is the connection's first protocol and hands over to the `H1Protocol` that was made for it, so a
connection of another listener never meets it. As with nginx, everybody has to send the header
there, and it is only believed from those in `forwarded.trust`.
"""

from typing import TYPE_CHECKING

from prefork.net.proxy_protocol import ProxyProtocolError, parse

if TYPE_CHECKING:
    from prefork.http.h1.protocol import H1Protocol
    from prefork.http.server import HttpServer
    from prefork.net.connection import Connection


class Preface:
    """Reads the header of one connection."""

    __slots__ = ("_buffer", "_connection", "_next", "_server")

    def __init__(self, server: "HttpServer", connection: "Connection", then: "H1Protocol") -> None:
        self._server = server
        self._connection = connection
        self._next = then
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            header = parse(self._buffer)
        except ProxyProtocolError as error:
            self._refuse(str(error))
            return
        if header is None:
            return
        server, connection, then = self._server, self._connection, self._next
        server.prefaces.discard(self)
        believed = server.forwarding is not None and server.forwarding.trusts(connection.peer)
        if believed and header.source is not None and header.destination is not None:
            connection.speaks_for(*header.source, header.destination)
        connection.protocol = then
        if server.last_answers:
            then.leave()
        server.fresh.touch(then)
        rest = self._buffer[header.size :]
        if rest:
            then.data_received(rest)

    def eof_received(self) -> None:
        self._refuse("the client left before the end of the PROXY protocol header")

    def connection_lost(self, error: OSError | None) -> None:  # noqa: ARG002 -- a protocol's
        self._server.prefaces.discard(self)

    def expired(self) -> None:
        """timeouts.head is over. What has come since the poll still counts."""
        connection = self._connection
        if connection.reading:
            connection.on_readable()
        if connection.protocol is self:
            self._refuse("the PROXY protocol header took too long")

    def _refuse(self, reason: str) -> None:
        connection = self._connection
        self._server.error_log.info(
            f"{reason}, closed, client: {connection.peer}", connection=connection.number
        )
        connection.close_soon()
