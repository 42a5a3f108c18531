"""Media types: what a client accepts (RFC 9110 section 12.5.1) and whether a type is another."""

from prefork.onion.fields import type_line, values_of


def full_type(name: str) -> str:
    """`json` or `.json` to `application/json`; a media type stays, "" for an unknown name."""
    if "/" in name:
        return name.partition(";")[0].strip().lower()
    try:
        return values_of(type_line(name))[0].partition(";")[0]
    except ValueError:
        return ""


def matching_type(actual: str, wanted: tuple[str, ...]) -> str | None:
    """The first of `wanted` that covers `actual`, as it was written; `actual` for no `wanted`.

    `text/*` and `*/*` match what they say, `+json` any type with that suffix. A pattern that
    matched gives the actual type.
    """
    if not actual:
        return None
    if not wanted:
        return actual
    for name in wanted:
        if name.startswith("+"):
            if actual.endswith(name):
                return actual
        elif "*" in name:
            if _covers(name.lower(), actual):
                return actual
        elif full_type(name) == actual:
            return name
    return None


def _covers(pattern: str, actual: str) -> bool:
    kind, _, subtype = pattern.partition("/")
    actual_kind, _, actual_subtype = actual.partition("/")
    return kind in ("*", actual_kind) and subtype in ("*", actual_subtype)


def _preferences(header: str) -> list[tuple[str, float]]:
    """`text/html;q=0.8, */*` as (range, weight); what cannot be read counts as not sent."""
    found = []
    for item in header.split(","):
        name, *parameters = item.split(";")
        name = name.strip().lower()
        weight = 1.0
        for text in parameters:
            key, _, value = text.partition("=")
            if key.strip().lower() == "q":
                try:
                    weight = min(max(float(value), 0.0), 1.0)
                except ValueError:
                    weight = 0.0
        if "/" in name:
            found.append((name, weight))
    return found


def best_accepted(header: str, offered: tuple[str, ...]) -> str | None:
    """The one of `offered` with the greatest weight, the first of equals; None when none will do.

    An absent or empty Accept takes anything. A media range is applied by its precision: `text/html`
    before `text/*` before `*/*`.
    """
    if not offered:
        return None
    ranges = _preferences(header)
    if not ranges:
        return offered[0]
    best: str | None = None
    best_weight = 0.0
    for name in offered:
        actual = full_type(name)
        precision, weight = -1, 0.0
        for pattern, value in ranges:
            if _covers(pattern, actual):
                exact = 2 - pattern.count("*")
                if exact > precision:
                    precision, weight = exact, value
        if weight > best_weight:
            best, best_weight = name, weight
    return best


def parameter(header: str, name: str) -> str:
    """The parameter `name` of a header like `text/html; charset=utf-8`, lower-case, or ""."""
    for text in header.split(";")[1:]:
        key, _, value = text.partition("=")
        if key.strip().lower() == name:
            return value.strip().strip('"').lower()
    return ""
