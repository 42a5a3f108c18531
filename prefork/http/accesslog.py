"""The access log: one line for a finished request, at a price nobody turns it off for.

Facts (CPython 3.11, nanoseconds): `logging` takes 7,000 for a line, an unbuffered `write` 1,200,
a search through the 600 bytes of a browser's head 250, a comparison of them with others 20, a
call of `time.monotonic` 45. A whole request of ours takes about 8,000.
Consequence: the time stamp is text that is renewed once a second, lines are kept in memory and
leave by one `write`, and nothing is decoded that the line does not show.
Choice: a format is compiled once into one function (`logformat`). The fields of the request's
head are remembered with the connection, beside the bytes they were read from, because one client
sends the same fields over and over.
Cost: an idle connection keeps the bytes of its last head, about half a kilobyte of a browser's.
"""

import os
import time
from collections.abc import Callable
from typing import Final, Protocol

from prefork.http.logformat import Finished, LogFormat

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Sink(Protocol):
    """The file below: `prefork.log.LogFile`. `write` never raises."""

    def write(self, data: bytes, /) -> object: ...


class AccessLog:
    """Lines of finished requests in a buffer, written when it is full, old, or flushed.

    `record(exchange)` is the hot call. `flush_after` is the age in seconds at which the oldest
    line must leave: when the first line comes into an empty buffer, `on_first(flush_after)` is
    called so that the owner makes a time event of `tick`; with nothing to write there is no timer.
    A line is never torn: the buffer may pass `buffer_size` bytes by one line before it is written.
    """

    __slots__ = (
        "_armed",
        "_oldest",
        "buffer_size",
        "file",
        "flush_after",
        "lines",
        "on_first",
        "pid",
        "record",
        "second_ends",
        "size",
        "time_iso8601",
        "time_local",
        "wall_offset",
    )

    def __init__(
        self,
        file: Sink,
        format: str = "combined",  # noqa: A002 -- the operator's own word for it
        *,
        buffer_size: int = 64 * 1024,
        flush_after: float = 1.0,
        on_first: Callable[[float], object] | None = None,
        forwarded: bool = False,
    ) -> None:
        """Raise OperatorError for a format that does not compile.

        `forwarded`: clients may be told by proxies, request by request.
        """
        self.file = file
        self.buffer_size = buffer_size
        self.flush_after = flush_after
        self.on_first = on_first
        self.pid = str(os.getpid())
        self.size = 0
        self.time_local = self.time_iso8601 = ""
        self.lines: list[str] = []
        self._oldest = 0.0
        self._armed = False
        self.second_ends = 0.0
        self.wall_offset = 0.0
        self.record: Final[Callable[[Finished], None]] = LogFormat(
            format, forwarded=forwarded
        ).recorder(self)

    def flush(self) -> None:
        """Write what is buffered."""
        lines = self.lines
        if lines:
            text = "".join(lines)
            lines.clear()
            self.size = 0
            self.file.write(text.encode())

    def tick(self) -> float | None:
        """Write the lines if the oldest is due; return the seconds to the next look, or None.

        None means that nothing is buffered: `on_first` will call again.
        """
        if self.lines:
            left = self._oldest + self.flush_after - time.monotonic()
            if left > 0:
                return left
            self.flush()
        self._armed = False
        return None

    def close(self) -> None:
        """Write what is left; the file belongs to whoever opened it."""
        self.flush()
        self.on_first = None

    def first(self, now: float) -> None:
        self._oldest = now
        if not self._armed and self.on_first is not None:
            self._armed = True
            self.on_first(self.flush_after)

    def new_second(self, now: float) -> None:
        """Renew the time texts and learn when, by the monotonic clock, the next second begins."""
        wall = time.time()
        self.wall_offset = wall - now
        self.second_ends = now + 1.0 - wall % 1.0
        at = time.localtime(wall)
        sign = "-" if at.tm_gmtoff < 0 else "+"
        zone_hours, zone_minutes = divmod(abs(at.tm_gmtoff) // 60, 60)
        clock = f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
        # Not strftime: its %b speaks the language an application has set with setlocale.
        self.time_local = (
            f"{at.tm_mday:02}/{MONTHS[at.tm_mon - 1]}/{at.tm_year}:{clock}"
            f" {sign}{zone_hours:02}{zone_minutes:02}"
        )
        self.time_iso8601 = (
            f"{at.tm_year}-{at.tm_mon:02}-{at.tm_mday:02}T{clock}"
            f"{sign}{zone_hours:02}:{zone_minutes:02}"
        )
        self.pid = str(os.getpid())  # of the worker, wherever we were made


def check_format(format: str) -> None:  # noqa: A002 -- as above
    """Raise OperatorError if `AccessLog` would."""
    LogFormat(format)
