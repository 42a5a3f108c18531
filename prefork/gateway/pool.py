"""The threads of a WSGI application, and the way back from them to the loop.

The threads are made as they are needed and stay. Who counts is the loop, alone: it knows how many
jobs it has handed out, each thread how many it has done, and the difference is what waits or runs.
So neither side takes a lock. The way back is a queue with one wake-up for all that is in it.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

# Waiting jobs for each thread: a burst of a thousand for four threads, and still an end to it.
WAITING: Final = 256

Job = Callable[[], None]


class Mailbox:
    """Calls that threads want made on the loop, in order."""

    __slots__ = ("_calls", "_loop", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Job] = deque()
        self._woken = False

    def post(self, call: Job) -> None:
        """From any thread."""
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._read)
            except RuntimeError:
                pass  # the loop is closed: nobody waits for the call any more

    def _read(self) -> None:
        # First the sign, then the calls: what comes in between is read now or wakes us again.
        self._woken = False
        calls = self._calls
        while calls:
            calls.popleft()()


class Thread(threading.Thread):
    """Runs one job after the other, until it is given None."""

    def __init__(self, number: int, jobs: "SimpleQueue[Job | None]", on_end: Job) -> None:
        super().__init__(name=f"prefork-wsgi-{number}", daemon=True)
        self.done = 0
        self._jobs = jobs
        self._on_end = on_end

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job
            self.done += 1
        self._on_end()


class ThreadPool:
    """At most `size` jobs at once, and a bounded queue of others. Used on the loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int) -> None:
        self.loop = loop
        self.mailbox = Mailbox(loop)
        self.size = size
        self.most = size + WAITING * size
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._submitted = 0
        self._done = 0  # as far as it was counted
        self._living = 0
        self._ended: asyncio.Future[None] | None = None

    @property
    def unfinished(self) -> int:
        """How many jobs run or wait."""
        self._done = sum(thread.done for thread in self._threads)
        return self._submitted - self._done

    def submit(self, job: Job) -> bool:
        """Run `job`, which must not raise, in a thread. False when too many wait already."""
        unfinished = self._submitted - self._done
        if unfinished >= self.most or len(self._threads) < self.size:
            unfinished = self.unfinished
            if unfinished >= self.most:
                return False
            if unfinished >= len(self._threads) < self.size:
                self._start()
        self._submitted += 1
        self._jobs.put(job)
        return True

    def _start(self) -> None:
        thread = Thread(
            len(self._threads) + 1, self._jobs, lambda: self.mailbox.post(self._one_ended)
        )
        self._threads.append(thread)
        self._living += 1
        thread.start()

    def _one_ended(self) -> None:
        self._living -= 1
        if not self._living and self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def shutdown(self) -> None:
        """Wait until every job is done. Cancelled, it leaves the threads behind."""
        if self._threads:
            self._ended = self.loop.create_future()
            for _ in self._threads:
                self._jobs.put(None)
            await self._ended
