"""How much memory this process has, as its own part of what the server has.

Pages shared by several processes count a share each in PSS, so the sum over all workers is what the
machine has really given; RSS counts them whole in every one. PSS is read from `smaps_rollup`
(Linux 4.14), which walks the page tables: about a millisecond for 100 MB. RSS is one line of
`statm` and never smaller, so most questions are answered by it.
"""

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import Any, Final

_PAGE: Final = resource.getpagesize()
_STATM: Final = Path("/proc/self/statm")
_ROLLUP: Final = Path("/proc/self/smaps_rollup")


def resident() -> int | None:
    """RSS in bytes; None where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_bytes().split()[1]) * _PAGE
    return _by_psutil("rss")


def proportional() -> int | None:
    """PSS in bytes; where there is none USS, or RSS; None where nothing can be read."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _ROLLUP.read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    uss = _by_psutil("uss")
    return resident() if uss is None else uss


def exceeds(limit: int) -> int | None:
    """Our PSS if it is larger than `limit` bytes, else None."""
    rss = resident()
    if rss is not None and rss <= limit:
        return None
    pss = proportional()
    return pss if pss is not None and pss > limit else None


def _by_psutil(name: str) -> int | None:
    """Of psutil's `memory_full_info`, where psutil is installed."""
    psutil: Any = sys.modules.get("psutil")
    if psutil is None:
        try:
            import psutil  # type: ignore[no-redef, import-untyped, unused-ignore]
        except ImportError:
            return None
    try:
        return int(getattr(psutil.Process(os.getpid()).memory_full_info(), name))
    except (AttributeError, psutil.Error):
        return None
