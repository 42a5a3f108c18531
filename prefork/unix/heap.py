"""What malloc keeps of what was freed.

Facts: glibc gives what is free at the end of the heap back to the kernel as soon as that is more
than 128 KiB. Uploads of 64 KiB take and free about that much for each request, and the kernel hands
it out again page by page: 12 page faults a request (64 connections), a third of what it costs.
Consequence: a worker sets its own bounds (mallopt(3)). Blocks up to BLOCK come from the heap, KEEP
bytes may stay free at its end; with 2 MiB there were still 5 faults a request, with 8 none.
Cost: as much as that, for a worker that has needed it once. Other C libraries have no such call.
"""

import ctypes
from typing import Final

BLOCK: Final = 1024 * 1024
KEEP: Final = 8 * 1024 * 1024
_TRIM_THRESHOLD: Final = -1  # malloc.h
_MMAP_THRESHOLD: Final = -3


def keep_free_memory() -> None:
    """For this process and those it forks."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_TRIM_THRESHOLD, KEEP)
    mallopt(_MMAP_THRESHOLD, BLOCK)
