"""What is said about a setting beside its name, its type and its default."""

from typing import Final, Literal

from prefork.config.reader import Kind

Applies = Literal["reload", "restart"]

ENVIRONMENT_PREFIX: Final = "PREFORK_"


class Option:
    """One setting.

    `meaning` is a paragraph whose first sentence stands alone. `default` is text for defaults
    that depend on the folder of the configuration; other defaults are the Struct's. `example`
    is YAML. `known_as` lists what other servers call it, for "did you mean".
    """

    __slots__ = ("applies", "default", "example", "kind", "known_as", "meaning", "since")

    def __init__(
        self,
        kind: Kind,
        meaning: str,
        *,
        default: str | None = None,
        example: str = "",
        applies: Applies = "reload",
        known_as: tuple[str, ...] = (),
        since: str = "0.1",
    ) -> None:
        self.kind = kind
        self.meaning = meaning
        self.default = default
        self.example = example
        self.applies = applies
        self.known_as = known_as
        self.since = since


class Variables:
    """A mapping whose keys the operator chooses: `environment`."""

    __slots__ = ("example", "meaning", "value")

    def __init__(self, value: Kind, meaning: str, *, example: str) -> None:
        self.value = value
        self.meaning = meaning
        self.example = example


class Section:
    """A group of settings."""

    __slots__ = ("meaning",)

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning


def environment_name(path: str) -> str:
    """`timeouts.head` → `PREFORK_TIMEOUTS_HEAD`."""
    return ENVIRONMENT_PREFIX + path.replace(".", "_").upper()
