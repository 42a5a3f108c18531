"""A server's options, what becomes of each, and the configuration that grows from them.

One `Row` is all that is known of an option: the command line's parser, the translation, what the
operator is told, and the README's table are made from it.
"""

import os
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from prefork.config.gather import Gatherer
from prefork.config.loader import Builder
from prefork.config.option import Variables
from prefork.config.options import Leaf, find
from prefork.config.problems import Problem
from prefork.config.reader import quote

FLAG: Final = "!"
LIST: Final = "*"
MODE: Final = "?"


class Option(NamedTuple):
    """An option of another server. `takes` is "" for a value, FLAG, LIST for one that may be
    repeated, or MODE for a flag that may be followed by one of a few words. `off` are the flags
    that mean its contrary."""

    name: str
    flags: tuple[str, ...]
    takes: str
    off: tuple[str, ...]


class Found(NamedTuple):
    """An option that the operator has set. `said` is how: `-w 4`, `workers = cpus() * 2`."""

    value: object
    said: str


class Note(NamedTuple):
    """A difference to know of: what it is about, and a sentence or two."""

    about: str
    text: str


class Row(NamedTuple):
    """Options with one fate. `keys` are settings of prefork, `say` is what differs: told when one
    of the options is set, and printed in the README. Without a `how` there is nothing to write."""

    options: tuple[Option, ...]
    keys: tuple[str, ...]
    say: str
    how: "Callable[[Job, Row], None] | None"
    quiet: bool

    @property
    def name(self) -> str:
        return self.options[0].name


def row(
    options: str,
    keys: str = "",
    say: str = "",
    how: "Callable[[Job, Row], None] | None" = None,
    *,
    quiet: bool = False,
) -> Row:
    """A row from its short form: `name -f --flag !` with `|` between options; words behind a `/`
    are the flags of the contrary. `quiet` is for what only the README should say."""
    return Row(tuple(map(_option, options.split("|"))), tuple(keys.split()), say, how, quiet)


def _option(text: str) -> Option:
    words, _, off = text.partition("/")
    name, *flags = words.split()
    takes = flags.pop() if flags and flags[-1] in (FLAG, LIST, MODE) else ""
    return Option(name, tuple(flags), takes, tuple(off.split()))


class Server(NamedTuple):
    """Another server: its name, its options, where else it looks for them, and how it ends.

    `prefix` begins the names of its environment variables, "" when it has none; `abbreviates` says
    whether it takes the beginning of a long option; `finish` adds what its defaults need.
    `signals` and `reload` are what everybody has to know. The first option of the first row is the
    application.
    """

    name: str
    rows: tuple[Row, ...]
    prefix: str
    abbreviates: bool
    finish: "Callable[[Job], None]"
    signals: str
    reload: str

    def options(self) -> list[Option]:
        return [option for one in self.rows for option in one.options]


BESIDE: Final = (
    "Here HUP boots new workers beside the old ones, and when one cannot, the old ones serve on; "
    "`prefork reload` waits and says which"
)


def terminated(name: str) -> str:
    """What differs between a server of ASGI and us when it is to end."""
    return (
        f"{name} stops gracefully on TERM and INT; prefork is nginx's way, QUIT graceful, TERM and "
        "INT at once. The file has `on_term: graceful`, so that TERM (systemd, Docker, Kubernetes) "
        "does what it did. At once is `prefork stop --fast`, or a second TERM"
    )


def left_in(name: str) -> str:
    """What differs between `root_path` and the prefix of a server that leaves paths as they came:
    hypercorn and granian (2.5.6) want it there, gunicorn's SCRIPT_NAME demands it."""
    return (
        f"{name} leaves the prefix in the path, here the proxy takes it off: nginx's `proxy_pass` "
        "with a slash at its end"
    )


