"""Changing the program while it serves (USR2; nginx: `ngx_exec_new_binary`).

The old master gives its pid file the name `.oldbin` and executes the program anew with the
listening sockets' numbers in the environment. From then on two masters accept from the same
sockets: WINCH drains the old one's workers, QUIT ends it; HUP to the old one starts its workers
again, and QUIT to the new one undoes the upgrade.

nginx does not know how its new program fares. Ours gets a channel too (`PREFORK_CHANNEL`), over
which the new master says READY when its workers are: this is the verdict of the command, and the
moment to tell systemd whom to watch. With NotifyAccess=main systemd hears the old master only, so
the old one passes the name on; and gets it back from the new one, should that leave first.
"""

import os
import signal
import socket
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Final, NoReturn

from prefork.errors import EXIT_FAILED, OperatorError
from prefork.log import errno_text
from prefork.net.inherit import BOUND, VARIABLE, hand_over, own_numbers
from prefork.process.commands import Ticket
from prefork.process.spawn import SpawnError, spawn_process
from prefork.process.table import ProcessSlot, Respawn
from prefork.unix import signals
from prefork.unix.channel import Channel, Command, Message

if TYPE_CHECKING:
    from prefork.process.master import Master

CHANNEL: Final = "PREFORK_CHANNEL"
SCOREBOARD: Final = "PREFORK_SCOREBOARD"


