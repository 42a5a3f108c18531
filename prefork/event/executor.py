"""Threads for code that blocks.

A worker's loop must not wait for a file, a lock or a database driver. `run` hands the call to a
thread and the coroutine sleeps until it is done. Threads are made on first use: a worker that
never blocks has none, and none is alive when a process forks.
"""

import asyncio
import contextvars
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from prefork.event.tasks import thread_lines

if TYPE_CHECKING:
    from prefork.event.bridge import ReactorLoop

P = ParamSpec("P")
R = TypeVar("R")

PROMPT: Final = 0.1  # seconds in which an idle thread has heard that it is to end

_IDLE: Final = ("_worker", "thread.py")  # where a thread of the pool waits for its next call

_numbers = itertools.count(1)  # one process may have several: each knows its threads by name


class Executor:
    """At most `threads` calls at once; also asyncio's default executor (`to_thread`)."""

    def __init__(self, loop: "ReactorLoop", threads: int | None = None) -> None:
        self.loop = loop
        self.threads = threads or min(32, (os.cpu_count() or 1) + 4)
        self._prefix = f"prefork-executor-{next(_numbers)}_"
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=self._prefix)
        loop.set_default_executor(self._pool)
        self._calls: dict[asyncio.Future[Any], _Call] = {}
        self._abandoned: set[_Call] = set()

    async def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of `fn(*args, **kwargs)` run in a thread, in a copy of this context."""
        call = _Call(functools.partial(contextvars.copy_context().run, fn, *args, **kwargs))
        future = self.loop.run_in_executor(self._pool, call)
        self._calls[future] = call
        try:
            return await future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            # The thread cannot be told: it works on, for nobody.
            if call.thread and not call.over:
                self._abandoned = {one for one in self._abandoned if not one.over} | {call}
            raise
        finally:
            del self._calls[future]

    def running(self) -> frozenset[object]:
        """The calls of `run` that are waited for and have a thread."""
        return frozenset(call for call in self._calls.values() if call.thread)

    def abandoned(self) -> frozenset[object]:
        """The calls that still have a thread, while whoever waited for them was cancelled."""
        return frozenset(call for call in self._abandoned if not call.over)

    def thread_lines(self, future: "asyncio.Future[Any]") -> list[str]:
        """The stack of the thread that works for `future`, for people.

        It is known for `run`. Of other ways into a thread it is not: then all that work are told.
        """
        call = self._calls.get(future)
        lines: list[str] = []
        for thread in self._threads():
            if call is None or call.thread == thread.ident:
                stack = thread_lines(thread.ident or 0)
                if stack and not _is_idle(stack[-1]):
                    lines += [f"  thread {thread.name}", *(f"  {line}" for line in stack)]
        return lines

    def _threads(self) -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name.startswith(self._prefix)]

    def shutdown(self, timeout: float) -> bool:
        """Refuse new calls, drop the queued ones, wait `timeout` seconds for the running ones.

        They have PROMPT at least, or idle threads would be taken for busy ones. False when a
        thread is still busy then; the worker leaves by `os._exit`, which no thread can hold up.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + max(timeout, PROMPT)
        for thread in self._threads():
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                return False
        return True


class _Call:
    """One call in a thread."""

    __slots__ = ("_fn", "over", "thread")

    def __init__(self, fn: Callable[[], Any]) -> None:
        self._fn = fn
        self.thread = 0  # the thread's ident, once it has one
        self.over = False

    def __call__(self) -> Any:
        self.thread = threading.get_ident()
        try:
            return self._fn()
        except StopIteration as error:
            # asyncio's futures refuse it, and whoever waits would do so for ever: as PEP 479.
            raise RuntimeError("a function in a thread raised StopIteration") from error
        finally:
            self.over = True


def _is_idle(line: str) -> bool:
    return line.endswith(f"in {_IDLE[0]}") and _IDLE[1] in line
