"""HTTP dates and status lines, which every response repeats."""

import pytest

from prefork.http import dates
from prefork.http.status import NO_BODY, REASONS, STATUS_LINES, status_line

SECONDS = 784111777.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (SECONDS, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (SECONDS + 0.999, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (-0.5, "Wed, 31 Dec 1969 23:59:59 GMT"),
        (951782400, "Tue, 29 Feb 2000 00:00:00 GMT"),
    ],
)
def test_dates_are_written(seconds: float, text: str) -> None:
    assert dates.format_http_date(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        # RFC 9110 section 5.6.7: the three forms a recipient has to take.
        ("Sun, 06 Nov 1994 08:49:37 GMT", SECONDS),
        ("Sunday, 06-Nov-94 08:49:37 GMT", SECONDS),
        ("Sun Nov  6 08:49:37 1994", SECONDS),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1483228799.0),
        ("", None),
        ("yesterday", None),
        ("Sun, 45 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 28:49:37 GMT", None),
    ],
)
def test_dates_are_read(text: str, seconds: float | None) -> None:
    assert dates.parse_http_date(text) == seconds


def test_the_date_of_this_second_is_a_whole_field_line() -> None:
    for _ in range(3):  # the second may end between the two
        text, line = dates.http_date(), dates.date_field()
        if line == f"Date: {text}\r\n".encode():
            return
    pytest.fail(f"{text!r} is not in {line!r}")


def test_status_lines() -> None:
    assert STATUS_LINES[200] == status_line(200) == b"HTTP/1.1 200 OK\r\n"
    assert status_line(599) == b"HTTP/1.1 599 \r\n"  # RFC 9112 section 4: the space stays
    assert set(STATUS_LINES) == set(REASONS)
    assert {100, 204, 304} <= NO_BODY
    assert 205 not in NO_BODY
