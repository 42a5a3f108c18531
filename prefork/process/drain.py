"""The end of a worker's serving, in stages: a stop always ends.

At the beginning streams are told (`Exchange.on_drain`), by the server itself. What still runs
shortly before the time is over, be it behind its answer, has its task cancelled: its `finally`
blocks run, and a response that has begun is ended as what it is, a half one. At the end every
connection is cut. Which requests these were is in the error log.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prefork.event.reactor import NOMORE, TimeEvent

if TYPE_CHECKING:
    from prefork.http.server import HttpServer
    from prefork.log import ErrorLog

CANCEL_SECONDS: Final = 2.0  # before the end what still runs is cancelled
CANCEL_SHARE: Final = 0.2  # of the time, when that is less
TOLD_REQUESTS: Final = 20  # of those cancelled or cut, a line each


class Drain:
    """Calls `stop()` when `server` has had its time; `deadline` is in `time.monotonic()`."""

    def __init__(self, server: "HttpServer", log: "ErrorLog", stop: Callable[[], None]) -> None:
        self.deadline = 0.0
        self._server = server
        self._log = log
        self._stop = stop
        self._seconds = 0.0
        self._stages: list[TimeEvent] = []

    def end_in(self, seconds: float) -> None:
        """It may take that long from now; a second call shortens it."""
        self.over()
        self.deadline = time.monotonic() + seconds
        self._seconds = seconds
        make = self._server.reactor.create_time_event
        last = min(CANCEL_SECONDS, CANCEL_SHARE * seconds)
        self._stages = [make(seconds - last, self._cancel), make(seconds, self._cut)]

    def over(self) -> None:
        """There is nothing left that could take too long."""
        for stage in self._stages:
            self._server.reactor.delete_time_event(stage)
        self._stages.clear()

    def _cancel(self) -> float:
        if self._server.waiting or self._server.handlers():
            self._log.warn(
                f"shutdown lasts: what still runs is cancelled, {self._seconds:g} s are nearly over"
            )
            self._tell("cancelled")
        self._server.cancel_running()
        return NOMORE

    def _cut(self) -> float:
        server = self._server
        self._log.warn(
            f"shutdown timed out after {self._seconds:g} s: {server.connections} connections cut,"
            f" {server.requests_running} of them with a request"
        )
        self._tell("cut")
        self._stop()
        return NOMORE

    def _tell(self, what: str) -> None:
        """Which requests do not end: method, target, age and client, a line each."""
        running = list(self._server.waiting)  # the oldest first
        now = time.monotonic()
        for exchange in running[:TOLD_REQUESTS]:
            self._log.warn(
                f"{what} after {now - exchange.started:.1f} s: client: {exchange.peer}, request:"
                f' "{exchange.method} {exchange.target} HTTP/{exchange.version}"',
                connection=exchange.connection_number,
            )
        if len(running) > TOLD_REQUESTS:
            self._log.warn(f"{what}: {len(running) - TOLD_REQUESTS} more requests")