class Job:
    """One migration. `values` are the settings so far: dotted key → (YAML, why).

    `output` is the file to write, None for stdout: then every path is written absolute, because
    nobody knows where the text will lie.
    """

    def __init__(
        self,
        server: Server,
        found: dict[str, Found],
        *,
        cwd: str,
        output: str | None,
        environ: Mapping[str, str],
    ) -> None:
        self.server = server
        self.found = found
        self.cwd = cwd
        self.environ = environ
        self.folder = None if output is None else os.path.dirname(os.path.join(cwd, output))
        self.base = cwd
        self.values: dict[str, tuple[str, str]] = {}
        self.notes: list[Note] = []
        self.unit: list[str] = []

    def run(self) -> None:
        """Translate every option that is set, then what the server's defaults ask for."""
        self.note("TERM and QUIT", self.server.signals)
        self.note("reloading", self.server.reload)
        for one in self.server.rows:
            here = [option.name for option in one.options if option.name in self.found]
            if not here:
                continue
            before = (len(self.notes), len(self.values))
            if one.how is not None:
                try:
                    one.how(self, one)
                except (ValueError, TypeError) as error:
                    self.note(self.said(*here), f"is not understood ({error}): set it by hand")
                    # Other rows look at it, too, and are to find the default.
                    for name in here:
                        self.found.pop(name)
            if one.say and not one.quiet and len(self.notes) == before[0]:
                self.note(self.said(*here), one.say)
            if (len(self.notes), len(self.values)) == before:
                self.note(self.said(*here), "changes nothing here: nothing is written for it")
        self.server.finish(self)
        unlimited = f"{self.server.name} has no limit; a larger body is answered with 413"
        self.put("limits.body", 16 << 20, unlimited)
        self.note("limits.body", unlimited)
        if "app" not in self.values:
            self.put_text("app", "null", "name it here, or `prefork start -c FILE module:app`")
            self.note("app", "no application is named: set it, or give it to `prefork start`")

    def said(self, *names: str) -> str:
        """How the operator set these options, those that he did."""
        return ", ".join(self.found[name].said for name in names if name in self.found)

    def note(self, about: str, text: str) -> None:
        self.notes.append(Note(about, text))

    def get(self, name: str) -> object:
        """The value of an option; None when it is not set."""
        one = self.found.get(name)
        return None if one is None else one.value

    def number(self, name: str, default: float = 0) -> float:
        """The option as a number. Raises ValueError."""
        value = self.get(name)
        if value is None:
            return default
        number = float(str(value)) if "." in str(value) else int(str(value), 0)
        if number < 0:
            raise ValueError(f"{number} is negative")
        return number

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.number(name, default))

    def text(self, name: str, default: str = "") -> str:
        value = self.get(name)
        return default if value is None else str(value)

    def texts(self, name: str) -> list[str]:
        """The option as a list; text is split at its commas."""
        value = self.get(name)
        if value is None:
            return []
        parts = value if isinstance(value, list) else [value]
        return [word.strip() for part in parts for word in str(part).split(",") if word.strip()]

    def true(self, name: str) -> bool:
        value = self.get(name)
        return str(value).lower() in ("true", "1", "yes", "on", "y", "t")

    def path(self, text: str) -> str:
        """A path as the new file must have it: the server's own start at `base`."""
        whole = os.path.normpath(os.path.join(self.base, os.path.expanduser(text)))
        if self.folder is None:
            return whole
        folder = os.path.normpath(self.folder)
        inside = folder != "/" and os.path.commonpath((folder, whole)) == folder
        return os.path.relpath(whole, folder) if inside else whole

    def put(self, key: str, value: object, why: str = "") -> bool:
        """Set `key`; what prefork would refuse is told instead."""
        leaf = find(key)
        if isinstance(leaf, Leaf) and not isinstance(leaf.about, Variables):
            return self.put_text(key, leaf.about.kind.write(value), why)
        return self.put_text(key, quote(str(value)), why)

    def put_text(self, key: str, text: str, why: str = "") -> bool:
        """`put` for a value that is YAML already."""
        # "${" is what the loader would substitute.
        text = text.replace("${", "$${")
        problems: list[Problem] = []
        folder = self.folder or self.cwd
        gatherer = Gatherer(folder, folder, {}, problems.append)
        gatherer.override(f"{key}={text}")
        Builder(gatherer.settings, folder, {}, problems).build()
        if problems:
            self.note(why or key, f"not written: {problems[0].message}")
            return False
        self.values[key] = (text, why)
        return True

    def has(self, key: str) -> bool:
        """Does this version of prefork know the setting?"""
        return find(key) is not None


