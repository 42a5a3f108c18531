"""Hung is not busy: who in the master finds out which of the two a worker is.

A worker says in its scoreboard slot since when its loop has been awake (`busy_since_ns`, 0 while it
sleeps). That is all the liveness there is: no heartbeat, no file. A worker that wakes sends a BUSY
to the master, once an interval at most. The master then looks at its slot from time to time, and
stops looking when every worker was seen asleep: an idle server wakes nobody.

A loop that stands still for `timeouts.hang` is judged by the CPU time that its process used
meanwhile. With none it is hung; one that computes is busy, and has ten times as long. Time is not
held against a worker while it could not run: when the master itself was late, stopped, or the
machine slept (CLOCK_BOOTTIME goes on then, CLOCK_MONOTONIC does not), when the worker was stopped,
or when a debugger has it. Where the kernel tells of no CPU time everybody is taken for busy.

Whatever the sentence, the error log first has the requests and the stacks. Then ABRT, which leaves
a core where that is wanted, then KILL; and the worker comes back at once.
"""

import signal
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from prefork.config.schema import Config
from prefork.process import dump
from prefork.process.obituary import Obituaries
from prefork.process.stacks import ASK, ASK_C
from prefork.process.table import Death, ProcessSlot
from prefork.process.timers import Timer
from prefork.unix.channel import Command, Message
from prefork.unix.proc import process_facts, tracer
from prefork.unix.signals import signal_name

if TYPE_CHECKING:
    from prefork.process.master import Master
    from prefork.scoreboard import Slot

LOOKS: Final = 4  # in the time of the shortest limit
SHORTEST_INTERVAL: Final = 0.05  # seconds
LONGEST_INTERVAL: Final = 5.0
BUSY_FACTOR: Final = 10  # how many times timeouts.hang a worker has that computes
BUSY_SHARE: Final = 0.05  # of a CPU: what a process at least uses that computes
LATE: Final = 1.0  # seconds; a timer that comes later than this was held up with all of us
GRACE: Final = 1.0  # seconds between ABRT and KILL
CORE_GRACE: Final = 30.0  # where a core is to be written


def check_interval(conf: Config) -> float:
    """Seconds between two looks at a worker that is awake; 0 when no limit asks for any."""
    limits = [one for one in (conf.timeouts.hang, conf.timeouts.request, conf.slow_request) if one]
    if not limits:
        return 0.0
    return min(max(min(limits) / LOOKS, SHORTEST_INTERVAL), LONGEST_INTERVAL)


class Watch(Struct, eq=False):
    """What is known of one worker, by the times of `time.monotonic()`."""

    pid: int
    until: float = 0.0  # it does not tell before this that it woke again
    fresh: float = 0.0  # nothing before this is held against it
    samples: deque[tuple[float, float]] = msgspec.field(default_factory=deque)  # (when, CPU time)
    stretch: int = 0  # the `busy_since_ns` that the samples are of
    told: object = None  # the slow requests that were logged last
    stopped: float = 0.0
    stop_timer: Timer | None = None
    asking: bool = False
    condemned: bool = False
    stuck: bool = False  # a request of it does not end, and it is to be replaced
    debugged: bool = False


