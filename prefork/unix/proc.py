"""What Linux tells about a process to whoever may look: a few reads of /proc, no library.

Every field is None, or the whole answer, where there is no /proc or the process is gone.
"""

import os
from typing import NamedTuple


class ProcessFacts(NamedTuple):
    """`state` is the kernel's letter: R runs, S sleeps, D waits for a disk, T stopped, Z dead.

    `cpu` are seconds of CPU time, user and system; `rss` are bytes of memory, shared ones included.
    `parent` is a pid.
    """

    state: str
    cpu: float
    rss: int
    parent: int = 0


def process_facts(pid: int) -> ProcessFacts | None:
    """From /proc/PID/stat (proc_pid_stat(5)), which takes no lock that a hung process may hold."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            text = file.read()
        # The second field is the command in parentheses and may itself hold spaces.
        fields = text.rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        pages, parent = int(fields[21]), int(fields[1])
    except (OSError, IndexError, ValueError):
        return None
    cpu, rss = ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")
    return ProcessFacts(fields[0], cpu, rss, parent)


def tracer(pid: int) -> int:
    """The pid of the debugger that holds it; 0 when none does, or nobody can tell."""
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("TracerPid:"):
                    return int(line.split()[1])
    except (OSError, IndexError, ValueError):
        pass
    return 0


def proportional_set_size(pid: int) -> int | None:
    """Bytes of memory, each shared page divided by the number of processes that share it.

    The kernel walks the process's pages for it: 3 ms for 30 MB, 100 ms for 1 GB. And it waits
    while the process changes its own mappings, so ask only of one whose state is R or S.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except (OSError, IndexError, ValueError):
        pass
    return None
