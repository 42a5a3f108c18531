"""The worker: it imports the application, accepts, serves, drains and leaves.

After `ngx_worker_process_cycle`. Its one place to sleep is the reactor; what the master or a signal
wants is a flag, and `before_sleep` reads the flags once a turn. A worker never returns to the
master's stack and never unwinds the interpreter: that would copy pages it shares with everyone,
and run exit handlers that belong to the master. It flushes and leaves by `os._exit`.
"""

import asyncio
import logging
import math
import os
import signal
import time
from collections.abc import Collection
from types import FrameType
from typing import Final

from prefork.errors import EXIT_FAILED, EXIT_FATAL, EXIT_OK, OperatorError
from prefork.event.bridge import ReactorLoop
from prefork.event.executor import Executor
from prefork.event.reactor import READABLE, Reactor
from prefork.event.wakeup import Wakeup
from prefork.log import ErrorLog, LoggingHandler, errno_text
from prefork.net.listener import Listener
from prefork.process import parent
from prefork.process.awake import Awake
from prefork.process.cycle import Cycle
from prefork.process.drain import Drain
from prefork.process.hosting import AsksToBeReplaced, Hostable
from prefork.process.loading import AppLoadError, user_traceback
from prefork.process.preload import Preloaded, preload
from prefork.process.recycle import Recycler
from prefork.process.serving import Serving
from prefork.process.stacks import Stacks
from prefork.process.table import ProcessSlot
from prefork.process.watchdog import check_interval
from prefork.process.witness import Witness
from prefork.scoreboard import Slot, SlotState
from prefork.unix import identity, limits, signals
from prefork.unix.channel import Channel, Command, Message
from prefork.unix.proctitle import set_title

FAST_HOOKS: Final = 1.0  # seconds that on_shutdown hooks have when the stop is a fast one
LAST_HOOKS: Final = 0.5  # and at least, when a graceful one has used all of its time

# What an application raises to end a process, which is not the application's to end.
_EXITS: Final = (SystemExit, KeyboardInterrupt)


def worker_process_cycle(
    cycle: Cycle,
    row: ProcessSlot,
    channel: Channel,
    slot: Slot,
    master: int,
    *,
    stacks: Stacks,
    detach: bool,
    preloaded: Preloaded | None = None,
) -> None:
    """A forked child's whole life, from the limits to `os._exit`.

    It returns when the worker has been promoted, and nothing else: then it has no loop, no thread
    and no request any more, and goes on as the mold that others come from (`refork_after`).

    `master` is its parent's pid; `stacks` is where it says what it does when it hangs; `detach`
    says that the server is in the background. With `preloaded` it comes from a mold, which has
    done what is the same for all workers.
    """
    code: int | None = EXIT_FAILED
    log = cycle.error_log
    try:
        set_title(f"prefork: {row.name}")
        code = _run(cycle, row, channel, slot, master, stacks, detach, preloaded)
    except BaseException as error:
        log.alert(f"{row.name} ends by an error of prefork's own", exc=error)
    finally:
        if code is not None:
            os._exit(code)


def _run(
    cycle: Cycle,
    row: ProcessSlot,
    channel: Channel,
    slot: Slot,
    master: int,
    stacks: Stacks,
    detach: bool,
    preloaded: Preloaded | None,
) -> int | None:
    """The exit code, or None: it has been promoted."""
    flags = signals.SignalFlags()

    def failed(report: str, code: int) -> int:
        channel.send(Message(Command.FAILED, row.index, os.getpid(), report.encode()))
        channel.flush(1.0)
        return code

    try:
        if preloaded is None:
            become(cycle)
        limits.apply_own(cycle.conf, row.ordinal)
    except OperatorError as error:
        return failed(str(error), EXIT_FATAL)
    parent.die_with(master)
    signals.install_worker(flags)
    signals.let_children_die()
    _stop_at_once()
    witness = Witness(stacks, row.index, cycle.error_log)
    witness.stand()
    signals.unblock_all()
    worker = Worker(cycle, flags, row.name, slot)
    witness.loop, witness.executor = worker.loop, worker.executor
    try:
        worker.boot(preloaded)
        # From now on a signal is a flag, and the reactor wakes for it.
        signals.install_worker(flags, again=True)
        worker.start(shared=True, accepting=not row.waits)
    except OperatorError as error:
        return failed(str(error), EXIT_FAILED)
    witness.server = worker.serving.server
    worker.listen_to(channel)
    worker.report_to(channel, row.index)
    worker.recycle_by(channel, row.index)
    if row.milestone:
        worker.offer_after(row.milestone, channel, row.index)
    parent.outlive()
    if detach:
        _let_the_terminal_go(cycle)
    worker.reactor.before_sleep.append(worker.before_sleep)
    slot.state = SlotState.READY
    channel.send(Message(Command.READY, row.index, os.getpid(), worker.interface.encode()))
    worker.run()
    code = worker.leave()
    if not worker.promoted:
        return code
    worker.undo()
    witness.close()
    return None


