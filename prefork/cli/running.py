"""A running master seen from outside: found by pid file, sent one signal, asked what came of it.

A signal carries no argument, brings no answer back, and two of a kind become one while the first
is pending. The answer comes by the scoreboard's header, which only the master writes: it
numbers the commands it carries out (`command_seq`), and `command_done` follows once verdict and
text are in place. So a command locks the scoreboard, sends one signal, waits for the number to
grow and to be done, and repeats what it read. The lock (flock on the scoreboard's own memory)
is what makes "the number grew" mean "mine was carried out" when two operators meet.
"""

import fcntl
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from prefork.config import glance
from prefork.errors import EXIT_FAILED, EXIT_NOT_RUNNING, OperatorError, errno_text
from prefork.scoreboard import Scoreboard, Slot, SlotState, Verdict, fallback_path_beside

if TYPE_CHECKING:
    from prefork.config.schema import Config

LOOK_EVERY: Final = 0.01  # seconds between two looks at the header while a command runs
TALK_EVERY: Final = 5.0  # seconds between two lines about what we wait for

Callback = TypeVar("Callback", bound=Callable[..., Any])


class NotRunningError(OperatorError):
    exit_code = EXIT_NOT_RUNNING


class RunningMaster:
    """Its pid, its scoreboard, its end."""

    def __init__(self, pid: int, conf: "Config | None", pid_file: str | None) -> None:
        self.pid = pid
        self.conf = conf
        self._pidfd = -1
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            raise NotRunningError(f"no process {pid} is running") from None
        except PermissionError as error:
            raise OperatorError(
                f"process {pid} belongs to another user {errno_text(error)}; "
                "run this command as that user or as root"
            ) from None
        # A pidfd keeps meaning this process when the number is given to another one. Old kernels
        # and strict containers have none.
        with suppress(OSError, AttributeError):
            self._pidfd = os.pidfd_open(pid)
        fallback = None if pid_file is None else fallback_path_beside(pid_file)
        self.board = Scoreboard.attach_pid(pid, fallback)

    def lock(self, timeout: float, *, shared: bool = False) -> None:
        """Keep other commands out until this process ends; the kernel unlocks at its exit.

        `shared` lets those in that ask for the same.
        """
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        deadline = time.monotonic() + timeout
        talked = False
        while True:
            try:
                fcntl.flock(self.board.fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if not talked:
                    say("another prefork command is at work on this server; waiting for it")
                    talked = True
                if time.monotonic() >= deadline:
                    raise OperatorError(
                        f"another prefork command still holds this server after {timeout:g} s"
                    ) from None
                time.sleep(LOOK_EVERY)
            else:
                return

    def send(self, number: signal.Signals) -> None:
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            raise NotRunningError(f"prefork (pid {self.pid}) has just ended") from None
        except PermissionError as error:
            raise OperatorError(
                f"{number.name} to process {self.pid} failed {errno_text(error)}"
            ) from None

    def gone(self, within: float) -> bool:
        """Wait at most `within` seconds for the end of the process."""
        if self._pidfd >= 0:
            # A pidfd turns readable when its process has ended.
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return bool(poll.poll(within * 1000))
        deadline = time.monotonic() + within
        while True:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_EVERY)

    def command(self, number: signal.Signals, timeout: float, doing: str) -> tuple[bool, str]:
        """Send `number`, wait for the verdict: (it went well, the master's text)."""
        header = self.board.header
        before = header.command_seq
        self.send(number)
        deadline = time.monotonic() + timeout
        talk_at = time.monotonic() + TALK_EVERY
        while True:
            sequence = header.command_seq
            if sequence != before and header.command_done == sequence:
                return header.verdict == Verdict.OK, header.text
            if self.gone(LOOK_EVERY):
                raise OperatorError(f"prefork (pid {self.pid}) ended during the {doing}")
            now = time.monotonic()
            if now >= deadline:
                raise OperatorError(
                    f"no verdict on the {doing} after {timeout:g} s; it may still come: "
                    "see the error log and `prefork status`, or wait longer with --timeout"
                )
            if now >= talk_at:
                talk_at = now + TALK_EVERY
                say(f"waiting for the {doing}: {workload(self.board)}")

    def finish(self, well: bool, text: str) -> NoReturn:
        """Report a verdict and exit with it."""
        if well:
            click.echo(text)
            raise SystemExit(0)
        say(click.style(text, fg="red"))
        raise SystemExit(EXIT_FAILED)


