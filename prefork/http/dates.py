"""HTTP dates (RFC 9110 section 5.6.7): written as IMF-fixdate, read in all three formats.

`Date` stands in every response, and formatting one costs more than parsing a small request, so
the text is made once per second and handed out until the second is over.
"""

import time
from typing import Final

# strftime would take the names from the locale; the RFC fixes them.
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)

_cached_second = -1
_cached_text = ""
_cached_field = b""


def format_http_date(timestamp: float) -> str:
    """Seconds since the epoch as `Sun, 06 Nov 1994 08:49:37 GMT`; fractions are cut off."""
    # Floor, not truncation: a moment before the epoch belongs to the second that contains it.
    t = time.gmtime(timestamp // 1)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04d} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT"
    )


def parse_http_date(text: str) -> float | None:
    """Seconds since the epoch, or None when `text` is no date.

    Takes IMF-fixdate and the two obsolete forms, RFC 850's and asctime's, as RFC 9110 requires
    of a recipient; a two-digit year is resolved by `email.utils` (69-99 is the last century).
    """
    # Imported here: only a conditional request needs them, and they are slow to import.
    from datetime import UTC, datetime
    from email.utils import parsedate_tz

    parts = parsedate_tz(text)
    if parts is None:
        return None
    year, month, day, hour, minute, second = parts[:6]
    try:
        # datetime knows no leap seconds, and it refuses the 45th of November where timegm counts on
        moment = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return moment.timestamp() - (parts[9] or 0)


def _refresh(second: int) -> None:
    global _cached_second, _cached_text, _cached_field
    _cached_text = format_http_date(second)
    _cached_field = f"Date: {_cached_text}\r\n".encode("ascii")
    _cached_second = second


def http_date() -> str:
    """This second's date, for a header field."""
    second = int(time.time())
    if second != _cached_second:
        _refresh(second)
    return _cached_text


def date_field() -> bytes:
    """This second's whole field line, `Date: …` with CRLF, as a response head wants it."""
    second = int(time.time())
    if second != _cached_second:
        _refresh(second)
    return _cached_field