class Predecessor:
    """The old master, in a new program's eyes."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Reads and forgets what the old master left in the environment."""
        self.upgraded = VARIABLE in environ
        self.parent = os.getppid()
        self._channel: Channel | None = None
        # Its board, and the memory for ours.
        self.board, self.reserved = _inherited_fds(environ.pop(SCOREBOARD, ""))
        number = environ.pop(CHANNEL, "")
        if number.isdigit():
            try:
                sock = socket.socket(fileno=int(number))
                sock.set_inheritable(False)
                self._channel = Channel(sock)
            except OSError:
                pass  # not a socket: nobody of ours has put it there

    @property
    def alive(self) -> bool:
        """Is it an upgrade that is not finished: does the master that executed us still run?"""
        return self.upgraded and os.getppid() == self.parent

    def watch(self) -> None:
        """Be woken by SIGIO when it goes: the channel is open until then."""
        if self._channel is not None:
            self._channel.enable_sigio(os.getpid())

    def greet(self) -> None:
        """Tell it that our workers are ready. Nothing else is ever said."""
        if self._channel is not None:
            self._channel.send(Message(Command.READY, -1, os.getpid(), b""))

    def gone(self) -> bool:
        """Has it gone since we looked last?"""
        if self._channel is None:
            return False
        self._channel.receive()
        if self._channel.eof:
            self.forget()
            return True
        return False

    def forget(self) -> None:
        """Close the channel; a worker does so at once."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _inherited_fds(text: str) -> tuple[int | None, int | None]:
    """The two descriptors of SCOREBOARD, ours from now on and closed by exec; or two None."""
    fds = [int(part) for part in text.split(",") if part.isdecimal()]
    try:
        for fd in fds:
            os.set_inheritable(fd, False)
    except OSError:
        return None, None  # nobody of ours has put them there
    return (fds[0], fds[1]) if len(fds) == 2 else (None, None)


class Upgrade:
    """The master's side: at most one new program at a time."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        self._ticket: Ticket | None = None
        self._directory = os.getcwd()  # the command line's relative paths start here
        self.new_binary: ProcessSlot | None = None
        self.announced = False  # systemd has been told to watch the new master

    def refusal(self) -> str | None:
        """Why USR2 cannot be obeyed now (`ngx_signal_handler`), or None."""
        if self._master.predecessor.alive:
            return "the master that started this one still runs: QUIT or TERM one of the two first"
        if self.new_binary is not None:
            return (
                f"the new master {self.new_binary.pid} runs already: QUIT or TERM one of the two"
                " first"
            )
        return None

    def change_binary(self) -> None:
        """Execute the program anew."""
        master = self._master
        log = master.cycle.error_log
        ticket = master.commands.take(signal.SIGUSR2)
        refusal = self.refusal()
        if refusal is not None:
            log.crit(f"the changing binary signal is ignored: {refusal}")
            master.commands.finish(ticket, ok=False, text=refusal)
            return
        log.notice("changing binary")
        pid_file = master.pid_file
        master.succession.settle()
        reserved = master.succession.reserve()
        try:
            if pid_file is not None:
                pid_file.rename_to_oldbin()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OperatorError as error:
            log.alert(str(error))
            master.commands.finish(ticket, ok=False, text=str(error))
            return
        try:
            row = spawn_process(
                master.table,
                log,
                lambda _row, _channel: self._execute(theirs, reserved),
                name="new binary process",
                kind=Respawn.DETACHED,
            )
        except SpawnError as error:
            ours.close()
            self._rename_back()
            master.commands.finish(ticket, ok=False, text=f"no new master: {error}")
            return
        finally:
            theirs.close()
        # The row's channel is replaced by the pair whose other end outlives the exec.
        if row.channel is not None:
            row.channel.close()
        row.channel = Channel(ours)
        row.channel.enable_sigio(os.getpid())
        log.notice(f"start {row.name} {row.pid}")
        self.new_binary = row
        self.announced = False
        self._ticket = ticket
        row.timer = master.timers.after(master.cycle.conf.timeouts.boot, self._silent)

    def _execute(self, channel: socket.socket, reserved: int | None) -> NoReturn:
        """In the child: become the new program. `reserved` is the memory for its scoreboard."""
        master = self._master
        log = master.cycle.error_log
        try:
            os.chdir(self._directory)
            environ = dict(os.environ)
            environ.update(master.notifier.environment)
            environ[VARIABLE] = hand_over(master.cycle.listeners)
            environ[BOUND] = own_numbers(master.cycle.listeners)
            channel.set_inheritable(True)
            environ[CHANNEL] = str(channel.fileno())
            if reserved is not None:
                fds = (master.board.fd, reserved)
                for fd in fds:
                    os.set_inheritable(fd, True)
                environ[SCOREBOARD] = ",".join(map(str, fds))
            signals.reset_for_exec()
            os.execve(sys.executable, sys.orig_argv, environ)
        except OSError as error:
            log.alert(
                f'execve() failed {errno_text(error)} while executing "{" ".join(sys.orig_argv)}"'
            )
        os._exit(EXIT_FAILED)

    def ready(self, row: ProcessSlot) -> None:
        """The new master's workers are ready."""
        master = self._master
        row.disarm()
        row.ready = True
        self.announced = True
        master.notifier.mainpid(row.pid)
        self._settle(ok=True, text=f"the new master {row.pid} is ready; WINCH drains the old one")
        master.cycle.error_log.notice(
            f"the new master {row.pid} is ready: WINCH drains our workers, QUIT ends this master"
        )

    def _silent(self) -> None:
        if self.new_binary is not None:
            self._settle(
                ok=False,
                text=f"the new master {self.new_binary.pid} runs, but has not said that it is"
                f" ready within {self._master.cycle.conf.timeouts.boot:g} s",
            )

    def died(self, row: ProcessSlot, how: str) -> None:
        """The new master is gone: take the name back, and the work if we had given it away."""
        master = self._master
        master.succession.heir_died()  # before anyone can take us for the server again
        self._rename_back()
        if self.announced:
            master.notifier.mainpid(os.getpid())
            self.announced = False
        self._settle(ok=False, text=f"the new master {row.pid} {how}; the old one serves on")
        self.new_binary = None
        row.release()
        if master.noaccepting:
            master.flags.restart = True
            master.noaccepting = False

    def _rename_back(self) -> None:
        pid_file = self._master.pid_file
        if pid_file is None:
            return
        try:
            pid_file.restore()
        except OperatorError as error:
            self._master.cycle.error_log.alert(str(error))

    def _settle(self, *, ok: bool, text: str) -> None:
        if self._ticket is not None:
            self._master.commands.finish(self._ticket, ok=ok, text=text)
            self._ticket = None


__all__ = ["CHANNEL", "Predecessor", "Upgrade"]
