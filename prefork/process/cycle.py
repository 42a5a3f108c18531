"""A cycle: one configuration, and what was opened for it (nginx: `ngx_init_cycle`).

A reload never edits a cycle. It makes the next one beside the old, which shares what is equal, and
then one of the two is discarded: the old at the commit, the new when it fails.
"""

import os
from collections.abc import Iterable

from msgspec import Struct

from prefork.config.checks import worker_count
from prefork.config.loader import ConfigSource, Loaded
from prefork.config.schema import Config
from prefork.errors import EXIT_CONFIG, OperatorError
from prefork.log import ErrorLog, LogFile
from prefork.net.inherit import Inherited
from prefork.net.listener import Listener, open_listeners, release
from prefork.unix import identity


class NoApplicationError(OperatorError):
    """Nothing says what to serve."""

    exit_code = EXIT_CONFIG


class AccessFormatError(OperatorError):
    """The access log's template does not compile."""

    exit_code = EXIT_CONFIG


class Cycle(Struct, frozen=True, kw_only=True, eq=False):
    """Everything a generation of workers is made from. A child inherits it by fork."""

    conf: Config
    source: ConfigSource
    generation: int
    workers: int
    workers_reason: str
    listeners: tuple[Listener, ...]
    error_log: ErrorLog
    error_file: LogFile
    access_file: LogFile | None
    owner: tuple[int, int] | None  # (uid, gid) that log files get when root reopens them
    warnings: tuple[str, ...] = ()  # of a configuration that was read here
    secrets: frozenset[str] = frozenset()  # keys whose values are shown to nobody

    @property
    def name(self) -> str:
        """What the master's title and the ready line call this server."""
        return self.source.path or self.conf.app or ""

    @property
    def config_path(self) -> str:
        """The file's absolute path, which means the same to whoever reads it; "" without one."""
        source = self.source
        if source.path is None:
            return ""
        return os.path.abspath(os.path.join(source.base, source.path))

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(listener.url for listener in self.listeners)

    def without(self, other: "Cycle | None") -> tuple[Listener, ...]:
        """The listeners that are here and not in `other`."""
        kept = () if other is None else other.listeners
        return tuple(one for one in self.listeners if all(one is not two for two in kept))

    def close_logs(self) -> None:
        self.error_file.close()
        if self.access_file is not None:
            self.access_file.close()

    def reopen_logs(self) -> list[str]:
        """nginx: `ngx_reopen_files`. What went wrong, a text each: that file is kept as it is."""
        problems = []
        if not self.error_log.reopen(self.owner):
            problems.append(f'"{self.error_file.path}" could not be opened anew')
        if self.access_file is not None:
            problem = self.access_file.reopen(self.owner)
            if problem is not None:
                self.error_log.emerg(problem)
                problems.append(problem)
        return problems


def init_cycle(
    source: ConfigSource,
    *,
    inherited: Inherited,
    loaded: Loaded | None = None,
    old: Cycle | None = None,
    retired: Iterable[Listener] = (),
) -> Cycle:
    """The next cycle, ready to be served from. Raises OperatorError and leaves nothing open.

    `loaded` is the configuration where it has been read already (the first cycle). Addresses equal
    to those of `old`, or of `retired` listeners that are still open, are adopted with their sockets
    and everything that waits in their queues.
    """
    warnings: tuple[str, ...] = ()
    if loaded is None:
        loaded = source.read()
        warnings = tuple(str(problem) for problem in loaded.warnings)
    conf = loaded.conf
    if conf.app is None:
        raise NoApplicationError(
            'no application to serve: name one (prefork start module:attribute) or set "app"'
        )
    _check_access_format(conf)
    # Resolved here so that an unknown name stops a start or a reload, not every worker.
    uid, gid = identity.resolve(conf.user, conf.group)
    workers, reason = worker_count(conf)
    previous = (*(() if old is None else old.listeners), *retired)
    listeners = open_listeners(conf.listen, previous=previous, inherited=inherited)
    error_file = LogFile(conf.log.error.path)
    access = conf.log.access
    access_file = None if access.format == "off" else LogFile(access.path)
    opened: list[LogFile] = []
    try:
        for file in (error_file, access_file):
            if file is not None:
                file.open()
                opened.append(file)
    except OperatorError:
        for file in opened:
            file.close()
        for listener in listeners:
            if all(listener is not one for one in previous):
                release(listener, inherited)
        raise
    return Cycle(
        conf=conf,
        source=source,
        generation=1 if old is None else old.generation + 1,
        workers=workers,
        workers_reason=reason,
        listeners=listeners,
        error_log=ErrorLog(error_file, conf.log.error.level),
        error_file=error_file,
        access_file=access_file,
        owner=(uid, gid) if conf.user is not None else None,
        warnings=warnings,
        secrets=loaded.secrets,
    )


def _check_access_format(conf: Config) -> None:
    """Once, here, and not by every worker while it boots. Raises AccessFormatError."""
    from prefork.http.accesslog import check_format

    if conf.log.access.format == "off":
        return
    try:
        check_format(conf.log.access.format)
    except OperatorError as error:
        raise AccessFormatError(f"log.access.format: {error}") from None
