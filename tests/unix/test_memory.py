"""What a process has of the machine's memory."""

import os

from prefork.unix import memory


def test_what_is_ours_is_no_more_than_what_we_see() -> None:
    resident, share = memory.resident(), memory.proportional()
    assert resident is not None
    assert share is not None
    assert 1 << 20 < share <= resident + (1 << 20)  # the two readings are not of one moment


def test_memory_that_is_shared_counts_by_its_share() -> None:
    """A fork has all pages of its parent, and half of them are its own."""
    ballast = bytearray(os.urandom(1 << 20) * 64)
    alone = memory.proportional()
    assert alone is not None
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, str(memory.proportional()).encode())
        os._exit(0)
    with os.fdopen(read) as answer:
        os.close(write)
        shared = int(answer.read())
    os.waitpid(pid, 0)
    assert shared < alone * 0.75
    assert memory.exceeds(1 << 40) is None
    larger = memory.exceeds(len(ballast) // 2)
    assert larger is not None
    assert larger > len(ballast) // 2