# The usual ways of a value


def whole(job: Job, one: Row) -> None:
    """A whole number → the row's one key."""
    job.put(one.keys[0], job.integer(one.name), job.said(one.name))


def seconds(job: Job, one: Row) -> None:
    """A number of seconds → the row's one key; 0 is prefork's `off` where there is one."""
    job.put(one.keys[0], float(job.number(one.name)), job.said(one.name))


def words(job: Job, one: Row) -> None:
    """Text → the row's one key."""
    job.put(one.keys[0], job.text(one.name), job.said(one.name))


def switch(job: Job, one: Row) -> None:
    """True → true; false is the default of all of these."""
    if job.true(one.name):
        job.put(one.keys[0], True, job.said(one.name))


def path(job: Job, one: Row) -> None:
    """A path → the row's one key."""
    if job.text(one.name):
        job.put(one.keys[0], job.path(job.text(one.name)), job.said(one.name))


def level(job: Job, one: Row) -> None:
    """The level of another server's log. What they say at `info` of themselves (a boot, a
    reload), prefork says at `notice`."""
    word = job.text(one.name).lower()
    known = {"trace": "debug", "info": "notice", "warning": "warn", "critical": "crit"}
    job.put(one.keys[0], known.get(word, word), job.said(one.name))


def root_path(job: Job, one: Row) -> None:
    """A prefix of URLs → `root_path`. A slash at its end, which most bear with, is dropped."""
    job.put("root_path", job.text(one.name).rstrip("/"), job.said(one.name))


def directory(job: Job, one: Row) -> None:
    """Where the server changes to: other relative paths start there."""
    job.base = os.path.normpath(os.path.join(job.cwd, os.path.expanduser(job.text(one.name))))
    job.put("working_directory", job.path("."), job.said(one.name))


def address(text: str, port: int = 8000) -> str:
    """`host`, `host:port`, `[v6]:port`, `unix:path`, `fd://3` as prefork writes it."""
    text = text.strip().removeprefix("tcp://")
    if text.startswith("fd://"):
        return f"fd:{text.removeprefix('fd://')}"
    if text.startswith("unix:"):
        return "unix:" + text.removeprefix("unix:").replace("//", "/")
    if text.startswith("["):
        return text if "]:" in text else f"{text}:{port}"
    if text.count(":") > 1:
        return f"[{text}]:{port}"
    return text if ":" in text else f"{text}:{port}"


def listen(
    job: Job,
    addresses: list[str],
    why: str,
    *,
    backlog: int = 0,
    mode: int | None = None,
    proxied: bool = False,
) -> None:
    """Write `listen`. `::` is both families to the other servers, and IPv6 alone to prefork."""
    written = []
    for text in addresses:
        scheme, _, rest = text.partition(":")
        extras = []
        if scheme == "unix":
            text = f"unix:{job.path(rest)}"
            if mode is not None:
                extras.append(f"mode: 0o{mode:03o}")
        if text.startswith("[::]"):
            extras.append("v6only: false")
        if backlog:
            extras.append(f"backlog: {backlog}")
        if proxied:
            extras.append("proxy_protocol: true")
        shown = quote(text)
        shown = f'"{text}"' if shown == text and ":" in text else shown
        written.append(f"{{address: {', '.join([shown, *extras])}}}" if extras else shown)
    job.put_text("listen", f"[{', '.join(written)}]", why)
