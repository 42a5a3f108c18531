"""Going to the background, with a launching command that knows how it went.

The command forks; the child leads a session of its own, forks again so that it can never get a
controlling terminal back, and the grandchild returns from `daemonize`. The command waits on a
pipe for one framed verdict and exits with its code: 0 once the workers are ready, the failure's
code after printing its text. A daemon that dies without a word closes the pipe, and that is a
verdict too.

Until then the daemon keeps the terminal's stdout and stderr, so that errors of the start are
seen; `ready` sends the three standard streams to /dev/null. A launcher that left at the first
fork, as most daemons' does, reports success for a port that was in use.
"""

import contextlib
import os
import struct
import sys
from typing import Final, NoReturn

from prefork.errors import EXIT_FAILED, OperatorError, errno_text
from prefork.unix import signals

_HEAD: Final = struct.Struct("=iI")  # exit code, length of the text
_MAX_TEXT: Final = 256 * 1024


class Daemon:
    """The daemon's side of the pipe. After one verdict all further calls do nothing."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ready(self, text: str = "", *, stderr_fd: int | None = None) -> None:
        """The launching command prints `text` on stdout and exits 0; the terminal is let go.

        stderr goes to `stderr_fd` (an error log) when one is given, else to /dev/null with
        stdin and stdout.
        """
        if self._fd < 0:
            return
        self._send(0, text)
        leave_terminal(stderr_fd)

    def failed(self, code: int, text: str = "") -> None:
        """The launching command prints `text` on stderr and exits with `code`."""
        if self._fd >= 0:
            self._send(code or EXIT_FAILED, text)

    def forget(self, stderr_fd: int | None = None) -> None:
        """A forked child's: no verdict of its own, and no hold on the terminal either.

        Workers forked before the verdict share the terminal with the master. Were it theirs any
        longer, `ssh host prefork start --daemon` would wait for them to close its pipe. What a
        worker that fails to start has to say goes home by its channel. `stderr_fd` as in `ready`.
        """
        if self._fd >= 0:
            self._close()
            leave_terminal(stderr_fd)

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _send(self, code: int, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")[:_MAX_TEXT]
        data = _HEAD.pack(code, len(data)) + data
        # The launcher may have been killed meanwhile: then nobody wants to know.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._fd, data) :]
        self._close()


def leave_terminal(stderr_fd: int | None = None) -> None:
    """Point stdin, stdout and stderr at /dev/null, stderr rather at `stderr_fd` when given."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if stderr_fd is not None and stderr_fd > 2:
        os.dup2(stderr_fd, 2)
    if null > 2:
        os.close(null)


def daemonize() -> Daemon:
    """Returns in the daemon only; the calling process becomes the launcher and exits.

    Call it before anything that a fork does not carry along: threads, fcntl locks (the pid
    file's), LISTEN_PID. Raises OperatorError when the first fork fails.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        verdict, ours = os.pipe()
        child = os.fork()
    except OSError as exc:
        raise OperatorError(f"fork() failed {errno_text(exc)}") from exc
    if child:
        os.close(ours)
        _launcher(child, verdict)
    os.close(verdict)
    os.setsid()
    try:
        if os.fork():
            os._exit(0)
    except OSError as exc:
        Daemon(ours).failed(EXIT_FAILED, f"fork() failed {errno_text(exc)}")
        os._exit(EXIT_FAILED)
    return Daemon(ours)


def _launcher(child: int, verdict: int) -> NoReturn:
    """Wait for the verdict and leave with it, without the interpreter's exit handlers: what
    they would clean up belongs to the daemon now."""
    # The master's mask came before the fork; here Ctrl-C has to work as anywhere.
    signals.reset_for_exec()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    code, text = _read_verdict(verdict)
    if text:
        stream = sys.stderr if code else sys.stdout
        with contextlib.suppress(OSError):
            print(text.rstrip("\n"), file=stream, flush=True)
    os._exit(code)


def _read_verdict(fd: int) -> tuple[int, str]:
    data = b""
    while len(data) < _HEAD.size or len(data) < _HEAD.size + _HEAD.unpack_from(data)[1]:
        piece = os.read(fd, 65536)
        if not piece:
            return EXIT_FAILED, "prefork: the server died before it was ready; see its error log"
        data += piece
    code, length = _HEAD.unpack_from(data)
    return code, data[_HEAD.size : _HEAD.size + length].decode("utf-8", "replace")
