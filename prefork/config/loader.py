"""From a command line to a frozen Config: `ConfigSource(...).load()`.

The same source is loaded again at each reload. All problems of a run are raised together.
"""

import os
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from prefork.config import checks
from prefork.config.gather import Gatherer, Setting, Settings
from prefork.config.option import Variables
from prefork.config.options import Branch, tree
from prefork.config.problems import ConfigError, Place, Problem
from prefork.config.reader import Reader, RefusedError
from prefork.config.schema import Config

__all__ = ["ConfigError", "ConfigSource", "Loaded", "Problem"]


class Loaded(Struct, frozen=True, kw_only=True):
    """A configuration and where it came from.

    `origins` has an entry for each dotted key that was set, `secrets` names those that hold the
    content of a `${file:}`, `files` are absolute paths in reading order.
    """

    conf: Config
    origins: dict[str, Setting]
    secrets: frozenset[str]
    warnings: tuple[Problem, ...]
    files: tuple[str, ...]


class ConfigSource(Struct, frozen=True):
    """All that a configuration is made of.

    `path` is the file as the operator named it, `overrides` are the texts of `--set`, `app` is
    the command line's APP, `base` is the folder that `path` is relative to and that takes the
    file's part in resolving paths when there is none. `environ` is os.environ unless given.
    """

    path: str | None = None
    overrides: tuple[str, ...] = ()
    app: str | None = None
    base: str = ""
    environ: Mapping[str, str] | None = None

    @property
    def folder(self) -> str:
        """The absolute folder that relative paths start from."""
        base = os.path.abspath(self.base)
        return base if self.path is None else os.path.dirname(os.path.join(base, self.path))

    def load(self, *, lenient: bool = False) -> Config:
        """The configuration; raises ConfigError with every problem found.

        `lenient` is for commands that only look for a running server: its own variables and files
        may be out of their reach. Settings with problems get their defaults, and only a
        broken syntax or a broken `pid_file` is raised.
        """
        return self.read(lenient=lenient).conf

    def read(self, *, lenient: bool = False, need_app: bool = True) -> Loaded:
        """`load`, with what `config show` and `check` tell beside the values.

        Without `need_app` a configuration that names no application is none the worse.
        """
        problems: list[Problem] = []
        environ = os.environ if self.environ is None else self.environ
        folder = os.path.normpath(self.folder)
        gatherer = Gatherer(folder, os.path.abspath(self.base), environ, problems.append)
        whole = self.path is None or gatherer.file(self.path)
        gatherer.environment()
        for text in self.overrides:
            gatherer.override(text)
        if self.app is not None:
            gatherer.application(self.app)
        builder = Builder(gatherer.settings, folder, environ, problems)
        conf = builder.build()

        def place_of(path: str) -> Place | None:
            setting = gatherer.settings.get(path)
            return setting.node.place if setting is not None else None

        if lenient:
            if not whole or "pid_file" in builder.failed:
                raise ConfigError(tuple(problems))
        else:
            # What was not read cannot be judged: no complaint may follow from another.
            for problem in checks.check(
                conf, place_of, builder.failed, need_app=whole and need_app
            ):
                # One about a default has no place: the file is where to change it.
                placed = problem.file is not None or self.path is None
                problems.append(problem if placed else replace(problem, file=self.path))
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors and not lenient:
            raise ConfigError(_in_order(errors, gatherer.files))
        return Loaded(
            conf=conf,
            origins=gatherer.settings,
            secrets=frozenset(builder.secrets),
            warnings=tuple(p for p in problems if p.severity == "warning"),
            files=tuple(os.path.join(gatherer.cwd, name) for name in gatherer.files),
        )


class Builder:
    """Gathered nodes → Config. A setting that is refused gets its default and is in `failed`."""

    def __init__(
        self,
        settings: Settings,
        folder: str,
        variables: Mapping[str, str],
        problems: list[Problem],
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.variables = variables
        self.problems = problems
        self.failed: set[str] = set()
        self.secrets: set[str] = set()

    def build(self) -> Config:
        conf = self._section(tree())
        assert isinstance(conf, Config)
        return conf

    def _section(self, branch: Branch) -> Struct:
        values: dict[str, Any] = {}
        for name, child in branch.children.items():
            if isinstance(child, Branch):
                values[name] = self._section(child)
            elif isinstance(child.about, Variables):
                prefix = child.path + "."
                values[name] = {
                    path.removeprefix(prefix): self._value(path, child.about.value, "")
                    for path in self.settings
                    if path.startswith(prefix)
                }
            else:
                default = child.default
                if child.about.default is not None:
                    default = os.path.normpath(os.path.join(self.folder, child.about.default))
                values[name] = self._value(child.path, child.about.kind, default)
        return branch.type(**values)

    def _value(self, path: str, kind: Any, default: Any) -> Any:
        setting = self.settings.get(path)
        if setting is None:
            return default
        reader = Reader(path, self.folder, self.variables, self.problems.append)
        try:
            return kind.read(setting.node, reader)
        except RefusedError:
            self.failed.add(path)
            return default
        finally:
            if reader.secret:
                self.secrets.add(path)


def _in_order(problems: list[Problem], files: list[str]) -> tuple[Problem, ...]:
    """By file as they were read, then by line; what has no place in a file comes last."""
    ranks = {name: rank for rank, name in enumerate(dict.fromkeys(files))}

    def rank(problem: Problem) -> tuple[int, int, int]:
        place = ranks.get(problem.file or "", len(ranks))
        return place, problem.line or 0, problem.column or 0

    return tuple(sorted(problems, key=rank))
