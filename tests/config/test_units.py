"""Durations and sizes, in and out."""

import pytest

from prefork.config.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    suggest_duration,
    suggest_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("250ms", 0.25),
        ("1d", 86400.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("15", 15.0),
        ("2.5", 2.5),
        ("0", 0.0),
        ("0s", 0.0),
        ("", None),
        ("s", None),
        ("-1s", None),
        ("1e3", None),
        ("5 s", None),
        ("5S", None),
        ("1_000", None),
        ("٣s", None),
        ("9" * 400, None),
        ("1s" * 200, None),
        (".5s", None),
        ("off", None),
    ],
)
def test_duration(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8KiB", 8192),
        ("64MiB", 64 << 20),
        ("1GiB", 1 << 30),
        ("1k", 1024),
        ("2M", 2 << 20),
        ("1g", 1 << 30),
        ("512", 512),
        ("512B", 512),
        ("1.5KiB", 1536),
        ("0", 0),
        ("8kib", 8192),
        ("1KB", None),
        ("1Ki", None),
        ("0.3", None),
        ("-1", None),
        ("", None),
        ("k", None),
        ("1 KiB", None),
        ("9" * 30, None),
        ("1TiB", None),
    ],
)
def test_size(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("30 sec", "30s"),
        ("5min", "5m"),
        ("2 Hours", "2h"),
        ("100 msec", "100ms"),
        ("5 s", "5s"),
        ("5S", "5s"),
        ("five", None),
        ("5 fortnights", None),
    ],
)
def test_suggested_duration_is_one(text: str, meant: str | None) -> None:
    assert suggest_duration(text) == meant
    if meant is not None:
        assert parse_duration(meant) is not None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("8 kb", "8KiB"),
        ("8KB", "8KiB"),
        ("1 MB", "1MiB"),
        ("2Gi", "2GiB"),
        ("100 bytes", "100"),
        ("64 KiB", "64KiB"),
        ("big", None),
        ("5x", None),
    ],
)
def test_suggested_size_is_one(text: str, meant: str | None) -> None:
    assert suggest_size(text) == meant
    if meant is not None:
        assert parse_size(meant) is not None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.25, "250ms"),
        (1.0, "1s"),
        (60.0, "60s"),
        (75.0, "75s"),
        (90.0, "90s"),
        (120.0, "2m"),
        (300.0, "5m"),
        (3600.0, "60m"),
        (7200.0, "2h"),
        (172800.0, "2d"),
        (1.5, "1500ms"),
    ],
)
def test_duration_is_written_as_people_write_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1000, "1000"), (1024, "1KiB"), (16 << 20, "16MiB"), (1 << 30, "1GiB")],
)
def test_size_is_written_as_people_write_it(size: int, text: str) -> None:
    assert format_size(size) == text
    assert parse_size(text) == size
