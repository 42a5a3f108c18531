"""The error log and the files logs are written to, in nginx's grammar.

    2026/11/23 22:47:42 [notice] 1234#0: *5 message

Year, level, pid#thread (always 0: one thread writes), the connection's number where there is
one. Lines that follow the first (a traceback, a message of several lines) are indented, so that
text which came from a peer can never be mistaken for a record of ours.

Three promises hold everywhere in this module:

* a record is one `write` on an `O_APPEND` file: records of several processes never mix;
* writing never raises: a full disk must not stop the server. What was lost is counted in
  `LogFile.dropped`, and the error log says so as soon as there is room again;
* reopening opens the new file first and then puts it under the *old file descriptor number*
  (`dup3`), so whoever remembered the number (faulthandler, a redirected stderr) stays right, and
  when the new file cannot be opened the old one stays in use.
"""

import contextlib
import logging
import os
import stat
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

from prefork.errors import OperatorError
from prefork.errors import errno_text as errno_text  # those who log say why a call failed

LEVELS: Final = ("emerg", "alert", "crit", "error", "warn", "notice", "info", "debug")
"""nginx's names in syslog's order: the index is syslog's (and the journal's) number."""

_STANDARD_STREAMS: Final = {"stdout": 1, "stderr": 2}

# C0 controls except newline and tab, DEL and C1: a terminal would obey them.
_CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}


class LogFile:
    """An append-only file, or one of the standard streams, that can be reopened.

    `path` is "stderr", "stdout" or a file's absolute path; `mode` is that of a new file before
    the umask. `fd` is -1 until `open()`.
    """

    __slots__ = ("_quiet_until", "_torn", "dropped", "fd", "mode", "on_lost", "path")

    def __init__(self, path: str, mode: int = 0o640) -> None:
        self.path = path
        self.mode = mode
        self.fd = -1
        self.dropped = 0  # writes lost, wholly or in part, since the beginning
        self.on_lost: Callable[[str], None] | None = None  # told why, at most once a second
        self._quiet_until = 0.0
        self._torn = False  # the last write stopped in the middle of a line

    @property
    def is_file(self) -> bool:
        return self.path not in _STANDARD_STREAMS

    def open(self) -> None:
        """Raises OperatorError: `open() "/var/log/x.log" failed (13: Permission denied)`."""
        if self.fd >= 0:
            return
        if not self.is_file:
            self.fd = _STANDARD_STREAMS[self.path]
            return
        try:
            self.fd = self._open_file()
        except OSError as exc:
            raise OperatorError(f'open() "{self.path}" failed {errno_text(exc)}') from exc

    def write(self, data: bytes) -> None:
        """Write all of `data`, or count it as dropped. Never raises."""
        if self._torn:
            data = b"\n" + data  # the next record must not continue half a one
        left = data
        try:
            # More than one round on a nearly full disk, a pipe, a signal.
            while left:
                left = left[os.write(self.fd, left) :]
            self._torn = False
        except OSError as exc:
            self.dropped += 1
            self._torn = self._torn or len(left) < len(data)
            now = time.monotonic()
            if self.on_lost is not None and now >= self._quiet_until:
                self._quiet_until = now + 1.0
                self.on_lost(f'write() to "{self.path}" failed {errno_text(exc)}, lines are lost')

    def reopen(self, owner: tuple[int, int] | None = None) -> str | None:
        """Open `path` again; None when that worked, otherwise why not (the old file stays).

        `owner` (uid, gid) is given to the new file when we are root, and made able to read and
        write it: the workers, which have dropped their privileges, must be able to open it
        themselves (`ngx_reopen_files`). Standard streams have nothing to reopen.
        """
        if not self.is_file:
            return None
        try:
            fresh = self._open_file()
        except OSError as exc:
            return f'open() "{self.path}" failed {errno_text(exc)}'
        problem = None
        if owner is not None and os.geteuid() == 0:
            problem = self._give_to(fresh, owner)
        if self.fd < 0:
            self.fd = fresh
        else:
            os.dup2(fresh, self.fd, inheritable=False)
            os.close(fresh)
        return problem

    def close(self) -> None:
        if self.fd > 2:
            with contextlib.suppress(OSError):
                os.close(self.fd)
        self.fd = -1

    def _open_file(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        # O_NONBLOCK for the open alone: a FIFO without a reader must fail, not hang the master.
        fd = os.open(self.path, flags | os.O_NONBLOCK, self.mode)
        os.set_blocking(fd, True)
        return fd

    def _give_to(self, fd: int, owner: tuple[int, int]) -> str | None:
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return None  # /dev/null, a FIFO: not ours to give away
            if (found.st_uid, found.st_gid) != owner:
                os.fchown(fd, *owner)
            wanted = found.st_mode | stat.S_IRUSR | stat.S_IWUSR
            if wanted != found.st_mode:
                os.fchmod(fd, stat.S_IMODE(wanted))
        except OSError as exc:
            return f'chown() "{self.path}" failed {errno_text(exc)}'
        return None


class ErrorLog:
    """Records of at most `level` severity, written to `file`.

    Under systemd stderr is the journal, which stamps records itself: there a record starts with
    the journal's `<N>` and has no time (sd-daemon(3)).
    """

    __slots__ = (
        "_journal",
        "_lost",
        "_redirected",
        "_stamp",
        "_stamp_second",
        "_threshold",
        "file",
    )

    def __init__(self, file: LogFile, level: str = "notice") -> None:
        self.file = file
        self._threshold = LEVELS.index(level)
        self._journal = is_journal(_STANDARD_STREAMS.get(file.path, -1))
        self._lost = 0  # how many of the file's dropped writes have been told
        self._redirected = False
        self._stamp = ""
        self._stamp_second = -1

    @property
    def fd(self) -> int:
        return self.file.fd

    @property
    def level(self) -> str:
        return LEVELS[self._threshold]

    def enabled(self, level: str) -> bool:
        """Whether a record of `level` would be written; for messages dear to build."""
        return LEVELS.index(level) <= self._threshold

    def reopen(self, owner: tuple[int, int] | None = None) -> bool:
        """Reopen the file; what went wrong is logged into the old one, which stays in use."""
        problem = self.file.reopen(owner)
        if problem is not None:
            self.emerg(problem)
            return False
        if self._redirected:
            self.redirect_stderr()
        return True

    def redirect_stderr(self) -> None:
        """Let whatever a library prints to stderr land in this log (`ngx_log_redirect_stderr`)."""
        if self.file.is_file and self.file.fd >= 0:
            sys.stderr.flush()
            os.dup2(self.file.fd, 2)
            self._redirected = True

    def emerg(
        self, message: str, *, connection: int | None = None, exc: BaseException | None = None
    ) -> None:
        self._record(0, message, connection, exc)

    def alert(
        self, message: str, *, connection: int | None = None, exc: BaseException | None = None
    ) -> None:
        self._record(1, message, connection, exc)

    def crit(
        self, message: str, *, connection: int | None = None, exc: BaseException | None = None
    ) -> None:
        self._record(2, message, connection, exc)

    def error(
        self, message: str, *, connection: int | None = None, exc: BaseException | None = None
    ) -> None:
        self._record(3, message, connection, exc)

    def warn(
        self, message: str, *, connection: int | None = None, exc: BaseException | None = None
    ) -> None:
        self._record(4, message, connection, exc)

    def notice(
        self, message: str, *, connection: int | None = None, exc: BaseException | None = None
    ) -> None:
        self._record(5, message, connection, exc)

    def info(
        self, message: str, *, connection: int | None = None, exc: BaseException | None = None
    ) -> None:
        self._record(6, message, connection, exc)

    def debug(
        self, message: str, *, connection: int | None = None, exc: BaseException | None = None
    ) -> None:
        self._record(7, message, connection, exc)

    def _record(
        self, severity: int, message: str, connection: int | None, exc: BaseException | None
    ) -> None:
        if severity > self._threshold:
            return
        if exc is not None:
            message = f"{message}\n{_traceback_text(exc)}"
        message = message.rstrip("\n").translate(_CONTROLS)
        number = "" if connection is None else f"*{connection} "
        head = f"[{LEVELS[severity]}] {os.getpid()}#0: {number}"
        if self._journal:
            # One journal entry a line: each needs its own priority.
            lines = message.replace("\n", f"\n<{severity}>    ")
            text = f"<{severity}>{head}{lines}\n"
        else:
            lines = message.replace("\n", "\n    ")
            text = f"{self._time()} {head}{lines}\n"
        dropped = self.file.dropped
        self.file.write(text.encode("utf-8", "backslashreplace"))
        if self._lost < dropped == self.file.dropped:
            lost, self._lost = dropped - self._lost, dropped
            self.alert(f'{lost} records of "{self.file.path}" were lost')

    def _time(self) -> str:
        second = int(time.time())
        if second != self._stamp_second:
            self._stamp_second = second
            self._stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(second))
        return self._stamp


