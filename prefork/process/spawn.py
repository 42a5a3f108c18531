"""Making a child: a row, a channel, a fork (nginx: `ngx_spawn_process`).

The channel's ends are close-on-exec and live in two processes only. The child inherits the
master's ends of all its siblings' channels and must close them at once (`close_siblings`): as long
as a sibling held one, the master's death would not read as end of file anywhere.
"""

import os
import time
from collections.abc import Callable
from typing import NoReturn

from prefork.errors import EXIT_FAILED
from prefork.log import ErrorLog, errno_text
from prefork.process.table import NO_PROCESS, ProcessSlot, ProcessTable, Respawn, TableFullError
from prefork.unix.channel import Channel, channel_pair

Proc = Callable[[ProcessSlot, Channel], NoReturn]


class SpawnError(Exception):
    """No child was made; the reason has been logged."""


def spawn_process(
    table: ProcessTable,
    log: ErrorLog,
    proc: Proc,
    *,
    name: str,
    kind: Respawn,
    row: ProcessSlot | None = None,
    before_fork: Callable[[ProcessSlot], None] | None = None,
    order: Callable[[ProcessSlot, Channel], bool] | None = None,
) -> ProcessSlot:
    """Fork a child that runs `proc` in a free row, or in `row`: a worker that comes back.

    `{n}` in `name` becomes the row's number, counted from 1. A row that is used again keeps its
    kind and its back-off. `order(row, channel)` may have somebody else make the child: then it
    answers True, and the row is `unborn` until that child has said its pid. Raises SpawnError.
    """
    again = row is not None
    try:
        if row is None:
            row = table.free()
        ours, theirs = channel_pair()
    except (TableFullError, OSError) as error:
        said = errno_text(error) if isinstance(error, OSError) else str(error)
        log.alert(f'cannot spawn "{name}": {said}')
        raise SpawnError(said) from None
    ours.enable_sigio(os.getpid())
    row.name = name.format(n=row.index + 1)
    row.channel = ours
    if before_fork is not None:
        before_fork(row)
    try:
        ordered = order is not None and order(row, theirs)
        pid = NO_PROCESS if ordered else os.fork()
    except OSError as error:
        said = f"fork() failed {errno_text(error)}"
        log.alert(f'{said} while spawning "{row.name}"')
        theirs.close()
        ours.close()
        row.channel = None
        raise SpawnError(said) from None
    if pid == 0:
        try:
            proc(row, theirs)
        finally:
            os._exit(EXIT_FAILED)  # nothing of the master's stack above may ever run in a child
    theirs.close()
    row.pid = pid
    row.started = time.monotonic()
    row.held = row.exiting = row.ready = False
    row.unborn = ordered
    row.failure = ""
    if not again:
        row.start(kind)
    return row


def close_siblings(table: ProcessTable) -> None:
    """In the child: let go of the master's end of every channel, our own among them."""
    for row in (*table, *table.molds):
        if row.channel is not None:
            row.channel.close()
            row.channel = None
