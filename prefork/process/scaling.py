"""One worker more, one worker fewer (TTIN, TTOU)."""

import signal
from typing import TYPE_CHECKING

from prefork.process.boot import Boot
from prefork.process.spawn import SpawnError
from prefork.process.table import ProcessSlot, Respawn

if TYPE_CHECKING:
    from prefork.process.master import Master


def more(master: "Master") -> None:
    """Start one worker; the verdict waits until it is ready."""
    ticket = master.commands.take(signal.SIGTTIN)
    refusal = _refusal(master)
    if refusal is not None:
        master.commands.finish(ticket, ok=False, text=refusal)
        return
    before = master.target
    try:
        row = master.workers.spawn(master.cycle, Respawn.RESPAWN)
    except SpawnError as error:
        master.commands.finish(ticket, ok=False, text=f"no worker could be started: {error}")
        return
    master.set_target(before + 1)
    master.cycle.error_log.notice(f"workers: {before} -> {before + 1}")

    def ready() -> None:
        text = f"workers: {before} -> {before + 1}, {row.name} (pid {row.pid}) is ready"
        master.commands.finish(ticket, ok=True, text=text)
        master.service.tell()

    def failed(_row: ProcessSlot, reason: str) -> None:
        text = f"workers: {before} -> {before + 1}, but the new one failed: {reason}"
        master.commands.finish(ticket, ok=False, text=text)

    master.children.await_boot(Boot([row], on_ready=ready, on_failed=failed))


def fewer(master: "Master") -> None:
    """Ask one worker to leave; it finishes what it serves."""
    ticket = master.commands.take(signal.SIGTTOU)
    refusal = _refusal(master)
    master.replacements.abandon()  # who boots for another is none that could be taken away
    candidates = [row for row in master.table.workers() if not row.exiting and row.respawn]
    if refusal is None and (master.target <= 1 or len(candidates) <= 1):
        refusal = "a server has at least one worker"
    if refusal is not None:
        master.cycle.error_log.warn(f"no worker is taken away: {refusal}")
        master.commands.finish(ticket, ok=False, text=refusal)
        return
    before = master.target
    row = min(candidates, key=lambda row: _worth(master, row))
    text = f"workers: {before} -> {before - 1}, {row.name} (pid {row.pid}) leaves"
    master.set_target(before - 1)
    master.cycle.error_log.notice(text)
    master.workers.retire(row)
    master.commands.finish(ticket, ok=True, text=text)
    master.service.tell()


def _worth(master: "Master", row: ProcessSlot) -> tuple[bool, bool, bool, int, int, float]:
    """The least goes first: dead, booting, idle, least at work, youngest (the rest are warm)."""
    slot = master.board.slot(row.index)
    busy = slot.running > 0 or slot.busy_since_ns != 0
    return (row.living, row.ready, busy, slot.running, slot.connections, -row.started)


def _refusal(master: "Master") -> str | None:
    if master.noaccepting:
        return "the workers were drained by WINCH; HUP starts them again"
    return None
