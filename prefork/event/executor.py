"""Threads for code that blocks.

A worker's loop must not wait for a file, a lock or a database driver. `run` hands the call to a
thread and the coroutine sleeps until it is done. Threads are made on first use: a worker that
never blocks has none, and none is alive when a process forks.
"""

import asyncio
import contextvars
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_numbers = itertools.count(1)  # one process may have several: each knows its threads by name


class Executor:
    """At most `threads` calls at once; also asyncio's default executor (`to_thread`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int | None = None) -> None:
        self._loop = loop
        self.threads = threads or min(32, (os.cpu_count() or 1) + 4)
        self._prefix = f"prefork-executor-{next(_numbers)}_"
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=self._prefix)
        loop.set_default_executor(self._pool)

    async def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of `fn(*args, **kwargs)` run in a thread, in a copy of this context."""
        context = contextvars.copy_context()
        return await self._loop.run_in_executor(
            self._pool, lambda: context.run(fn, *args, **kwargs)
        )

    def shutdown(self, timeout: float) -> bool:
        """Refuse new calls, drop the queued ones, wait `timeout` seconds for the running ones.

        False when a thread is still busy then; the worker leaves by `os._exit`, which no thread
        can hold up.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + timeout
        for thread in threading.enumerate():
            if thread.name.startswith(self._prefix):
                thread.join(max(0.0, end - time.monotonic()))
                if thread.is_alive():
                    return False
        return True
