"""Becoming the parent of one's grandchildren (prctl(2), PR_SET_CHILD_SUBREAPER).

Facts. A process whose parent ends is given to the nearest living ancestor that has asked for it,
and to process 1 where nobody has. The wish is not inherited by fork, and survives exec. The new
parent gets SIGCHLD for it like for any child of its own.

Consequence. A process that forks twice, and whose middle one ends, has made a sibling. And every
orphan of a subprocess that some worker ran comes to the subreaper, too, instead of to process 1:
whoever asks for this has to reap strangers.
"""

import ctypes
import sys
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h


def become() -> bool:
    """Have this process adopt its orphaned descendants; False where there is no such thing."""
    if sys.platform != "linux":
        return False
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return False
    return int(prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0
