"""Memory before a fork: what workers share stays shared only while nobody writes to it.

A full collection in a child visits every object and writes to each; frozen objects it leaves
alone. And what a collection frees before the fork leaves holes in pages, which the child's next
objects fill and thereby unshare. So, as the documentation of `gc.freeze` has it: no collection
from the start on, freeze right before the fork, collect again afterwards. (It also spares the
start some 15 ms.) glibc keeps what was freed: reading a configuration leaves nearly a megabyte
behind that the master never needs again.
"""

import contextlib
import gc
from collections.abc import Iterator


def begin() -> None:
    """No collections while everything that is loaded is there to stay."""
    gc.disable()


def settle() -> None:
    """Give back what was freed, freeze what is there, and collect from now on."""
    _trim()
    gc.freeze()
    gc.enable()


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """No collections while an application is imported, which may switch them off for good, or
    choose thresholds of its own."""
    before = gc.get_threshold()
    gc.set_threshold(0, *before[1:])
    try:
        yield
    finally:
        if gc.get_threshold()[0] == 0:
            gc.set_threshold(*before)


def share() -> None:
    """What is there now is about to be shared by a fork: free the rest, freeze it."""
    gc.collect()
    _trim()
    gc.freeze()


def _trim() -> None:
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError):
        pass  # not glibc
