"""The seam between a node and the kind that reads it: substitution, and words for refusals."""

import re
from collections.abc import Mapping as AbstractMapping
from collections.abc import Sequence as AbstractSequence
from typing import Any, Final, Protocol

from prefork.config.interpolate import InterpolationError, interpolate
from prefork.config.nodes import Mapping, Node, Report, Scalar, Sequence, resembles
from prefork.config.problems import Place, problem_at, quoted

Schema = dict[str, Any]


class RefusedError(Exception):
    """The value was reported and is not to be used; nothing is said twice."""


class Reader:
    """What a kind needs to read one option: its dotted key, the folder that relative paths start
    from, the variables, and whom to tell.

    `secret` becomes true when the content of a `${file:}` went into the value. `also` names the
    words that may stand in place of what a kind wants.
    """

    __slots__ = ("also", "base", "path", "report", "secret", "variables")

    def __init__(
        self, path: str, base: str, variables: AbstractMapping[str, str], report: Report
    ) -> None:
        self.path = path
        self.base = base
        self.variables = variables
        self.report = report
        self.secret = False
        self.also = ""

    def at(self, path: str) -> "Reader":
        """A reader of another key."""
        return Reader(path, self.base, self.variables, self.report)

    def scalar(self, node: Node, wanted: str) -> Scalar:
        """The node as a scalar with its variables substituted; RefusedError when it is none.

        What came out of a substitution counts as plain: `"${WORKERS}"` is a number when the
        variable holds one, however much it had to be quoted.
        """
        if not isinstance(node, Scalar):
            raise self.refuse(node, wanted)
        if node.broken:
            raise RefusedError
        if node.derived or "$" not in node.text:
            return node
        try:
            text, secret = interpolate(node.text, self.variables, self.base)
        except InterpolationError as error:
            self.report(problem_at(within(node.place, error), str(error)))
            raise RefusedError from None
        self.secret = self.secret or secret
        if text == node.text:
            return node
        return Scalar(node.place, text, secret=secret, derived=True)

    def refuse(self, node: Node, wanted: str, suggestion: str | None = None) -> RefusedError:
        """Report that the option must be something else; the caller raises what is returned."""
        what = f"must be {wanted}{self.also}, not {shown(node)}{did_you_mean(suggestion)}"
        return self.say(node, what, suggestion)

    def say(self, node: Node, what: str, suggestion: str | None = None) -> RefusedError:
        """Report a sentence that begins with the option's name; the caller raises what is
        returned."""
        self.report(problem_at(node.place, f'"{self.path}" {what}', suggestion))
        return RefusedError()


class Kind(Protocol):
    """One way of writing a value."""

    @property
    def syntax(self) -> str:
        """What may be written, in a few words that fit behind "must be"."""

    def read(self, node: Node, reader: Reader) -> Any:
        """The value; raises RefusedError after reporting what is wrong."""

    def write(self, value: Any) -> str:
        """The value as YAML, on one line."""

    def json_schema(self) -> Schema:
        """What an editor may accept, variables aside."""


def within(place: Place, error: InterpolationError) -> Place:
    """Where an expression stands inside a scalar. It is looked for in the source line, because
    quotes and escapes make the scalar's own offsets useless there."""
    line = place.source.line(place.line)
    column = line.find(error.expression, place.column)
    if column < 0:
        return place
    return Place(place.source, place.line, column, len(error.expression))


def shown(node: Node) -> str:
    """What stands there, in words short enough for a message."""
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    if node.secret:
        return "what the file holds"
    if node.is_null:
        return "empty"
    return quoted(node.text)


def did_you_mean(suggestion: str | None) -> str:
    """The tail of a message."""
    if suggestion is None or len(suggestion) > 80:
        return ""
    return f' (did you mean "{suggestion}"?)'


def guess(word: str, known: AbstractSequence[str]) -> str | None:
    """The one of `known` that `word` was probably meant to be.

    A cut-off of 0.6 (difflib's own) finds every slip of one or two keys in words of four and
    more; below that length only a transposition or a beginning counts, because with three
    letters everything resembles everything.
    """
    from difflib import get_close_matches  # an import that only mistakes pay for

    if len(word) > 100:
        return None
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return near[0]
    beginning = [name for name in known if len(word) >= 3 and name.startswith(word)]
    return beginning[0] if len(beginning) == 1 else None


_SAFE: Final = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./()+-]*(?::[A-Za-z0-9_./()+-]+)*", re.ASCII)
_YAML_1_1_WORDS: Final = frozenset(("y", "n", "yes", "no", "on", "off"))


def quote(text: str) -> str:
    """Text as a YAML scalar, quoted where a reader of YAML 1.2 or of 1.1 needs it."""
    if (
        _SAFE.fullmatch(text)
        and resembles(text) == "str"
        and text.lower() not in _YAML_1_1_WORDS
        and not (text[0].isdigit() and ":" in text)  # 12:30 is a number to YAML 1.1
    ):
        return text
    import json

    return json.dumps(text, ensure_ascii=False)
