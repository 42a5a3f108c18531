"""What a worker keeps of the memory it freed."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from prefork.unix.heap import keep_free_memory

if sys.argv[1] == "keep":
    keep_free_memory()

def uploads():
    held = [bytes(64 * 1024 + n) for n in range(64)]
    del held

uploads()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    uploads()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, timeout=60, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a habit of glibc's malloc")
def test_buffers_of_uploads_are_not_asked_of_the_kernel_again_and_again():
    assert faults("keep") < 1000 < faults("leave")
