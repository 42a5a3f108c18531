"""YAML text → a tree in which every value knows the line and column it came from.

pyyaml composes the nodes (libyaml's parser where pyyaml was built with it); the three things
it does otherwise than an operator's editor would are done here: scalars follow YAML 1.2's core
schema (`on`, `NO` and `12:30:45` are text), a key that is set twice is a problem instead of a
silent override, and nothing constructs Python objects. A syntax error is looked at a second
time by pyyaml's own scanner in Python, which explains itself better than libyaml does.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from prefork.config.problems import Place, Problem, Source, problem_at, quoted

if TYPE_CHECKING:
    import yaml

FILE_MAX: Final = 1 << 20  # bytes; a configuration larger than this is another file
DEPTH_MAX: Final = 50
_RESCAN_MAX: Final = 1 << 18  # the scanner in Python reads about 100 KB a second

_PLAIN: Final = "?"
_QUOTED: Final = "!"
_TAG: Final = "tag:yaml.org,2002:"

_NULL: Final = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE: Final = frozenset(("true", "True", "TRUE"))
_FALSE: Final = frozenset(("false", "False", "FALSE"))
_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    re.ASCII,
)


def resembles(text: str) -> str:
    """null, bool, int, float or str: the type of a plain scalar (YAML 1.2, section 10.3)."""
    if text in _NULL:
        return "null"
    if text in _TRUE or text in _FALSE:
        return "bool"
    if _INT.fullmatch(text):
        return "int"
    return "float" if _FLOAT.fullmatch(text) else "str"


class Scalar(Struct):
    """One value. `plain` is false when it was quoted, and so is text whatever it looks like."""

    place: Place
    text: str
    plain: bool = True
    secret: bool = False  # holds the content of a ${file:…}: never printed
    derived: bool = False  # holds something substituted: `text` is not what the file shows
    broken: bool = False  # has been reported already, whatever it holds

    @property
    def looks(self) -> str:
        """The type that YAML 1.2's core schema gives it (section 10.3): see `resembles`."""
        return resembles(self.text) if self.plain else "str"

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULL


class Sequence(Struct):
    place: Place
    items: "list[Node]"


class Entry(Struct):
    """A key with its value."""

    key: Scalar
    value: "Node"


class Mapping(Struct):
    place: Place
    entries: dict[str, Entry]


Node = Scalar | Sequence | Mapping
Report = Callable[[Problem], None]


def parse(source: Source, report: Report) -> Node | None:
    """The tree of one document; None when it is empty or when its syntax is broken.

    Broken syntax is reported; so are duplicate keys, tags and keys that are no scalars, and the
    rest of the tree is returned all the same.
    """
    import yaml

    try:
        root = _loader(source.text).get_single_node()
    except yaml.YAMLError as error:
        report(_syntax_problem(source, error))
        return None
    return _Converter(source, report).convert(root) if root is not None else None


def _loader(text: str, *, pure: bool = False) -> Any:
    """A composer of nodes that tells plain scalars from quoted ones and resolves nothing.

    Made on first use: the class needs yaml, and reading no file must not import it.
    """
    import yaml

    class Resolver:
        def resolve(self, kind: type, value: str, implicit: Any) -> str:
            del value
            if kind is yaml.ScalarNode:
                return _PLAIN if implicit[0] else _QUOTED
            return _TAG + ("seq" if kind is yaml.SequenceNode else "map")

        depth = 0

        def descend_resolver(self, current: Any, index: Any) -> None:
            """pyyaml composes by recursion, in C without a limit: a page of brackets would end
            the master with SIGSEGV. This is called on the way into each node."""
            del index
            self.depth += 1
            if self.depth > DEPTH_MAX:
                raise yaml.composer.ComposerError(
                    None, None, "nested too deeply to be a configuration", current.start_mark
                )

        def ascend_resolver(self) -> None:
            self.depth -= 1

    if yaml.__with_libyaml__ and not pure:
        from yaml._yaml import CParser

        class CLoader(Resolver, CParser):
            """Resolver first: CParser has no resolver of its own."""

        return CLoader(text)

    from yaml.composer import Composer
    from yaml.parser import Parser
    from yaml.reader import Reader
    from yaml.scanner import Scanner

    class PureLoader(Reader, Scanner, Parser, Composer, Resolver):
        def __init__(self, text: str) -> None:
            Reader.__init__(self, text)
            Scanner.__init__(self)
            Parser.__init__(self)
            Composer.__init__(self)

    return PureLoader(text)


