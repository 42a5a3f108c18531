"""Requests that wait: the slow are told of once, the overdue are answered 504.

Only a request that has not ended in the first step of its task comes here, so the others pay
nothing. While one blocks the loop nothing here runs; the master looks after those, from outside.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prefork.event import tasks
from prefork.event.deadlines import Deadlines
from prefork.event.executor import Executor
from prefork.event.reactor import NOMORE, Reactor
from prefork.http.h1.exchange import H1Exchange

if TYPE_CHECKING:
    import asyncio

    from prefork.log import ErrorLog

# A handler or a thread whose request was given up may still end by itself, that much later.
SHORTEST_WAIT: Final = 1.0  # seconds
LONGEST_WAIT: Final = 5.0


class Patience:
    """The deadlines of running requests: `slow` and `limit` in seconds, 0 is off."""

    def __init__(
        self,
        reactor: Reactor,
        log: "ErrorLog",
        executor: Executor | None,
        *,
        slow: float,
        limit: float,
    ) -> None:
        self._reactor = reactor
        self._log = log
        self._executor = executor
        self._slow: Deadlines[H1Exchange] | None = None
        self._limit: Deadlines[H1Exchange] | None = None
        if slow:
            self._slow = Deadlines(reactor, slow, self._is_slow)
        if limit:
            self._limit = Deadlines(reactor, limit, self._is_overdue)
        self.on_stuck: Callable[[str], None] = self._log.error

    def begin(self, exchange: H1Exchange) -> None:
        """It has not ended in its first step."""
        if self._slow is not None:
            self._slow.touch(exchange)
        if self._limit is not None:
            self._limit.touch(exchange)

    def end(self, exchange: H1Exchange) -> None:
        """It has been answered."""
        if self._slow is not None:
            self._slow.discard(exchange)
        if self._limit is not None:
            self._limit.discard(exchange)

    def told(self) -> None:
        """The master has told of what was slow while the loop stood: once is enough."""
        if self._slow is not None:
            self._slow.discard_due()

    def _is_slow(self, exchange: H1Exchange) -> None:
        assert self._slow is not None
        if not exchange.finished:
            what = f"slow request (slow_request {self._slow.timeout:g} s)"
            self._tell(self._log.warn, what, exchange)

    def _is_overdue(self, exchange: H1Exchange) -> None:
        assert self._limit is not None
        task = exchange.task
        if exchange.finished or task is None:
            return
        limit = self._limit.timeout
        self._tell(self._log.error, f"request timed out (timeouts.request {limit:g} s)", exchange)
        threads = frozenset() if self._executor is None else self._executor.running()
        # The answer comes first: whatever the handler makes of being cancelled, it has been sent.
        if exchange.head_sent:
            exchange.abort()
        else:
            exchange.keep_alive = False
            exchange.reply(504, b"Content-Type: text/plain\r\n", b"Gateway Timeout\n")
        task.cancel()
        line = f"{exchange.method} {exchange.target}"
        wait = min(max(limit, SHORTEST_WAIT), LONGEST_WAIT)
        self._reactor.create_time_event(wait, lambda: self._look_again(line, task, threads))

    def _look_again(
        self, line: str, task: "asyncio.Task[None]", suspects: frozenset[object]
    ) -> float:
        """A while later: of what was at work then, is something still, for nobody?"""
        if not task.done():
            self.on_stuck(f"{line} was answered 504, but its handler does not end")
        elif self._executor is not None and suspects & self._executor.abandoned():
            self.on_stuck(f"{line} was answered 504, but its thread works on")
        return NOMORE

    def _tell(self, write: Callable[..., None], what: str, exchange: H1Exchange) -> None:
        age = self._reactor.now - exchange.started
        said = f"{exchange.method} {exchange.target}, {age:.1f} s, client: {exchange.peer}"
        lines = [f"{what}: {said}"]
        if exchange.task is not None:
            threads = None if self._executor is None else self._executor.thread_lines
            lines += tasks.stack(exchange.task, threads)
        write("\n".join(lines), connection=exchange.connection_number)
