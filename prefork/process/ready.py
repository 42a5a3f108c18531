"""The one line that says: it works, here, and this is how to stop it."""

import os
import time

from prefork.process import terminal
from prefork.process.cycle import Cycle


def ready_line(cycle: Cycle, interface: str, processes: str, started: float) -> str:
    """URLs, application and interface, processes, pid, configuration, time, how to stop.

    `started` is the `time.monotonic()` at which this program was executed.
    """
    took = (time.monotonic() - started) * 1000
    how = "Ctrl-C" if terminal.in_foreground() else f"kill -QUIT {os.getpid()}"
    return (
        f"ready on {', '.join(cycle.urls)}: {cycle.conf.app} ({interface}), {processes},"
        f" pid {os.getpid()}, {cycle.source.path or 'no configuration file'},"
        f" {took:.0f} ms; stop with {how}"
    )


def named(cycle: Cycle, interface: str) -> str:
    """`module:attribute (onion)`: what is served, and how it is spoken to if that is known."""
    spoken, _, _reason = interface.partition(",")
    return f"{cycle.conf.app} ({spoken})" if spoken else cycle.conf.app or ""
