"""`wsgi.file_wrapper`: a file as a response, sent by the kernel where that is possible."""

import io
import os
import stat
from typing import Any, Final, NamedTuple

# What one read takes of a file that the kernel cannot send; the application's own wish is a hint.
_BLOCK: Final = 64 * 1024


class Region(NamedTuple):
    """A piece of an open file."""

    fd: int
    offset: int
    size: int


class FileWrapper:
    """An iterator over the blocks of a file-like object (PEP 3333, "Optional Platform-Specific
    File Handling"). Returned by an application as it is, it need not be iterated over."""

    def __init__(self, filelike: Any, blksize: int = 8192) -> None:
        self.filelike = filelike
        self.blksize = max(blksize, _BLOCK)

    def __iter__(self) -> "FileWrapper":
        return self

    def __next__(self) -> bytes:
        data: bytes = self.filelike.read(self.blksize)
        if data:
            return data
        raise StopIteration

    def close(self) -> None:
        close = getattr(self.filelike, "close", None)
        if close is not None:
            close()

    def region(self) -> Region | None:
        """From the file's position to its end; None for what is no plain file on a disk.

        Only the standard library's own kinds: a gzip.GzipFile has a descriptor, too, and what
        lies there is not what it reads.
        """
        file = self.filelike
        if type(file) in (io.BufferedReader, io.BufferedRandom):
            if type(file.raw) is not io.FileIO:
                return None
        elif type(file) is not io.FileIO:
            return None
        try:
            fd = file.fileno()
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return None
            offset = file.tell()
        except (OSError, ValueError):
            return None
        return Region(fd, offset, max(0, found.st_size - offset))