def state_of(slot: Slot) -> SlotState:
    """What a worker is about.

    A worker writes its state when it changes for long. That it is at work, and not asleep in its
    event loop, is told by `busy_since_ns` alone, which costs one store a turn instead of two.
    """
    state = SlotState(slot.state)
    return SlotState.BUSY if state == SlotState.READY and slot.busy_since_ns else state


def workload(board: Scoreboard) -> str:
    """What the workers are about, as `2 workers (1 starting), 5 connections, 1 busy`.

    One is busy that has a request, also when the request waits for something or the worker leaves.
    """
    workers = connections = busy = starting = 0
    for slot in board.used():
        state = state_of(slot)
        if state == SlotState.DEAD:
            continue
        workers += 1
        connections += slot.connections
        busy += slot.running > 0 or state == SlotState.BUSY
        starting += state == SlotState.STARTING
    text = f"{workers} worker{'s'[: workers != 1]}"
    if starting:
        text += f" ({starting} starting)"
    return f"{text}, {connections} connection{'s'[: connections != 1]}, {busy} busy"


def say(text: str) -> None:
    """Talk, as against data: to stderr."""
    click.echo(text, err=True)


def find_master(
    config_path: str | None, pid_file: str | None, pid: int | None, *, in_haste: bool = False
) -> RunningMaster:
    """The master named on the command line, or a refusal that says how to name it.

    `in_haste` does without its configuration (`conf` is None) when that says plainly where the pid
    file is.
    """
    if pid is not None:
        return RunningMaster(pid, None, None)
    conf = None
    if in_haste and pid_file is None and config_path is not None:
        pid_file = glance.pid_file(config_path, os.getcwd(), os.environ)
    if pid_file is None:
        if config_path is None:
            raise click.UsageError(
                "which server? name its configuration (-c FILE) or --pid-file FILE"
            )
        from prefork.config.loader import ConfigError, ConfigSource

        try:
            # Its variables and files may be out of this shell's reach, and what is wrong with its
            # other settings is the master's to say.
            conf = ConfigSource(config_path, (), None, os.getcwd()).load(lenient=True)
        except ConfigError:
            say("the server is found by pid_file in its configuration, which cannot be read;")
            say("name it with --pid-file FILE, or mend this:")
            raise
        pid_file = conf.pid_file
    if pid_file is None:
        raise OperatorError(
            f"{config_path} sets no pid_file, so its server cannot be found: add a line "
            "`pid_file: run/prefork.pid` and start it anew, or name a --pid-file here"
        )
    from prefork.unix import pidfile

    running = pidfile.read(pid_file)
    if running is None:
        raise NotRunningError(f"prefork is not running: no live process behind {pid_file}")
    return RunningMaster(running, conf, pid_file)


def naming(command: Callback) -> Callback:
    """The options that say which server a control command is for."""
    for option in (
        click.option(
            "--pid", type=click.IntRange(1), metavar="PID", help="The master's process id."
        ),
        click.option("--pid-file", metavar="FILE", help="The server's pid file, instead of -c."),
        click.option(
            "-c", "--config", "config_path", metavar="FILE", help="The server's configuration."
        ),
    ):
        command = option(command)
    return command


def time_limit(help_text: str) -> Callable[[Callback], Callback]:
    return click.option(
        "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help=help_text
    )
