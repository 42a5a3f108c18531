"""The parts that need no server: timers, back-off, boots, the table, reaping."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.config.diff import Change
from prefork.config.sections import Backoff as BackoffConfig
from prefork.log import ErrorLog, LogFile
from prefork.process.boot import Boot
from prefork.process.commands import FAILED, LONGEST_TEXT, OK, PENDING, Commands, shortened
from prefork.process.outcome import Outcome as ReloadOutcome
from prefork.process.outcome import encoded
from prefork.process.respawn import Backoff
from prefork.process.table import ProcessSlot, ProcessTable, Respawn, TableFullError, reap
from prefork.process.timers import Timers
from prefork.scoreboard import RELOAD_REPORT_ROOM, Scoreboard
from prefork.unix import signals

# pytest-timeout's usual method is the very alarm that is tested here.
pytestmark = pytest.mark.timeout(60, method="thread")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def timers() -> Iterator[tuple[Timers, Clock]]:
    signals.block()
    clock = Clock()
    made = Timers(clock)
    try:
        yield made, clock
    finally:
        made.clear()
        signals.unblock_all()


def test_timers_fire_in_order_and_once(timers: tuple[Timers, Clock]) -> None:
    made, clock = timers
    fired: list[str] = []
    made.after(2.0, lambda: fired.append("late"))
    made.after(1.0, lambda: fired.append("early"))
    made.after(1.0, lambda: fired.append("same moment"))
    made.after(1.0, lambda: fired.append("cancelled")).cancel()
    made.run()
    assert fired == []
    clock.now += 1.5
    made.run()
    assert fired == ["early", "same moment"]
    clock.now += 1.0
    made.run()
    made.run()
    assert fired == ["early", "same moment", "late"]


def test_a_timer_of_no_delay_waits_for_the_next_alarm(timers: tuple[Timers, Clock]) -> None:
    made, _clock = timers
    fired: list[int] = []

    def again() -> None:
        fired.append(1)
        made.after(0.0, again)

    made.after(0.0, again)
    made.run()
    assert fired == [1]


def test_the_alarm_is_set_for_the_nearest_and_off_without_one(
    timers: tuple[Timers, Clock],
) -> None:
    made, clock = timers
    made.arm()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    far = made.after(50.0, lambda: None)
    near = made.after(20.0, lambda: None)
    made.arm()
    assert 19 < signal.getitimer(signal.ITIMER_REAL)[0] <= 20
    near.cancel()
    made.arm()
    assert 49 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
    clock.now += 60
    signals.set_alarm(0)  # it has gone off
    made.run()
    made.arm()
    assert far.proc is None
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_back_off() -> None:
    conf = BackoffConfig(first=1.0, longest=60.0, forget_after=60.0)
    served = Backoff(dice=lambda: 0.0)
    waits = [served.delay(conf, was_ready=True, uptime=1.0) for _ in range(5)]
    assert waits == [0, 1, 2, 4, 8]
    assert served.crashes == 5
    assert served.delay(conf, was_ready=True, uptime=60.0) == 0
    assert served.delay(conf, was_ready=False, uptime=60.0) == 1
    stillborn = Backoff(dice=lambda: 0.0)
    waits = [stillborn.delay(conf, was_ready=False, uptime=0.1) for _ in range(9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_back_off_as_configured() -> None:
    conf = BackoffConfig(first=0.5, longest=3.0, forget_after=5.0)
    slot = Backoff(dice=lambda: 1.0)
    waits = [slot.delay(conf, was_ready=False, uptime=0.1) for _ in range(5)]
    assert waits == pytest.approx([0.4, 0.8, 1.6, 2.4, 2.4])
    assert slot.delay(conf, was_ready=True, uptime=0.1, well=True) == 0
    assert slot.crashes == 5  # who leaves in peace neither adds a crash nor forgives one
    assert slot.delay(conf, was_ready=True, uptime=6.0) == 0
    assert slot.crashes == 1


class Outcome:
    def __init__(self) -> None:
        self.said: list[str] = []

    def boot(self, rows: list[ProcessSlot], *, tolerant: bool = False) -> Boot:
        return Boot(
            rows,
            on_ready=lambda: self.said.append("ready"),
            on_failed=lambda row, why: self.said.append(f"{row.index} {why}"),
            tolerant=tolerant,
        )


def test_a_strict_boot_fails_at_the_first_death() -> None:
    rows = [ProcessSlot(n) for n in range(3)]
    outcome = Outcome()
    boot = outcome.boot(rows)
    boot.ready(rows[0])
    boot.died(rows[1], "no")
    boot.died(rows[2], "no")
    boot.ready(rows[2])
    assert outcome.said == ["1 no"]


def test_a_death_after_ready_counts_until_all_are() -> None:
    rows = [ProcessSlot(n) for n in range(2)]
    outcome = Outcome()
    boot = outcome.boot(rows)
    boot.ready(rows[0])
    boot.died(rows[0], "no")
    boot.ready(rows[1])
    assert outcome.said == ["0 no"]
    outcome = Outcome()
    boot = outcome.boot(rows)
    boot.ready(rows[0])
    boot.ready(rows[1])
    boot.died(rows[0], "no")
    assert outcome.said == ["ready"]


def test_a_tolerant_boot_fails_when_all_have_died() -> None:
    rows = [ProcessSlot(n) for n in range(3)]
    outcome = Outcome()
    boot = outcome.boot(rows, tolerant=True)
    for row in rows:
        boot.died(row, "no")
    assert outcome.said == ["2 no"]
    outcome = Outcome()
    boot = outcome.boot(rows, tolerant=True)
    boot.died(rows[0], "no")
    boot.ready(rows[1])
    assert outcome.said == []
    boot.died(rows[2], "no")
    assert outcome.said == ["ready"]


def test_a_boot_that_takes_them_in_one_by_one() -> None:
    rows = [ProcessSlot(n) for n in range(3)]
    outcome = Outcome()
    boot = Boot(
        (),
        expected=3,
        on_ready=lambda: outcome.said.append("ready"),
        on_failed=lambda _row, why: outcome.said.append(why),
        on_step=lambda: outcome.said.append("step"),
    )
    for row in rows:
        assert boot.missing_count == 3 - row.index
        boot.add(row)
        assert (boot.ready_count, boot.booting_count) == (row.index, 1)
        boot.ready(row)
    assert outcome.said == ["step", "step", "ready"]


def test_who_died_at_a_start_comes_back_when_another_lives() -> None:
    rows = [ProcessSlot(n) for n in range(2)]
    outcome = Outcome()
    boot = outcome.boot(rows, tolerant=True)
    boot.died(rows[0], "no")
    assert boot.postpone(lambda: outcome.said.append("back"))
    boot.ready(rows[1])
    assert outcome.said == ["ready", "back"]
    assert not boot.postpone(lambda: None)
    hopeless = outcome.boot(rows, tolerant=True)
    assert hopeless.postpone(lambda: outcome.said.append("never"))
    for row in rows:
        hopeless.died(row, "no")
    assert outcome.said[2:] == ["1 no"]


def test_a_report_fits_its_room() -> None:
    many = tuple(
        Change(f"environment.V{n}", "old" * 200, "new" * 200, False, "...") for n in range(900)
    )
    outcome = ReloadOutcome(
        ok=True, before=1, now=2, changed=many, error="e" * 9000, traceback="t" * 90_000
    )
    text = encoded(outcome)
    assert len(text.encode()) <= RELOAD_REPORT_ROOM
    facts = json.loads(text)["facts"]
    assert facts["changed"][0]["key"] == "environment.V0"
    assert len(facts["traceback"]) <= LONGEST_TEXT


def test_a_table_gives_rows_back() -> None:
    table = ProcessTable(2)
    first = table.free()
    first.pid = 10
    second = table.free()
    second.pid = 11
    with pytest.raises(TableFullError):
        table.free()
    second.start(Respawn.DETACHED)
    assert table.living() == [first]
    assert table.live
    first.pid = -1
    first.held = True
    assert not table.live
    assert table.workers() == [first]
    first.release()
    assert table.free() is first


@pytest.mark.parametrize(
    ("kind", "respawn", "just_spawn", "detached"),
    [
        (Respawn.NORESPAWN, False, False, False),
        (Respawn.JUST_SPAWN, False, True, False),
        (Respawn.RESPAWN, True, False, False),
        (Respawn.JUST_RESPAWN, True, True, False),
        (Respawn.DETACHED, False, False, True),
    ],
)
def test_kinds_are_nginxs(kind: Respawn, respawn: bool, just_spawn: bool, detached: bool) -> None:
    row = ProcessSlot(0)
    row.start(kind)
    assert (row.respawn, row.just_spawn, row.detached) == (respawn, just_spawn, detached)


def forked(code: int) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    return pid


def test_reaping_tells_ours_from_strangers(tmp_path: Path) -> None:
    file = LogFile(str(tmp_path / "error.log"))
    file.open()
    log = ErrorLog(file, "info")
    table = ProcessTable(8)
    rows = []
    for code in (0, 2, 5):
        row = table.free()
        row.pid, row.name, row.respawn = forked(code), f"worker {row.index + 1}", True
        rows.append(row)
    stranger = forked(9)
    deaths = {}
    deadline = time.monotonic() + 20
    while (len(deaths) < 3 or "unknown" not in text(tmp_path)) and time.monotonic() < deadline:
        for death in reap(table, log):
            deaths[death.row.index] = death.exit_code
        time.sleep(0.01)
    file.close()
    assert deaths == {0: 0, 1: 2, 2: 5}
    assert [row.respawn for row in rows] == [True, False, True]
    said = text(tmp_path)
    assert f"[info] {os.getpid()}#0: unknown process {stranger} exited with code 9" in said
    assert f"[alert] {os.getpid()}#0: worker 2 {rows[1].pid} exited with fatal code 2" in said
    assert f"worker 3 {rows[2].pid} exited with code 5 after" in said


def text(tmp_path: Path) -> str:
    return (tmp_path / "error.log").read_text()


def test_verdicts_are_complete_when_the_numbers_meet() -> None:
    board = Scoreboard.create(slots=1)
    try:
        header = board.header
        commands = Commands(board)
        reload = commands.take(signal.SIGHUP)
        assert (header.command_seq, header.command_done, header.verdict) == (1, 0, PENDING)
        reopen = commands.take(signal.SIGUSR1)
        commands.finish(reopen, ok=True, text="reopened")
        assert (header.command_seq, header.command_done) == (2, 0)
        commands.finish(reload, ok=False, text="x" * 10_000)
        assert (header.command_seq, header.command_done, header.verdict) == (2, 2, FAILED)
        assert header.command == signal.SIGHUP
        assert set(header.text) == set("x\n .")
        commands.finish(reload, ok=True, text="twice")
        assert header.verdict == FAILED
        again = commands.take(signal.SIGHUP)
        commands.finish(again, ok=True, text="well")
        assert (header.command_done, header.verdict, header.text) == (3, OK, "well")
    finally:
        board.close()


def test_a_long_verdict_keeps_both_ends() -> None:
    text = "the reload failed\n" + "é in the middle\n" * 2000 + "RuntimeError: no"
    cut = shortened(text)
    assert len(cut.encode()) <= LONGEST_TEXT
    assert cut.startswith("the reload failed\n")
    assert cut.endswith("RuntimeError: no")
    assert shortened("short") == "short"
