"""One process that is master and worker at once (`master_process: false`).

After `ngx_single_process_cycle`; for debuggers, containers of one process, and development. The
master's signals mean the same as far as they can: there is nobody to scale, to drain or to upgrade
into, and the application, once imported, stays.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Final

from prefork import __version__
from prefork.config.diff import changes
from prefork.errors import EXIT_FAILED, EXIT_OK, OperatorError
from prefork.event.reactor import NOMORE, TimeEvent
from prefork.net.inherit import Inherited
from prefork.net.listener import apply_changes, release
from prefork.process import sharing, stop
from prefork.process.commands import Commands
from prefork.process.cycle import Cycle, init_cycle
from prefork.process.outcome import Account, Outcome
from prefork.process.ready import named, ready_line
from prefork.process.worker import Worker, enter
from prefork.scoreboard import Scoreboard, SlotState, fallback_path_beside
from prefork.unix import identity, limits, signals
from prefork.unix.daemon import Daemon
from prefork.unix.notify import Notifier
from prefork.unix.pidfile import PidFile
from prefork.unix.proctitle import set_title

DRAIN_REPORT_EVERY: Final = 5.0  # seconds

# What was settled when the process became what it is.
_SETTLED: Final = (
    "app",
    "cpu_affinity",
    "environment",
    "group",
    "interface",
    "niceness",
    "rlimits",
    "threads",
    "umask",
    "user",
    "working_directory",
)


def single_process_cycle(
    cycle: Cycle,
    inherited: Inherited,
    notifier: Notifier,
    daemon: Daemon | None,
    started: float,
) -> int:
    """The life of a server that is one process; the exit code. Raises OperatorError."""
    pid_file = None
    if cycle.conf.pid_file is not None:
        pid_file = PidFile(cycle.conf.pid_file)
        pid_file.create()
    board = Scoreboard.create(
        slots=1,
        fallback_path=fallback_path_beside(cycle.conf.pid_file) if cycle.conf.pid_file else None,
    )
    try:
        single = Single(cycle, inherited, notifier, board)
        single.boot()
        single.tell(started)
        if daemon is not None:
            daemon.ready(f"prefork: {single.line}")
            cycle.error_log.redirect_stderr()
        return single.run()
    except KeyboardInterrupt:
        cycle.error_log.notice("stopped before it was ready")
        for listener in cycle.listeners:
            listener.close(unlink=True)
        if daemon is not None:
            daemon.failed(EXIT_FAILED, "prefork: stopped before it was ready")
        return EXIT_OK
    finally:
        if pid_file is not None:
            pid_file.unlink()
        board.close()


class Single:
    """A `Worker` that also hears what a master hears."""

    def __init__(
        self, cycle: Cycle, inherited: Inherited, notifier: Notifier, board: Scoreboard
    ) -> None:
        self.cycle = cycle
        self.inherited = inherited
        self.notifier = notifier
        self.board = board
        self.commands = Commands(board)
        self.account = Account(board.header)
        self.started_with = cycle.conf
        self.flags = signals.SignalFlags()
        self.worker = Worker(cycle, self.flags, "single process", board.slot(0))
        self.worker.leaves_sockets = False  # we are the ones who have them, and their files
        self.line = ""
        self._ending = False
        self._delay: TimeEvent | None = None  # runs out with drain_delay

    def boot(self) -> None:
        """Raises OperatorError."""
        cycle, conf = self.cycle, self.cycle.conf
        for problem in (*self.inherited.problems, *self.inherited.close_unclaimed()):
            cycle.error_log.warn(problem)
        limits.apply(conf, 0)
        identity.drop_privileges(conf.user, conf.group, dumpable=bool(conf.rlimits.core))
        enter(cycle)
        self._tell_header()
        slot = self.board.take(0)
        slot.pid = os.getpid()
        slot.boots = 1
        slot.generation = cycle.generation
        slot.started_ns = time.time_ns()
        slot.state = SlotState.STARTING
        signals.install_master(self.flags)
        # Children are the application's here, and an import that hangs must not be deaf.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.default_int_handler)
        signals.unblock_all()
        set_title(f"prefork: single process {cycle.name}")
        self.worker.boot()
        signals.install_master(self.flags)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sharing.settle()
        self.worker.start(shared=False)
        self.worker.reactor.before_sleep.append(self.before_sleep)
        slot.state = SlotState.READY

    def tell(self, started: float) -> None:
        """The ready line, and READY=1."""
        self._tell_header()  # again: by now the application has said how it is spoken to
        self.line = ready_line(self.cycle, self.worker.interface, "a single process", started)
        self.cycle.error_log.notice(self.line)
        self.notifier.ready(status="single process")
        interval = self.notifier.watchdog_interval
        if interval is not None:
            self.worker.reactor.create_time_event(0.0, self._watchdog(interval))

    def _watchdog(self, interval: float) -> Callable[[], float]:
        def ping() -> float:
            self.notifier.watchdog()
            return interval

        return ping

    def run(self) -> int:
        """Serve until told to stop."""
        self.worker.run()
        self.worker.leave()
        for listener in self.cycle.listeners:
            listener.close(unlink=True)
        return EXIT_OK

    def before_sleep(self) -> None:
        """`ngx_single_process_cycle`'s tests, then the worker's own."""
        flags, worker = self.flags, self.worker
        if flags.terminate or flags.interrupt:
            stop.decide(flags, self.cycle.conf.on_term, self.cycle.error_log, self._workload)
        if flags.terminate:
            self._stopping(signal.SIGTERM)
        elif flags.quit and not worker.exiting:
            self._quit()
        elif flags.reconfigure and not worker.exiting:
            flags.reconfigure = False
            self._reconfigure()
        if flags.reopen:
            ticket = self.commands.take(signal.SIGUSR1)
            problems = worker.reopen()
            flags.reopen = False
            text = "; ".join(problems) or "log files reopened"
            self.commands.finish(ticket, ok=not problems, text=text)
        for name, number in (
            ("change_binary", signal.SIGUSR2),
            ("more", signal.SIGTTIN),
            ("fewer", signal.SIGTTOU),
        ):
            if getattr(flags, name):
                setattr(flags, name, False)
                self._refuse(number)
        quitting = flags.quit
        if self._delay is not None:
            flags.quit = False
        worker.before_sleep()
        # The flag stands for "has been asked to", which a second Ctrl-C has to see.
        flags.quit = quitting

    def _refuse(self, number: signal.Signals) -> None:
        ticket = self.commands.take(number)
        text = f"{number.name} means nothing to a single process (master_process: false)"
        self.cycle.error_log.warn(text)
        self.commands.finish(ticket, ok=False, text=text)

    def _stopping(self, number: signal.Signals) -> None:
        if number == signal.SIGTERM and self.worker.stopped:
            return
        ticket = self.commands.take(number)
        if not self.worker.exiting:
            self.notifier.stopping(status="shutting down")
            conf = self.cycle.conf
            self.notifier.extend(int((conf.drain_delay + conf.timeouts.graceful + 5.0) * 1e6))
        self.commands.finish(ticket, ok=True, text="exiting")

    def _quit(self) -> None:
        """`process.stop.GracefulStop`, for one process."""
        flags, worker, log = self.flags, self.worker, self.cycle.error_log
        if not self._ending:
            self._ending = True
            flags.insist = False
            self._stopping(signal.SIGQUIT)
            worker.reactor.create_time_event(DRAIN_REPORT_EVERY, self._report_drain)
            delay = self.cycle.conf.drain_delay
            if delay:
                log.notice(stop.delay_line(delay))
                worker.say_farewell()
                self._delay = worker.reactor.create_time_event(delay, self._delay_over)
        elif flags.insist and self._delay is not None:
            log.notice(stop.DELAY_CUT)
            worker.reactor.delete_time_event(self._delay)
            self._delay = None
        flags.insist = False
        if self._delay is None:
            worker.end_with(stop.seal_own(self.cycle.listeners, log))

    def _delay_over(self) -> float:
        self._delay = None  # the next `before_sleep` goes on
        return NOMORE

    def _report_drain(self) -> float:
        self.cycle.error_log.notice(f"draining: {self._workload()}")
        return DRAIN_REPORT_EVERY

    def _workload(self) -> str:
        left = self.worker.serving.server.connections
        return f"{left} connection{'s'[: left != 1]} left"

    def _reconfigure(self) -> None:
        """Serve by the new configuration with the application there is."""
        ticket = self.commands.take(signal.SIGHUP)
        began = time.monotonic()
        self.account.begin()
        old = self.cycle
        old.error_log.notice("reconfiguring")
        self.notifier.reloading()
        try:
            new = init_cycle(old.source, inherited=self.inherited, old=old)
        except OperatorError as error:
            outcome = Outcome(
                ok=False,
                before=old.generation,
                now=old.generation,
                seconds=time.monotonic() - began,
                error=str(error),
            )
            old.error_log.error(outcome.text)
            self.commands.finish(ticket, ok=False, text=outcome.line)
            self.account.end(outcome)
            self.notifier.ready(status="single process")
            return
        for warning in new.warnings:
            new.error_log.warn(warning)
        self.cycle = new
        apply_changes(new.listeners, new.conf.listen)
        before = self.worker.adopt(new)

        def close() -> float:
            before.close()
            for listener in old.without(new):
                release(listener, self.inherited)
            old.close_logs()
            return NOMORE

        # Not in a hook of the reactor, from whose list of hooks this takes some away.
        before.drain(lambda: self._later(close))
        self.board.slot(0).generation = new.generation
        self._tell_header()
        outcome = Outcome(
            ok=True,
            before=old.generation,
            now=new.generation,
            changed=tuple(
                changes(
                    old.conf,
                    new.conf,
                    started_with=self.started_with,
                    secrets=old.secrets | new.secrets,
                    settled=_SETTLED,
                )
            ),
            seconds=time.monotonic() - began,
            note=f"generation {old.generation} -> {new.generation}, the application stays imported",
        )
        new.error_log.notice(f"reconfigured: {outcome.text}")
        self.commands.finish(ticket, ok=True, text=outcome.line)
        self.account.end(outcome)
        self.notifier.ready(status="single process")

    def _later(self, proc: Callable[[], float]) -> None:
        self.worker.reactor.create_time_event(0.0, proc)

    def _tell_header(self) -> None:
        header = self.board.header
        header.generation = self.cycle.generation
        header.target_workers = 1
        header.config_path = self.cycle.config_path
        header.listen = "\n".join(self.cycle.urls)
        header.inodes = " ".join(str(os.fstat(one.fileno()).st_ino) for one in self.cycle.listeners)
        header.program = __version__
        header.app = named(self.cycle, self.worker.interface)