def is_journal(fd: int) -> bool:
    """Whether `fd` is the stream systemd connected to the journal.

    `JOURNAL_STREAM` holds `device:inode` in decimal (systemd.exec(5)); comparing it is the
    documented test, because the variable survives a redirection of stderr.
    """
    stream = os.environ.get("JOURNAL_STREAM", "")
    if not stream or fd < 0:
        return False
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def _traceback_text(exc: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(exc))
    except Exception:
        # The exception's own __str__ raised: its type is all that can be said safely.
        return f"{type(exc).__module__}.{type(exc).__qualname__} (its traceback failed to format)"


class LoggingHandler(logging.Handler):
    """Standard `logging` records into the error log; made in workers, after the fork.

    The logger's name stands before the message, except the root logger's.
    """

    def __init__(self, log: ErrorLog) -> None:
        super().__init__(_LOGGING_LEVELS[LEVELS.index(log.level)])
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception as exc:
            # A wrong number of arguments is the application's bug: say where, and carry on.
            where = f"{record.pathname}:{record.lineno}"
            self._log.error(f"logging: cannot format {record.msg!r} at {where}", exc=exc)
            return
        if record.name != "root":
            message = f"{record.name}: {message}"
        exc_value = record.exc_info[1] if record.exc_info else None
        if record.stack_info:
            message = f"{message}\n{record.stack_info}"
        if record.levelno >= logging.CRITICAL:
            self._log.crit(message, exc=exc_value)
        elif record.levelno >= logging.ERROR:
            self._log.error(message, exc=exc_value)
        elif record.levelno >= logging.WARNING:
            self._log.warn(message, exc=exc_value)
        elif record.levelno >= logging.INFO:
            self._log.info(message, exc=exc_value)
        else:
            self._log.debug(message, exc=exc_value)


# The lowest logging level worth formatting for each of our thresholds.
_LOGGING_LEVELS: Final = (
    logging.CRITICAL + 1,
    logging.CRITICAL + 1,
    logging.CRITICAL,
    logging.ERROR,
    logging.WARNING,
    logging.WARNING,
    logging.INFO,
    logging.DEBUG,
)
