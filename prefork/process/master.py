"""The master: it reads the configuration, binds, forks, reaps, and sleeps.

`master_process_cycle` is the list to read first. It is `ngx_master_process_cycle`: the same flags
in the same order. The master never imports the application, never accepts a connection and never
reads a request; it has no threads and no timer that is not waiting for something.
"""

import os
import signal
import sys
from typing import Final, NoReturn

from prefork import __version__
from prefork.config.loader import ConfigSource, Loaded
from prefork.errors import EXIT_FAILED, EXIT_OK, OperatorError
from prefork.net.inherit import Inherited
from prefork.process import scaling, sharing, stop, terminal
from prefork.process.boot import Boot
from prefork.process.children import Children
from prefork.process.commands import Commands
from prefork.process.cycle import Cycle, init_cycle
from prefork.process.molds import account
from prefork.process.outcome import Account, Outcome
from prefork.process.ready import named, ready_line
from prefork.process.refork import Refork
from prefork.process.reload import Reload
from prefork.process.replace import Replacements
from prefork.process.retired import RetiredListeners
from prefork.process.service import Service
from prefork.process.spawn import SpawnError, close_siblings
from prefork.process.stacks import Stacks
from prefork.process.succession import Succession, open_board
from prefork.process.table import ProcessSlot, ProcessTable, Respawn
from prefork.process.timers import Timers
from prefork.process.upgrade import Predecessor, Upgrade
from prefork.process.watchdog import Watchdog
from prefork.process.workers import WorkerProcesses
from prefork.scoreboard import fallback_path_beside
from prefork.unix import signals
from prefork.unix.channel import Channel
from prefork.unix.daemon import Daemon, daemonize
from prefork.unix.notify import Notifier
from prefork.unix.pidfile import PidFile
from prefork.unix.proctitle import set_title

DRAIN_REPORT_EVERY: Final = 5.0  # seconds
FIRST_DELAY: Final = 50  # milliseconds; nginx's escalation of TERM
LAST_DELAY: Final = 1000


def run(source: ConfigSource, loaded: Loaded, *, started: float) -> int:
    """The whole life of the server; the exit code.

    `started` is the `time.monotonic()` of this process's beginning. Raises OperatorError for what
    goes wrong before there is a server; a daemon's launching command gets the same text and code.
    """
    # First of all: a thread that an import might start must not be the one to take a signal.
    signals.block()
    sharing.begin()
    predecessor = Predecessor(os.environ)
    inherited = Inherited.from_environment()
    notifier = Notifier()
    notifier.forget()
    cycle = init_cycle(source, loaded=loaded, inherited=inherited)
    conf = cycle.conf
    daemon = None
    if conf.daemon and not predecessor.upgraded:
        daemon = daemonize()
    try:
        if not conf.master_process:
            from prefork.process.single import single_process_cycle

            return single_process_cycle(cycle, inherited, notifier, daemon, started)
        return master_process_cycle(
            Master(cycle, inherited, notifier, daemon, predecessor, started)
        )
    except OperatorError as error:
        for listener in cycle.listeners:
            listener.close(unlink=True)
        if cycle.error_file.is_file:
            cycle.error_log.emerg(str(error))
        if daemon is None:
            raise
        daemon.failed(error.exit_code, f"prefork: {error}")
        return error.exit_code


