"""Memory before a fork: what workers share stays shared only while nobody writes to it.

A full collection in a child visits every object and writes to each; frozen objects it leaves
alone. And what a collection frees before the fork leaves holes in pages, which the child's next
objects fill and thereby unshare. So, as the documentation of `gc.freeze` has it: no collection
from the start on, freeze right before the fork, collect again afterwards. (It also spares the
start some 15 ms.) glibc keeps what was freed: reading a configuration leaves nearly a megabyte
behind that the master never needs again.
"""

import gc


def begin() -> None:
    """No collections while everything that is loaded is there to stay."""
    gc.disable()


def settle() -> None:
    """Give back what was freed, freeze what is there, and collect from now on."""
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError):
        pass  # not glibc
    gc.freeze()
    gc.enable()
