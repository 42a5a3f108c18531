"""Where settings come from: files and what they include, the environment, `--set`, the APP.

Everything ends in one table of dotted key → the node that was written there. Each later origin
takes the place of the earlier: default < file < environment < `--set` and APP.
"""

import os
import stat
from collections.abc import Mapping as AbstractMapping
from typing import Literal

from msgspec import Struct

from prefork.config.compound import Variable, report_unknown
from prefork.config.nodes import (
    FILE_MAX,
    Entry,
    Mapping,
    Node,
    Report,
    Scalar,
    Sequence,
    duplicate,
    parse,
)
from prefork.config.option import Variables, environment_name
from prefork.config.options import INCLUDE, Branch, Leaf, find, leaves, tree
from prefork.config.problems import Place, Problem, Source, problem_at
from prefork.config.reader import Reader, RefusedError, did_you_mean, guess, shown

OriginKind = Literal["file", "environment", "--set", "argument"]


class Setting(Struct, frozen=True):
    """One option as it was written, and where."""

    key: Scalar
    node: Node
    origin: OriginKind

    @property
    def text(self) -> str:
        """`conf.yaml:12`, `PREFORK_WORKERS`, `--set` or `argument`, for `config show`."""
        source = self.key.place.source
        match self.origin:
            case "file":
                return f"{source.name}:{self.key.place.line + 1}"
            case "environment":
                return f"environment {source.name}"
            case _:
                return self.origin


Settings = dict[str, Setting]


