"""Durations and sizes: text with a unit on the way in, seconds and bytes everywhere else.

A bare number is seconds or bytes. Durations add up (`1m30s`), as nginx's do. `k`, `m` and `g`
mean what they mean to nginx, powers of 1024, the same as `KiB`, `MiB` and `GiB`; `KB` is
refused, because half of its readers think of 1000 and half of 1024.
"""

import re
from typing import Final

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {
    unit + tail: factor
    for unit, factor in (("k", 1 << 10), ("m", 1 << 20), ("g", 1 << 30))
    for tail in ("", "ib")
} | {"": 1, "b": 1}
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_DURATION: Final = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d))+", re.ASCII)
_DURATION_PART: Final = re.compile(rf"({_NUMBER})(ms|s|m|h|d)", re.ASCII)
_SIZE: Final = re.compile(rf"({_NUMBER})([a-z]*)", re.ASCII | re.IGNORECASE)
_LOOSE: Final = re.compile(rf"\s*({_NUMBER})\s*([a-z]+)\.?\s*", re.ASCII | re.IGNORECASE)

# What people write instead, and what they mean.
_DURATION_WORDS: Final = {
    **dict.fromkeys(("msec", "msecs", "millis", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
}
_SIZE_WORDS: Final = {
    **dict.fromkeys(("byte", "bytes"), ""),
    **dict.fromkeys(("kb", "ki", "kbyte", "kbytes"), "KiB"),
    **dict.fromkeys(("mb", "mi", "mbyte", "mbytes"), "MiB"),
    **dict.fromkeys(("gb", "gi", "gbyte", "gbytes"), "GiB"),
}
# A number longer than this is a slip of the keyboard, and would only overflow later.
_DIGITS_MAX: Final = 18


def parse_duration(text: str) -> float | None:
    """Seconds of `30s`, `250ms`, `1h30m`, `2.5` or `15`; None when it is no duration."""
    if len(text) > 3 * _DIGITS_MAX:
        return None
    if re.fullmatch(_NUMBER, text, re.ASCII):
        return float(text)
    if not _DURATION.fullmatch(text):
        return None
    parts = (float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
    return round(sum(parts), 6)


def parse_size(text: str) -> int | None:
    """Bytes of `8KiB`, `64k`, `1.5MiB` or `512`; None when it is no size or no whole one."""
    match = _SIZE.fullmatch(text)
    if match is None or len(text) > _DIGITS_MAX:
        return None
    factor = _BYTES.get(match[2].lower())
    if factor is None:
        return None
    size = float(match[1]) * factor if "." in match[1] else int(match[1]) * factor
    return int(size) if size == int(size) else None


def suggest_duration(text: str) -> str | None:
    """`30 sec` → `30s`; None when there is nothing to guess."""
    if match := _LOOSE.fullmatch(text):
        unit = match[2].lower()
        unit = _DURATION_WORDS.get(unit, unit)
        if unit in _SECONDS:
            return f"{match[1]}{unit}"
    return None


def suggest_size(text: str) -> str | None:
    """`8 kb` → `8KiB`; None when there is nothing to guess."""
    if match := _LOOSE.fullmatch(text):
        word = match[2].lower()
        if (unit := _SIZE_WORDS.get(word)) is not None:
            return f"{match[1]}{unit}"
        if word in _BYTES:
            return f"{match[1]}{match[2]}"
    return None


def format_duration(seconds: float) -> str:
    """The shortest exact text: 90.0 → `90s`, 0.25 → `250ms`, 300.0 → `5m`."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        # 75s and 60s read better than 1m15s and 1m: whole minutes from two of them on.
        if milliseconds % size == 0 and (unit == "s" or milliseconds >= 2 * size):
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def format_size(size: int) -> str:
    """The shortest exact text: 65536 → `64KiB`, 1000 → `1000`."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
