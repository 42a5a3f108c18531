"""The pid file: who is running, and the proof that it still is.

A number in a file proves nothing: after `kill -9` it names a dead process, or by now a stranger.
So the master holds a lock on the file for as long as it lives, and a pid file that nobody has
locked is stale: readers say "not running", a new master replaces it.

Which lock? flock(2) belongs to the open file description, which every forked worker shares: after
`kill -9` of the master, workers that still drain would keep it alive and the new master would be
refused on behalf of a dead one. A POSIX record lock (fcntl(2)) belongs to the process: no child
inherits it, the kernel drops it in the moment the master dies, however it dies. The new master
can start at once; if draining workers still hold a port, it is told that instead, by bind().

Its price: a process loses its lock when it closes *any* descriptor of the file, so the master
must never open its own pid file again. `read` knows the files this process holds and answers for
them without opening; nothing else here opens one. And a fork does not carry the lock: create the
file in the process that is going to be the master, after daemonizing.
"""

import contextlib
import fcntl
import os
import stat
import time
from typing import Final

from prefork.errors import OperatorError, errno_text

OLDBIN: Final = ".oldbin"
_PATIENCE: Final = 0.5  # seconds for a reader's momentary lock to go away, a pid to be written

_held: dict[tuple[int, int], int] = {}  # (st_dev, st_ino) -> pid of the process that locked it


class PidFile:
    """`path` is where the file lies now: `.oldbin` is part of it during a binary upgrade."""

    __slots__ = ("_fd", "_identity", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._identity = (0, 0)

    def create(self) -> str | None:
        """Write our pid, locked. Returns a notice when a stale file was replaced.

        Raises OperatorError when a living master holds it (the message names its pid), when
        `path` is something else than a pid file, or cannot be written.
        """
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            fd = self._lock()
        except OSError as exc:
            raise OperatorError(f'open() "{self.path}" failed {errno_text(exc)}') from exc
        try:
            content = os.pread(fd, 64, 0)
            stale = _parse(content)
            if content.strip() and stale is None:
                raise OperatorError(
                    f'pid_file: "{self.path}" exists and does not hold a pid;'
                    " remove it or choose another path"
                )
            data = b"%d\n" % os.getpid()
            # Length first: a reader in between sees nothing and asks again, never half a pid.
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
            os.fchmod(fd, 0o644)  # whatever the umask: monitoring reads it
        except OSError as exc:
            os.close(fd)
            raise OperatorError(f'write() to "{self.path}" failed {errno_text(exc)}') from exc
        except OperatorError:
            os.close(fd)
            raise
        found = os.fstat(fd)
        self._fd, self._identity = fd, (found.st_dev, found.st_ino)
        _held[self._identity] = os.getpid()
        if stale is None or stale == os.getpid():
            return None
        return f'the pid file "{self.path}" was stale (process {stale} had left it) and is replaced'

    def rename_to_oldbin(self) -> None:
        """Make room for the new binary's pid file. Raises OperatorError."""
        self._rename(self.path + OLDBIN)

    def restore(self) -> None:
        """Undo `rename_to_oldbin`: the new binary is gone, or was sent away.

        What it may have left at the old place is overwritten, unless a living master has it.
        """
        if not self.path.endswith(OLDBIN):
            return
        target = self.path.removesuffix(OLDBIN)
        other = read(target)
        if other is not None:
            raise OperatorError(f'the pid file "{target}" is held by process {other}')
        self._rename(target)

    def unlink(self) -> None:
        """Remove the file if it is still the one we made, and let go of the lock."""
        if self._fd < 0:
            return
        # Unlinked while locked: whoever opened it before sees the name gone and asks again.
        with contextlib.suppress(OSError):
            found = os.stat(self.path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Let go without removing. In a forked child this leaves the master's lock alone."""
        if self._fd >= 0:
            if _held.get(self._identity) == os.getpid():
                del _held[self._identity]
            os.close(self._fd)
            self._fd = -1

    @staticmethod
    def read(path: str) -> int | None:
        """See the function `read`."""
        return read(path)

    def _rename(self, target: str) -> None:
        try:
            os.rename(self.path, target)
        except OSError as exc:
            raise OperatorError(
                f'rename() "{self.path}" to "{target}" failed {errno_text(exc)}'
            ) from exc
        self.path = target

    def _lock(self) -> int:
        """An open, locked descriptor of the file that is at `path` now."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        deadline = time.monotonic() + _PATIENCE
        while True:
            self._refuse_own()
            fd = os.open(self.path, flags, 0o644)
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise OperatorError(f'pid_file: "{self.path}" is not a regular file')
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another may have unlinked or renamed what we opened before we locked it.
                if _identity_at(self.path) == (found.st_dev, found.st_ino):
                    return fd
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: POSIX allows both
                if time.monotonic() > deadline:
                    holder = _parse(os.pread(fd, 64, 0))
                    os.close(fd)
                    who = f"process {holder}" if holder else "another process"
                    raise OperatorError(
                        f'already running: {who} holds the pid file "{self.path}"'
                    ) from None
                time.sleep(0.01)  # a reader's probe, or a master about to write or to leave
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _refuse_own(self) -> None:
        identity = _identity_at(self.path)
        if identity is not None and _held.get(identity) == os.getpid():
            raise OperatorError(f'this process already holds the pid file "{self.path}"')


def read(path: str) -> int | None:
    """The pid of the living master that holds `path`; None when there is none.

    None too when the file is missing or stale; OperatorError when it cannot be read.
    """
    identity = _identity_at(path)
    if identity is None:
        return None
    if _held.get(identity) == os.getpid():
        return os.getpid()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise OperatorError(f'open() "{path}" failed {errno_text(exc)}') from exc
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            if not _is_locked(fd):
                return None
            pid = _parse(os.pread(fd, 64, 0))
            if pid is not None or time.monotonic() > deadline:
                return pid
            time.sleep(0.01)  # locked, but not yet written
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Whether another process has the exclusive lock. A shared lock is all that a reader may
    take on a file it cannot write; it is ours for a moment only."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False  # a file system without locks cannot prove that anyone is there
    fcntl.lockf(fd, fcntl.LOCK_UN)
    return False


def _identity_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _parse(content: bytes) -> int | None:
    text = content.strip()
    return int(text) if text.isdigit() and len(text) < 10 and int(text) > 0 else None
