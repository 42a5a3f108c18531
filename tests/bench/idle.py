"""How often a master that has nothing to do is put back on a processor."""

import argparse
import re
import time
from pathlib import Path
from typing import Any

from report import Target
from servers import SERVERS

SECONDS = 10.0
# The start asks for a page. The deadline of its connection is over when it would have ended
# (timeouts.head, 10 s), and a worker that was awake is looked at once more, 5 s later at most.
SETTLE = 20.0


def wakeups(pid: int) -> int:
    """Context switches so far; every wake-up of a sleeping process ends in one."""
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(n) for n in re.findall(r"voluntary_ctxt_switches:\s+(\d+)", text))


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    with SERVERS["prefork"].start(options.cache, None, workers=2) as running:
        time.sleep(SETTLE)
        pids = running.tree()
        before = {pid: wakeups(pid) for pid in pids}
        time.sleep(SECONDS)
        counts = [wakeups(pid) - before[pid] for pid in pids]
    print(
        f"\nwake-ups in {SECONDS:g} s without a request: master {counts[0]}, workers {counts[1:]}"
    )
    return (
        {"seconds": SECONDS, "master": counts[0], "workers": counts[1:]},
        [Target("idle master, wake-ups in 10 s", counts[0], 0, at_least=False)],
    )
