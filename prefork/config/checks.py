"""What no single setting can be wrong about, and how many workers `auto` is."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Final

from prefork.config.address import ListenAddress
from prefork.config.problems import Place, Problem, problem_at
from prefork.config.reader import did_you_mean, guess
from prefork.config.schema import WORKERS_MAX, Config
from prefork.config.units import format_duration, format_size

PlaceOf = Callable[[str], Place | None]

# A worker needs descriptors beside its connections: listeners, logs, channel, epoll, the
# scoreboard, and what the application opens.
_SPARE_FILES: Final = 32


def check(
    conf: Config, place_of: PlaceOf, failed: set[str], *, need_app: bool
) -> Iterator[Problem]:
    """Problems between settings. Those in `failed` have been reported and are not judged again."""
    if need_app and conf.app is None and "app" not in failed:
        yield problem_at(
            place_of("app"),
            "there is no application: set `app: module:attribute`, or give it to `prefork start`",
        )
    yield from _molds(conf, place_of, failed)
    yield from _recycling(conf, place_of, failed)
    yield from _trust(conf, place_of, failed)
    yield from _same_port(conf.listen, place_of("listen"))
    yield from _paths(conf, place_of, failed)
    yield from _identity(conf, place_of)
    yield from _cpus(conf, place_of)
    yield from _numbers(conf, place_of, failed)


def _trust(conf: Config, place_of: PlaceOf, failed: set[str]) -> Iterator[Problem]:
    """Trust in everybody, and headers that nobody is trusted to send."""
    trust, name = conf.forwarded.trust, "forwarded.trust"
    if "*" in trust and name not in failed:
        yield problem_at(
            place_of(name),
            f'"{name}" has "*": whoever can connect chooses the client\'s address, scheme and host;'
            " name your proxies",
            severity="warning",
        )
    proxied = next((one for one in conf.listen if one.proxy_protocol), None)
    if proxied is not None and not trust and not failed & {"listen", name}:
        yield problem_at(
            place_of("listen"),
            f'"listen": {proxied.text} has proxy_protocol, but "{name}" is empty: what the header'
            " says of the client is ignored; name your proxies there",
            severity="warning",
        )


def _same_port(listen: tuple[ListenAddress, ...], place: Place | None) -> Iterator[Problem]:
    """An address that another one on the list already covers: bind() would say EADDRINUSE."""
    for all_of in listen:
        if all_of.port == 0 or all_of.host not in ("0.0.0.0", "::"):
            continue
        both = all_of.kind == "inet6" and not all_of.v6only
        for one in listen:
            if one is all_of or one.port != all_of.port:
                continue
            if one.kind == all_of.kind or (both and one.kind == "inet"):
                message = f'"listen" has {one.text}, which {all_of.text} already includes'
                yield problem_at(place, f"{message}: remove one of them")


def _molds(conf: Config, place_of: PlaceOf, failed: set[str]) -> Iterator[Problem]:
    """Settings that ask for a mold where there can be none."""
    if conf.preload and not conf.master_process and not failed & {"preload", "master_process"}:
        yield problem_at(
            place_of("preload") or place_of("master_process"),
            '"preload" means nothing to a single process (master_process: false), and is ignored',
            severity="warning",
        )
    if conf.refork_after and not conf.preload and not failed & {"preload", "refork_after"}:
        yield problem_at(
            place_of("refork_after"),
            '"refork_after" needs "preload", and is ignored: write `preload: true` as well',
            severity="warning",
        )


def _recycling(conf: Config, place_of: PlaceOf, failed: set[str]) -> Iterator[Problem]:
    """Limits of a worker that nobody could take the place of."""
    if not conf.master_process and "master_process" not in failed:
        for name in ("max_requests", "max_age", "max_memory"):
            if getattr(conf.recycle, name) and f"recycle.{name}" not in failed:
                yield problem_at(
                    place_of(f"recycle.{name}"),
                    f'"recycle.{name}" means nothing to a single process (master_process: false),'
                    " and is ignored",
                    severity="warning",
                )


def _paths(conf: Config, place_of: PlaceOf, failed: set[str]) -> Iterator[Problem]:
    if not os.path.isdir(conf.working_directory) and "working_directory" not in failed:
        message = f'"working_directory" {conf.working_directory} is not a folder'
        yield problem_at(place_of("working_directory"), message)
    logs = (("log.error.path", conf.log.error.path), ("log.access.path", conf.log.access.path))
    for name, path in logs:
        if not path.startswith("/"):
            continue
        if path == conf.pid_file:
            yield problem_at(place_of(name), f'"{name}" and "pid_file" are the same file')
        elif os.path.isdir(path):
            yield problem_at(place_of(name), f'"{name}" {path} is a folder')
        elif not os.path.isdir(os.path.dirname(path)):
            message = f'"{name}": the folder {os.path.dirname(path)} does not exist: make it first'
            yield problem_at(place_of(name), message)
    if conf.pid_file is not None and os.path.isdir(conf.pid_file):
        yield problem_at(place_of("pid_file"), f'"pid_file" {conf.pid_file} is a folder')


def _identity(conf: Config, place_of: PlaceOf) -> Iterator[Problem]:
    if conf.user is None and conf.group is None:
        return
    import grp
    import pwd

    if conf.user is not None and not conf.user.isdigit():
        users = [entry.pw_name for entry in pwd.getpwall()]
        # getpwall() need not list what a directory service knows: only getpwnam() decides.
        if conf.user not in users and not _known(pwd.getpwnam, conf.user):
            near = guess(conf.user, users)
            message = f'"user": there is no user "{conf.user}"{did_you_mean(near)}'
            yield problem_at(place_of("user"), message, near)
    if conf.group is not None and not conf.group.isdigit():
        groups = [entry.gr_name for entry in grp.getgrall()]
        if conf.group not in groups and not _known(grp.getgrnam, conf.group):
            near = guess(conf.group, groups)
            message = f'"group": there is no group "{conf.group}"{did_you_mean(near)}'
            yield problem_at(place_of("group"), message, near)
    if os.geteuid() != 0:
        name = "user" if conf.user is not None else "group"
        # As nginx: a file written for root can be tried by anybody.
        message = f'"{name}" makes sense only when the master is started by root, and is ignored'
        yield problem_at(place_of(name), message, severity="warning")


def _known(look_up: Callable[[str], object], name: str) -> bool:
    try:
        look_up(name)
    except KeyError:
        return False
    return True


def _cpus(conf: Config, place_of: PlaceOf) -> Iterator[Problem]:
    if not isinstance(conf.cpu_affinity, tuple) or not hasattr(os, "sched_getaffinity"):
        return
    usable = os.sched_getaffinity(0)
    for cpus in conf.cpu_affinity:
        if not usable.intersection(cpus):
            wanted = ", ".join(map(str, cpus[:8]))
            there = ", ".join(map(str, sorted(usable)[:8]))
            message = f'"cpu_affinity": none of CPU {wanted} can be used here, only {there}'
            yield problem_at(place_of("cpu_affinity"), message)


def _numbers(conf: Config, place_of: PlaceOf, failed: set[str]) -> Iterator[Problem]:
    def place(*paths: str) -> Place | None:
        return next((p for path in paths if (p := place_of(path)) is not None), None)

    graceful, least = "timeouts.graceful", "timeouts.keep_alive_min"
    if conf.timeouts.graceful < conf.timeouts.keep_alive_min and not failed & {graceful, least}:
        yield problem_at(
            place(least, graceful),
            f'"{graceful}" ({format_duration(conf.timeouts.graceful)}) is shorter than "{least}" '
            f"({format_duration(conf.timeouts.keep_alive_min)}): idle connections would be cut",
            severity="error" if place_of(least) is not None else "warning",
        )
    first, longest = "backoff.first", "backoff.longest"
    if conf.backoff.first > conf.backoff.longest and not failed & {first, longest}:
        yield problem_at(
            place(first, longest),
            f'"{first}" ({format_duration(conf.backoff.first)}) is longer than "{longest}" '
            f"({format_duration(conf.backoff.longest)})",
        )
    line, head = "limits.request_line", "limits.head"
    if conf.limits.request_line > conf.limits.head and not failed & {line, head}:
        yield problem_at(
            place(line, head),
            f'"{line}" ({format_size(conf.limits.request_line)}) is larger than "{head}" '
            f"({format_size(conf.limits.head)}), which includes it",
        )
    files, connections = conf.rlimits.nofile, conf.limits.connections
    if files is not None and 0 <= files < connections + _SPARE_FILES:
        yield problem_at(
            place("rlimits.nofile"),
            f'"rlimits.nofile" ({files}) is too few for "limits.connections" ({connections}) '
            f"and the files of a worker: set it to {connections + 1024}",
            severity="warning",
        )
    if conf.daemon and "stderr" in (conf.log.error.path, conf.log.access.path):
        name = "log.error.path" if conf.log.error.path == "stderr" else "log.access.path"
        yield problem_at(
            place(name, "daemon"),
            f'"{name}" is stderr, which a daemon does not have: name a file',
            severity="warning",
        )


def worker_count(conf: Config, root: str = "/") -> tuple[int, str]:
    """How many workers to run, and why: `2: 4 CPUs by affinity, cgroup quota 2.0`.

    A quota is rounded up: with 2.5 CPUs the third worker uses the half that two would leave.
    `root` is where /proc and /sys are looked up.
    """
    if not conf.master_process:
        return 1, "1: one process, because master_process is false"
    if conf.workers != "auto":
        return conf.workers, f"{conf.workers}: as configured"
    present = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    cpus = f"{usable} CPU{'s'[: usable != 1]} by affinity"
    if usable < present:
        cpus = f"{usable} of {present} CPUs by affinity"
    quota = cpu_quota(root)
    if quota is None:
        count = min(usable, WORKERS_MAX)
        return count, f"{count}: {cpus}, no cgroup quota"
    count = max(1, min(usable, math.ceil(quota - 0.01), WORKERS_MAX))
    return count, f"{count}: {cpus}, cgroup quota {round(quota, 2)}"


def cpu_quota(root: str = "/") -> float | None:
    """CPUs that the cgroup may use in each period: the tightest of our own cgroup and those above
    it; None without a limit. cgroup v2's `cpu.max` and v1's `cpu.cfs_quota_us` are read.

    /proc/self/cgroup may name a path of the host that is not mounted in a container; what can
    be seen from there is the mount's own root, and that is the last step upwards anyway.
    """
    quotas: list[float] = []
    for line in _text(f"{root}/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if number == "0" and not controllers:
            mounts, read = ("unified", ""), _quota_v2
        elif "cpu" in names:
            mounts, read = (controllers, "cpu"), _quota_v1
        else:
            continue
        for mount in mounts:
            folder = os.path.normpath(f"{root}/sys/fs/cgroup/{mount}")
            parts = [part for part in path.split("/") if part not in ("", ".", "..")]
            for depth in range(len(parts), -1, -1):
                quota = read(os.path.join(folder, *parts[:depth]))
                if quota is not None:
                    quotas.append(quota)
    return min(quotas, default=None)


def _quota_v2(folder: str) -> float | None:
    quota, _, period = _text(f"{folder}/cpu.max").strip().partition(" ")
    return _ratio(quota, period or "100000")


def _quota_v1(folder: str) -> float | None:
    quota = _text(f"{folder}/cpu.cfs_quota_us").strip()
    return _ratio(quota, _text(f"{folder}/cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    """None for `max`, for -1 (v1's "no limit") and for files that are not there."""
    if not quota.isdigit() or not period.isdigit() or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
