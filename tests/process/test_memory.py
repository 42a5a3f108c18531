"""What `preload` and `refork_after` are for: by the program that prints the README's figures."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "bench/preload.py"


def test_workers_share_what_was_preloaded_and_what_a_warm_one_has_cached() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--heap=30", "--cache=15", "--hot", "row/2", "--json"],
        capture_output=True,
        text=True,
        timeout=115,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pss = json.loads(done.stdout)
    # A quarter of the size that the limits are meant for: what a worker has of its own weighs more.
    assert pss["preload, boot"] < 0.6 * pss["no preload, boot"]
    assert pss["preload, collected"] <= 1.15 * pss["preload, boot"]
    assert pss["refork, row/2"] <= 0.75 * pss["preload, row/2"]
