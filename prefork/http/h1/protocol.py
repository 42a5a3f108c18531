"""The life of an HTTP/1.x connection: RFC 9112 sections 9 and 2.2, one request after the other.

A connection is in one of these states:

    HEAD    waits for a request's head; nothing or only a part of it has come
    BODY    a request is running and its body is still coming
    RUN     a request is running and has come whole
    DRAIN   the response is sent, the rest of the request's body is read and dropped
    OTHER   it speaks another protocol now (101), which what comes is handed to
    CLOSED  over, or about to be when what was written is sent

Heads are found here, by their empty line, and given to the parser one at a time. So the parser
holds no state between requests and one serves all connections; the sizes of everything are checked
before anything is parsed; and what was pipelined behind a request, whatever that request was, stays
in `_buffer` until its turn comes.
"""

import asyncio
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from httptools import HttpParserError, HttpParserUpgrade

from prefork.errors import PeerError
from prefork.http.body import Body, WholeBody
from prefork.http.h1.chunked import ChunkedDecoder
from prefork.http.h1.exchange import H1Exchange
from prefork.http.h1.head import (
    BODY_EXPECTED,
    CONNECTION,
    METHODS,
    check_beginning,
    connection_tokens,
    framing,
    measure,
    offered_protocol,
    other_form,
    refuse_line,
    skip_empty_line,
    why_refused,
)
from prefork.http.headers import Headers
from prefork.net.connection import HIGH_WATER, Connection

if TYPE_CHECKING:
    from prefork.http.server import HttpServer

# A body that the handler did not read is read to its end when no more than this is left of it;
# beyond, closing the connection is cheaper for both sides.
DRAIN_LIMIT: Final = 64 * 1024
# What a client may pipeline behind a running request before it is no longer read.
PIPELINE_LIMIT: Final = 64 * 1024


class State(IntEnum):
    HEAD = 0
    BODY = 1
    RUN = 2
    DRAIN = 3
    CLOSED = 4
    OTHER = 5


# As plain names: an enum member's look-up is two attribute reads on the hot path.
HEAD, BODY, RUN, DRAIN, CLOSED, OTHER = State