def master_process_cycle(master: "Master") -> int:
    """Start the workers and do what signals ask for, until nothing lives; the exit code."""
    flags = master.flags
    delay = 0  # milliseconds between two TERMs, doubling; 0 while nobody wants us to terminate
    sigio = 0  # wake-ups to let pass before the next TERM: every death is one
    master.begin()

    while True:
        if delay:
            if flags.alarm:
                sigio = 0
                delay *= 2
                flags.alarm = False
            signals.set_alarm(delay / 1000)
        else:
            master.timers.arm()

        master.tell_molds()
        signals.suspend()

        if flags.sigio:
            flags.sigio = False
            master.children.read_channels()

        if flags.alarm and not delay:
            flags.alarm = False
            master.timers.run()

        if flags.reap:
            flags.reap = False
            master.children.reap()

        if not delay:
            stop.decide(flags, master.cycle.conf.on_term, master.cycle.error_log, master.workload)

        if not master.table.live and (flags.terminate or flags.quit):
            return master.exit()

        if flags.terminate:
            if delay == 0:
                master.stopping(signal.SIGTERM)
                delay = FIRST_DELAY
            if sigio:
                sigio -= 1
                continue
            sigio = len(master.table.living()) + 2
            # It is the delay that is compared, not the time that went by: TERM after 0, 150, 350,
            # 750 and 1550 ms, KILL after 3150.
            if delay > LAST_DELAY:
                master.watchdog.last_words()
                master.workers.signal_all(signal.SIGKILL)
            else:
                master.workers.signal_all(signal.SIGTERM)
                if delay * 2 > LAST_DELAY:
                    master.watchdog.last_question()
            continue

        if flags.quit:
            master.graceful.step()
            continue

        if flags.reconfigure and master.reload is None:
            flags.reconfigure = False
            if master.upgrade.new_binary is None:
                Reload.begin(master)
            else:
                master.take_back()

        if flags.restart:
            flags.restart = False
            master.start_workers()

        if flags.reopen:
            flags.reopen = False
            master.reopen_logs()

        if flags.change_binary and master.reload is None:
            flags.change_binary = False
            master.upgrade.change_binary()

        if flags.noaccept:
            flags.noaccept = False
            master.drain_workers()

        if flags.more and master.reload is None:
            flags.more = False
            scaling.more(master)

        if flags.fewer and master.reload is None:
            flags.fewer = False
            scaling.fewer(master)

        if master.reload is not None:
            master.reload.tell_waiting()

        master.refork.step()
        master.replacements.step()


