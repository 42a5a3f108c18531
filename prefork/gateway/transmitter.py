"""Goes on sending while a WSGI application makes its next block.

PEP 3333: "servers ... must not delay the transmission of any block; they must either fully transmit
the block to the client, or guarantee that they will continue transmission even while the
application is producing its next block."

Facts: each block sent by itself wakes the client for it. A download in blocks of 64 KiB, made as
fast as it is sent, takes twice the CPU that it takes in writes of four blocks (loopback, Linux 6).
Consequence: what an application makes at once is held until it is worth a write, or the turn ends.
But nobody knows how long the next block will take, and the worker's own thread is in the
application's hands meanwhile, also for the rest of a block that the kernel had no room for.
Choice: a thread looks every TICK, and sends what it finds held for the second time.
Cost: two locks for a block, a thread while there are such streams; it ends soon after them, because
a worker may be asked to fork.
"""

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prefork.net.connection import Connection

TICK: Final = 0.005  # seconds; nothing is held for more than two
_PATIENCE: Final = 20  # ticks that the thread waits for something to do


class Transmitter:
    """Of one worker. `hold` before the application goes on, `release` when it is back.

    Between the two the connection is this one's, and neither reactor nor handlers may touch it.
    """

    __slots__ = ("_closed", "_connection", "_holds", "_lock", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None  # what is held
        self._holds = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def hold(self, connection: "Connection") -> None:
        with self._lock:
            self._connection = connection
            self._holds += 1
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="prefork-transmitter", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # No thread is to be had (RLIMIT_NPROC): what the kernel takes now must do.
                    connection.push()
                else:
                    self._thread = thread

    def release(self) -> None:
        if self._connection is not None:  # nobody but the caller sets it, nor uses what is not set
            with self._lock:
                self._connection = None

    def close(self) -> None:
        """Have the thread end, at the next tick: nothing is held any more."""
        self._closed = True
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        seen = 0
        idle = 0
        while (idle < _PATIENCE and not self._closed) or not self._ends():
            time.sleep(TICK)
            with self._lock:
                connection = self._connection
                if connection is None:
                    idle += 1
                    continue
                idle = 0
                if self._holds == seen and connection.push():
                    self._connection = None
                seen = self._holds

    def _ends(self) -> bool:
        with self._lock:
            if self._connection is None:
                self._thread = None
            return self._thread is None
