"""What a request to stop means, and the graceful stop of a whole server.

nginx's TERM and INT are fast and its QUIT is graceful. Two readings are added. `on_term: graceful`
is for orchestrators that can only send TERM: the first drains, a second is fast. Ctrl-C is a
person: the first drains and says what it waits for, the second is fast. INT from `kill`, with no
terminal about, stays fast.

A graceful stop that ends the service, rather than one of two masters, loses no connection that was
made before it. First, for `drain_delay`, nothing is refused: readiness fails, every answer is its
connection's last, and load balancers turn away. Then the entrances are sealed (`prefork.net.seal`),
and the workers serve what waits in the accept queues, each closing its copy of a socket when it
finds nothing more. The master never accepts; it closes its own copies at once, so the last worker
is the last owner and has looked once more right before its close. A worker that hangs holds up
nothing: the others serve the queue, and its own end comes with its deadline. Sockets of systemd's,
or of another process, are left alone: whoever shares one would be shut out, too.
"""

import signal
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Literal

from prefork.log import ErrorLog, errno_text
from prefork.net.listener import Listener
from prefork.net.seal import seal
from prefork.process import terminal
from prefork.process.reload import Reload
from prefork.process.timers import Timer
from prefork.unix.channel import Command, Message
from prefork.unix.signals import SignalFlags

if TYPE_CHECKING:
    from prefork.process.master import Master


# What is not obeyed any more, with the flag it has set.
_REFUSED: Final = {
    "reconfigure": signal.SIGHUP,
    "change_binary": signal.SIGUSR2,
    "noaccept": signal.SIGWINCH,
    "more": signal.SIGTTIN,
    "fewer": signal.SIGTTOU,
}


class GracefulStop:
    """The master's way from QUIT to its last worker's end. `step` once for each wake-up."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        self._begun = False
        self._drained = False
        self._delay: Timer | None = None
        self._told: set[int] = set()  # pids that know of the coming end

    @property
    def delaying(self) -> bool:
        """Does it still serve as before (`drain_delay`)?"""
        return self._delay is not None

    def step(self) -> None:
        """Begin, or go on as far as things are."""
        master, flags = self._master, self._master.flags
        if not self._begun:
            self._begun = True
            flags.insist = False
            master.stopping(signal.SIGQUIT)
            delay = master.cycle.conf.drain_delay
            if delay and any(row.ready for row in master.table.living()):
                master.cycle.error_log.notice(delay_line(delay))
                self._delay = master.timers.after(delay, self._delay_over)
            else:
                self._drain()
        elif flags.insist and self._delay is not None:
            self._delay.cancel()
            master.cycle.error_log.notice(DELAY_CUT)
            self._delay_over()
        flags.insist = False
        self._refuse()
        if self._delay is not None:
            self._say_farewell()
        elif self._drained:
            master.workers.signal_all(signal.SIGQUIT)  # who has come since
        else:
            self._drain()

    def _say_farewell(self) -> None:
        for row in self._master.table.living():
            if row.ready and row.pid not in self._told and row.channel is not None:
                self._told.add(row.pid)
                row.channel.send(Message(Command.FAREWELL, row.index, row.pid))

    def _delay_over(self) -> None:
        self._delay = None
        self._drain()

    def _drain(self) -> None:
        """Seal what is ours alone, and have the workers serve what is in there, and leave.

        Not before the molds have left: they, too, have the sockets open, and accept nothing.
        """
        master = self._master
        if self._drained or master.workers.molds.end_all():
            return
        self._drained = True
        queues = [] if master.in_upgrade else self._sealed()
        for row in master.table.living():
            if row.ready and not row.exiting and row.cycle is not None:
                numbers = [n for n, one in enumerate(row.cycle.listeners) if one in queues]
                master.workers.leave(row, numbers)
        for listener in queues:
            listener.close()  # what is left of the file of a Unix socket goes at the very end
        master.workers.signal_all(signal.SIGQUIT)

    def _sealed(self) -> list[Listener]:
        """The listeners that let nobody in any more, and have workers to empty their queues."""
        served: list[Listener] = []
        for row in self._master.table.living():
            if row.ready and not row.exiting and row.cycle is not None:
                served += row.cycle.listeners
        cycle = self._master.cycle
        return seal_own([one for one in cycle.listeners if one in served], cycle.error_log)

    def _refuse(self) -> None:
        """What asks for a server that goes on."""
        master = self._master
        for name, number in _REFUSED.items():
            if getattr(master.flags, name):
                setattr(master.flags, name, False)
                if number == signal.SIGHUP:
                    Reload.refuse(master, "the server is shutting down")
                    continue
                ticket = master.commands.take(number)
                master.commands.finish(ticket, ok=False, text="the server is shutting down")
        if master.flags.reopen:
            master.flags.reopen = False
            master.reopen_logs()


def seal_own(listeners: Iterable[Listener], log: ErrorLog) -> list[Listener]:
    """Seal those that are this server's alone, and return them."""
    own = [one for one in listeners if one.ours_alone]
    for listener in own:
        try:
            seal(listener.sock)
        except OSError as error:
            log.warn(
                f"{listener.url} cannot be sealed {errno_text(error)}:"
                " connections that come right now may be reset"
            )
    return own


def delay_line(seconds: float) -> str:
    """What the error log says when `drain_delay` begins."""
    return (
        f"accepting for another {seconds:g} s (drain_delay), with `Connection: close`;"
        " a second QUIT ends that"
    )


DELAY_CUT: Final = "QUIT again: drain_delay is cut short"


def decide(
    flags: SignalFlags,
    on_term: Literal["fast", "graceful"],
    log: ErrorLog,
    waits_for: Callable[[], str],
) -> None:
    """Turn `interrupt`, and a TERM that is to be gentle, into `terminate` or `quit`.

    To be called once for each wake-up, and no more once `terminate` has been acted on.
    `waits_for()` says what a drain would wait for now.
    """
    if flags.terminate and on_term == "graceful" and not flags.quit:
        flags.terminate = False
        flags.quit = True
        flags.by = signal.SIGTERM
    if flags.interrupt:
        flags.interrupt = False
        flags.by = signal.SIGINT
        if flags.quit or not terminal.in_foreground():
            flags.terminate = True
        else:
            flags.quit = True
            log.notice(f"draining: {waits_for()}; press Ctrl-C again to stop at once")