def become(cycle: Cycle) -> None:
    """Limits, identity, directory: what may need root, and then root is gone."""
    conf = cycle.conf
    limits.apply_common(conf)
    identity.drop_privileges(conf.user, conf.group, dumpable=bool(conf.rlimits.core))
    enter(cycle)


def enter(cycle: Cycle) -> None:
    """The application's directory and environment. Raises OperatorError."""
    conf = cycle.conf
    try:
        os.chdir(conf.working_directory)
    except OSError as error:
        raise OperatorError(
            f'chdir() "{conf.working_directory}" failed {errno_text(error)} (working_directory)'
        ) from None
    os.environ.update(conf.environment)


def _let_the_terminal_go(cycle: Cycle) -> None:
    """What the launching command's reader waits for: nobody has its stdout open any more.

    The master does so when all are ready; each worker for itself, as far as its own boot goes.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    cycle.error_log.redirect_stderr()


def _stop_at_once() -> None:
    """While it boots a worker serves nobody: it leaves out of the middle of any import.

    At once, and not by an exception: an `except:` or a `finally:` on the way would have its say.
    """

    def handler(_number: int, _frame: FrameType | None) -> None:
        os._exit(EXIT_OK)

    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, handler)


class Worker:
    """The reactor, the loop, the application, and what is served with them."""

    def __init__(self, cycle: Cycle, flags: signals.SignalFlags, name: str, slot: Slot) -> None:
        self.cycle = cycle
        self.flags = flags
        self.name = name
        self.slot = slot
        self.interface = ""
        self.exiting = False
        self.promoted = False  # we leave our requests only, and go on as a mold
        self.leaves_sockets = True  # a drain closes our copies; a single process keeps them
        self.reactor = Reactor()
        self.reactor.on_error = self._reactor_error
        self.loop = ReactorLoop(self.reactor)
        asyncio.set_event_loop(self.loop)
        self._wakeup: Wakeup | None = None
        self.executor = Executor(self.loop)
        self.serving: Serving
        self.awake: Awake
        self._application: Hostable
        self._whole = False  # it is the whole server that stops
        self._queues: Collection[Listener] = ()  # what waits there is served before we leave
        self._sealed = False
        self._drain: Drain | None = None
        self._fast = False
        self.stopped = False
        self._left = -1
        self._handler: LoggingHandler | None = None

    @property
    def log(self) -> ErrorLog:
        return self.cycle.error_log

    def boot(self, preloaded: Preloaded | None = None) -> None:
        """Import the application, unless a mold has, and run its start-up. Raises AppLoadError."""
        conf = self.cycle.conf
        spec = conf.app or ""
        if preloaded is None:
            preloaded = preload(conf)
        application = preloaded.hosted.application
        self.interface = preloaded.hosted.interface
        self._log_records()
        try:
            self.loop.run_until_complete(application.startup())
        except OperatorError as error:
            cause = f"\n{user_traceback(error.__cause__)}" if error.__cause__ else ""
            raise AppLoadError(f'app "{spec}": {error}{cause}') from None
        except (Exception, SystemExit) as error:
            # Not KeyboardInterrupt: a single process that boots is stopped by one.
            raise AppLoadError(
                f'app "{spec}": on_startup failed\n{user_traceback(error)}'
            ) from None
        self._application = application

    def start(self, *, shared: bool, accepting: bool = True) -> None:
        """Begin to accept, and to wake for signals, whose handlers stand by now.

        `shared`: other processes accept from the same sockets. Not `accepting`: `accept` follows.
        """
        self._wakeup = Wakeup(self.reactor)
        self.serving = self.serve(self.cycle, shared=shared)
        self.awake = Awake(self.serving.server)
        if accepting:
            self.accept()

    def accept(self) -> None:
        """Accept from now on, unless it has been told to leave already."""
        if not self.exiting:
            self.serving.start()

    def serve(self, cycle: Cycle, *, shared: bool) -> Serving:
        handler = self._application.callback(executor=self.executor, error_log=cycle.error_log)
        return Serving(cycle, self.loop, handler, self.slot, executor=self.executor, shared=shared)

    def adopt(self, cycle: Cycle) -> Serving:
        """Serve by `cycle` from now on; the serving there was is returned, to be drained."""
        before = self.serving
        self.cycle = cycle
        self.serving = self.serve(cycle, shared=False)
        self.serving.server.succeed(before.server)
        # In this order: a socket that both have is watched under one number.
        before.stop_accepting()
        self.serving.start()
        self._log_records()
        return before

    def run(self) -> None:
        """Serve until `stop` or `terminate`."""
        while not self.stopped:
            try:
                self.loop.run_forever()
            except _EXITS as error:
                # asyncio lets these out of the step of any Task, one of the application's own
                # too. Who waits for that Task hears of it; the others are not to.
                self.log.error(f"an exit() in a task does not end the worker: {error!r}", exc=error)

    def listen_to(self, channel: Channel) -> None:
        """Obey the master, and leave when it is gone."""

        def on_readable() -> None:
            for message in channel.receive():
                if message.command is Command.QUIT:
                    self.flags.quit = True
                elif message.command is Command.DRAIN_QUEUE:
                    listeners = self.cycle.listeners
                    self.end_with([listeners[int(n)] for n in message.payload.split()])
                    self.flags.quit = True
                elif message.command is Command.FAREWELL:
                    self.say_farewell()
                elif message.command is Command.TERMINATE:
                    self.flags.terminate = True
                elif message.command is Command.REOPEN:
                    self.flags.reopen = True
                elif message.command is Command.TOLD and self.serving.server.patience is not None:
                    self.serving.server.patience.told()
                elif message.command is Command.PROMOTE and not self.exiting:
                    self.promoted = True
                    self.leaves_sockets = False  # the workers to come need them
                    self.flags.quit = True
                elif message.command is Command.ADMIT:
                    self.accept()
                elif message.command is Command.HURRY:
                    self.hurry(float(message.payload))
            if channel.eof:
                self.reactor.delete_file_event(fd, READABLE)
                self.log.warn("the master process is gone: leaving")
                self.promoted = False
                # Nobody else has the sockets open for long, so what waits there is served now.
                self._queues = list(self.cycle.listeners)
                self.flags.quit = True

        fd = channel.fileno()
        self.reactor.create_file_event(fd, READABLE, on_readable)

    def report_to(self, channel: Channel, index: int) -> None:
        """Tell the master what only we can see: that we are awake, that a thread is stuck."""
        pid = os.getpid()

        def busy() -> float:
            channel.send(Message(Command.BUSY, index, pid))
            return self.reactor.now + every

        def stuck(text: str) -> None:
            channel.send(Message(Command.STUCK, index, pid, text.encode()))

        every = check_interval(self.cycle.conf)
        if every:
            self.awake.look(busy)
        if self.serving.server.patience is not None:
            self.serving.server.patience.on_stuck = stuck

    def recycle_by(self, channel: Channel, index: int) -> None:
        """Ask the master for a replacement when a limit of `recycle` is reached."""

        def ask(reason: str) -> None:
            channel.send(Message(Command.RECYCLE, index, os.getpid(), reason.encode()))

        Recycler(self.cycle.conf.recycle, self.serving.server, self.awake, ask)
        if isinstance(self._application, AsksToBeReplaced):
            self._application.replace_worker = ask

    def offer_after(self, requests: int, channel: Channel, index: int) -> None:
        """Tell the master, once, that we are warm enough to be the next mold (`refork_after`)."""
        server = self.serving.server
        recycle_at, recycle = server.milestone, server.on_milestone
        offer_at: float = requests

        def reached() -> float:
            nonlocal offer_at, recycle_at
            if server.requests >= recycle_at:
                recycle_at = recycle()
            if server.requests >= offer_at:
                offer_at = math.inf
                if getattr(self._application, "refork", True):
                    channel.send(Message(Command.RIPE, index, os.getpid()))
            return min(offer_at, recycle_at)

        server.milestone = min(offer_at, recycle_at)
        server.on_milestone = reached

    def before_sleep(self) -> None:
        """What the flags ask for, once a turn."""
        flags = self.flags
        if flags.terminate:
            self.terminate()
        elif flags.quit:
            flags.quit = False
            self.quit()
        if flags.reopen:
            flags.reopen = False
            self.reopen()
        if self.exiting:
            self.retitle()

    def reopen(self) -> list[str]:
        """Reopen the logs; what went wrong is in the error log, and returned, a text each."""
        self.log.notice("reopening logs")
        return self.serving.reopen()

    def terminate(self) -> None:
        """Leave now."""
        if not self._fast:
            self._fast = True
            self.log.notice("exiting")
            self.stopped = True
            self._break_loop()  # be it serving, or running the last hooks

    def end_with(self, queues: Collection[Listener]) -> None:
        """The coming `quit` is the whole server's, and serves what waits in those sealed queues."""
        self._queues = queues
        self._sealed = self._whole = True

    def say_farewell(self) -> None:
        """The whole server will stop (drain_delay): serve on, but each answer is the last one."""
        self._whole = True
        self.slot.state = SlotState.QUIESCING
        self.serving.server.stopping = True
        self.serving.server.say_farewell()

    def quit(self) -> None:
        """Accept no more, finish what runs, leave when the last connection is gone and no handler
        is at work any more.

        `Drain` sees to it that this ends.
        """
        if self.exiting:
            return
        self.exiting = True
        self.log.notice("gracefully shutting down")
        self.slot.state = SlotState.QUIESCING
        self._drain = Drain(self.serving.server, self.log, self.stop)
        self._drain.end_in(self.cycle.conf.timeouts.graceful)
        self.serving.server.stopping = self._whole
        self.serving.drain(self.stop, queues=self._queues, sealed=self._sealed)
        if self.leaves_sockets:
            for listener in self.cycle.listeners:
                if listener not in self._queues:
                    listener.close()  # the master has its own; nothing in the queue is reset

    def hurry(self, seconds: float) -> None:
        """What is left of the drain has to be over in `seconds`: others need the room."""
        if self._drain is not None and time.monotonic() + seconds < self._drain.deadline:
            self.log.warn(f"a newer generation needs room: {seconds:g} s are left to shut down")
            self._drain.end_in(seconds)

    def retitle(self) -> None:
        """`prefork: worker 2 draining (3 left)`."""
        left = self.serving.server.connections
        if left != self._left:
            self._left = left
            set_title(f"prefork: {self.name} draining ({left} left)")

    def stop(self) -> None:
        """Serve no more: `leave` is next."""
        if not self.stopped:
            self.stopped = True
            self._break_loop()

    def _break_loop(self) -> None:
        self.loop.stop()
        # A loop that is told to stop in before_sleep would sleep once more.
        self.loop.call_soon(_nothing)

    def leave(self) -> int:
        """Let the application finish, write what is left to write; the exit code."""
        self.exiting = True
        self.serving.stop()
        now = time.monotonic()
        deadline = now
        if self._drain is not None:
            self._drain.over()
            deadline = self._drain.deadline
        end = now + FAST_HOOKS if self._fast else max(deadline, now + LAST_HOOKS)
        self._shut_down(end - now)
        left = 0.0 if self._fast else max(0.0, end - time.monotonic())
        self.slot.busy_since_ns = 0  # a wait for threads, with an end of its own, is no hang
        if not self.executor.shutdown(left):
            self.log.warn("a thread of ctx.run is still busy and is cut")
            self.promoted = False
        self.serving.close()
        if self._fast:
            self.promoted = False
        self.log.notice("the worker becomes a mold" if self.promoted else "exit")
        return EXIT_OK

    def undo(self) -> None:
        """After `leave`: let go of the loop and of what else no fork carries along."""
        loop = self.loop
        for task in (left := asyncio.all_tasks(loop)):
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=LAST_HOOKS))
        loop.run_until_complete(loop.shutdown_asyncgens())
        if self._wakeup is not None:
            self._wakeup.close()
        loop.close()
        self.reactor.close()
        asyncio.set_event_loop(None)
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)

    def _shut_down(self, seconds: float) -> None:
        promoted, self.promoted = self.promoted, False
        try:
            self.loop.run_until_complete(asyncio.wait_for(self._application.shutdown(), seconds))
            self.promoted = promoted  # only what has shut down well can be started again
        except TimeoutError:
            self.log.warn(f"on_shutdown has not ended within {seconds:.1f} s")
        except RuntimeError as error:
            # "Event loop stopped before Future completed": a TERM came while the hooks ran.
            if not self._fast:
                self.log.error("on_shutdown failed", exc=error)
        except OperatorError as error:
            self.log.error(f"shutting down the application: {error}", exc=error.__cause__)
        except (Exception, *_EXITS) as error:
            self.log.error("on_shutdown failed", exc=error)

    def _log_records(self) -> None:
        """Standard `logging` goes to the error log, unless the application has its own way."""
        root = logging.getLogger()
        if self._handler is not None:
            root.removeHandler(self._handler)
            self._handler = None
        if not root.handlers:
            self._handler = LoggingHandler(self.log)
            root.addHandler(self._handler)

    def _reactor_error(self, error: BaseException, where: str) -> None:
        self.log.alert(f"exception in {where}", exc=error)


def _nothing() -> None:
    pass


__all__ = ["Worker", "enter", "worker_process_cycle"]
