"""What a worker may use: open files, core size, niceness, umask, CPUs.

Applied in the forked child while it is still root where the master is (`ngx_worker_process_init`
sets priority and limits before it drops privileges). Every failure names the key to change.
"""

import os
import resource
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from prefork.errors import OperatorError, errno_text

if TYPE_CHECKING:
    from prefork.config.schema import Config


def apply(conf: "Config", worker: int) -> None:
    """Everything the configuration says for worker number `worker` (from 0).

    Raises OperatorError; the worker that gets one exits with EXIT_FATAL.
    """
    apply_common(conf)
    apply_own(conf, worker)


def apply_common(conf: "Config") -> None:
    """What is the same for every worker: a process that forks them hands it on."""
    set_rlimits(conf.rlimits.nofile, conf.rlimits.core)
    if conf.niceness is not None:
        set_niceness(conf.niceness)
    if conf.umask is not None:
        os.umask(conf.umask)


def apply_own(conf: "Config", worker: int) -> None:
    """What is worker number `worker`'s alone; it needs no privilege."""
    if conf.cpu_affinity is not None:
        set_affinity(conf.cpu_affinity, worker)


def set_rlimits(nofile: int | None, core: int | None) -> None:
    """Set the soft limits; the hard ones are raised only when they are lower (needs root).

    `core` is in bytes; -1 for either means unlimited.
    """
    for key, name, wanted in (
        ("rlimits.nofile", "RLIMIT_NOFILE", nofile),
        ("rlimits.core", "RLIMIT_CORE", core),
    ):
        if wanted is None:
            continue
        number = getattr(resource, name)
        value = resource.RLIM_INFINITY if wanted < 0 else wanted
        _soft, hard = resource.getrlimit(number)
        above = hard != resource.RLIM_INFINITY and (value == resource.RLIM_INFINITY or value > hard)
        try:
            resource.setrlimit(number, (value, value if above else hard))
        except (OSError, ValueError, OverflowError) as exc:
            reason = f" {errno_text(exc)}" if isinstance(exc, OSError) else f": {exc}"
            hint = f"; {key} is above the hard limit of {hard}" if above else ""
            raise OperatorError(f"setrlimit({name}, {wanted}) failed{reason}{hint}") from exc


def set_niceness(niceness: int) -> None:
    """-20 (first) to 19 (last); less than now needs root."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
    except OSError as exc:
        raise OperatorError(
            f"setpriority({niceness}) failed {errno_text(exc)}; see niceness"
        ) from exc


def set_affinity(affinity: Literal["auto"] | Sequence[Sequence[int]], worker: int) -> None:
    """Bind this process. With "auto" worker n gets the n-th CPU of those we may use, round
    again when there are more workers; with sets of CPU numbers its n-th, and the last one for
    all that follow, as nginx's worker_cpu_affinity.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise OperatorError("cpu_affinity: this system cannot bind processes to CPUs")
    if affinity == "auto":
        usable = sorted(os.sched_getaffinity(0))
        cpus = {usable[worker % len(usable)]}
    else:
        cpus = set(affinity[min(worker, len(affinity) - 1)])
    try:
        os.sched_setaffinity(0, cpus)
    except (OSError, ValueError, OverflowError) as exc:
        reason = errno_text(exc) if isinstance(exc, OSError) else f"({exc})"
        text = ",".join(map(str, sorted(cpus)))
        usable_text = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise OperatorError(
            f"sched_setaffinity({text}) failed {reason}; see cpu_affinity"
            f" (this process may use {usable_text})"
        ) from exc
