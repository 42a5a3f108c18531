"""What a worker can tell of itself when it is asked, or when it dies: the worker's half.

SIGUSR2 is the question. A handler in Python answers it, as soon as Python can: the stacks of all
threads, the running requests, the tree of asyncio's tasks. When no answer comes, Python does not
run, be it that a library holds its lock; then SIGURG is sent, which faulthandler answers in C
whatever the interpreter is doing. In this order, because C reads the frames of a process as they
happen to be: of one that runs Python they change under its eyes, and some hundred such looks end in
a crash (3.11 to 3.13; CPython issue 116008). One that hangs in C holds still. SEGV, ABRT and their
like leave the stacks too.

All this stands before the application is imported, for an import may hang as well. An application
that installs a handler of its own for either signal loses these answers and nothing else.
"""

import asyncio
import faulthandler
import os
import signal
import time
from types import FrameType
from typing import Final

from prefork.event import tasks
from prefork.event.bridge import EXCHANGE_TASK, ReactorLoop
from prefork.event.executor import Executor
from prefork.http.server import HttpServer
from prefork.log import ErrorLog
from prefork.process.stacks import ASK, ASK_C, REGION, Stacks, begin_mark, end_mark

# From here on, what was written before the last answer is given up to make room.
_CROWDED: Final = REGION // 4


class Witness:
    """Stands in one worker, or in anything that boots like one."""

    def __init__(self, stacks: Stacks, index: int, log: ErrorLog) -> None:
        """`index` is the number of the slot, or `Stacks.of_mold`: whose region is written to."""
        self._begin = index * REGION
        self._answered = self._begin  # where the last answer ended
        self._answering = False
        self._asked_again = False
        self._region = stacks.open_region(index)
        # Without the region the stacks stand in the error log as they come.
        self._fd = self._region if self._region >= 0 else log.fd
        self.loop: ReactorLoop | None = None
        self.executor: Executor | None = None
        self.server: HttpServer | None = None

    def stand(self) -> None:
        """Answer from now on. In the main thread, with SIGUSR2 still blocked or handled."""
        signal.signal(ASK, self._asked)
        faulthandler.register(ASK_C, file=self._fd, all_threads=True, chain=False)
        faulthandler.enable(file=self._fd, all_threads=True)

    def close(self) -> None:
        """Answer no more."""
        faulthandler.unregister(ASK_C)
        faulthandler.disable()
        if self._region >= 0:
            os.close(self._region)
            self._region = -1

    def _asked(self, _number: int, _frame: FrameType | None) -> None:
        # A signal's handler is itself interrupted by the next signal, and an answer within another
        # would tear both. So the inner call leaves word, and the outer one answers once more: what
        # it has written may have begun before that question.
        self._asked_again = True
        if self._answering:
            return
        self._answering = True
        try:
            while self._asked_again:
                self._asked_again = False
                self._answer()
        finally:
            self._answering = False

    def _answer(self) -> None:
        # Between any two bytecodes of whatever hangs: no lock may be taken here, no log be used,
        # and an exception would come out of whatever the worker is at.
        try:
            os.write(self._fd, begin_mark(os.getpid()))
            faulthandler.dump_traceback(file=self._fd, all_threads=True)
            try:
                lines = self._account()
            except Exception as error:
                lines = [f"the rest cannot be told: {type(error).__name__}: {error}"]
            text = "".join(f"{line}\n" for line in lines)
            os.write(self._fd, text.encode("utf-8", "backslashreplace") + end_mark(os.getpid()))
            if self._region >= 0:
                self._make_room()
        except Exception:
            pass  # what has been written stands

    def _account(self) -> list[str]:
        threads = None if self.executor is None else self.executor.thread_lines
        lines: list[str] = []
        told: set[asyncio.Task[None]] = set()
        if self.server is not None:
            now = time.monotonic()
            exchanges = self.server.exchanges()
            current = None if self.loop is None else asyncio.current_task(self.loop)
            lines.append(f"requests running: {len(exchanges)}")
            for exchange in exchanges:
                age = now - exchange.started
                lines.append(
                    f"request {exchange.method} {exchange.target},"
                    f" {age:.1f} s, client: {exchange.peer}"
                )
                if exchange.task is None:
                    lines.append("  runs right now")
                    # asyncio counts a Task in its first step, too, from Python 3.12 on.
                    if current is not None and current.get_name() == EXCHANGE_TASK:
                        told.add(current)
                else:
                    lines += tasks.stack(exchange.task, threads)
                    told.add(exchange.task)
        if self.loop is not None:
            others = asyncio.all_tasks(self.loop) - told
            if others:
                lines.append(f"other tasks: {len(others)}")
                lines += tasks.forest(others, threads)
        return lines

    def _make_room(self) -> None:
        """Before the region is full: keep the last answer, at the beginning."""
        end = os.lseek(self._region, 0, os.SEEK_CUR)
        # Less has to stand in it then than before this answer came: that alone tells whoever has
        # asked that room was made.
        before = self._answered - self._begin
        if end - self._begin > _CROWDED and end - self._answered < before:
            kept = os.pread(self._region, end - self._answered, self._answered)
            # First empty: who reads meanwhile must not see the end of an answer that is not his.
            os.pwrite(self._region, bytes(end - self._begin), self._begin)
            os.lseek(self._region, self._begin, os.SEEK_SET)
            os.write(self._region, kept)
        self._answered = os.lseek(self._region, 0, os.SEEK_CUR)
