"""Adopting one's grandchildren, in a process that may do so without bothering the tests'."""

import subprocess
import sys

import pytest

PROGRAM = """
import os
from prefork.unix import subreaper

assert subreaper.become()
middle = os.fork()
if middle == 0:
    if os.fork() == 0:
        os._exit(7)
    os._exit(0)
codes = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2))
print(codes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux's")
def test_an_orphan_is_ours_to_reap() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[0, 7]\n"


def test_elsewhere_it_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefork.unix import subreaper

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not subreaper.become()
