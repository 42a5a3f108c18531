"""What a process serves one cycle with: the acceptors, the HTTP server, the access log.

A worker has one. A single process that is reconfigured has two for a while: the new one accepts,
the old one finishes.
"""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from prefork.event.bridge import ReactorLoop
from prefork.event.executor import Executor
from prefork.event.reactor import NOMORE
from prefork.http.accesslog import AccessLog
from prefork.http.exchange import Handler
from prefork.http.server import HttpServer
from prefork.net.acceptor import Acceptor
from prefork.net.listener import Listener
from prefork.process.cycle import Cycle
from prefork.scoreboard import Slot
from prefork.unix.heap import keep_free_memory


class Serving:
    """Made ready by the constructor, accepting after `start`."""

    def __init__(
        self,
        cycle: Cycle,
        loop: ReactorLoop,
        handler: Handler,
        slot: Slot | None,
        *,
        executor: Executor,
        shared: bool,
    ) -> None:
        """`shared`: other processes accept from the same sockets."""
        self.cycle = cycle
        self._reactor = loop.reactor
        conf = cycle.conf
        self._access_log: AccessLog | None = None
        if cycle.access_file is not None:
            cycle.access_file.on_lost = cycle.error_log.alert
            self._access_log = AccessLog(
                cycle.access_file,
                conf.log.access.format,
                buffer_size=conf.log.access.buffer,
                flush_after=conf.log.access.flush,
                on_first=self._flush_in,
                forwarded=bool(conf.forwarded.trust),
            )
        self.server = HttpServer(
            loop=loop,
            handler=handler,
            timeouts=conf.timeouts,
            limits=conf.limits,
            error_log=cycle.error_log,
            access_log=self._access_log,
            slot=slot,
            executor=executor,
            slow_request=conf.slow_request,
            trust=conf.forwarded.trust,
        )
        # By the text of the address: one that was kept for this cycle still has its old settings.
        proxied = {address.text for address in conf.listen if address.proxy_protocol}
        self._acceptors = [
            Acceptor(
                loop.reactor,
                one,
                self.server.accept_proxied if one.address.text in proxied else self.server.accept,
                cycle.error_log,
                exclusive=shared,
            )
            for one in cycle.listeners
        ]
        self._on_empty: Callable[[], None] | None = None
        self._handlers: set[asyncio.Task[Any]] | None = None  # once no connection is left
        self.server.accepting(self._pause, self._resume)

    def start(self) -> None:
        keep_free_memory()
        for acceptor in self._acceptors:
            acceptor.start()

    def stop_accepting(self) -> None:
        """The listening sockets stay open in the master: nothing in their queues is reset."""
        for acceptor in self._acceptors:
            acceptor.stop()
        # Not a second time: by then the same descriptor may be watched for another.
        self._acceptors.clear()

    def drain(
        self,
        on_empty: Callable[[], None],
        *,
        queues: Collection[Listener] = (),
        sealed: bool = False,
    ) -> None:
        """Accept no more, finish what runs, then call `on_empty` once, perhaps at once.

        What runs are connections, and handlers: one may go on behind its answer, as ASGI frameworks
        do with background tasks, and has promised that to the client that got the answer.

        What waits in `queues` is served, too, and those listeners are closed. `sealed`: nobody
        new can get into them (`prefork.net.seal`).
        """
        self._on_empty = on_empty
        draining = [one for one in self._acceptors if one.listener in queues]
        for acceptor in self._acceptors:
            if acceptor not in draining:
                acceptor.stop()
        self._acceptors = draining
        self.server.on_empty = self._look
        self.server.begin_graceful_exit()
        for acceptor in list(draining):
            acceptor.drain(partial(self._dry, acceptor), sealed=sealed)
        self._look()

    def _dry(self, acceptor: Acceptor) -> None:
        if acceptor in self._acceptors:
            self._acceptors.remove(acceptor)
            self._look()

    def _look(self) -> None:
        if self._on_empty is not None and not self._acceptors and not self.server.connections:
            if self._handlers is None:
                # They go on behind their answers, or clean up after clients that have left. Where
                # another serving has followed on this loop its own are among them, so those that
                # come later are not asked for.
                self._handlers = set(self.server.handlers())
                for task in self._handlers:
                    task.add_done_callback(self._handler_ended)
            if not self._handlers:
                on_empty, self._on_empty = self._on_empty, None
                on_empty()

    def _handler_ended(self, task: "asyncio.Task[Any]") -> None:
        if self._handlers is not None:
            self._handlers.discard(task)
            self._look()

    def stop(self) -> None:
        """Accept no more and cut every connection."""
        self.stop_accepting()
        self.server.abort()

    def close(self) -> None:
        """Write what is left to write."""
        self.server.close()
        if self._access_log is not None:
            self._access_log.close()

    def reopen(self) -> list[str]:
        """What stands in the buffer belongs into the old file. See `Cycle.reopen_logs`."""
        if self._access_log is not None:
            self._access_log.flush()
        return self.cycle.reopen_logs()

    def _pause(self) -> None:
        for acceptor in self._acceptors:
            acceptor.pause()

    def _resume(self) -> None:
        for acceptor in self._acceptors:
            acceptor.resume()

    def _flush_in(self, delay: float) -> None:
        self._reactor.create_time_event(delay, self._tick)

    def _tick(self) -> float:
        again = None if self._access_log is None else self._access_log.tick()
        return NOMORE if again is None else again
