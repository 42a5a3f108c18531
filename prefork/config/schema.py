"""Every setting, once: name, unit, default, meaning, whether a reload applies it.

The values are frozen msgspec Structs. What an `Option` says beside each of them is all that the
loader, the reference, the commented sample, `prefork config` and the editors' JSON Schema know.
Seconds are floats, sizes are bytes, paths are absolute.
"""

import os
from typing import Annotated, Final, Literal

from msgspec import Struct, field

from prefork.config.address import ListenAddress
from prefork.config.compound import Addresses, Counts, CpuSets, Variable
from prefork.config.kinds import (
    AppSpec,
    Boolean,
    Choice,
    Duration,
    Integer,
    Name,
    Nullable,
    Octal,
    OrWord,
    Path,
)
from prefork.config.option import Option, Section, Variables
from prefork.config.rootpath import RootPath
from prefork.config.sections import (
    UNLIMITED,
    AccessLogFile,
    Backoff,
    ErrorLogFile,
    Forwarded,
    Level,
    Limits,
    Log,
    Recycle,
    Reload,
    Rlimits,
    Timeouts,
)

# During a reload the old and the new workers live side by side, and the scoreboard has 1024 slots.
WORKERS_MAX: Final = 512


class Config(Struct, frozen=True, kw_only=True):
    app: Annotated[
        str | None,
        Option(
            Nullable(AppSpec()),
            "The application: `module:attribute`, or `module:factory()` for a function that makes "
            "it. An APP on the command line takes its place.",
            example="myproject.app:app",
            known_as=("application", "wsgi_app", "module", "target"),
        ),
    ] = None
    interface: Annotated[
        Literal["auto", "onion", "asgi", "wsgi"],
        Option(
            Choice("auto", "onion", "asgi", "wsgi", meant={"asgi3": "asgi"}),
            "What the application speaks. `auto` looks at it: a `prefork.Application`, a coroutine "
            "function of three arguments (ASGI 3), a callable of two (WSGI). The ready line says "
            "what was found; another interface than is named here is refused.",
            example="wsgi",
            known_as=("app_type", "protocol", "worker_class"),
        ),
    ] = "auto"
    threads: Annotated[
        int,
        Option(
            Integer(0, 1024),
            "How many requests of a WSGI application a worker runs at once, each in a thread. 0 "
            "runs one at a time in the worker itself, when its body has come and without waiting "
            "for the client to read the answer: fastest, for applications that seldom wait. With "
            "threads, 256 requests wait for each of them; beyond, the answer is 503.",
            example="4",
            known_as=("worker_threads", "blocking_threads", "gthread"),
        ),
    ] = 0
    lifespan: Annotated[
        Literal["auto", "on", "off"],
        Option(
            Choice("auto", "on", "off"),
            "Whether an ASGI application is told of its worker's start and end. `auto` tries, and "
            "serves one that raises at it without; with `on` that is a failed boot. An application "
            "that reports a failed start-up never serves.",
            example='"on"',
        ),
    ] = "auto"
    root_path: Annotated[
        str,
        Option(
            RootPath(),
            "The prefix that a proxy takes off the paths it passes on to a hosted application, so "
            "that its links have it. It is `/api` behind nginx's `location /api/ { proxy_pass "
            "http://127.0.0.1:8000/; }`, by the slash at the end. A WSGI application has it as "
            "SCRIPT_NAME; an ASGI application as `root_path`, and before the rest of `path`. With "
            "a proxy that passes paths on unchanged leave it empty, and give the prefix to the "
            "application's routes. To an onion it means nothing; `prefork.asgi` and "
            "`prefork.wsgi` have an argument of this name.",
            example="/api",
            known_as=(
                *("script_name", "force_script_name", "application_root", "url_path_prefix"),
                *("url_prefix", "path_prefix", "base_path", "prefix"),
            ),
        ),
    ] = ""
    preload: Annotated[
        bool,
        Option(
            Boolean(),
            "Import the application once, in a process from which the workers are forked. They "
            "share its memory, and a reload imports the new code in a new one.",
            example="true",
            known_as=("preload_app",),
        ),
    ] = False
    refork_after: Annotated[
        tuple[int, ...],
        Option(
            Counts(1, 1 << 40),
            "After how many requests a warmed worker becomes the process that workers are forked "
            "from, so that they share what it has cached. One number for each time, and the last "
            "one for all that follow; an empty list never does it. Needs `preload`.",
            example="[500, 2000]",
            known_as=("refork_after", "fork_worker"),
        ),
    ] = ()
    working_directory: Annotated[
        str,
        Option(
            Path(),
            "The folder the application runs in, and the first place it is imported from.",
            default=".",
            example="/srv/myproject",
            known_as=("chdir", "app_dir", "directory", "cwd"),
        ),
    ] = field(default_factory=os.getcwd)
    listen: Annotated[
        tuple[ListenAddress, ...],
        Option(
            Addresses(),
            "Where to accept connections. `host:port`, `[v6]:port`, `:port` for every IPv4 "
            "interface, `unix:path`, `fd:3` for an inherited descriptor, `systemd:name` for a "
            "socket unit. A mapping `{address, backlog, mode, v6only, proxy_protocol}` says more "
            "about one: the length of the accept queue, the permissions of a Unix socket, whether "
            "an IPv6 socket is deaf to IPv4, and whether connections begin with a header of the "
            "PROXY protocol (version 1 or 2), which is then required.",
            example='["127.0.0.1:8000", {address: "unix:run/app.sock", mode: 0o660}]',
            known_as=("bind", "address", "addresses", "host", "port", "socket", "uds"),
        ),
    ] = (ListenAddress(kind="inet", host="127.0.0.1", port=8000),)
    forwarded: Annotated[
        Forwarded, Section("What proxies in front of the server may say about clients.")
    ] = Forwarded()
    workers: Annotated[
        int | Literal["auto"],
        Option(
            OrWord(Integer(1, WORKERS_MAX), auto="auto"),
            "How many worker processes serve. `auto` is one for each CPU that affinity and the "
            "cgroup's quota leave us; the sum is logged.",
            example="4",
            known_as=("worker_processes", "num_workers", "processes", "web_concurrency"),
        ),
    ] = "auto"
    master_process: Annotated[
        bool,
        Option(
            Boolean(),
            "Run a master that keeps the workers. `false` serves in one process, for debugging.",
            example="false",
            applies="restart",
        ),
    ] = True
    daemon: Annotated[
        bool,
        Option(
            Boolean(),
            "Go to the background; the command that started the server returns when its workers "
            "are ready. Leave it off under systemd and in containers.",
            example="true",
            applies="restart",
            known_as=("daemonize", "background"),
        ),
    ] = False
    pid_file: Annotated[
        str | None,
        Option(
            Nullable(Path()),
            "Where the master writes its process id, by which `prefork stop -c …` and its like "
            "find it. `null` writes none.",
            example="run/prefork.pid",
            applies="restart",
            known_as=("pid", "pidfile", "pid_path"),
        ),
    ] = None
    user: Annotated[
        str | None,
        Option(
            Nullable(Name("the name or number of a user")),
            "Who the workers run as when the master is started by root.",
            example="www-data",
            known_as=("uid", "run_as"),
        ),
    ] = None
    group: Annotated[
        str | None,
        Option(
            Nullable(Name("the name or number of a group")),
            "The workers' group; the user's own when it is null.",
            example="www-data",
            known_as=("gid",),
        ),
    ] = None
    log: Annotated[Log, Section("Where the two logs go, and what is in them.")] = Log()
    timeouts: Annotated[
        Timeouts,
        Section("How long things may take. A bare number is seconds; ms, s, m, h and d are units."),
    ] = Timeouts()
    slow_request: Annotated[
        float,
        Option(
            OrWord(Duration(0.01), off=0.0),
            "Write the stack of a request that takes longer than this to the error log, once, "
            "without disturbing it.",
            example="2s",
            known_as=("request_slowlog_timeout", "slowlog", "slow_log"),
        ),
    ] = 0.0
    drain_delay: Annotated[
        float,
        Option(
            Duration(0.0),
            "How long the server goes on accepting after it was asked to stop gracefully. Load "
            "balancers have that long to notice, before connections are refused.",
            example="5s",
            known_as=("shutdown_delay", "lameduck", "pre_stop_delay"),
        ),
    ] = 0.0
    reload: Annotated[Reload, Section("How one generation of workers follows the other.")] = (
        Reload()
    )
    recycle: Annotated[
        Recycle, Section("When a worker is replaced by a fresh one, although nothing is wrong.")
    ] = Recycle()
    backoff: Annotated[
        Backoff, Section("How long a worker that crashes again and again stays away.")
    ] = Backoff()
    limits: Annotated[
        Limits,
        Section(
            "How much one client may ask for. A bare number is bytes; KiB, MiB, GiB are units."
        ),
    ] = Limits()
    on_term: Annotated[
        Literal["fast", "graceful"],
        Option(
            Choice("fast", "graceful"),
            "What TERM does. `fast` is nginx's way; `graceful` makes it the same as QUIT, for "
            "orchestrators that only send TERM.",
            example="graceful",
        ),
    ] = "fast"
    umask: Annotated[
        int | None,
        Option(
            Nullable(Octal(0o777)),
            "The workers' file mode creation mask; inherited when it is null.",
            example="0o027",
        ),
    ] = None
    rlimits: Annotated[
        Rlimits, Section("Resource limits of the workers; inherited when they are null.")
    ] = Rlimits()
    niceness: Annotated[
        int | None,
        Option(
            Nullable(Integer(-20, 19)),
            "The workers' scheduling priority, from -20 (first) to 19 (last). Less than the "
            "master's own needs root.",
            example="5",
            known_as=("nice", "worker_priority", "priority"),
        ),
    ] = None
    cpu_affinity: Annotated[
        Literal["auto"] | tuple[tuple[int, ...], ...] | None,
        Option(
            Nullable(OrWord(CpuSets(), auto="auto")),
            "Bind workers to CPUs. `auto` gives each worker one; a list has an entry per worker, "
            "a CPU's number, a range or a mask, and its last entry serves all further workers.",
            example='["0-3", "4-7"]',
            known_as=("worker_cpu_affinity", "affinity", "cpus"),
        ),
    ] = None
    environment: Annotated[
        dict[str, str],
        Variables(
            Variable(),
            "Environment variables for the application, set in each worker before it is imported.",
            example="{APP_MODE: production}",
        ),
    ] = {}


__all__ = [
    "UNLIMITED",
    "WORKERS_MAX",
    "AccessLogFile",
    "Backoff",
    "Config",
    "ErrorLogFile",
    "Forwarded",
    "Level",
    "Limits",
    "Log",
    "Recycle",
    "Reload",
    "Rlimits",
    "Timeouts",
]
