"""Memory before a fork: what workers share stays shared only while nobody writes to it.

A full collection in a child visits every object and writes to each; frozen objects it leaves
alone. What is garbage now would be garbage in every worker, so it goes first. And glibc keeps what
was freed: reading a configuration leaves nearly a megabyte behind that the master never needs
again.
"""

import gc


def settle() -> None:
    """Collect, give back, freeze."""
    gc.collect()
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError):
        pass  # not glibc
    gc.freeze()