class H1Protocol:
    """What runs on top of a `Connection` that speaks HTTP/1.x."""

    __slots__ = (
        "_body",
        "_buffer",
        "_chunked",
        "_head_begun",
        "_left",
        "_receiver",
        "connection",
        "exchange",
        "leaving",
        "saw_eof",
        "server",
        "state",
    )

    _receiver: Callable[[bytes], None]  # once it has switched

    def __init__(self, server: "HttpServer", connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self.state: State = HEAD
        self.exchange: H1Exchange | None = None
        self.leaving = False  # the next answer is the last
        self._buffer = b""
        self._head_begun = False  # a part of a head has come, and its time runs
        self._body: Body | None = None
        self._chunked: ChunkedDecoder | None = None
        self._left = 0  # of a body with a Content-Length
        self.saw_eof = False

    # From the connection

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state is HEAD:
            if self._buffer:
                data = self._buffer + data
                self._buffer = b""
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                self._partial(data)
                return
            try:
                if not rest:
                    # The usual: one head, whole and alone.
                    self._request(data)
                    return
                # What follows must be in place before the handler runs: it may end this request,
                # or leave it to a task that asks for the next one later.
                self._buffer = rest
                self._request(head + end)
            except PeerError as error:
                self._buffer = data
                self.refuse(error)
                return
            if self._buffer:
                self._heads()
        elif state is OTHER:
            self._receiver(data)
        elif state is BODY or state is DRAIN:
            self._body_data(data)
        elif state is RUN:
            self._pipelined(data)

    def _pipelined(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > PIPELINE_LIMIT:
            self.connection.pause_reading()

    def eof_received(self) -> None:
        # The client has sent all it will, which does not mean that it does not listen: a request
        # that came whole gets its answer (RFC 9112 section 9.6).
        self.saw_eof = True
        if not self._buffer:
            self.leaving = True  # what is pipelined is answered, and the last one says so
        if self.state is HEAD:
            self._go_on()
        elif self.state is DRAIN:
            self._close()
        elif self.state is BODY:
            self._body_cut_off()
        self._client_left()

    def _body_cut_off(self) -> None:
        self.leaving = True
        if self._body is not None:
            self._body.fail(ConnectionResetError("the client left in the middle of the body"))

    def connection_lost(self, error: OSError | None) -> None:
        server = self.server
        self._forget()
        if not self.saw_eof:
            self._client_left()
        if isinstance(error, TimeoutError):
            server.error_log.info(
                f"client timed out ({error}) while sending to client, client: "
                f"{self.connection.peer}",
                connection=self.connection.number,
            )

    def _client_left(self) -> None:
        """Nobody may be waiting for the answer: tell its handler, and end it when it goes on."""
        exchange = self.exchange
        if exchange is None:
            return
        if exchange.task is not None and self.server.timeouts.abandoned:
            self.server.abandoned.touch(exchange)
        if exchange.on_client_left is not None:
            exchange.on_client_left()

    # Heads

    def _heads(self) -> None:
        """Serve what is in the buffer for as long as each is over when its handler returns."""
        while self.state is HEAD and self._buffer and self.connection.on_room is None:
            data = self._buffer
            head, end, self._buffer = data.partition(b"\r\n\r\n")
            if not end:
                self._partial(data)
                return
            try:
                if not self._buffer:
                    self.leaving = self.leaving or self.saw_eof
                self._request(head + end)
            except PeerError as error:
                self._buffer = data
                self.refuse(error)
                return

    def _partial(self, data: bytes) -> None:
        """Keep the beginning of a head, unless it can be refused already."""
        try:
            data = check_beginning(data, self.server.limits)
        except PeerError as error:
            self._buffer = data
            self.refuse(error)
            return
        self._buffer = data
        if not self._head_begun and data and data[0] != 0x0D:
            self._head_begun = True
            self.server.fresh.discard(self)
            self.server.heads.touch(self)

    def _request(self, head: bytes) -> None:
        """Check one whole head and start its handler. Raises PeerError."""
        # What a line here costs is paid by every request: `partition` takes its argument quicker
        # than `find`, and `35 in target` beats both.
        server = self.server
        if self._head_begun:
            self._head_begun = False
            server.heads.discard(self)
        line = head.partition(b"\r\n")[0]
        if not line:
            self._request_after_empty_line(head)
            return
        if len(head) > server.small_head:
            measure(line, head, server.limits)
        parser = server.parser
        parser.complete = offered = False
        try:
            parser.feed_data(head)
        except HttpParserUpgrade:
            # An upgrade is an offer which the server declines by just answering (RFC 9110
            # section 7.8), so this request is one like any other.
            parser.complete = False
            offered = True
        except HttpParserError as error:
            parser.reset()
            raise why_refused(line, head, str(error), server.limits) from None
        if not parser.complete:
            # It waits for a body now, which is read here. At once, whatever becomes of this
            # request: the next head that the parser sees is another client's.
            parser.reset()
        try:
            raw_method, target, version = line.split(b" ")
            method = METHODS[raw_method]
        except (ValueError, KeyError):
            raise refuse_line(line, server.limits) from None
        http_1_0 = version != b"HTTP/1.1"
        if http_1_0 and version != b"HTTP/1.0":
            raise refuse_line(line, server.limits)

        # RFC 9112 section 3.2: "A server MUST respond with a 400 to any HTTP/1.1 request message
        # that lacks a Host header field and to any that contains more than one Host header field
        # line or a Host header field with an invalid field value."
        lower = head.lower()
        at = lower.find(b"\r\nhost:")
        if at >= 0:
            after = head.find(b"\r\n", at + 7)
            value = head[at + 7 : after]
            host = server.known_hosts.get(value) or server.check_host(value)
            if lower.find(b"\r\nhost:", after) >= 0:
                raise PeerError(400, "more than one Host header")
        elif http_1_0:
            host = ""
        else:
            raise PeerError(400, "no Host header")
        if target[0] != 0x2F or 0x23 in target:  # "/", "#"
            authority = other_form(method, target)
            if authority is not None:
                host = server.check_host(authority)

        started = server.clock()
        server.note(server.memory, server.place(), started, head)
        exchange = H1Exchange(
            self, method, target, line, head, lower, host, parser.keep_alive, started
        )
        if http_1_0:
            exchange.version = "1.0"
            if exchange.keep_alive and b"close" in connection_tokens(lower):
                exchange.keep_alive = False  # llhttp lets "keep-alive, close" keep it
        elif parser.complete:
            exchange.usual = method != "HEAD"
        if parser.complete and not (http_1_0 and method in BODY_EXPECTED):
            self.state = RUN
        else:
            self._with_body(exchange, http_1_0, bodiless=offered or parser.complete)
            if offered and not http_1_0 and self.state is RUN:
                exchange.upgrade = offered_protocol(lower)
        self.exchange = exchange
        try:
            rest = server.handler(exchange)
            if rest is None:
                return
            task = server.spawn(rest)
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio hands these two on to who runs the step, which for the first one is us.
            self._handler_over(exchange, error)
            return
        if not task.done():
            exchange.task = task
            if not exchange.finished and self.state is not OTHER:
                server.wait_for(exchange)
            # A handler may go on after its answer, while the next request runs already.
            task.add_done_callback(partial(self._task_done, exchange))
        elif not exchange.finished or task.cancelled() or task.exception() is not None:
            self._task_done(exchange, task)

    def _request_after_empty_line(self, head: bytes) -> None:
        head = skip_empty_line(head)
        if len(head) < 4:
            # The empty line was all there is so far: "\r\n\r\n" is two of them.
            raise PeerError(400, "empty lines instead of a request")
        self._request(head)

    def _with_body(self, exchange: H1Exchange, http_1_0: bool, *, bodiless: bool) -> None:
        """A head that is not the whole request, or one that offers an upgrade."""
        server = self.server
        lower = exchange.lower
        length, expects = framing(lower, exchange.method, http_1_0=http_1_0, limits=server.limits)
        exchange.keep_alive = not http_1_0
        if lower.partition(CONNECTION)[1]:
            # RFC 9112 section 9.3: "close" wins over everything else that is said.
            tokens = connection_tokens(lower)
            exchange.keep_alive = b"close" not in tokens and (
                not http_1_0 or b"keep-alive" in tokens
            )
        if length == 0:
            if not bodiless:
                # llhttp waits for a body that no field announces: two readings of one head.
                raise PeerError(400, "ambiguous framing")
            self.state = RUN
            return
        data = self._buffer
        if length is not None and len(data) >= length:
            # The usual: it has come with its head.
            self._buffer = data[length:]
            exchange.body = WholeBody(data[:length])
            self.state = RUN
            if len(self._buffer) > PIPELINE_LIMIT:
                self.connection.pause_reading()
            return
        body = Body(
            self,
            server.loop,
            length=length,
            limit=server.limits.body,
            expects_continue=expects,
        )
        self._body = exchange.body = body
        self.state = BODY
        if length is None:
            self._chunked = ChunkedDecoder(
                body.feed,
                self._chunked_end,
                limit=server.limits.body,
                trailer_limit=server.limits.head,
            )
        else:
            self._left = length
        if data:
            self._buffer = b""
            self._body_data(data)
        elif not expects:
            server.bodies.touch(self)  # else the client waits for us: see send_continue

    # Bodies

    def _body_data(self, data: bytes) -> None:
        """The next bytes of the running request's body, and perhaps of what follows it."""
        body = self._body
        assert body is not None
        if self._chunked is not None:
            try:
                rest = self._chunked.feed(data)
            except PeerError as error:
                self._body_broken(body, error)
                return
            if body.at_end:
                self._body_end(rest)
        elif len(data) < self._left:
            self._left -= len(data)
            body.feed(data)
        else:
            left, self._left = self._left, 0
            if len(data) == left:
                body.feed(data)
                rest = b""
            else:
                body.feed(data[:left])
                rest = data[left:]
            body.feed_eof()
            self._body_end(rest)
        if self.state is BODY:
            if body.failed:
                self._body_broken(body, None)
            elif self.connection.reading:
                self.server.bodies.touch(self)

    def _chunked_end(self, trailers: Headers) -> None:
        if self._body is not None:
            self._body.feed_eof(trailers)

    def _body_end(self, rest: bytes) -> None:
        self.server.bodies.discard(self)
        self._body = None
        self._chunked = None
        if self.state is DRAIN:
            self._next(rest)
            return
        self.state = RUN
        if rest:
            self._pipelined(rest)

    def _body_broken(self, body: Body, error: PeerError | None) -> None:
        """What follows cannot be told from the body: nothing more is read as a request."""
        self.leaving = True
        if error is not None:
            body.fail(error)
        self.server.bodies.discard(self)
        if self.state is DRAIN:
            self._close(linger=True)
        else:
            self.connection.pause_reading()

    def pause_body(self) -> None:
        self.connection.pause_reading()
        self.server.bodies.discard(self)  # it is the handler now who takes its time

    def resume_body(self) -> None:
        if self.state is BODY or self.state is DRAIN:
            self.connection.resume_reading()
            self.server.bodies.touch(self)
        elif self.state is RUN and len(self._buffer) <= PIPELINE_LIMIT and not self.saw_eof:
            self.connection.resume_reading()

    def send_continue(self) -> None:
        # RFC 9110 section 10.1.1: the final response takes its place once it has begun.
        if self.exchange is not None and not self.exchange.head_sent:
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.state is BODY:
            self.server.bodies.touch(self)

    # Another protocol

    def switch(self, exchange: H1Exchange, receiver: Callable[[bytes], None]) -> None:
        """HTTP is over on this connection: what has come and what comes goes to `receiver`."""
        self.state = OTHER
        self._receiver = receiver
        self.server.wait_no_more(exchange)
        data, self._buffer = self._buffer, b""
        if data:
            receiver(data)
        if not self.saw_eof:
            self.connection.resume_reading()

    # The end of a request

    def may_keep_alive(self, exchange: H1Exchange) -> bool:
        """Whether another request can follow this response."""
        if self.leaving:
            return False
        body = exchange.body
        if body.at_end:
            return True
        if body.failed or body.awaits_continue:
            return False
        return body.length is not None and body.length - body.received <= DRAIN_LIMIT

    def exchange_finished(self, exchange: H1Exchange) -> None:
        """The response is written to its end: log it, count it, and go on or close."""
        server = self.server
        server.requests += 1
        if exchange.status > 299:
            server.not_ok(exchange.status)
        if server.access_log is not None:
            server.access_log.record(exchange)
        if exchange._on_finished is not None:
            self._run_on_finished(exchange)
        self.exchange = None
        if self.state is CLOSED:
            return
        if exchange.keep_alive and not self.leaving and self._body is None:
            self.state = HEAD
            # server.idle.touch(self), written out: this is done for every request.
            idle = server.idle
            since = idle.since
            try:
                del since[self]
            except KeyError:
                pass
            since[self] = server.reactor.now
            if idle.armed is None:
                idle.arm(idle.timeout)
            connection = self.connection
            if self._buffer or not connection.reading or connection.out.size > HIGH_WATER:
                self._not_yet_idle()
        else:
            self._last_or_unread(exchange)

    def _last_or_unread(self, exchange: H1Exchange) -> None:
        """The answer was the last one, or the request's body has not come to its end."""
        if not exchange.keep_alive or self.leaving:
            # Bytes that were not read would turn the close into a reset.
            unread = self._body is not None or bool(self._buffer)
            self._close(linger=unread and not self.saw_eof)
        elif self._body is not None:
            self.state = DRAIN
            self._body.discard()
            self.server.bodies.touch(self)

    def _not_yet_idle(self) -> None:
        """The next request has come already, or the last answer is still on its way."""
        if self.connection.out.size > HIGH_WATER:
            self._wait_for_room()
        else:
            self.server.loop.call_soon(self._go_on)

    def _wait_for_room(self) -> None:
        """No next request from a client that does not take the answers to its last ones."""
        connection = self.connection
        connection.flush()
        if self.state is HEAD:
            if connection.out.size > HIGH_WATER:
                connection.pause_reading()
                connection.on_room = self._go_on
            elif self._buffer or not connection.reading:
                self.server.loop.call_soon(self._go_on)

    def _run_on_finished(self, exchange: H1Exchange) -> None:
        for fn in exchange._on_finished or ():
            try:
                fn()
            except Exception as error:
                self.server.error_log.error(
                    f"exception in an on_finished callback of {exchange.method} {exchange.target}",
                    connection=self.connection.number,
                    exc=error,
                )
        exchange._on_finished = None

    def _next(self, rest: bytes) -> None:
        """The response is sent and its request was read to the end: the next one."""
        self.state = HEAD
        self.server.idle.touch(self)
        self._buffer = rest
        self._heads()

    def _go_on(self) -> None:
        """Serve what was pipelined behind a request that has just ended."""
        if self.connection.on_room is not None:
            return
        self._heads()
        if self.saw_eof:
            if self.state is HEAD:
                self._close()
            elif self.state is BODY:
                self._body_cut_off()
        elif self.state is HEAD:
            self.connection.resume_reading()

    def _task_done(self, exchange: H1Exchange, task: "asyncio.Task[None]") -> None:
        exchange.task = None  # the two would hold each other
        self.server.abandoned.discard(exchange)
        unanswered = not (exchange.head_sent or exchange.finished or self.state is CLOSED)
        if unanswered and task.cancelled() and self.server.closing:
            # Its time was over (timeouts.graceful): RFC 9110 section 15.6.4.
            exchange.keep_alive = False
            exchange.reply(503, b"Content-Type: text/plain\r\n", b"Service Unavailable\n")
        elif unanswered and task.cancelled() and not exchange.client_left:
            # Neither we nor the client's leaving did it: those end the exchange first.
            self.server.error_log.error(
                f"the handler was cancelled, {self._request_text(exchange)}",
                connection=self.connection.number,
            )
        self._handler_over(exchange, None if task.cancelled() else task.exception())

    def _request_text(self, exchange: H1Exchange) -> str:
        return (
            f"client: {self.connection.peer}, "
            f'request: "{exchange.method} {exchange.target} HTTP/{exchange.version}"'
        )

    def _handler_over(self, exchange: H1Exchange, error: BaseException | None) -> None:
        """It should have answered; see to it that somebody has."""
        status, text = 500, "Internal Server Error"
        log, number = self.server.error_log, self.connection.number
        if isinstance(error, PeerError):
            # What reading the body raised: the client's fault, and answered as such.
            status, text = error.status, error.reason
            log.info(
                f"client sent an invalid request body: {text}, client: {self.connection.peer}",
                connection=number,
            )
        elif isinstance(error, ConnectionResetError) and (exchange.client_gone or self.saw_eof):
            log.info(f"{error}, client: {self.connection.peer}", connection=number)
        elif error is not None:
            log.error(
                f"exception in a handler, {self._request_text(exchange)}",
                connection=number,
                exc=error,
            )
        if exchange.finished:
            return
        if exchange.head_sent or self.state is CLOSED:
            exchange.abort()
        else:
            exchange.keep_alive = False
            exchange.reply(status, b"Content-Type: text/plain\r\n", f"{text}\n".encode())

    def refuse(self, error: PeerError) -> None:
        """Answer a request that is none, and close: what follows cannot be trusted."""
        server = self.server
        connection = self.connection
        server.error_log.info(
            f"client sent an invalid request: {error.reason}, answered {error.status}, "
            f"client: {connection.peer}",
            connection=connection.number,
        )
        text = f"{error.status} {server.reason(error.status)}: {error.reason}\n".encode("latin-1")
        head = server.status_heads.get(error.status) or server.status_head(error.status)
        connection.write(
            b"%bContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%b" % (head, len(text), text)
        )
        server.requests += 1
        server.not_ok(error.status)
        if server.access_log is not None:
            head = self._buffer
            line = head.partition(b"\r\n")[0]
            record = H1Exchange(
                self, "", b"", line, head, head.lower(), "", False, server.reactor.now
            )
            record.status = error.status
            record.bytes_sent = len(text)
            server.access_log.record(record)
        self._close(linger=not self.saw_eof)

    def _close(self, *, linger: bool = False) -> None:
        self._forget()
        self.connection.close_soon(linger=linger)

    def _forget(self) -> None:
        """No deadline waits for this connection any more, and nobody for its bytes."""
        server = self.server
        self.state = CLOSED
        self._buffer = b""
        server.fresh.discard(self)
        server.heads.discard(self)
        server.idle.discard(self)
        server.bodies.discard(self)
        if self._body is not None:
            self._body.fail(ConnectionResetError("the client left"))

    # Deadlines, and the server's end

    def head_expired(self) -> None:
        """RFC 9110 section 15.5.9: the request did not come whole within the time."""
        if self.state is HEAD and self._head_begun:
            self.refuse(PeerError(408, "the request head took too long"))

    def fresh_expired(self) -> None:
        """The time for the first byte of the first request is over."""
        if self not in self.server.idle:
            self.idle_expired()

    def idle_expired(self) -> None:
        """Nothing came at all: there is nobody to tell (RFC 9112 section 9.5)."""
        if self.state is HEAD and not self._head_begun:
            # The handlers of this turn may have taken their time: what has come since the poll is
            # a request all the same, and closing would answer it with a reset.
            if self.connection.reading:
                self.connection.on_readable()
            if self.state is HEAD and not self._head_begun and self not in self.server.idle:
                self._close()

    def body_expired(self) -> None:
        if self.state is DRAIN:
            self._close()
        elif self.state is BODY and self._body is not None:
            self._body_broken(self._body, PeerError(408, "the request body took too long"))

    @property
    def running(self) -> bool:
        return self.exchange is not None

    def leave(self) -> None:
        """The worker is going: the answer that is being made is the last."""
        self.leaving = True
