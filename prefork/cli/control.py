"""`prefork stop, reopen, scale`: one signal each (one per worker for `scale`)."""

import signal
import time
from contextlib import suppress
from typing import Any

import click

from prefork.cli.running import (
    LOOK_EVERY,
    NotRunningError,
    RunningMaster,
    find_master,
    naming,
    say,
    time_limit,
    workload,
)
from prefork.errors import OperatorError


@click.command()
@naming
@click.option("--fast", is_flag=True, help="TERM instead of QUIT: running requests are cut.")
@time_limit("Wait this long; by default the configuration's graceful timeout and 10 s.")
def stop(
    config_path: str | None,
    pid_file: str | None,
    pid: int | None,
    fast: bool,
    timeout: float | None,
) -> None:
    """Stop the server gracefully.

    Sends QUIT: workers stop accepting, finish what runs and leave, and this command waits until
    the master is gone. With --fast it sends TERM, and once more to a server that takes the first
    for QUIT (on_term: graceful). A fast stop may be sent after a graceful one.
    """
    master = find_master(config_path, pid_file, pid)
    if timeout is None:
        conf = master.conf
        timeout = 10 + (conf.drain_delay + conf.timeouts.graceful if conf else 60)
    began = time.monotonic()
    # No lock: a stop must get through while a reload hangs, and it waits for no verdict.
    before = master.board.header.command_seq
    master.send(signal.SIGTERM if fast else signal.SIGQUIT)
    if fast and taken_for_quit(master, before, began + timeout):
        # What is configured now need not be what it was started with: so we saw, and did not read.
        with suppress(NotRunningError):
            master.send(signal.SIGTERM)
    while not master.gone(min(1.0, max(0.0, began + timeout - time.monotonic()))):
        waited = time.monotonic() - began
        left = "shutting down"
        with suppress(OSError, ValueError):
            left = workload(master.board)
        if waited >= timeout:
            raise OperatorError(
                f"prefork (pid {master.pid}) still runs after {timeout:g} s: {left}; "
                + ("see the error log" if fast else "`prefork stop --fast` ends it now")
            )
        say(f"stopping, {waited:.0f} s: {left}")
    click.echo(f"prefork (pid {master.pid}) stopped in {time.monotonic() - began:.1f} s")


def taken_for_quit(master: RunningMaster, before: int, deadline: float) -> bool:
    """Wait until the master has taken a TERM: did it take it for QUIT, as on_term may say?

    `before` is the number of the last command before it, `deadline` is in `time.monotonic()`.
    """
    header = master.board.header
    # Another operator's command may be taken meanwhile, and is passed over.
    while header.command_seq == before or header.command not in (signal.SIGTERM, signal.SIGQUIT):
        if time.monotonic() >= deadline or master.gone(LOOK_EVERY):
            return False
    return header.command == signal.SIGQUIT


@click.command()
@naming
@time_limit("Wait this long, 10 s by default.")
def reopen(
    config_path: str | None, pid_file: str | None, pid: int | None, timeout: float | None
) -> None:
    """Reopen the log files.

    Sends USR1, after a log rotation has moved the old files away.
    """
    master = find_master(config_path, pid_file, pid)
    timeout = 10.0 if timeout is None else timeout
    master.lock(timeout)
    master.finish(*master.command(signal.SIGUSR1, timeout, "reopening of the logs"))


class Count(click.ParamType[tuple[str, int]]):
    """N, +N or -N as (sign or nothing, N)."""

    name = "count"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        text = str(value)
        sign = text[:1] if text[:1] in "+-" else ""
        digits = text[len(sign) :]
        if not (digits.isascii() and digits.isdigit()):
            self.fail(f"{text!r} is no number of workers: write 4, +1 or -1", param, ctx)
        number = int(digits)
        if number == 0:
            self.fail("a server has at least one worker; `prefork stop` ends it", param, ctx)
        return sign, number


class SignedCommand(click.Command):
    """Takes `-1` for an argument: click would look for options of that name and refuse it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        signed = [arg for arg in args if arg[:1] == "-" and arg[1:].isdigit()]
        if signed and "--" not in args:
            args = [arg for arg in args if arg not in signed] + ["--", *signed]
        return super().parse_args(ctx, args)


@click.command(cls=SignedCommand, options_metavar="[OPTIONS]")
@click.argument("count", type=Count(), metavar="N|+N|-N")
@naming
@time_limit("Wait this long for each worker; by default the boot timeout and 10 s.")
def scale(
    count: tuple[str, int],
    config_path: str | None,
    pid_file: str | None,
    pid: int | None,
    timeout: float | None,
) -> None:
    """Change the number of workers.

    N sets it, +N and -N change it, by one TTIN or TTOU a worker. It holds until the next reload,
    which goes back to the configuration's number.

    \b
    Examples:
      prefork scale 4 -c conf.yaml
      prefork scale -1 -c conf.yaml
    """
    master = find_master(config_path, pid_file, pid)
    if timeout is None:
        timeout = 10 + (master.conf.timeouts.boot if master.conf else 60)
    master.lock(timeout)
    target = master.board.header.target_workers
    steps = signed_steps(count, target)
    if target + steps < 1:
        raise OperatorError(f"{target} workers run, {-steps} fewer would leave none")
    if steps == 0:
        click.echo(f"workers: {target}, as before")
        return
    number = signal.SIGTTIN if steps > 0 else signal.SIGTTOU
    well, text = True, ""
    for _ in range(abs(steps)):
        well, text = master.command(number, timeout, "scaling")
        if not well:
            break
    master.finish(well, text)


def signed_steps(count: tuple[str, int], target: int) -> int:
    """How many workers more (or, below zero, fewer) `count` asks for when `target` run.

    >>> signed_steps(("", 4), 2), signed_steps(("+", 4), 2), signed_steps(("-", 1), 2)
    (2, 4, -1)
    """
    sign, number = count
    return number - target if not sign else number if sign == "+" else -number
