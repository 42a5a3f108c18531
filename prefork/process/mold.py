"""The mold: it imports the application once, and forks the workers of its cycle.

The word is pitchfork's, and so is the way: the mold forks a process that forks the worker and ends
at once, so that the worker is an orphan and is adopted by the master (`prefork.unix.subreaper`),
which can wait for it and signal it like any other child. The mold never serves.

A fork runs the application's own code (`os.register_at_fork`), in which it may hang or die, so
each of the three has an end of its own. The middle process and the half-born worker set an alarm
as the first thing they do, whose default action the kernel takes however they hang; the mold, which
waits for the middle one, is killed by the master when no worker has said HELLO in time. A half-born
worker does nothing before the master has answered with ADOPTED, and leaves when its channel is
closed instead: the master may have given it up and made another.

Signals are blocked over the fork. Sent to a worker before its handlers stand, one would run the
mold's.
"""

import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

import msgspec

from prefork.errors import EXIT_FAILED, EXIT_FATAL, EXIT_OK, OperatorError
from prefork.log import errno_text
from prefork.process import parent, sharing
from prefork.process.cycle import Cycle
from prefork.process.forkguard import ForkGuard, warning
from prefork.process.preload import Preloaded, preload
from prefork.process.stacks import Stacks
from prefork.process.table import Order, ProcessSlot
from prefork.process.witness import Witness
from prefork.process.worker import become, worker_process_cycle
from prefork.scoreboard import Slot
from prefork.unix import signals
from prefork.unix.channel import Channel, Command, Message
from prefork.unix.proctitle import set_title
from prefork.unix.waitstatus import describe

MIDDLE_SECONDS: Final = 2.0  # for the process between the mold and the worker
BIRTH_SECONDS: Final = 10.0  # from the fork to ADOPTED


def mold_process_cycle(
    cycle: Cycle,
    row: ProcessSlot,
    channel: Channel,
    slot_of: Callable[[int], Slot],
    master: int,
    *,
    stacks: Stacks,
    detach: bool,
) -> NoReturn:
    """A forked child's whole life, from the limits to `os._exit`. As `worker_process_cycle`."""
    code = EXIT_FAILED
    try:
        set_title(f"prefork: mold gen {cycle.generation} loading")
        mold = Mold(cycle, channel, slot_of, master, stacks=stacks, detach=detach)
        code = mold.load()
        while code == EXIT_OK:
            # Each life begins here, however many molds were workers before: on a short stack.
            worker, channel = mold.run()
            code = mold.live(worker, channel)
    except BaseException as error:
        cycle.error_log.alert(f"the {row.name} ends by an error of prefork's own", exc=error)
    finally:
        os._exit(code)


