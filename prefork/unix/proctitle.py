"""What ps shows. Imported lazily: the library costs 7 ms, and only a running server needs it."""

import sys
from collections.abc import Callable
from typing import Final

# The title is written over argv and what follows it, the environment. A long one is of no use
# in ps and makes /proc/PID/environ unreadable.
_MAX_LENGTH: Final = 120

_setter: Callable[[str], None] | None = None


def set_title(text: str) -> None:
    """Show `text` as this process's title. Linux only, and nothing happens without the library:
    on macOS it crashes forked children."""
    global _setter
    if _setter is None:
        _setter = _find_setter()
    _setter(text[:_MAX_LENGTH])


def _find_setter() -> Callable[[str], None]:
    if sys.platform == "linux":
        try:
            from setproctitle import setproctitle
        except ImportError:
            pass
        else:
            found: Callable[[str], None] = setproctitle
            return found
    return lambda _text: None
