"""Listening sockets that no configuration wants any more, but an old worker still has.

They are closed in the master when the last such worker has left: then nobody answers there, and a
client is refused instead of being kept waiting.
"""

from collections.abc import Iterable, Iterator

from prefork.log import ErrorLog
from prefork.net.inherit import Inherited
from prefork.net.listener import Listener, release
from prefork.process.table import ProcessTable


class RetiredListeners:
    """Iterating gives those that are still open."""

    def __init__(self, table: ProcessTable, inherited: Inherited) -> None:
        self._table = table
        self._inherited = inherited
        self._listeners: list[Listener] = []

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._listeners)

    def add(self, listeners: Iterable[Listener]) -> None:
        self._listeners += [one for one in listeners if not _in(one, self._listeners)]

    def close_unused(self, wanted: Iterable[Listener], log: ErrorLog) -> None:
        """Close what no living worker has; `wanted` are those of the cycles to come."""
        if not self._listeners:
            return
        wanted = list(wanted)
        used = [*wanted]
        for row in self._table.workers():
            if row.cycle is not None:
                used += row.cycle.listeners
        left: list[Listener] = []
        for listener in self._listeners:
            if _in(listener, wanted):
                continue  # a later reload has asked for it again
            if _in(listener, used):
                left.append(listener)
            else:
                log.notice(f"closed {listener.url}")
                release(listener, self._inherited)
        self._listeners = left


def _in(listener: Listener, others: Iterable[Listener]) -> bool:
    return any(listener is one for one in others)