class Mold:
    """The application, and the way to a worker."""

    def __init__(
        self,
        cycle: Cycle,
        channel: Channel,
        slot_of: Callable[[int], Slot],
        master: int,
        *,
        stacks: Stacks,
        detach: bool,
    ) -> None:
        self._cycle = cycle
        self._channel = channel
        self._slot_of = slot_of
        self._master = master
        self._stacks = stacks
        self._detach = detach
        self._reforks = 0  # how many molds there were before in this cycle
        self._preloaded: Preloaded
        region = Stacks.of_mold(cycle.generation)
        stacks.clear(region)  # of a mold that had the same
        self._witness = Witness(stacks, region, cycle.error_log)

    def load(self) -> int:
        """Become what a worker is, import, and say READY; or FAILED, and the exit code."""
        cycle = self._cycle
        try:
            become(cycle)
        except OperatorError as error:
            return self._failed(str(error), EXIT_FATAL)
        parent.die_with(self._master)
        _obey()
        self._witness.stand()
        signals.unblock_all()
        os.register_at_fork(after_in_child=_born)  # before the application can register its own
        guard = ForkGuard()
        try:
            with sharing.loading():
                self._preloaded = preload(cycle.conf)
        except OperatorError as error:
            return self._failed(str(error), EXIT_FAILED)
        _obey()  # whatever the application has set: signals mean this here, and workers set theirs
        hazards = guard.hazards()
        if hazards:
            cycle.error_log.warn(warning(hazards))
        self._settle()
        self._channel.send(Message(Command.READY, -1, os.getpid(), self._interface))
        return EXIT_OK

    def _failed(self, report: str, code: int) -> int:
        self._channel.send(Message(Command.FAILED, -1, os.getpid(), report.encode()))
        self._channel.flush(1.0)
        return code

    @property
    def _interface(self) -> bytes:
        return self._preloaded.hosted.interface.encode()

    def _settle(self) -> None:
        """Share what is there, and say what we are."""
        self._witness.stand()
        sharing.share()
        again = f" refork {self._reforks}" if self._reforks else ""
        set_title(f"prefork: mold gen {self._cycle.generation}{again} ({_resident_mib()} MiB)")
        self._channel.take_channels()

    def run(self) -> tuple[ProcessSlot, Channel]:
        """Fork when the master asks for it, until it is gone or wants us gone.

        Returns in a worker only, with what it has to know.
        """
        channel = self._channel
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN)
        while True:
            poll.poll()
            for message in channel.receive():
                if message.command is Command.SPAWN:
                    worker = self._spawn(message)
                    if worker is not None:
                        return worker
                elif message.command is Command.REOPEN:
                    self._cycle.reopen_logs()  # workers are born with the files we have open
                elif message.command in (Command.QUIT, Command.TERMINATE):
                    os._exit(EXIT_OK)
            if channel.eof:
                os._exit(EXIT_OK)

    def live(self, worker: ProcessSlot, channel: Channel) -> int:
        """A worker's life. EXIT_OK: it has been promoted, and is a mold now."""
        guard = ForkGuard() if worker.milestone else None
        worker_process_cycle(
            self._cycle,
            worker,
            channel,
            self._slot_of(worker.index),
            self._master,
            stacks=self._stacks,
            detach=self._detach,
            preloaded=self._preloaded,
        )
        log = self._cycle.error_log
        hazards = [] if guard is None else guard.hazards()
        if hazards:
            log.warn(warning(hazards, "refork_after: the worker cannot become a mold"))
            return EXIT_FAILED
        self._reforks += 1
        self._channel = channel
        self._preloaded = self._preloaded.renewed(self._cycle.conf)
        parent.die_with(self._master)
        _obey()
        self._settle()
        channel.send(Message(Command.PROMOTE, worker.index, os.getpid(), self._interface))
        return EXIT_OK

    def _spawn(self, message: Message) -> tuple[ProcessSlot, Channel] | None:
        theirs = self._channel.taken()
        if theirs is None:
            return None
        signals.block()
        try:
            pid = _fork(MIDDLE_SECONDS)
        except OSError as error:
            signals.unblock_all()
            self._not_born(message, f"fork() failed {errno_text(error)}")
            theirs.close()
            return None
        if pid == 0:
            worker = None
            try:
                worker = self._bear(message, theirs)
            finally:
                if worker is None:
                    os._exit(EXIT_FAILED)
            return worker, theirs
        try:
            _pid, status = os.waitpid(pid, 0)
        except ChildProcessError:
            status = 0  # the application has SIGCHLD ignored: the kernel has reaped it
        signals.unblock_all()
        if status:
            # Said before the end of the worker's channel says less.
            self._not_born(message, f"the process between it and the worker {describe(status)}")
            self._channel.flush(1.0)
            os._exit(EXIT_FAILED)  # what happened to one would happen to the next
        theirs.close()
        return None

    def _not_born(self, message: Message, why: str) -> None:
        self._channel.send(Message(Command.FAILED, message.slot, os.getpid(), why.encode()))

    def _bear(self, message: Message, channel: Channel) -> ProcessSlot:
        """In the middle process: fork the worker, in which alone this returns."""
        middle = os.getpid()
        if _fork(BIRTH_SECONDS):
            os._exit(EXIT_OK)
        # The worker. From here to ADOPTED it may have been given up at any moment.
        self._channel.close()
        _await_end_of(middle)
        if os.getppid() != self._master:
            os._exit(EXIT_OK)  # the master is gone, and somebody else has adopted us
        channel.send(Message(Command.HELLO, message.slot, os.getpid()))
        if _await_adoption(channel):
            self._cycle.reopen_logs()
        signals.set_alarm(0)
        reseed()
        order = msgspec.json.decode(message.payload, type=Order)
        return ProcessSlot(
            message.slot,
            name=f"worker {message.slot + 1}",
            cycle=self._cycle,
            ordinal=order.ordinal,
            waits=order.waits,
            milestone=order.milestone,
        )


def _obey() -> None:
    """TERM and QUIT end a mold at once, as a worker that boots; nothing else is for it."""
    signals.install_worker(signals.SignalFlags())

    def handler(_number: int, _frame: FrameType | None) -> None:
        os._exit(EXIT_OK)

    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, handler)


_seconds_to_live = 0.0


def _fork(seconds: float) -> int:
    """fork(), in whose child the alarm stands before any code of the application's runs."""
    global _seconds_to_live
    _seconds_to_live = seconds
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads at each fork. We have, once, and said which they are.
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    finally:
        _seconds_to_live = 0.0


def _born() -> None:
    if _seconds_to_live:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
        signals.set_alarm(_seconds_to_live)


def _await_end_of(pid: int) -> None:
    """Wait until our parent `pid` has ended, which takes it no time, and somebody adopted us."""
    try:
        process = os.pidfd_open(pid)
    except (OSError, AttributeError):
        pass  # it is gone, or this is not Linux 5.3
    else:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.poll()
        os.close(process)
    while os.getppid() == pid:
        time.sleep(0.001)


def _await_adoption(channel: Channel) -> bool:
    """Wait for ADOPTED, or leave. True when the logs were to be reopened meanwhile."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    reopen = False
    while True:
        poll.poll()
        for message in channel.receive():
            if message.command is Command.REOPEN:
                reopen = True
            elif message.command is Command.ADOPTED:
                return reopen
        if channel.eof:
            os._exit(EXIT_OK)


def reseed() -> None:
    """Random numbers of its own for each worker, where the libraries do not see to it.

    `random` and OpenSSL do, in a hook of their own; numpy's global generator does not.
    Generators that an application keeps for itself are its own business (`on_startup`).
    """
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _resident_mib() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024)
