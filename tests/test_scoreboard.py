"""The scoreboard: shared, attachable from outside, never torn, and cheap."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.errors import OperatorError
from prefork.scoreboard import Scoreboard, SlotState, Verdict, fallback_path_beside


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create(slots=16)
    yield board
    board.close()


def in_another_process(source: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_new_board_is_empty_and_knows_its_master(board: Scoreboard) -> None:
    header = board.header
    assert header.master_pid == os.getpid()
    assert abs(header.started_ns - time.time_ns()) < 60e9
    assert (header.generation, header.command_seq, header.command_done) == (0, 0, 0)
    assert header.verdict == Verdict.PENDING
    assert (header.text, header.config_path, header.listen) == ("", "", "")
    assert board.slots == 16
    assert [board.slot(i).state for i in range(16)] == [SlotState.DEAD] * 16
    assert board.slot(15) is board.slot(15)
    for beyond in (-1, 16):
        with pytest.raises(IndexError):
            board.slot(beyond)


def test_cells_do_not_overlap(board: Scoreboard) -> None:
    names = ("state", "busy_since_ns", "connections", "accepted", "requests")
    names += ("bytes_sent", "running", "oldest_since_ns", "lag_ns", "lag_max_ns")
    names += ("pid", "generation", "started_ns", "boots", "last_exit", "ready_ns")
    names += ("comes_back_ns", "crashes")
    header = ("generation", "target_workers", "command_seq", "command_done", "command", "verdict")
    header += ("since_ns", "started_ns")
    header += ("reload_at_work_ns", "reload_limit_ns", "reload_began_ns", "reload_ended_ns")
    header += ("reload_verdict",)
    value = 1 << 63
    expected: dict[tuple[int, str], int] = {}
    for index in range(16):
        for name in names:
            value += 1
            setattr(board.slot(index), name, value)
            expected[index, name] = value
    for name in header:
        value += 1
        setattr(board.header, name, value)
        expected[-1, name] = value
    board.header.text = "t" * 4096
    board.header.config_path = "c" * 4096
    board.header.listen = "l" * 16384
    board.header.inodes = "i" * 1536
    board.header.program = "p" * 64
    board.header.app = "a" * 448
    board.header.molds = "m" * 1024
    board.header.reload_progress = "p" * 512
    board.header.reload_text = "r" * 1536
    board.header.reload_report = "j" * 32768
    for (index, name), wanted in expected.items():
        owner = board.header if index < 0 else board.slot(index)
        assert getattr(owner, name) == wanted, (index, name)
    assert board.header.text == "t" * 4096
    assert board.header.reload_progress == "p" * 512
    assert board.header.reload_text == "r" * 1536
    assert board.header.reload_report == "j" * 32768
    assert board.header.config_path == "c" * 4096
    assert board.header.listen == "l" * 16384
    assert board.header.inodes == "i" * 1536
    assert board.header.molds == "m" * 1024
    assert (board.header.program, board.header.app) == ("p" * 64, "a" * 448)
    assert board.header.master_pid == os.getpid()


def test_text_is_cut_between_characters(board: Scoreboard) -> None:
    board.header.text = "é" * 3000
    assert board.header.text == "é" * 2048
    board.header.text = "x" + "é" * 3000
    assert board.header.text == "x" + "é" * 2047
    board.header.text = "\udcff lone surrogates do not raise"
    assert board.header.text == "? lone surrogates do not raise"


def test_a_child_writes_its_slot_and_the_parent_reads_it(board: Scoreboard) -> None:
    pid = os.fork()
    if pid == 0:
        slot = board.slot(3)
        slot.state = SlotState.BUSY
        slot.publish(7, 8, 9)
        os._exit(0)
    os.waitpid(pid, 0)
    slot = board.slot(3)
    assert slot.state == SlotState.BUSY
    assert (slot.connections, slot.accepted, slot.requests) == (7, 8, 9)


def test_reset_keeps_what_the_master_wrote(board: Scoreboard) -> None:
    slot = board.slot(1)
    slot.state, slot.busy_since_ns = SlotState.BUSY, 5
    slot.publish(1, 2, 3)
    slot.pid, slot.boots, slot.last_exit = 99, 4, 1
    slot.reset()
    assert (slot.state, slot.busy_since_ns, slot.requests) == (SlotState.DEAD, 0, 0)
    assert (slot.pid, slot.boots, slot.last_exit) == (99, 4, 1)


def test_totals_outlive_the_workers(board: Scoreboard) -> None:
    def totals() -> tuple[int, int, int]:
        now = board.totals()
        return now.accepted, now.requests, now.bytes_sent

    for index in (0, 1):
        board.take(index)
    board.slot(0).publish(1, 10, 100, 1000)
    board.slot(1).publish(1, 20, 200, 2000)
    assert totals() == (30, 300, 3000)
    board.fold(0)
    assert board.slot(0).requests == 0
    assert totals() == (30, 300, 3000)
    board.take(0).publish(0, 1, 2, 3)
    assert totals() == (31, 302, 3003)


def test_responses_and_latencies_are_summed_by_class_and_bucket(board: Scoreboard) -> None:
    for index in (0, 2):
        slot = board.take(index)
        slot.answered(200, 5)
        for status in (101, 304, 404, 499, 503, 600, 42):
            slot.answered(status)
        slot.took(0.0)
        slot.took(0.000_003, 4)  # 3 microseconds: at least 2, less than 4
        slot.took(1.0)
        slot.took(86_400.0)  # beyond the last bucket's own
    assert board.slot(0).responses == (2, 5, 1, 2, 2)
    board.fold(2)
    totals = board.totals()
    assert totals.responses == (4, 10, 2, 4, 4)
    assert {n: count for n, count in enumerate(totals.latencies) if count} == {
        0: 2,
        2: 8,
        20: 2,
        31: 2,
    }


def test_only_what_was_taken_is_read(board: Scoreboard) -> None:
    assert list(board.used()) == []
    board.take(3)
    board.take(1)
    assert [slot.index for slot in board.used()] == [0, 1, 2, 3]


def test_a_turn_is_published_with_its_lag(board: Scoreboard) -> None:
    slot = board.take(1)
    slot.busy_since_ns = 77
    slot.publish(1, 2, 3, 4, 5, 6, 7_000)
    assert (slot.busy_since_ns, slot.running, slot.oldest_since_ns) == (0, 5, 6)
    slot.publish(1, 2, 3, 4, 0, 0, 500)
    assert (slot.lag_ns, slot.lag_max_ns) == (500, 7_000)
    slot.oldest_line = "GET /" + "x" * 300
    assert slot.oldest_line == "GET /" + "x" * 251


def test_the_last_requests_that_began_are_told(board: Scoreboard) -> None:
    slot = board.take(2)
    assert slot.recent() == []
    note, place = slot.notebook()
    for n in range(11):
        head = b"GET /%d HTTP/1.1\r\nHost: a\r\nCookie: secret\r\n\r\n" % n
        note(slot.memory, place(), 5.0 + n, head)
    assert [line for _, line in slot.recent()] == [f"GET /{n} HTTP/1.1" for n in range(10, 2, -1)]
    assert slot.recent()[0][0] == 15.0
    note(slot.memory, place(), 99.0, b"GET /" + b"y" * 1000)
    assert slot.recent()[0] == (99.0, "GET /" + "y" * 243)
    assert board.slot(1).recent() == board.slot(3).recent() == []
    slot.reset()
    assert slot.recent() == []


def test_another_process_reads_it_with_no_worker_alive(board: Scoreboard) -> None:
    board.header.text = "2 workers, generation 3"
    board.header.generation = 3
    board.slot(5).last_exit = 9 + 1
    said = in_another_process(
        """
        import sys
        from prefork.scoreboard import Scoreboard
        board = Scoreboard.attach_pid(int(sys.argv[1]))
        print(board.slots, board.header.generation, board.slot(5).last_exit, board.header.text)
        for change in ("board.slot(0).publish(1, 2, 3)", "board.header.text = 'mine'"):
            try:
                exec(change)
            except TypeError:
                pass
            else:
                raise SystemExit("a reader could write")
        board.close()
        """,
        os.getpid(),
    )
    assert said == "16 3 10 2 workers, generation 3\n"


def test_a_reader_keeps_its_view_when_the_master_is_gone() -> None:
    code = """
        import os, sys, time
        from prefork.scoreboard import Scoreboard
        board = Scoreboard.create()
        board.header.text = "last words"
        print(os.getpid(), flush=True)
        sys.stdin.readline()
    """
    master = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert master.stdout is not None
    pid = int(master.stdout.readline())
    board = Scoreboard.attach_pid(pid)
    master.kill()
    master.communicate()
    assert board.header.text == "last words"
    board.close()
    with pytest.raises(OperatorError, match=f"process {pid}"):
        Scoreboard.attach_pid(pid)


def test_the_lock_of_the_control_commands_is_between_them(board: Scoreboard) -> None:
    """flock on the attached descriptor: not shared with the master nor among readers."""
    fcntl.flock(board.fd, fcntl.LOCK_EX)  # the master's own description does not count
    first = Scoreboard.attach_pid(os.getpid())
    second = Scoreboard.attach_pid(os.getpid())
    fcntl.flock(board.fd, fcntl.LOCK_UN)
    fcntl.flock(first.fd, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        fcntl.flock(second.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    first.close()
    fcntl.flock(second.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second.close()


def test_a_hammering_writer_never_shows_half_a_text(board: Scoreboard) -> None:
    board.header.text = "a" * 4000
    pid = os.fork()
    if pid == 0:
        while True:
            for letter in "abcdefgh":
                board.header.text = letter * (3000 + ord(letter))
    try:
        reader = Scoreboard.attach_pid(os.getpid())
        seen = set()
        deadline = time.monotonic() + 60
        until = time.monotonic() + 1.5
        while time.monotonic() < until or (len(seen) < 4 and time.monotonic() < deadline):
            text = reader.header.text
            assert text, "the reader gave up"
            assert text == text[0] * (len(text)), "torn"
            assert len(text) in (4000, 3000 + ord(text[0]))
            seen.add(text[0])
        reader.close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(seen) >= 4


def test_a_writer_killed_in_the_middle_does_not_hang_readers(board: Scoreboard) -> None:
    board.header.text = "whole"
    board.header.cells[16] += 1  # as a writer leaves it that dies after its first store
    assert board.header.text == ""
    board.header.text = "whole again"
    assert board.header.text == "whole again"


def test_counters_never_tear(board: Scoreboard) -> None:
    """One writer, both halves of the cell changing at once: a torn read would mix them."""
    slot = board.slot(0)
    counters = [(n * 0x1111111111111111,) * 7 for n in (1, 2)]
    slot.publish(*counters[0])
    pid = os.fork()
    if pid == 0:
        while True:
            slot.publish(*counters[0])
            slot.publish(*counters[1])
    try:
        for _ in range(100_000):
            seen = set(slot.cells[1:8].tolist())
            assert seen <= {0x1111111111111111, 0x2222222222222222}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.usefixtures("board")
def test_descriptors_are_closed_by_exec() -> None:
    names = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    ours = [n for n in names if os.path.lexists(n) and "prefork-scoreboard" in os.readlink(n)]
    assert ours
    for name in ours:
        assert not os.get_inheritable(int(name.rpartition("/")[2]))


def test_the_memory_cannot_shrink_under_a_reader(board: Scoreboard) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(board.fd, 4096)


def test_attaching_to_what_is_no_master_says_so() -> None:
    with pytest.raises(OperatorError, match=r"process 4194300: it has none"):
        Scoreboard.attach_pid(4194300)
    with pytest.raises(OperatorError, match=r"process 1: "):
        Scoreboard.attach_pid(1)


def test_another_layout_is_refused_by_name(board: Scoreboard) -> None:
    board.header.version = 7
    with pytest.raises(OperatorError, match="layout 7, this prefork reads layout 4"):
        Scoreboard.attach_pid(os.getpid())


def test_without_memfd_a_file_beside_the_pid_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    path = fallback_path_beside(str(tmp_path / "x.pid"))
    Path(path).write_bytes(b"left by a killed master")
    board = Scoreboard.create(fallback_path=path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    board.header.text = "by file"
    board.slot(1023).publish(1, 2, 3)
    said = in_another_process(
        """
        import sys
        from prefork.scoreboard import Scoreboard
        board = Scoreboard.attach_pid(int(sys.argv[1]), sys.argv[2])
        print(board.header.text, board.slot(1023).requests)
        board.close()
        """,
        os.getpid(),
        path,
    )
    assert said == "by file 3\n"
    with pytest.raises(OperatorError, match=f"belongs to process {os.getpid()}"):
        Scoreboard.attach_pid(4194300, path)
    board.close()
    assert not os.path.exists(path)
    board.close()  # again: nothing to do


def test_without_memfd_and_without_a_place_it_is_shared_by_fork_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    board = Scoreboard.create(slots=4)
    pid = os.fork()
    if pid == 0:
        board.slot(0).publish(1, 2, 3)
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.slot(0).requests == 3
    board.close()