class Watchdog:
    """Looks at the workers of `master` while one of them is awake."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        self._timers = master.timers
        self._watches: dict[int, Watch] = {}
        self._obituaries = Obituaries(master.board, master.stacks)
        self._asked: dict[int, int] = {}  # by pid, where the answer to the last question begins
        self._timer: Timer | None = None
        self._due = 0.0
        self._slept = _slept()

    # What the children say

    def busy(self, row: ProcessSlot) -> None:
        """It has woken up."""
        if row.cycle is None:
            return
        watch = self._watch(row)
        interval = check_interval(row.cycle.conf)
        watch.until = self._timers.clock() + interval
        if self._timer is None and interval:
            self._slept = _slept()
            self._arm(interval)

    def stuck(self, row: ProcessSlot, text: str) -> None:
        """Something of it will not end: another worker takes its place."""
        watch = self._watch(row)
        if watch.stuck or row.exiting:
            return
        watch.stuck = True
        said = f"{row.name} {row.pid}: {text}"

        def told(lines: list[str]) -> None:
            self._master.cycle.error_log.error("\n".join((said, *lines)))
            self._master.replacements.ask(row, "a request of it does not end (timeouts.request)")

        self._dump(row, told)

    def stopped(self, row: ProcessSlot, number: int) -> None:
        """Somebody has stopped it: not its fault, but it serves nobody."""
        log = self._master.cycle.error_log
        said = f"{row.name} {row.pid} was stopped on signal {number} ({signal_name(number)})"
        hang = row.cycle.conf.timeouts.hang if row.cycle is not None else 0.0
        watch = self._watch(row)
        if watch.condemned or not hang or row.exiting:
            log.warn(said)
            return
        log.warn(f"{said}; it is replaced unless it goes on within {hang:g} s (timeouts.hang)")
        watch.stopped = self._timers.clock()
        if watch.stop_timer is not None:
            watch.stop_timer.cancel()
        watch.stop_timer = self._timers.after(hang, lambda: self._stopped_for_good(row, watch))

    def continued(self, row: ProcessSlot) -> None:
        """It goes on."""
        watch = self._watch(row)
        now = self._timers.clock()
        watch.fresh = now
        watch.samples.clear()
        if watch.stop_timer is not None:
            watch.stop_timer.cancel()
            watch.stop_timer = None
            seconds = now - watch.stopped
            self._master.cycle.error_log.notice(
                f"{row.name} {row.pid} goes on after {seconds:.1f} s"
            )

    def account(self, death: Death) -> list[str]:
        """What the log says below the line of a death."""
        watch = self._watches.get(death.row.index)
        return self._obituaries.write(death, ours=watch is not None and watch.condemned)

    def forget(self, row: ProcessSlot) -> None:
        """It has ended, and was told of."""
        watch = self._watches.pop(row.index, None)
        if watch is not None:
            row.blameless = watch.condemned and row.ready
            if watch.stop_timer is not None:
                watch.stop_timer.cancel()
        self._master.stacks.clear(row.index)

    # Ending one

    def end(
        self, row: ProcessSlot, reason: str, *, unless: Callable[[], bool] = lambda: False
    ) -> None:
        """Log `reason`, the requests and the stacks, then ABRT and KILL.

        When `unless()` is true by then, nothing is done.
        """
        watch = self._watch(row)
        if watch.condemned:
            return
        watch.condemned = True

        def told(lines: list[str]) -> None:
            log = self._master.cycle.error_log
            if unless():
                watch.condemned = False
                log.warn(
                    "\n".join((f"{reason}; it has gone on meanwhile and is left alone", *lines))
                )
                return
            log.error("\n".join((reason, *lines)))
            if row.failure:
                row.failure = "\n".join((row.failure, *lines))  # for whoever waits for its boot
            self._kill(row)

        self._dump(row, told)

    def boot_overdue(self, row: ProcessSlot, reason: str) -> None:
        """It has not become ready in its time, and is probably in the middle of an import."""

        def is_ready() -> bool:
            if row.ready:
                row.failure = ""
            return row.ready

        self.end(row, reason, unless=is_ready)

    def mold_overdue(self, row: ProcessSlot, reason: str) -> None:
        """The same of a mold, which serves nobody."""

        def told(said: dump.Answer) -> None:
            if row.ready:
                row.failure = ""
                return
            lines = dump.lines(said)
            self._master.cycle.error_log.error("\n".join((reason, *lines)))
            row.failure = "\n".join((row.failure, *lines))
            self._master.workers.molds.kill(row)

        dump.ask(self._timers, self._master.stacks, row, told)

    def deaf(self, row: ProcessSlot, reason: str) -> None:
        """It was asked to leave, its time is over: log `reason` and the stacks, then KILL."""

        def told(lines: list[str]) -> None:
            self._master.cycle.error_log.warn("\n".join((reason, *lines)))
            dump.send(row.pid, signal.SIGKILL)

        self._dump(row, told)

    def last_question(self) -> None:
        """The next thing that the workers get is KILL: ask those that are left for their stacks."""
        for row in self._master.table.living():
            self._asked[row.pid] = self._master.stacks.used(row.index)
            dump.send(row.pid, ASK)
            dump.send(row.pid, ASK_C)  # nothing that C could break will be missed any more

    def last_words(self) -> None:
        """Log what they have answered, who has not left until now."""
        asked, self._asked = self._asked, {}
        for row in self._master.table.living():
            begin = asked.get(row.pid)
            if begin is not None:
                said = dump.answer(self._master.stacks.read(row.index, begin), row.pid)
                lines = (*dump.requests(self._master.board.slot(row.index)), *dump.lines(said))
                reason = f"{row.name} {row.pid} has not left: SIGKILL"
                self._master.cycle.error_log.warn("\n".join((reason, *lines)))

    def _kill(self, row: ProcessSlot, *, awake: bool = True) -> None:
        pid = row.pid
        dump.send(pid, signal.SIGABRT)
        if not awake:
            # Pending signals come before anything else that it would do: it leaves its stacks.
            dump.send(pid, signal.SIGCONT)

        def last() -> None:
            if row.pid == pid:
                self._master.cycle.error_log.warn(f"{row.name} {pid} outlives SIGABRT: SIGKILL")
                dump.send(pid, signal.SIGKILL)

        core = row.cycle is not None and bool(row.cycle.conf.rlimits.core)
        self._timers.after(CORE_GRACE if core else GRACE, last)

    def _stopped_for_good(self, row: ProcessSlot, watch: Watch) -> None:
        watch.stop_timer = None
        if row.pid != watch.pid or watch.condemned:
            return
        watch.condemned = True
        seconds = self._timers.clock() - watch.stopped
        said = f"{row.name} {row.pid} has been stopped for {seconds:.1f} s (timeouts.hang)"
        self._master.cycle.error_log.error(
            "\n".join((f"{said}: it is ended", *dump.requests(self._master.board.slot(row.index))))
        )
        self._kill(row, awake=False)

    def _dump(self, row: ProcessSlot, then: Callable[[list[str]], None]) -> None:
        """`then(lines)`: its requests as the scoreboard has them, and what it says itself."""
        watch = self._watch(row)
        watch.asking = True

        def answered(said: dump.Answer) -> None:
            watch.asking = False
            then([*dump.requests(self._master.board.slot(row.index)), *dump.lines(said)])

        dump.ask(self._timers, self._master.stacks, row, answered)

    # Looking

    def _watch(self, row: ProcessSlot) -> Watch:
        watch = self._watches.get(row.index)
        if watch is None or watch.pid != row.pid:
            watch = self._watches[row.index] = Watch(row.pid)
        return watch

    def _arm(self, interval: float) -> None:
        self._due = self._timers.clock() + interval
        self._timer = self._timers.after(interval, self._check)

    def _check(self) -> None:
        self._timer = None
        now = self._timers.clock()
        slept, before = _slept(), self._slept
        self._slept = slept
        if now - self._due > LATE or slept - before > LATE:
            # We were stopped, or the machine: so were they, or their clients, or their disks.
            for one in self._watches.values():
                one.fresh = now
                one.samples.clear()
        intervals = []
        for row in self._master.table.living():
            watch = self._watches.get(row.index)
            if watch is None or watch.pid != row.pid or row.cycle is None or not row.ready:
                continue
            slot = self._master.board.slot(row.index)
            since = slot.busy_since_ns  # read once: it may fall asleep while it is looked at
            if since and not (watch.asking or watch.condemned or row.exiting):
                self._judge(row, row.cycle.conf, watch, slot, since, now)
            if since or now < watch.until:
                intervals.append(check_interval(row.cycle.conf))
        if intervals:
            self._arm(min(intervals))

    def _judge(
        self, row: ProcessSlot, conf: Config, watch: Watch, slot: "Slot", since: int, now: float
    ) -> None:
        age = now - max(since / 1e9, watch.fresh)
        hang, limit, slow = conf.timeouts.hang, conf.timeouts.request, conf.slow_request
        share = self._cpu_share(row, watch, since, now, hang) if hang else 1.0
        serves = dump.current(slot) is not None or slot.running > 0

        def goes_on() -> bool:
            return slot.busy_since_ns != since

        who = f"{row.name} {row.pid}"
        if limit and age >= limit and serves:
            if not self._is_debugged(row, watch):
                reason = f"a request has blocked it for {age:.1f} s (timeouts.request {limit:g} s)"
                self.end(row, f"{who}: {reason}", unless=goes_on)
        elif hang and age >= hang and (share < BUSY_SHARE or age >= hang * BUSY_FACTOR):
            if not self._is_debugged(row, watch):
                reason = f"its loop has stood still for {age:.1f} s (timeouts.hang {hang:g} s)"
                if share >= BUSY_SHARE:
                    reason += f", {BUSY_FACTOR} times as long as is given, though it computes"
                self.end(row, f"{who} is hung: {reason}", unless=goes_on)
        elif slow and age >= slow and serves:
            recent = slot.recent()
            requests = (since if not recent else recent[0][0], slot.oldest_since_ns)
            if watch.told != requests:
                watch.told = requests
                said = f"{who}: slow request, it has blocked the loop for {age:.1f} s"
                self._dump(row, lambda lines: self._tell_slow(row, said, slow, lines))

    def _tell_slow(self, row: ProcessSlot, said: str, slow: float, lines: list[str]) -> None:
        text = "\n".join((f"{said} (slow_request {slow:g} s)", *lines))
        self._master.cycle.error_log.warn(text)
        if row.channel is not None:
            row.channel.send(Message(Command.TOLD, row.index, row.pid))

    def _cpu_share(
        self, row: ProcessSlot, watch: Watch, since: int, now: float, window: float
    ) -> float:
        """How much of a CPU it has used in the last `window` seconds of standing still."""
        facts = process_facts(row.pid)
        samples = watch.samples
        if watch.stretch != since:
            watch.stretch = since
            samples.clear()
        used = 0.0 if facts is None else facts.cpu
        samples.append((now, used))
        while len(samples) > 2 and samples[1][0] <= now - window:
            samples.popleft()
        if facts is None or facts.state == "R":
            return 1.0  # it would compute if it were let; or nobody can tell
        elapsed = now - samples[0][0]
        # Too short a time tells nothing, and is taken for the better.
        return (used - samples[0][1]) / elapsed if elapsed >= window / 2 else 1.0

    def _is_debugged(self, row: ProcessSlot, watch: Watch) -> bool:
        """A worker at a breakpoint is not hung."""
        debugged = tracer(row.pid) != 0
        if debugged and not watch.debugged:
            self._master.cycle.error_log.notice(
                f"{row.name} {row.pid} is held by a debugger: it is not judged"
            )
        watch.debugged = debugged
        return debugged


def _slept() -> float:
    """How long the machine has slept since it was started, plus a constant."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