class Gatherer:
    """Collects the settings of one run.

    `folder` is where relative paths start: that of the configuration file, whichever file
    includes which, so that moving a line into an included file does not change its meaning.
    An included file is named in messages as the operator would reach it from `cwd`.
    """

    def __init__(
        self, folder: str, cwd: str, variables: AbstractMapping[str, str], report: Report
    ) -> None:
        self.folder = folder
        self.cwd = cwd
        self.variables = variables
        self.report = report
        self.settings: Settings = {}
        self.files: list[str] = []  # as they are named in messages, in reading order
        self.shown_folder = ""

    # Files

    def file(self, name: str) -> bool:
        """Read the configuration file `name`; False when there was nothing to read."""
        self.shown_folder = os.path.dirname(name)
        return self._file(name, None, ())

    def _file(self, name: str, place: Place | None, chain: tuple[str, ...]) -> bool:
        """`place` is where the include stands; `chain` are the files that led here."""
        if "\0" in name:
            self.report(problem_at(place, "a file name cannot contain a NUL character"))
            return False
        path = os.path.join(self.cwd, name)
        identity = os.path.realpath(path)
        if identity in chain:
            self.report(problem_at(place, f"{name} includes itself"))
            return False
        text = self._read(path, name, place)
        if text is None:
            return False
        self.files.append(name)
        source = Source(name, text)
        before = _Counter(self.report)
        root = parse(source, before)
        if root is None:
            return before.count == 0
        if isinstance(root, Scalar) and root.is_null:
            return True
        if not isinstance(root, Mapping):
            what = f"a configuration is a mapping of keys to values, not {shown(root)}"
            self.report(problem_at(root.place, what))
            return False
        self._mapping(root, tree(), "file", (*chain, identity))
        return True

    def _read(self, path: str, name: str, place: Place | None) -> str | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    raise IsADirectoryError(21, "Is a directory")
                data = file.read(FILE_MAX + 1)
        except OSError as error:
            reason = f"{error.errno}: {error.strerror}"
            near = _near_file(path, name) if isinstance(error, FileNotFoundError) else None
            message = f'open() "{name}" failed ({reason}){did_you_mean(near)}'
            self.report(problem_at(place, message, near))
            return None
        if len(data) > FILE_MAX:
            self.report(problem_at(place, f"{name} is larger than {FILE_MAX >> 20} MiB"))
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = data[: error.start].decode("utf-8", "replace")
            line = before.count("\n")
            column = len(before) - (before.rfind("\n") + 1)
            bad = Place(Source(name, data.decode("utf-8", "replace")), line, column)
            message = f"the byte 0x{data[error.start]:02X} is not UTF-8: save the file as UTF-8"
            self.report(problem_at(bad, message))
            return None

    def _include(self, entry: Entry, chain: tuple[str, ...]) -> None:
        reader = Reader(INCLUDE, self.folder, self.variables, self.report)
        node = entry.value
        for item in node.items if isinstance(node, Sequence) else [node]:
            try:
                scalar = reader.scalar(item, "a path, a glob or a list of them")
                if scalar.is_null:
                    continue
                if not scalar.text or "\0" in scalar.text:
                    raise reader.refuse(scalar, "a path, a glob or a list of them")
            except RefusedError:
                continue
            if not set(scalar.text) & set("*?["):
                self._file(os.path.join(self.shown_folder, scalar.text), scalar.place, chain)
                continue
            from glob import glob

            # No match is no mistake: conf.d may be empty (nginx's include is of the same mind).
            for name in sorted(glob(scalar.text, root_dir=self.folder)):
                self._file(os.path.join(self.shown_folder, name), scalar.place, chain)

    # Mappings

    def _mapping(
        self,
        mapping: Mapping,
        branch: Branch,
        origin: OriginKind,
        chain: tuple[str, ...] = (),
    ) -> None:
        for name, entry in mapping.entries.items():
            child = branch.children.get(name)
            if child is None:
                if name == INCLUDE and not branch.path and origin == "file":
                    self._include(entry, chain)
                else:
                    self._unknown(entry, branch)
            else:
                self._put(entry, child, origin)

    def _put(self, entry: Entry, child: Leaf | Branch, origin: OriginKind) -> None:
        """One key that the schema knows."""
        value = entry.value
        if isinstance(child, Branch):
            if isinstance(value, Mapping):
                self._mapping(value, child, origin)
            elif not _nothing(value):
                names = ", ".join(list(child.children)[:3])
                message = f'"{child.path}" must be a mapping with keys such as {names}'
                self.report(problem_at(value.place, f"{message}, not {shown(value)}"))
        elif isinstance(child.about, Variables):
            if isinstance(value, Mapping):
                for variable in value.entries.values():
                    self._variable(variable, child, origin)
            elif not _nothing(value):
                message = f'"{child.path}" must be a mapping of names to values, not {shown(value)}'
                self.report(problem_at(value.place, message))
        else:
            self._set(child.path, Setting(entry.key, value, origin))

    def _variable(self, entry: Entry, leaf: Leaf, origin: OriginKind) -> None:
        try:
            Variable.check_name(entry, self.report)
        except RefusedError:
            return
        self._set(f"{leaf.path}.{entry.key.text}", Setting(entry.key, entry.value, origin))

    def _set(self, path: str, setting: Setting) -> None:
        earlier = self.settings.get(path)
        if earlier is not None and earlier.origin == setting.origin == "file":
            self.report(duplicate(setting.key, earlier.key))
        else:
            self.settings[path] = setting

    def _unknown(self, entry: Entry, branch: Branch) -> None:
        key = entry.key.text
        where = f'in "{branch.path}"' if branch.path else ""
        if key == "<<":
            message = 'merge keys ("<<") are not in YAML 1.2: write the keys out, or use include'
            self.report(problem_at(entry.key.place, message))
            return
        if key == INCLUDE:
            message = '"include" belongs at the top level of a file'
            self.report(problem_at(entry.key.place, message))
            return
        if "." in key and find(key) is not None and not branch.path:
            section, _, rest = key.partition(".")
            nested = f"{section}: {{{rest.replace('.', ': {')}: …{'}' * key.count('.')}"
            message = f'unknown key "{key}": dots are for --set, write {nested}'
            self.report(problem_at(entry.key.place, message, nested))
            return
        report_unknown(entry, where, meant(key, branch), self.report)

    # The environment

    def environment(self) -> None:
        """`PREFORK_WORKERS=4`: the dotted key in capitals, its dots as underscores.

        Unknown names are left alone: Kubernetes sets PREFORK_PORT and more in every pod beside a
        service called "prefork".
        """
        for leaf in leaves():
            name = environment_name(leaf.path)
            text = self.variables.get(name)
            if text is None or isinstance(leaf.about, Variables):
                continue
            source = Source(name, text, shown=f"{name}={text}")
            value = inline_value(source, self.report)
            if value is not None:
                key = Scalar(Place(source), leaf.path)
                self._put(Entry(key, value), leaf, "environment")

    # The command line

    def override(self, text: str) -> None:
        """One `--set key=value`; the later of two for one key counts."""
        key_text, equals, value_text = text.partition("=")
        key_text = key_text.strip()
        source = Source("--set", value_text, shown=f"--set {text}")
        place = Place(source)
        if not equals or not key_text:
            self.report(problem_at(place, "--set wants key=value, such as workers=4"))
            return
        branch: Branch = tree()
        names = key_text.split(".")
        key = Scalar(place, key_text)
        for depth, name in enumerate(names):
            child = branch.children.get(name)
            rest = names[depth + 1 :]
            if child is None:
                wrong = Entry(Scalar(place, name), key)
                self._unknown(wrong, branch)
                return
            if isinstance(child, Leaf):
                if rest and not isinstance(child.about, Variables):
                    what = f'"{child.path}" is one value and has no "{".".join(rest)}" in it'
                    self.report(problem_at(place, what))
                    return
                value = inline_value(source, self.report)
                if value is None:
                    return
                if rest:
                    variable = Scalar(place, ".".join(rest))
                    if isinstance(value, Scalar) and not value.text:
                        value = Scalar(place, "", plain=False)  # `--set environment.DEBUG=`
                    self._variable(Entry(variable, value), child, "--set")
                else:
                    self._put(Entry(key, value), child, "--set")
                return
            branch = child
        value = inline_value(source, self.report)
        if value is not None:
            self._put(Entry(key, value), branch, "--set")

    def application(self, spec: str) -> None:
        """The APP of the command line."""
        source = Source("APP", spec, shown=spec)
        place = Place(source, width=len(spec))
        # Quoted, and with its dollars kept: a shell has already substituted what it wanted.
        value = Scalar(place, spec, plain=False, derived=True)
        self.settings["app"] = Setting(Scalar(place, "app"), value, "argument")


