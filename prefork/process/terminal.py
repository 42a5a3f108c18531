"""Is somebody sitting there?

A terminal sends INT (Ctrl-C) and WINCH (it was resized) to its whole foreground process group. So
under a terminal INT is a person who can press it again, and WINCH means nothing; without one they
come from `kill` and mean what nginx's manual says.
"""

import os


def controlled() -> bool:
    """Has this process a controlling terminal?"""
    fd = _terminal()
    if fd is None:
        return False
    os.close(fd)
    return True


def in_foreground() -> bool:
    """Has it one, and would Ctrl-C typed there reach us?"""
    fd = _terminal()
    if fd is None:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)


def _terminal() -> int | None:
    try:
        return os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
