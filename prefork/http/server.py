"""The HTTP server of one worker: what its connections share.

`accept` is the callable given to the acceptors; `handler` the one given by the layer above. The
rest is what the worker asks for: counts, the graceful exit and its end.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from prefork.event.bridge import EXCHANGE_TASK, ReactorLoop
from prefork.event.deadlines import Deadlines
from prefork.http.dates import date_field
from prefork.http.exchange import Exchange, Handler
from prefork.http.h1.head import HostCheck
from prefork.http.h1.parser import HeadParser
from prefork.http.h1.protocol import H1Protocol
from prefork.http.patience import Patience
from prefork.http.preface import Preface
from prefork.http.status import NO_BODY, REASONS, STATUS_LINES
from prefork.net.connection import Connection, Pool
from prefork.scoreboard import BUSY_SINCE, CONNECTIONS, OK_RESPONSES, Slot

if TYPE_CHECKING:
    import socket

    from prefork.config.schema import Limits, Timeouts
    from prefork.event.executor import Executor
    from prefork.http.accesslog import AccessLog
    from prefork.http.forwarded import Forwarding
    from prefork.http.h1.exchange import H1Exchange
    from prefork.http.websocket import Keepalive
    from prefork.log import ErrorLog
    from prefork.net.listener import Listener


def _nothing() -> None:
    pass


def _never() -> float:
    return math.inf


class HttpServer:
    """Serves HTTP/1.x on every socket it is given, by calling `handler` for each request."""

    def __init__(
        self,
        *,
        loop: ReactorLoop,
        handler: Handler,
        timeouts: "Timeouts",
        limits: "Limits",
        error_log: "ErrorLog",
        access_log: "AccessLog | None" = None,
        slot: Slot | None = None,
        executor: "Executor | None" = None,
        slow_request: float = 0.0,
        trust: Sequence[str] = (),
    ) -> None:
        """Without a `slot` nobody sees what this server does.

        `slow_request` is in seconds, 0 is off. `executor` is where handlers have their threads.
        `trust` is whose word about clients is taken (`forwarded.trust`).
        """
        self.loop = loop
        self.spawn: Callable[..., asyncio.Task[None]] = loop.spawn
        self.reactor = loop.reactor
        self.handler = handler
        self.timeouts = timeouts
        self.limits = limits
        self.error_log = error_log
        self.access_log = access_log
        self.requests = 0  # answered, since the start
        self.accepted = 0
        self.websockets: Keepalive | None = None  # made when the first one comes
        self.closing = False  # it drains: what runs is finished, idle connections go
        self.last_answers = False  # every connection's next answer is its last
        self.stopping = False  # the whole server has been asked to stop, not this worker alone
        self.drain_calls: dict[Exchange, list[Callable[[], None]]] = {}
        self.on_empty: Callable[[], None] = _nothing
        self._on_pause: Callable[[], None] = _nothing
        self._on_resume: Callable[[], None] = _nothing
        self._paused = False

        self.parser = HeadParser()
        self.check_host = HostCheck()
        self.known_hosts = self.check_host.known
        self.forwarding: Forwarding | None = None
        if trust:
            from prefork.http import forwarded

            # Chosen here, once: a server that trusts nobody does nothing for it in any request.
            self.forwarding = forwarded.Forwarding(trust, self.check_host)
            self.handler = self.forwarding.before(handler)
        # Only heads larger than this are measured. Counting fields costs as much as finding the
        # Host, so it is left out where it protects nothing: a head that is small even if a field
        # had ten bytes on average is cheap, however many fields fit into it.
        self.small_head = min(limits.request_line, limits.head, 10 * limits.header_count)

        self.pool = Pool(self.reactor, loop, timeouts.send)
        self.pool.on_lost = self._connection_lost
        self.fresh: Deadlines[H1Protocol] = Deadlines(
            self.reactor, timeouts.head, H1Protocol.fresh_expired
        )
        # Connections that have to begin with a header of the PROXY protocol.
        self.prefaces: Deadlines[Preface] = Deadlines(self.reactor, timeouts.head, Preface.expired)
        self.heads: Deadlines[H1Protocol] = Deadlines(
            self.reactor, timeouts.head, H1Protocol.head_expired
        )
        self.idle: Deadlines[H1Protocol] = Deadlines(
            self.reactor, timeouts.keep_alive, H1Protocol.idle_expired
        )
        self.bodies: Deadlines[H1Protocol] = Deadlines(
            self.reactor, timeouts.body, H1Protocol.body_expired
        )
        # Requests whose client has left while their handler goes on.
        self.abandoned: Deadlines[H1Exchange] = Deadlines(
            self.reactor, timeouts.abandoned, self._abandoned_expired
        )

        # "HTTP/1.1 200 OK\r\nDate: ...\r\n" by status, for the second that is running.
        self.status_heads: dict[int, bytes] = {}
        # Those of them that go with any other answer: with a body, and final.
        self.usual_heads: dict[int, bytes] = {}
        self._heads_until = 0.0

        self.clock = self.reactor.clock
        self.slot = slot or Slot.private()
        self._cells = self.slot.cells
        self.memory = self.slot.memory
        self.note, self.place = self.slot.notebook()
        # Requests that did not end in their first step, in the order they began, and since when.
        self.waiting: dict[H1Exchange, float] = {}
        self.patience: Patience | None = None
        if slow_request or timeouts.request:
            self.patience = Patience(
                self.reactor, error_log, executor, slow=slow_request, limit=timeouts.request
            )
        self._oldest: H1Exchange | None = None
        self._measured = 0  # requests whose latency has been counted
        self._others = 0  # responses that were no 2xx
        self._successor: HttpServer | None = None

        # For whoever has to look at a worker from time to time without waking it when it idles.
        self.awake_at = math.inf
        self.on_awake: Callable[[], float] = _never
        self.milestone: float = math.inf
        self.on_milestone: Callable[[], float] = _never

        self.reactor.after_sleep.append(self._after_sleep)
        self.reactor.before_sleep.append(self._before_sleep)

    # What the layers below call

    def accept(self, sock: "socket.socket", address: Any, listener: "Listener") -> Connection:  # noqa: ARG002
        """Take an accepted, non-blocking socket."""
        self.accepted += 1
        if isinstance(address, tuple):
            connection = Connection(self.pool, sock, address[0], address[1])
        else:
            connection = Connection(self.pool, sock, "unix:", 0)
        protocol = H1Protocol(self, connection)
        connection.protocol = protocol
        if self.last_answers or not self.timeouts.keep_alive:
            protocol.leave()
        self.fresh.touch(protocol)
        connection.resume_reading()
        # Now, and not before the sleep: it may be served, and hang, in this very turn.
        self._cells[CONNECTIONS] = connections = len(self.pool.connections)
        if connections >= self.limits.connections and not self._paused:
            self._paused = True
            self.error_log.warn(
                f"{self.limits.connections} connections are open (limits.connections): "
                "accepting no more until one closes"
            )
            self._on_pause()
        return connection

    def accept_proxied(
        self, sock: "socket.socket", address: Any, listener: "Listener"
    ) -> Connection:
        """Take an accepted socket on which the PROXY protocol comes first."""
        connection = self.accept(sock, address, listener)
        protocol = connection.protocol
        assert isinstance(protocol, H1Protocol)
        self.fresh.discard(protocol)
        preface = Preface(self, connection, protocol)
        connection.protocol = preface
        self.prefaces.touch(preface)
        return connection

    def _connection_lost(self) -> None:
        if self._paused and len(self.pool.connections) < self.limits.connections:
            self._paused = False
            self._on_resume()
        if not self.pool.connections:
            self.on_empty()

    # What its connections call

    def status_line(self, status: int) -> bytes:
        return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status

    def status_head(self, status: int) -> bytes:
        """Status line and Date (RFC 9110 section 6.6.1), kept for the rest of this second."""
        head = self.status_line(status) + date_field()
        self.status_heads[status] = head
        if status >= 200 and status not in NO_BODY:
            self.usual_heads[status] = head
        return head

    def reason(self, status: int) -> str:
        return REASONS.get(status, "")

    def not_ok(self, status: int) -> None:
        """Count a response that is no 2xx, as it ends."""
        self._others += 1
        self.slot.answered(status)

    def wait_for(self, exchange: "H1Exchange") -> None:
        """A request has not ended in its first step: its latency is its own."""

        def ended() -> None:
            if self.waiting.pop(exchange, None) is None:
                return  # it has become something else
            self._measured += 1
            self.slot.took(self.clock() - exchange.started)
            if self.patience is not None:
                self.patience.end(exchange)

        self.waiting[exchange] = exchange.started
        exchange.on_finished(ended)
        if self.patience is not None:
            self.patience.begin(exchange)

    def wait_no_more(self, exchange: "H1Exchange") -> None:
        """It speaks another protocol now: it has no latency, and its age says nothing."""
        if self.waiting.pop(exchange, None) is not None and self.patience is not None:
            self.patience.end(exchange)

    # Around the sleep

    def _after_sleep(self) -> None:
        now = self.reactor.now
        self._cells[BUSY_SINCE] = int(now * 1e9)
        if now >= self._heads_until:
            self.status_heads.clear()
            self.usual_heads.clear()
            # The wall clock's second ends earlier than a second from now.
            wall = time.time()
            self._heads_until = now + 1.0 - (wall - int(wall))
        if now >= self.awake_at:
            self.awake_at = self.on_awake()

    def _before_sleep(self) -> None:
        requests = self.requests
        turn = self.clock() - self.reactor.now
        if requests != self._measured:
            # The rest of them came, were answered and sent within this turn: each took that long.
            self.slot.took(turn, requests - self._measured)
            self._measured = requests
        self._cells[OK_RESPONSES] = requests - self._others
        if requests >= self.milestone:
            self.milestone = self.on_milestone()
        since = 0
        if self.waiting:
            oldest, began = next(iter(self.waiting.items()))
            since = int(began * 1e9)
            if oldest is not self._oldest:
                self._oldest = oldest
                self.slot.oldest_line = oldest.request_line.decode("ascii", "backslashreplace")
        elif self._oldest is not None:
            self._oldest = None
        self.slot.publish(
            len(self.pool.connections),
            self.accepted,
            requests,
            self.pool.sent,
            len(self.waiting),
            since,
            int(turn * 1e9),
        )

    # What the worker calls

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self.pool.connections)

    @property
    def requests_running(self) -> int:
        """How many requests are between their head and the end of their response."""
        return sum(1 for protocol in self._protocols() if protocol.running)

    def exchanges(self) -> "list[H1Exchange]":
        """The requests between their head and the end of their response."""
        running = [one.exchange for one in self._protocols() if one.exchange is not None]
        return sorted(running, key=lambda exchange: exchange.started)

    def _protocols(self) -> list[H1Protocol]:
        # Not a generator: this is called in a signal's handler, too, and when another signal's
        # handler is called as a generator begins, Python 3.11 crashes.
        protocols = [connection.protocol for connection in self.pool.connections]
        return [one for one in protocols if isinstance(one, H1Protocol)]

    def _abandoned_expired(self, exchange: "H1Exchange") -> None:
        if exchange.task is not None and not exchange.finished:
            self.error_log.info(
                f"the client left {self.timeouts.abandoned:g} s ago: its handler is cancelled, "
                f'client: {exchange.peer}, request: "{exchange.method} {exchange.target} '
                f'HTTP/{exchange.version}"',
                connection=exchange.connection_number,
            )
            exchange.task.cancel("the client left")

    def accepting(self, on_pause: Callable[[], None], on_resume: Callable[[], None]) -> None:
        """Whom to tell when limits.connections is reached, and when there is room again."""
        self._on_pause = on_pause
        self._on_resume = on_resume

    def succeed(self, before: "HttpServer") -> None:
        """Go on with the slot of `before`, which serves on for itself until it is closed."""
        self.take_over(before)
        before.slot = Slot.private()
        before._cells = before.slot.cells
        before.memory = before.slot.memory
        before.accepted = before.requests = before._measured = before._others = 0
        before.pool.sent = 0
        before.milestone = before.awake_at = math.inf
        before._successor = self

    def take_over(self, before: "HttpServer") -> None:
        """Add what `before` has counted to our own."""
        self.accepted += before.accepted
        self.requests += before.requests
        self._measured += before._measured
        self._others += before._others
        self.pool.sent += before.pool.sent

    def say_farewell(self) -> None:
        """Each connection's next answer says `Connection: close`; accepting goes on."""
        self.last_answers = True
        for protocol in self._protocols():
            protocol.leave()

    def on_drain(self, exchange: Exchange, fn: Callable[[], None]) -> None:
        """See `Exchange.on_drain`."""
        if self.closing:
            self._tell_drain(exchange, fn)
        elif not exchange.finished:
            fns = self.drain_calls.get(exchange)
            if fns is None:
                fns = self.drain_calls[exchange] = []
                exchange.on_finished(partial(self._forget_drain, exchange))
            fns.append(fn)

    def _forget_drain(self, exchange: Exchange) -> None:
        self.drain_calls.pop(exchange, None)

    def _tell_drain(self, exchange: Exchange, fn: Callable[[], None]) -> None:
        try:
            fn()
        except Exception as error:
            self.error_log.error(
                f"exception in an on_drain callback of {exchange.method} {exchange.target}",
                connection=exchange.connection_number,
                exc=error,
            )

    def handlers(self) -> "list[asyncio.Task[None]]":
        """The tasks that handlers run in; one that goes on after its answer is in there, too."""
        tasks = asyncio.all_tasks(self.loop)
        return [task for task in tasks if task.get_name() == EXCHANGE_TASK]

    def cancel_running(self) -> int:
        """Cancel the tasks that handlers run in, so that their `finally` runs; how many."""
        return sum(task.cancel() for task in self.handlers())

    def begin_graceful_exit(self) -> None:
        """Each connection's next answer is its last; idle ones go when idle long enough.

        "Long enough" is timeouts.keep_alive_min (nginx: keepalive_min_timeout): a client that is
        sending its next request right now gets it answered, instead of a reset.
        """
        self.closing = True
        self.say_farewell()
        calls, self.drain_calls = self.drain_calls, {}
        for exchange, fns in calls.items():
            for fn in fns:
                self._tell_drain(exchange, fn)
        self.idle.shorten(self.timeouts.keep_alive_min)
        self.fresh.shorten(self.timeouts.keep_alive_min)
        self.prefaces.shorten(self.timeouts.keep_alive_min)
        if not self.pool.connections:
            self.on_empty()

    def abort(self) -> None:
        """Close every connection now."""
        for connection in list(self.pool.connections):
            connection.abort()

    def close(self) -> None:
        """Flush what is written and let go of the reactor."""
        self.pool.flush()
        self.pool.close()
        self.reactor.after_sleep.remove(self._after_sleep)
        self.reactor.before_sleep.remove(self._before_sleep)
        if self._successor is not None:
            self._successor.take_over(self)
