"""Where a worker writes its stacks: memory that the master made before the first fork.

A worker that hangs can write to no file it would first have to open, and one that crashes has no
second chance. So the master makes one memfd, `prefork-stacks`, which every child inherits, and each
worker has a region of it to itself, by the number of its slot: two that crash at once do not mix
their lines. The file is sparse, so a region costs what is written to it. A worker opens its own
description of the file, because the writing position belongs to the description, and it does so
through /proc/self/fd, which needs no right that a worker could have lost.

What a worker wrote stands from the beginning of its region up to the first NUL byte. Whoever wants
a dump notes where that is, sends a signal, and reads what has come behind it. `prefork stacks`
finds the memory as it finds the scoreboard, in the master's /proc entry, and asks the workers
itself: the master need not be able to help.
"""

import contextlib
import os
import signal
from typing import Final

from prefork.errors import OperatorError
from prefork.log import errno_text

NAME: Final = "prefork-stacks"
REGION: Final = 4 * 1024 * 1024
# faulthandler writes 100 frames of 100 threads at most: some 700 KiB. A worker that runs Python
# makes room again; one that does not is asked no more when it might write into its neighbour's.
FULL: Final = REGION - 1024 * 1024
_MOLDS: Final = 4096  # more than there can be slots
_MOLD_REGIONS: Final = 16
_CHUNK: Final = 64 * 1024


# The question, and the one for a worker in which Python does not run: see `witness`.
ASK: Final = signal.SIGUSR2
ASK_C: Final = signal.SIGURG


def begin_mark(pid: int) -> bytes:
    """The line before what the worker `pid` writes of itself, when Python runs in it."""
    return b"-- worker %d --\n" % pid


def end_mark(pid: int) -> bytes:
    """The line behind it."""
    return b"-- end of %d --\n" % pid


class Stacks:
    """The memory. `fd` is -1 where the system has none: then the error log takes its place."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> "Stacks":
        """In the master, before the first fork."""
        try:
            return cls(os.memfd_create(NAME, os.MFD_CLOEXEC))
        except (OSError, AttributeError):
            return cls(-1)

    @classmethod
    def attach_pid(cls, master: int) -> "Stacks":
        """That of a running master, read-only. Raises OperatorError."""
        folder = f"/proc/{master}/fd"
        reason = "it has none"
        try:
            for name in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{NAME}"):
                        return cls(os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            reason = errno_text(error)
        raise OperatorError(f"cannot read the stacks of process {master}: {reason}")

    def open_region(self, index: int) -> int:
        """In a worker: a descriptor that writes to the region of slot `index`; -1 without one."""
        if self.fd < 0:
            return -1
        try:
            fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return -1
        os.lseek(fd, index * REGION, os.SEEK_SET)
        return fd

    @staticmethod
    def of_mold(generation: int) -> int:
        """The region of a mold, which has no slot: behind those of all slots."""
        return _MOLDS + generation % _MOLD_REGIONS

    def used(self, index: int) -> int:
        """How many bytes of the region are written."""
        return len(self.read(index))

    def read(self, index: int, begin: int = 0) -> bytes:
        """What is written in the region, from `begin` on."""
        found = bytearray()
        offset, end = index * REGION + begin, (index + 1) * REGION
        while self.fd >= 0 and offset < end:
            data = os.pread(self.fd, min(_CHUNK, end - offset), offset)
            text, nul, _ = data.partition(b"\0")
            found += text
            if nul or not data:
                break
            offset += len(data)
        return bytes(found)

    def clear(self, index: int) -> None:
        """In the master, when nobody writes to the region: as if nothing had ever been."""
        size = self.used(index)
        if size:
            os.pwrite(self.fd, bytes(size), index * REGION)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