def _nothing(value: Node) -> bool:
    """A section whose lines are all commented out, or one that has been complained about."""
    return isinstance(value, Scalar) and (value.is_null or value.broken)


class _Counter:
    """A Report that knows whether it was told anything."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.count = 0

    def __call__(self, problem: Problem) -> None:
        self.count += 1
        self.report(problem)


def inline_value(source: Source, report: Report) -> Node | None:
    """The value of a `--set` or of a variable: YAML where it begins like a list, a mapping or a
    quotation, and otherwise the text as it stands, read as a plain scalar.

    So `listen=*:8000`, `listen=[::1]:8000` and `log.access.format=$status: $request` are what
    they look like, although YAML would see an alias, a broken list and a mapping.
    """
    text = source.text.strip()
    place = Place(source)
    if not _encodable(text):
        report(problem_at(place, "is not UTF-8 text"))
        return None
    if text[:1] not in ("[", "{", '"', "'") or _bracketed_address(text):
        return Scalar(place, text)
    return parse(source, report)


def _bracketed_address(text: str) -> bool:
    inside, bracket, port = text[1:].partition("]:")
    return bool(text[0] == "[" and bracket and port.isdigit() and ":" in inside)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates: bytes of the command line that were not UTF-8
        return False
    return True


def meant(key: str, branch: Branch) -> str | None:
    """The key that an unknown one in `branch` was probably meant to be: a neighbour's name, or
    the dotted key of something that stands elsewhere."""
    if (near := guess(key, tuple(branch.children))) is not None:
        return near
    word = key.lower().replace("-", "_")
    if word in branch.children:
        return word
    for leaf in leaves():
        known = leaf.about.known_as if not isinstance(leaf.about, Variables) else ()
        if word in known or (word == leaf.name and leaf.path != key):
            return leaf.path
    return guess(word.replace("_", "."), [leaf.path for leaf in leaves()])


def _near_file(path: str, shown_as: str) -> str | None:
    """A YAML file in the same folder whose name is close, as the operator would write it."""
    folder, name = os.path.split(path)
    try:
        found = [n for n in sorted(os.listdir(folder)) if n.endswith((".yaml", ".yml"))]
    except OSError:
        return None
    # Compared without the ending, which would make all of them alike.
    names = {os.path.splitext(n)[0]: n for n in found}
    near = guess(os.path.splitext(name)[0], list(names))
    return os.path.join(os.path.dirname(shown_as), names[near]) if near else None
