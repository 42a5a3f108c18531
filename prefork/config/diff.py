"""What a reload changes: the settings that differ, with their old and new values, and no secret."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from prefork.config.dump import REDACTED, is_secret
from prefork.config.option import Option
from prefork.config.options import leaves
from prefork.config.schema import Config

LONGEST: Final = 300  # characters of a value's text
UNSET: Final = "unset"


class Change(Struct, frozen=True):
    """One setting. The values are as in `prefork config show --json`; null where there is none.

    With `needs_restart` the old value stays in effect.
    """

    key: str
    old: Any
    new: Any
    needs_restart: bool
    text: str  # `workers: 2 -> 4`

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "old": self.old,
            "new": self.new,
            "needs_restart": self.needs_restart,
        }


def changes(
    old: Config,
    new: Config,
    *,
    started_with: Config,
    secrets: frozenset[str] = frozenset(),
    settled: tuple[str, ...] = (),
) -> list[Change]:
    """Every setting in which `new` differs from what is in effect, in the order of the schema.

    That is `old`, but for what only a restart changes: there it is `started_with`, so that such a
    change is told until it is made or taken back. `settled` are further keys of that kind.
    `secrets` are the keys whose values hold the content of a `${file:}`, before or now.
    """
    before, first, after = (dict(_values(conf)) for conf in (old, started_with, new))
    found = []
    for key in dict.fromkeys((*after, *before)):
        restart = _needs_restart(key, settled)
        one, two = (first if restart else before).get(key), after.get(key)
        if (one and one.value) == (two and two.value):
            continue
        was, is_now = (_shown(key, value, secrets) for value in (one, two))
        note = " (needs a restart)" if restart else ""
        text = f"{key}: {was.text} -> {is_now.text}{note}"
        found.append(Change(key, was.value, is_now.value, restart, text))
    return found


class _Value(NamedTuple):
    value: Any
    text: str


def _values(conf: Config) -> Iterator[tuple[str, _Value]]:
    for leaf in leaves():
        value: Any = conf
        for name in leaf.path.split("."):
            value = getattr(value, name)
        if isinstance(leaf.about, Option):
            yield leaf.path, _Value(msgspec.to_builtins(value), leaf.about.kind.write(value))
        else:
            for name, inner in value.items():
                yield f"{leaf.path}.{name}", _Value(inner, leaf.about.value.write(inner))


def _shown(key: str, found: _Value | None, secrets: frozenset[str]) -> _Value:
    if found is None:
        return _Value(None, UNSET)
    if is_secret(key, secrets):
        return _Value(REDACTED, REDACTED)
    text = found.text
    return _Value(found.value, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")


def _needs_restart(key: str, settled: tuple[str, ...]) -> bool:
    for leaf in leaves():
        if leaf.path == key and isinstance(leaf.about, Option) and leaf.about.applies == "restart":
            return True
    return key.partition(".")[0] in settled


__all__ = ["LONGEST", "UNSET", "Change", "changes"]
