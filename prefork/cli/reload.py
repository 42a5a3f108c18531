"""`prefork reload`: HUP, and what came of it.

HUP carries no name, and it may come while a reload is at work, which then has read the files
already: one more follows. So the verdict waited for is that of the first reload that began after
our signal, by the moment of its beginning that the master stores beside it. Several commands may
wait at once; what they keep out, and wait for, is those that change the workers otherwise.
"""

import json
import signal
import time
from typing import Any, Final

import click

from prefork.cli.running import LOOK_EVERY, RunningMaster, find_master, naming, say, time_limit
from prefork.errors import EXIT_FAILED, OperatorError

TALK_EVERY: Final = 3.0  # seconds between two lines about what we wait for
PATIENCE: Final = 10.0  # seconds more than any step may take by the master's own clock


@click.command()
@naming
@click.option("--no-wait", is_flag=True, help="Send HUP and return at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
@time_limit("Wait this long; by default as long as the reload goes on, whose steps have limits.")
def reload(
    config_path: str | None,
    pid_file: str | None,
    pid: int | None,
    no_wait: bool,
    as_json: bool,
    timeout: float | None,
) -> None:
    """Load the configuration and the application anew.

    Sends HUP and waits for the verdict. The master reads the configuration, binds, opens the logs,
    boots one worker ahead of the others, and has the old ones leave when all of the new ones are
    ready. Whatever fails before that leaves the old ones serving, is printed, and exits with 1.

    \b
    --json prints one object:
      ok          true or false
      generation  {from, to}: the one that served, the one that serves now
      changed     [{key, old, new, needs_restart}]: values as in `config show --json`
      workers     {started, draining}
      seconds     how long it took
      error       null, or why it failed
      traceback   null, or the application's, where that is why

    \b
    Examples:
      prefork reload -c conf.yaml
      prefork reload -c conf.yaml --json
    """
    if no_wait and as_json:
        raise click.UsageError("--no-wait has no verdict that --json could print: drop one of them")
    master = find_master(config_path, pid_file, pid)
    if no_wait:
        master.send(signal.SIGHUP)
        click.echo(
            f"HUP sent to prefork (pid {master.pid}); the error log and `prefork status`"
            " will have the verdict"
        )
        return
    report = verdict(master, timeout)
    facts: dict[str, Any] = report["facts"]
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        raise SystemExit(0 if facts["ok"] else EXIT_FAILED)
    master.finish(facts["ok"], report["text"])


def verdict(master: RunningMaster, timeout: float | None) -> dict[str, Any]:
    """Send HUP and wait; the header's `reload_report`. Raises OperatorError: none came."""
    boot = master.conf.timeouts.boot if master.conf else 60.0
    master.lock(boot + PATIENCE if timeout is None else timeout, shared=True)
    header = master.board.header
    sent = time.monotonic_ns()
    master.send(signal.SIGHUP)
    began = time.monotonic()
    talk_at = began + TALK_EVERY
    while header.reload_began_ns < sent:
        if master.gone(LOOK_EVERY):
            raise OperatorError(f"prefork (pid {master.pid}) ended during the reload")
        now = time.monotonic()
        waited = now - began
        if timeout is not None:
            late = waited >= timeout
        else:
            # Each step of a reload, an earlier one's too, has a limit, which the master keeps.
            late = now > max(began, header.reload_limit_ns / 1e9) + PATIENCE
        if late and header.reload_began_ns < sent:
            raise OperatorError(
                f"no verdict on the reload after {waited:.1f} s ({doing(master, sent)}); it may"
                " still come: see the error log and `prefork status`"
                + (", or wait longer with --timeout" if timeout is not None else "")
            )
        if now >= talk_at:
            talk_at = now + TALK_EVERY
            say(f"reloading, {waited:.0f} s: {doing(master, sent)}")
    report: dict[str, Any] = json.loads(header.reload_report)
    return report


def doing(master: RunningMaster, sent: int) -> str:
    """What the master is waiting for, as `3 of 8 workers ready`."""
    header = master.board.header
    at_work, progress = header.reload_at_work_ns, header.reload_progress
    if at_work == 0:
        return "the master has not taken the signal yet"
    return progress if at_work >= sent else f"an earlier reload is at work: {progress}"
