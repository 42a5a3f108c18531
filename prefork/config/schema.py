"""Every setting, once: name, unit, default, meaning, whether a reload applies it.

The values are frozen msgspec Structs. What an `Option` says beside each of them is all that the
loader, the reference, the commented sample, `prefork config` and the editors' JSON Schema know.
Seconds are floats, sizes are bytes, paths are absolute.
"""

import os
from typing import Annotated, Final, Literal

from msgspec import Struct, field

from prefork.config.address import ListenAddress
from prefork.config.compound import Addresses, CpuSets, Variable
from prefork.config.kinds import (
    AppSpec,
    Boolean,
    Choice,
    Duration,
    Integer,
    LogFormat,
    Name,
    Nullable,
    Octal,
    OrWord,
    Path,
    Size,
)
from prefork.config.option import Option, Section, Variables

Level = Literal["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"]
LEVELS: Final = ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg")

# During a reload the old and the new workers live side by side, and the scoreboard has 1024 slots.
WORKERS_MAX: Final = 512
UNLIMITED: Final = -1  # resource.RLIM_INFINITY


class ErrorLogFile(Struct, frozen=True, kw_only=True):
    path: Annotated[
        str,
        Option(
            Path("stderr", "stdout"),
            "The error log. A file is opened by the master, appended to, and reopened on USR1 "
            "(`prefork reopen`).",
            example="log/error.log",
            known_as=("error_log", "errorlog", "error_logfile", "logfile", "stderr_log"),
        ),
    ] = "stderr"
    level: Annotated[
        Level,
        Option(
            Choice(*LEVELS, meant={"warning": "warn", "critical": "crit", "fatal": "emerg"}),
            "The least severe messages that are written. The levels are nginx's.",
            example="info",
            known_as=("log_level", "loglevel", "error_log_level"),
        ),
    ] = "notice"


class AccessLogFile(Struct, frozen=True, kw_only=True):
    path: Annotated[
        str,
        Option(
            Path("stderr", "stdout"),
            "The access log. A file is reopened on USR1, like the error log.",
            example="log/access.log",
            known_as=("access_log", "accesslog", "access_logfile"),
        ),
    ] = "stdout"
    format: Annotated[
        str,
        Option(
            LogFormat(),
            "One line per answered request. `off` writes none; a template names nginx's variables, "
            "such as `$remote_addr` and `$status`.",
            example="'$remote_addr \"$request\" $status $request_time'",
            known_as=("access_log_format", "log_format", "access_logformat"),
        ),
    ] = "combined"
    buffer: Annotated[
        int,
        Option(
            Size(0, 64 << 20),
            "How much a worker collects before it writes. It also writes when the oldest line is "
            "older than `flush`, on reopen and on exit; 0 writes every line at once.",
            example="32KiB",
        ),
    ] = 64 << 10
    flush: Annotated[
        float,
        Option(
            Duration(0.0, 3600.0),
            "The longest time a line waits in the buffer.",
            example="5s",
        ),
    ] = 1.0


class Log(Struct, frozen=True, kw_only=True):
    error: Annotated[ErrorLogFile, Section("What the server says about itself.")] = ErrorLogFile()
    access: Annotated[AccessLogFile, Section("What the clients asked for.")] = AccessLogFile()


