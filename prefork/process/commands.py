"""Commands and their verdicts.

A signal coalesces with its like and carries no answer. So whoever sent one reads the answer in the
scoreboard's header: `command_seq` counts the commands that were taken, `command_done` follows it
when the last of them is settled, and `verdict` and `text` say how it went. `command_done` is
written last: who sees the two numbers equal reads a text that is complete.
"""

import signal
from typing import Final

from msgspec import Struct

from prefork.scoreboard import Scoreboard

PENDING: Final = 0
OK: Final = 1
FAILED: Final = 2
LONGEST_TEXT: Final = 4000  # bytes that surely fit the header's text


class Ticket(Struct, frozen=True):
    """A command that was taken and must be settled by `Commands.finish`, once."""

    seq: int
    signal: int


class Commands:
    """The header's command cells, written by the master alone."""

    def __init__(self, board: Scoreboard) -> None:
        self._header = board.header
        self._open: set[int] = set()

    def take(self, number: signal.Signals) -> Ticket:
        """A command has been seen and work on it begins."""
        header = self._header
        seq = header.command_seq + 1
        self._open.add(seq)
        header.command = int(number)
        header.verdict = PENDING
        header.text = ""
        header.command_seq = seq
        return Ticket(seq, int(number))

    def finish(self, ticket: Ticket, *, ok: bool, text: str) -> None:
        """Settle it. The header's count catches up when no other command is open."""
        if ticket.seq not in self._open:
            return
        self._open.discard(ticket.seq)
        header = self._header
        header.command = ticket.signal
        header.text = shortened(text)
        header.verdict = OK if ok else FAILED
        if not self._open:
            header.command_done = header.command_seq


def shortened(text: str) -> str:
    """At most LONGEST_TEXT bytes. A traceback says most at its two ends: the middle goes."""
    data = text.encode()
    if len(data) <= LONGEST_TEXT:
        return text
    head, tail = data[: LONGEST_TEXT // 4], data[-(LONGEST_TEXT * 3 // 4 - 10) :]
    return f"{head.decode(errors='ignore')}\n ...\n{tail.decode(errors='ignore')}"
