"""Signals: who handles which, and how the master sleeps until one comes.

Facts. A handler may run between any two bytecodes, so it must not log, lock or allocate: here it
stores one True. A flag tested and then slept on is a lost wake-up unless testing and sleeping are
one step; `sigsuspend` is that step: the signals stay blocked except while it sleeps. Python has
no `signal.sigsuspend`; through ctypes it costs a few microseconds, releases the GIL and returns
after the Python handlers have run.

Consequence. The master blocks its signals first thing, before any import that could start a
thread (a thread older than the block takes the signal, and the main thread sleeps on). A blocked
mask survives fork and exec, and so does `set_wakeup_fd`: each child clears both, in the order
wakeup fd, handlers, mask. Unmasked earlier, a signal would run the master's handler in the
child and be lost.

Choice. What a worker shall not react to gets a handler that does nothing rather than SIG_IGN:
an ignored signal stays ignored across exec, and the application's subprocesses would be born
deaf to Ctrl-C; a handled one is reset by exec. Cost: an interrupted system call, which Python
retries by itself (PEP 475).
"""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

Handler = Callable[[int, FrameType | None], None]


class SignalFlags:
    """What happened and has not been dealt with yet. Handlers set, the cycle reads and clears."""

    __slots__ = (
        "alarm",
        "by",
        "change_binary",
        "fewer",
        "insist",
        "interrupt",
        "more",
        "noaccept",
        "quit",
        "reap",
        "reconfigure",
        "reopen",
        "restart",
        "sigio",
        "terminate",
    )

    def __init__(self) -> None:
        self.reap = False
        self.terminate = False
        self.quit = False
        self.insist = False  # QUIT came while `quit` stood already
        self.by = 0  # the signal that is meant, where `quit` or `terminate` stands for another
        self.reconfigure = False
        self.restart = False  # set by the cycle itself: the new binary died after WINCH
        self.reopen = False
        self.change_binary = False
        self.noaccept = False
        self.more = False
        self.fewer = False
        self.alarm = False
        self.sigio = False
        self.interrupt = False

    def __repr__(self) -> str:
        return f"SignalFlags({' '.join(name for name in self.__slots__ if getattr(self, name))})"


_MASTER: Final[dict[int, str]] = {
    signal.SIGCHLD: "reap",
    signal.SIGALRM: "alarm",
    signal.SIGIO: "sigio",
    signal.SIGINT: "interrupt",
    signal.SIGHUP: "reconfigure",
    signal.SIGUSR1: "reopen",
    signal.SIGWINCH: "noaccept",
    signal.SIGTERM: "terminate",
    signal.SIGQUIT: "quit",
    signal.SIGUSR2: "change_binary",
    signal.SIGTTIN: "more",
    signal.SIGTTOU: "fewer",
}
_WORKER: Final[dict[int, str]] = {
    signal.SIGTERM: "terminate",
    signal.SIGQUIT: "quit",
    signal.SIGUSR1: "reopen",
}
# CHLD and ALRM go back to the application: subprocess and asyncio want the first, its own
# timers the second. INT and WINCH come from the terminal to the whole group; HUP, TTIN and TTOU
# mean something to the master only; IO would kill by default. USR2 asks a worker for its stacks
# (see `prefork.process.witness`), which answers from before the application is imported.
_WORKER_DEFAULT: Final = (signal.SIGCHLD, signal.SIGALRM)
_WORKER_UNHEARD: Final = (
    signal.SIGINT,
    signal.SIGWINCH,
    signal.SIGHUP,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGIO,
)


def block() -> None:
    """Block the master's set; from here on signals arrive only inside `suspend()`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _MASTER.keys())


def unblock_all() -> None:
    """Empty the mask: the last step of a child, after its handlers stand."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def install_master(flags: SignalFlags) -> None:
    for number, name in _MASTER.items():
        signal.signal(number, _setter(flags, name))

    def quit_handler(_number: int, _frame: FrameType | None) -> None:
        flags.insist = flags.quit
        flags.quit = True

    signal.signal(signal.SIGQUIT, quit_handler)


