"""Not outliving the master while nobody listens to the channel.

A worker learns of the master's death by end of file on its channel, and reads that in its reactor.
While it boots there is no reactor: it is inside an import that may take a minute. For that time
the kernel is asked to kill it (PR_SET_PDEATHSIG). Only for that time: the signal follows the
death of the *thread* that forked, is forgotten over setuid, and would take away running requests.
"""

import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Have the kernel KILL this process when its parent ends; at once if `parent` is gone."""
    _prctl(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def outlive() -> None:
    """Take `die_with` back."""
    _prctl(0)


def _prctl(number: int) -> None:
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # not Linux: such a worker leaves when its import has ended