class _Converter:
    """pyyaml nodes → ours. An alias gives the same object again, so that a page of aliases to
    aliases (the "billion laughs") stays as small as its text."""

    def __init__(self, source: Source, report: Report) -> None:
        self.source = source
        self.report = report
        self.done: dict[int, Node] = {}
        self.open: set[int] = set()

    def convert(self, node: "yaml.Node") -> Node:
        if (known := self.done.get(id(node))) is not None:
            return known
        place = self.place(node)
        if id(node) in self.open:
            self.report(problem_at(place, "an alias inside the value it stands for"))
            return Scalar(place, "", broken=True)
        self.open.add(id(node))
        made = self._make(node, place)
        self.open.discard(id(node))
        self.done[id(node)] = made
        return made

    def _make(self, node: "yaml.Node", place: Place) -> Node:
        kind, tag = node.id, node.tag  # type: ignore[attr-defined]
        standard = {"scalar": (_PLAIN, _QUOTED), "sequence": (_TAG + "seq",)}
        broken = tag not in standard.get(kind, (_TAG + "map",))
        if broken:
            shown = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
            self.report(problem_at(place, f"tags have no meaning here: remove {shown}"))
        if kind == "scalar":
            return Scalar(place, node.value, tag == _PLAIN, broken=broken)
        if kind == "sequence":
            return Sequence(place, [self.convert(item) for item in node.value])
        entries: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            key = self.convert(key_node)
            if not isinstance(key, Scalar):
                self.report(problem_at(key.place, "a key must be one word"))
                continue
            value = self.convert(value_node)
            if (first := entries.get(key.text)) is not None:
                self.report(duplicate(key, first.key))
            else:
                entries[key.text] = Entry(key, value)
        return Mapping(place, entries)

    def place(self, node: "yaml.Node") -> Place:
        start, end = node.start_mark, node.end_mark
        width = end.column - start.column if end.line == start.line else 1
        return Place(self.source, start.line, start.column, max(1, width))


def duplicate(key: Scalar, first: Scalar) -> Problem:
    """The second setting of `key`; names where the first one is."""
    here, there = key.place, first.place
    where = f"line {there.line + 1}" if here.source is there.source else str(there)
    return problem_at(here, f"duplicate key {quoted(key.text)} (first set at {where})")


def _syntax_problem(source: Source, error: Exception) -> Problem:
    import yaml

    if len(source.text) <= _RESCAN_MAX:
        try:
            _loader(source.text, pure=True).get_single_node()
        except yaml.YAMLError as better:
            error = better
    if isinstance(error, yaml.reader.ReaderError):
        before = source.text[: error.position]
        line = before.count("\n")
        column = error.position - (before.rfind("\n") + 1)
        character = error.character
        code = ord(character) if isinstance(character, str) else int(character)
        message = f"the character U+{code:04X} is not allowed in YAML"
        return problem_at(Place(source, line, column), message)
    assert isinstance(error, yaml.MarkedYAMLError)
    message, at_start = _reworded(error)
    marks = (error.context_mark, error.problem_mark)
    mark = next(m for m in (marks if at_start else marks[::-1]) if m is not None)
    return problem_at(Place(source, mark.line, mark.column), message)


def _reworded(error: "yaml.MarkedYAMLError") -> tuple[str, bool]:
    """pyyaml's words where they help, ours where they puzzle; and whether the mistake is where
    the construct begins rather than where the parser gave up."""
    what, context = error.problem or "syntax error", error.context or ""
    before = ""
    if (start := error.context_mark) is not None and (end := error.problem_mark) is not None:
        before = f" before line {end.line + 1}" if start.line != end.line else ""
    if "'\\t'" in what:
        return "a tab cannot indent YAML: use spaces", False
    if what.startswith("mapping values are not allowed"):
        return 'a second ": " in one line: quote the value, or mend the indentation', False
    if context.startswith("expected a single document"):
        return "a second document begins here: one file holds one", False
    if context.startswith("while scanning an a"):  # alias, anchor
        sign = "*" if "alias" in context else "&"
        return f'a value that begins with "{sign}" must be quoted', True
    if what.startswith("found undefined alias"):
        return f'{what.removeprefix("found ")}: quote a value that begins with "*"', False
    if context.startswith("while parsing a flow sequence"):
        return f'this "[" is not closed: a "," or a "]" is missing{before}', True
    if context.startswith("while parsing a flow mapping"):
        return f'this "{{" is not closed: a "," or a "}}" is missing{before}', True
    if context.startswith("while parsing a flow node"):
        if "stream end" in what:
            return 'the file ends inside a list or a mapping: a "]" or a "}" is missing', False
        return "a value is missing here", False
    if context.startswith("while scanning a quoted scalar") and "end of stream" in what:
        return "this quotation mark has no second one", True
    if context.startswith("while scanning a simple key"):
        return 'a ":" is missing after this key', True
    if context.startswith(("while parsing a block mapping", "while parsing a block collection")):
        return "the indentation of this line matches nothing above it", False
    if context.startswith("while scanning a plain scalar"):
        return f"{what.removeprefix('found ')}: quote the value", False
    if what.startswith("found character") and "cannot start any token" in what:
        sign = what.removeprefix("found character ").partition(" that")[0].strip("'\"")
        return f'a value cannot begin with "{sign}": quote it', False
    return f"{what} ({context})" if context else what, False