def install_worker(flags: SignalFlags, *, again: bool = False) -> None:
    """A forked child's handlers. The mask stays as it is: call `unblock_all` next.

    `again`: once more, after the application may have put its own in their place. That of USR2
    is let stand, whosever it is.
    """
    signal.set_wakeup_fd(-1)  # the parent's pipe: our signals would wake the parent
    for number, name in _WORKER.items():
        signal.signal(number, _setter(flags, name))
    for number in _WORKER_DEFAULT:
        signal.signal(number, signal.SIG_DFL)
    for number in _WORKER_UNHEARD:
        if number != signal.SIGUSR2 or not again:
            signal.signal(number, _unheard)


def reset_for_exec() -> None:
    """Everything back to the state a program expects at birth; in a fork, before exec."""
    signal.set_wakeup_fd(-1)
    for number in _MASTER:
        signal.signal(number, signal.SIG_DFL)
    unblock_all()


def let_children_die() -> None:
    """In a worker: what the application forks (multiprocessing does) has no handlers of ours.

    They set flags that nobody reads there: `Process.terminate()` would do nothing, and whoever
    joins the process wait for ever. And its signals would write to our wake-up descriptor. Until
    the handlers are gone signals are blocked, or one that comes at once would be lost. The mask is
    then what it was, for a mold forks workers with its signals blocked.
    """
    if not _at_fork:
        _at_fork.append(True)
        os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_as_born)


_at_fork: list[bool] = []  # it is for good, so once
_masks: list[set[int | signal.Signals]] = []


def _hold() -> None:
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, _MASTER))


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _as_born() -> None:
    signal.set_wakeup_fd(-1)
    for number in _MASTER:
        # Handlers of the application's own are its own affair.
        if getattr(signal.getsignal(number), "__module__", "") == __name__:
            signal.signal(number, signal.SIG_DFL)
    _let_go()


def suspend() -> None:
    """Sleep until a signal has been handled, with none blocked meanwhile.

    Signals that came since `block()` end it at once. Any of them may be coalesced with an
    equal one; none is lost.
    """
    global _suspend
    if _suspend is None:
        _suspend = _sigsuspend() or _sigwait
    _suspend()


def set_alarm(seconds: float) -> None:
    """One SIGALRM in `seconds`; 0 disarms. There is one such timer per process."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def signal_name(number: int) -> str:
    """`SIGTERM`, `SIGRTMIN+3`, or `signal 99`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first = getattr(signal, "SIGRTMIN", 0)
        if first and first < number <= signal.SIGRTMAX:
            return f"SIGRTMIN+{number - first}"
        return f"signal {number}"


_suspend: Callable[[], None] | None = None


def _setter(flags: SignalFlags, name: str) -> Handler:
    def handler(_number: int, _frame: FrameType | None) -> None:
        setattr(flags, name, True)

    return handler


def _unheard(_number: int, _frame: FrameType | None) -> None:
    """Not for workers; see the head of this module."""


def _sigsuspend() -> Callable[[], None] | None:
    """libc's sigsuspend with the empty mask, or None where ctypes or libc has none."""
    try:
        import ctypes

        # CDLL, not PyDLL: other threads must run while the master sleeps.
        libc = ctypes.CDLL(None)
        call, fill = libc.sigsuspend, libc.sigemptyset
    except (ImportError, OSError, AttributeError):
        return None
    call.argtypes = fill.argtypes = (ctypes.c_void_p,)
    call.restype = fill.restype = ctypes.c_int
    # glibc's and musl's sigset_t is 128 bytes, the BSDs' and Darwin's smaller. libc fills it.
    mask = ctypes.create_string_buffer(128)
    fill(mask)

    def suspend_by_libc() -> None:
        call(mask)  # always -1 with EINTR: that is how it reports "a handler ran"

    return suspend_by_libc


def _sigwait() -> None:
    """The same promise without ctypes: take the blocked signals and call their handlers.

    `sigwait` does not run handlers. It is the member of the sigtimedwait family that every
    system has, and we want no timeout.
    """
    wanted = set(_MASTER)
    number = signal.sigwait(wanted)
    while True:
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, None)
        if not signal.sigpending() & wanted:
            return
        number = signal.sigwait(wanted)
