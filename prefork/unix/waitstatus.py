"""How a child ended, in words."""

import os

from prefork.unix.signals import signal_name


def describe(status: int) -> str:
    """A wait status in words: `exited with code 1`, `exited on signal 9 (SIGKILL)`."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        core = " (core dumped)" if os.WCOREDUMP(status) else ""
        return f"exited on signal {number} ({signal_name(number)}){core}"
    return f"exited with code {os.WEXITSTATUS(status)}"


def in_short(status: int) -> str:
    """The same where there is little room: `code 1`, `SIGKILL`."""
    if os.WIFSIGNALED(status):
        return signal_name(os.WTERMSIG(status))
    return f"code {os.WEXITSTATUS(status)}"
