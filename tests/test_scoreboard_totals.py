"""What was counted is never counted twice and never forgotten, whoever is killed meanwhile."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from prefork.errors import OperatorError
from prefork.scoreboard import LAYOUT_VERSION, Scoreboard, Totals, reserve_memory


def in_a_child(proc: Callable[[], None]) -> int:
    """Run `proc` for ever in a child; its pid."""
    pid = os.fork()
    if pid == 0:
        while True:
            proc()
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_master_killed_anywhere_in_a_fold_loses_and_doubles_nothing() -> None:
    """The child's rounds add ten at once: a sum that is no multiple of ten shows half a fold."""
    rounds = 0
    for _ in range(60):
        with closing(Scoreboard.create(slots=2)) as board:
            board.take(1).publish(0, 0, 1000)
            last = 1000

            def round_of_a_worker(board: Scoreboard = board) -> None:
                board.take(0).publish(1, 2, 10)
                board.fold(0)

            pid = in_a_child(round_of_a_worker)
            until = time.monotonic() + random.uniform(0.002, 0.02)
            while True:
                late = time.monotonic() > until
                if late:
                    end(pid)
                now = board.totals().requests
                assert now % 10 == 0
                assert now >= last
                last = now
                if late:
                    break
            rounds += last // 10 - 100
    assert rounds > 200


def test_a_stopped_master_keeps_nobody_waiting() -> None:
    """In the middle of a fold or not: a reader has no lock to wait for."""
    with closing(Scoreboard.create(slots=1)) as board:

        def round_of_a_worker() -> None:
            board.take(0).publish(1, 2, 10)
            board.fold(0)

        pid = in_a_child(round_of_a_worker)
        try:
            for _ in range(50):
                time.sleep(0.001)
                os.kill(pid, signal.SIGSTOP)
                os.waitid(os.P_PID, pid, os.WSTOPPED)
                began = time.monotonic()
                assert board.totals().requests % 10 == 0
                assert time.monotonic() - began < 1.0
                os.kill(pid, signal.SIGCONT)
        finally:
            end(pid)


def board_with(requests: int) -> Scoreboard:
    board = Scoreboard.create(slots=2)
    board.take(0).publish(0, 0, requests)
    return board


def successor(old: Scoreboard) -> Scoreboard:
    board = Scoreboard.create(slots=2, before=Scoreboard.attach_fd(os.dup(old.fd)))
    board.take(0).publish(0, 0, 7)
    return board


def test_a_predecessor_counts_until_it_is_folded_in() -> None:
    with closing(board_with(100)) as old, closing(successor(old)) as new:
        assert new.header.since_ns == old.header.since_ns
        assert new.totals().requests == 107
        assert new.totals(alone=True).requests == 7
        assert old.totals().requests == 100
        old.slot(0).publish(0, 0, 120)  # it lives, and serves
        old.fold(0)
        old.take(1).publish(0, 0, 3)
        old.header.master_pid = 1  # both are in this process
        with closing(Scoreboard.attach_pid(os.getpid())) as reader:
            assert reader.totals().requests == 130
            new.inherit()
            assert new.predecessor is None
            assert (new.totals().requests, reader.totals().requests) == (130, 130)
        old.slot(1).publish(0, 0, 1000)
        assert new.totals().requests == 130
        new.inherit()
        assert new.totals().requests == 130


def test_another_layout_cannot_be_succeeded() -> None:
    with closing(board_with(100)) as old:
        old.header.version = LAYOUT_VERSION + 1
        with pytest.raises(OperatorError, match=f"layout {LAYOUT_VERSION + 1}"):
            Scoreboard.attach_fd(os.dup(old.fd))


def test_reserved_memory_is_no_board_until_it_is_made_one() -> None:
    fd = reserve_memory()
    assert fd is not None
    with pytest.raises(OperatorError, match="not a scoreboard"):
        Scoreboard.attach_fd(os.dup(fd))
    mine = os.dup(fd)
    with closing(Scoreboard.create(slots=3, reserved=fd)) as board:
        board.take(2).publish(0, 5, 6, 7)
        with closing(Scoreboard.attach_fd(mine)) as kept:
            assert kept.slots == 3
            assert kept.totals()[:3] == (5, 6, 7)


def test_what_was_added_since() -> None:
    with closing(board_with(10)) as board:
        slot = board.slot(0)
        slot.answered(503, 2)
        slot.took(0.001, 3)
        earlier = board.totals()
        slot.publish(0, 1, 15, 100)
        slot.answered(404)
        more = board.totals().less(earlier)
        assert (more.accepted, more.requests, more.bytes_sent) == (1, 5, 100)
        assert more.responses == (0, 0, 0, 1, 0)
        assert sum(more.latencies) == 0
        assert Totals.of(earlier.flat()) == earlier
        board.add(more)
        assert board.totals().requests == 20
        assert board.totals().responses == (0, 0, 0, 2, 2)