class Master:
    """What the master knows, and the steps of its cycle."""

    def __init__(
        self,
        cycle: Cycle,
        inherited: Inherited,
        notifier: Notifier,
        daemon: Daemon | None,
        predecessor: Predecessor,
        started: float,
    ) -> None:
        """Raises OperatorError: the pid file is held, the scoreboard cannot be made."""
        conf = cycle.conf
        self.cycle = cycle
        self.started_with = conf
        self.inherited = inherited
        self.notifier = notifier
        self.predecessor = predecessor
        self._daemon = daemon
        self._started = started
        self.pid_file: PidFile | None = None
        if conf.pid_file is not None:
            self.pid_file = PidFile(conf.pid_file)
            stale = self.pid_file.create()
            if stale is not None:
                cycle.error_log.notice(stale)
        try:
            self.board = open_board(
                predecessor,
                cycle.error_log,
                fallback_path_beside(conf.pid_file) if conf.pid_file else None,
            )
        except OperatorError:
            if self.pid_file is not None:
                self.pid_file.unlink()
            raise
        self.stacks = Stacks.create()
        self.flags = signals.SignalFlags()
        self.timers = Timers()
        self.table = ProcessTable(self.board.slots)
        self.workers = WorkerProcesses(
            self.table,
            self.board,
            self.timers,
            self._worker,
            self._mold,
            lambda: self.cycle.error_log,
        )
        self.children = Children(self)
        self.workers.on_unmade = self.children.unmade
        self.watchdog = Watchdog(self)
        self.workers.on_overdue = self.watchdog.boot_overdue
        self.workers.on_deaf = self.watchdog.deaf
        self.workers.molds.on_overdue = self.watchdog.mold_overdue
        self.retired = RetiredListeners(self.table, inherited)
        self.commands = Commands(self.board)
        self.account = Account(self.board.header)
        self.upgrade = Upgrade(self)
        self.succession = Succession(self)
        self.service = Service(self)
        self.graceful = stop.GracefulStop(self)
        self.replacements = Replacements(self)
        self.refork = Refork(self)
        self.reload: Reload | None = None
        self.target = cycle.workers
        self.noaccepting = False
        self.interface = ""
        self.served = False
        self.ending = False
        self.gave_up = False  # it is the master itself that wants to stop
        self.stillborn = ""  # why the first workers died, while a reload makes others
        self._exit_code = EXIT_OK
        self._molds_told = ""
        self._pid = os.getpid()

    # Starting

    def begin(self) -> None:
        """Take the signals over, import what all workers share, start them."""
        conf = self.cycle.conf
        log = self.cycle.error_log
        signals.install_master(self.flags)
        self.service.begin()
        self.succession.begin()
        log.notice(f"workers: {self.cycle.workers_reason}")
        for problem in (*self.inherited.problems, *self.inherited.close_unclaimed()):
            log.warn(problem)
        if (conf.user is not None or conf.group is not None) and os.geteuid() != 0:
            log.warn('"user" and "group" make sense only if the master runs as root, ignored')
        # Before the first fork, so that the workers share these pages. Not the application.
        import prefork.process.worker  # noqa: F401

        if self.in_background and self._daemon is None:
            log.redirect_stderr()
        set_title(f"prefork: master {self.cycle.name}")
        self.tell_header()
        sharing.settle()
        self.workers.prepare(self.cycle, self._start_first, self._moldless)

    def _start_first(self) -> None:
        """The first workers, once there is something to make them from."""
        if self.ending or self.served:
            return
        if self.cycle.conf.preload:
            self.service.extend(self.cycle.conf.timeouts.boot)
        try:
            rows = self.workers.start(self.cycle, self.target, Respawn.RESPAWN)
        except SpawnError as error:
            self._give_up(str(error))
            return
        boot = Boot(rows, on_ready=self.serving, on_failed=self._stillborn, tolerant=True)
        self.children.await_boot(boot)

    @property
    def in_background(self) -> bool:
        """Started as a daemon, by ourselves or by the master we come after."""
        return self._daemon is not None or (self.predecessor.upgraded and self.cycle.conf.daemon)

    @property
    def in_upgrade(self) -> bool:
        """Is there another master, the new one or the old one, that serves when we are gone?"""
        return self.upgrade.new_binary is not None or self.predecessor.alive

    @property
    def wants_workers(self) -> bool:
        """Is something wrong when there is no worker?"""
        return self.served and not self.ending and not self.noaccepting

    def start_workers(self) -> None:
        """A whole set of workers again, after they had been drained."""
        self.noaccepting = False
        try:
            rows = self.workers.start(self.cycle, self.target, Respawn.RESPAWN)
        except SpawnError:
            return
        self.children.await_boot(Boot(rows, on_ready=self.service.tell, on_failed=lambda *_: None))

    def _worker(self, cycle: Cycle, row: ProcessSlot, channel: Channel) -> NoReturn:
        from prefork.process.worker import worker_process_cycle

        self._let_go(cycle)
        worker_process_cycle(
            cycle,
            row,
            channel,
            self.board.slot(row.index),
            self._pid,
            stacks=self.stacks,
            detach=self.in_background,
        )
        os._exit(EXIT_FAILED)  # it is not promoted: it does not come from a mold

    def _mold(self, cycle: Cycle, row: ProcessSlot, channel: Channel) -> NoReturn:
        from prefork.process.mold import mold_process_cycle

        self._let_go(cycle)
        mold_process_cycle(
            cycle,
            row,
            channel,
            self.board.slot,
            self._pid,
            stacks=self.stacks,
            detach=self.in_background,
        )

    def _let_go(self, cycle: Cycle) -> None:
        """In a new worker of `cycle`: close what is the master's own, or another cycle's.

        A listening socket lives as long as any process has it open, wanted or not.
        """
        close_siblings(self.table)
        if self._daemon is not None:
            # What libraries print while the worker boots, too, belongs into the error log.
            self._daemon.forget(cycle.error_file.fd if cycle.error_file.is_file else None)
        self.predecessor.forget()
        self.notifier.close()
        others = [self.cycle]
        if self.reload is not None and self.reload.new is not None:
            others.append(self.reload.new)
        listeners = {id(one): one for one in self.retired}
        for other in others:
            listeners.update((id(one), one) for one in other.listeners)
            if other is not cycle:
                other.close_logs()
        for one in cycle.listeners:
            listeners.pop(id(one), None)
        for one in listeners.values():
            one.close()

    def serving(self) -> None:
        """The first workers are ready: say so to everyone who waits for it, once."""
        if self.served or self.ending:
            return
        self.served = True
        self.tell_header()
        cycle = self.cycle
        line = ready_line(cycle, self.interface, self.processes, self._started)
        cycle.error_log.notice(line)
        self.service.tell()
        self.predecessor.greet()
        if self._daemon is not None:
            self._daemon.ready(f"prefork: {line}")
            cycle.error_log.redirect_stderr()

    def _stillborn(self, _row: ProcessSlot, reason: str) -> None:
        """Not one of the first workers got ready."""
        if self.served or self.ending:
            return  # it was a reload or a stop that made them leave
        if self.reload is not None:
            self.stillborn = reason  # the next generation may do better
        else:
            self.no_worker(reason)

    def _moldless(self, reason: str) -> None:
        """What the first workers were to be made from could not be made."""
        if self.reload is not None:
            self.stillborn = reason
        elif not self.served and not self.ending:
            self.no_worker(reason)

    def no_worker(self, reason: str) -> None:
        """Nobody serves and nobody will: end, and say why."""
        self._give_up(f"no worker could start: {reason.partition(chr(10))[0]}", reason)

    def _give_up(self, said: str, report: str | None = None) -> None:
        self.cycle.error_log.emerg(said)
        if self._daemon is not None:
            self._daemon.failed(EXIT_FAILED, f"prefork: {report or said}")
        elif self.cycle.error_file.is_file:
            print(f"prefork: {report or said}", file=sys.stderr)
        self._exit_code = EXIT_FAILED
        self.gave_up = True
        self.flags.terminate = True
        self.wake()  # when this comes before the first sleep

    # Commands

    def take_back(self) -> None:
        """HUP while a new master runs: start our workers again, with our own configuration."""
        ticket = self.commands.take(signal.SIGHUP)
        self.account.begin()
        if self.noaccepting:
            self.start_workers()
            text = f"the old master {os.getpid()} has started its workers again"
        else:
            text = f"the old master {os.getpid()} serves; QUIT the new one to undo the upgrade"
        self.cycle.error_log.notice(text)
        generation = self.cycle.generation
        self.commands.finish(ticket, ok=True, text=text)
        self.account.end(Outcome(ok=True, before=generation, now=generation, note=text))

    def reopen_logs(self) -> None:
        """Ours first, so that the new files have their owner when the workers open them."""
        ticket = self.commands.take(signal.SIGUSR1)
        self.cycle.error_log.notice("reopening logs")
        problems = self.cycle.reopen_logs()
        if self.reload is not None and self.reload.new is not None:
            problems += self.reload.new.reopen_logs()  # else it would go on in the moved files
        told = self.workers.signal_all(signal.SIGUSR1)
        workers = f"{told} worker{'s'[: told != 1]}"
        text = "; ".join(problems) or f"log files reopened, {workers} told to do the same"
        self.commands.finish(ticket, ok=not problems, text=text)

    def drain_workers(self) -> None:
        """WINCH: no more worker, but a master that can start them again."""
        if terminal.controlled():
            return  # the window was resized
        ticket = self.commands.take(signal.SIGWINCH)
        self._abandon_reload("the workers are drained")
        if self.flags.reconfigure:
            self.flags.reconfigure = False
            Reload.refuse(self, "the workers are drained")
        self.noaccepting = True
        self.cycle.error_log.notice("stop accepting connections")
        told = self.workers.signal_all(signal.SIGQUIT)
        self.commands.finish(ticket, ok=True, text=f"{told} workers draining, the master stays")
        self.service.tell()

    def stopping(self, number: signal.Signals) -> None:
        """The end has begun; a TERM after a QUIT comes here a second time."""
        fast = number == signal.SIGTERM
        if fast:
            self.timers.clear()  # the escalation has the alarm from now on
        if self.ending and not fast:
            return
        doing = "exiting" if fast else "shutting down"
        if not self.gave_up:
            by = signal.Signals(self.flags.by or number)
            self.cycle.error_log.notice(f"signal {int(by)} ({by.name}) received, {doing}")
            self.flags.by = 0
        ticket = self.commands.take(number)
        self._abandon_reload("the server stops")
        if not self.ending:
            self.ending = True
            conf = self.cycle.conf
            graceful = conf.drain_delay + conf.timeouts.graceful
            self.service.stopping(4.0 if fast else graceful + 4.0)
        if not fast:
            self.timers.after(DRAIN_REPORT_EVERY, self._report_drain)
        self.commands.finish(ticket, ok=True, text=doing)

    def _report_drain(self) -> None:
        self.cycle.error_log.notice(f"draining: {self.workload()}")
        self.timers.after(DRAIN_REPORT_EVERY, self._report_drain)

    def _abandon_reload(self, why: str) -> None:
        if self.reload is not None:
            self.reload.abandon(why)

    def close_retired(self) -> None:
        """Close the listeners that nobody has and no cycle wants, be it in the making."""
        wanted = list(self.cycle.listeners)
        if self.reload is not None and self.reload.new is not None:
            wanted += self.reload.new.listeners
        self.retired.close_unused(wanted, self.cycle.error_log)

    # Telling

    def set_target(self, workers: int) -> None:
        self.target = workers
        self.board.header.target_workers = workers

    def wake(self) -> None:
        """Let the next sleep be a short one."""
        self.timers.after(0.0, _nothing)

    def workload(self) -> str:
        """What a drain waits for: `3 connections in 2 workers`."""
        rows = self.table.living()
        left = sum(self.board.slot(row.index).connections for row in rows)
        return (
            f"{left} connection{'s'[: left != 1]} left in {len(rows)} worker{'s'[: len(rows) != 1]}"
        )

    @property
    def processes(self) -> str:
        """`2 workers`."""
        return f"{self.target} worker{'s'[: self.target != 1]}"

    def tell_molds(self) -> None:
        """The scoreboard's account of the molds, when it has changed."""
        text = account(self.table)
        if text != self._molds_told:
            self._molds_told = text
            self.board.header.molds = text

    def tell_header(self) -> None:
        """The scoreboard's account of the cycle."""
        header = self.board.header
        header.generation = self.cycle.generation
        header.target_workers = self.target
        header.config_path = self.cycle.config_path
        header.listen = "\n".join(self.cycle.urls)
        header.inodes = " ".join(str(os.fstat(one.fileno()).st_ino) for one in self.cycle.listeners)
        header.program = __version__
        header.app = named(self.cycle, self.interface)

    # The end

    def exit(self) -> int:
        """nginx: `ngx_master_process_exit`."""
        if not self.ending:
            self.stopping(signal.SIGTERM if self.flags.terminate else signal.SIGQUIT)
        self.timers.clear()
        alone = not self.in_upgrade
        self.service.end()
        if self._daemon is not None:
            self._daemon.failed(self._exit_code, "prefork: stopped before it was ready")
        if self.pid_file is not None:
            self.pid_file.unlink()
        for listener in (*self.cycle.listeners, *self.retired):
            listener.close(unlink=alone)
        self.board.close()
        self.cycle.error_log.notice("exit")
        return self._exit_code


def _nothing() -> None:
    """A timer that has nothing to do but to go off."""
