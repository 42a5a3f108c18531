"""A worker's answers to the question what it is doing, where questions come thick and fast."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.log import ErrorLog, LogFile
from prefork.process import dump, witness
from prefork.process.stacks import Stacks, begin_mark, end_mark
from prefork.process.witness import Witness

ME = os.getpid()


@pytest.fixture
def stacks() -> Iterator[Stacks]:
    stacks = Stacks.create()
    yield stacks
    stacks.close()


@pytest.fixture
def asked(stacks: Stacks, tmp_path: Path) -> Iterator[Witness]:
    """A witness that this process asks by `kill`."""
    log = ErrorLog(LogFile(str(tmp_path / "error.log")))
    one = Witness(stacks, 0, log)
    before = signal.signal(signal.SIGUSR2, one._asked)
    yield one
    signal.signal(signal.SIGUSR2, before)
    if one._region >= 0:
        os.close(one._region)
    log.file.close()


class Interrupted:
    """What a worker tells of its requests; while it does, it is asked again, `times` times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.told = 0

    def exchanges(self) -> list[Any]:
        self.told += 1
        if self.left:
            self.left -= 1
            os.kill(ME, signal.SIGUSR2)
        return []


def test_a_question_during_an_answer_has_an_answer_of_its_own(
    stacks: Stacks, asked: Witness
) -> None:
    asked.server = server = Interrupted(3)  # type: ignore[assignment]
    os.kill(ME, signal.SIGUSR2)
    text = stacks.read(0)
    assert server.told == 4
    # One after the other, not one within the other.
    begin, end = begin_mark(ME), end_mark(ME)
    for part in text.split(end)[:-1]:
        assert part.startswith(begin)
        assert part.count(begin) == 1
        assert part.count(b"requests running: 0") == 1
    assert text.count(end) == 4


@pytest.mark.parametrize("crowded", [1, 8192])
def test_no_hole_is_left_when_the_question_comes_where_room_is_made(
    stacks: Stacks, asked: Witness, monkeypatch: pytest.MonkeyPatch, crowded: int
) -> None:
    """Two made room, one within the other, and behind the hole nothing was read any more. And an
    answer that was moved to where it left as much as there had been before was not seen."""
    seek, armed = os.lseek, False

    def interrupted(fd: int, offset: int, whence: int) -> int:
        nonlocal armed
        at = seek(fd, offset, whence)
        if armed and whence == os.SEEK_CUR:
            armed = False
            os.kill(ME, signal.SIGUSR2)
        return at

    monkeypatch.setattr(witness, "_CROWDED", crowded)
    monkeypatch.setattr(os, "lseek", interrupted)
    for _ in range(100):
        armed = True
        os.kill(ME, signal.SIGUSR2)
        assert stacks.used(0) == seek(asked._region, 0, os.SEEK_CUR)
    begin = stacks.used(0)
    os.kill(ME, signal.SIGUSR2)
    if stacks.used(0) < begin:
        begin = 0  # as whoever asks does it
    assert dump.answer(stacks.read(0, begin), ME).whole


def test_the_end_of_somebody_elses_answer_is_not_taken_for_ones_own() -> None:
    begin, end = begin_mark(7), end_mark(7)
    assert dump.answer(b"a tail\n" + end, 7) == dump.Answer("", False)
    assert dump.answer(b"a tail\n" + end + begin + b"half", 7) == dump.Answer("half", False)
    whole = dump.answer(b"a tail\n" + end + begin + b"mine\n" + end, 7)
    assert whole == dump.Answer("mine", True)
    assert dump.answer(begin + b"mine\n" + end + begin + b"next\n" + end, 7).text == "mine"
    assert dump.answer(b"by C\n" + begin + b"mine\n" + end, 7) == dump.Answer("mine", True)
    assert dump.answer(b"by C\n", 7) == dump.Answer("by C", False)