class Timeouts(Struct, frozen=True, kw_only=True):
    boot: Annotated[
        float,
        Option(
            Duration(0.1),
            "How long a worker may take to import the application and run its start-up functions. "
            "One that is late is killed; a reload that cannot boot its workers is undone.",
            example="2m",
            known_as=("startup_timeout", "worker_boot_timeout"),
        ),
    ] = 60.0
    head: Annotated[
        float,
        Option(
            Duration(0.01),
            "How long a client may take to send the head of a request, counted from its first "
            "byte. A slower one is answered with 408.",
            example="5s",
            known_as=("client_header_timeout", "header_read_timeout", "request_header_timeout"),
        ),
    ] = 10.0
    body: Annotated[
        float,
        Option(
            Duration(0.01),
            "How long a client may pause between two pieces of a request's body. A slower one is "
            "answered with 408.",
            example="1m",
            known_as=("client_body_timeout", "request_body_timeout"),
        ),
    ] = 30.0
    keep_alive: Annotated[
        float,
        Option(
            OrWord(Duration(0.0), off=0.0),
            "How long an idle connection is kept open for its next request. `off` closes every "
            "connection after one answer.",
            example="15s",
            known_as=("keepalive", "keepalive_timeout", "timeout_keep_alive", "keep_alive_timeout"),
        ),
    ] = 75.0
    keep_alive_min: Annotated[
        float,
        Option(
            Duration(0.0),
            "How long a connection must have been idle before a worker that leaves closes it. It "
            "gives a request that is already on its way the time to arrive.",
            example="500ms",
            known_as=("keepalive_min_timeout",),
        ),
    ] = 1.0
    send: Annotated[
        float,
        Option(
            Duration(0.01),
            "How long a client may take to accept the next piece of an answer. A slower one is "
            "disconnected.",
            example="1m",
            known_as=("send_timeout", "write_timeout"),
        ),
    ] = 30.0
    graceful: Annotated[
        float,
        Option(
            Duration(0.0),
            "How long a worker may go on with running requests after QUIT or a reload. The master "
            "kills what is left.",
            example="5m",
            known_as=("graceful_timeout", "timeout_graceful_shutdown", "worker_shutdown_timeout"),
        ),
    ] = 30.0


class Limits(Struct, frozen=True, kw_only=True):
    request_line: Annotated[
        int,
        Option(
            Size(64, 1 << 20),
            "The longest request line (method, target and version). A longer one is answered with "
            "414.",
            example="4KiB",
            known_as=("limit_request_line", "max_request_line"),
        ),
    ] = 8 << 10
    head: Annotated[
        int,
        Option(
            Size(256, 16 << 20),
            "The largest head of a request, request line included. A larger one is answered with "
            "431.",
            example="64KiB",
            known_as=("large_client_header_buffers", "limit_request_field_size", "max_header_size"),
        ),
    ] = 32 << 10
    header_count: Annotated[
        int,
        Option(
            Integer(1, 100_000),
            "How many header fields a request may have. More are answered with 431. They are "
            "counted in heads of more than ten bytes times this number: a smaller head is cheap, "
            "however many fields fit into it.",
            example="50",
            known_as=("limit_request_fields", "max_headers"),
        ),
    ] = 100
    body: Annotated[
        int,
        Option(
            Size(0, 1 << 50),
            "The largest body of a request. A larger one is answered with 413.",
            example="1GiB",
            known_as=("client_max_body_size", "max_body_size", "limit_request_body"),
        ),
    ] = 16 << 20
    connections: Annotated[
        int,
        Option(
            Integer(1, 10_000_000),
            "How many connections one worker holds at a time. At the limit it stops accepting "
            "until one is closed.",
            example="1000",
            known_as=("worker_connections", "limit_concurrency", "max_connections"),
        ),
    ] = 10_000


class Rlimits(Struct, frozen=True, kw_only=True):
    nofile: Annotated[
        int | None,
        Option(
            Nullable(OrWord(Integer(16, 1 << 30), unlimited=UNLIMITED)),
            "RLIMIT_NOFILE of a worker: how many descriptors it may have open. Each connection "
            "takes one.",
            example="65536",
            known_as=("worker_rlimit_nofile", "limit_nofile"),
        ),
    ] = None
    core: Annotated[
        int | None,
        Option(
            Nullable(OrWord(Size(0, 1 << 50), unlimited=UNLIMITED)),
            "RLIMIT_CORE of a worker: the largest core file.",
            example="unlimited",
            known_as=("worker_rlimit_core", "limit_core"),
        ),
    ] = None


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
    preload: Annotated[
        bool,
        Option(
            Boolean(),
            "Import the application once, before the workers are forked. This version cannot do "
            "it yet and refuses `true`.",
            example="false",
            applies="restart",
            known_as=("preload_app",),
        ),
    ] = False
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
            "socket unit. A mapping `{address, backlog, mode, v6only}` says more about one: the "
            "length of the accept queue, the permissions of a Unix socket, and whether an IPv6 "
            "socket is deaf to IPv4.",
            example='["127.0.0.1:8000", {address: "unix:run/app.sock", mode: 0o660}]',
            known_as=("bind", "address", "addresses", "host", "port", "socket", "uds"),
        ),
    ] = (ListenAddress(kind="inet", host="127.0.0.1", port=8000),)
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
