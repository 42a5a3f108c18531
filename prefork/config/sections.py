"""The sections of the configuration: the settings that come in groups.

Written as `prefork.config.schema` says, which joins them into one `Config`.
"""

from typing import Annotated, Final, Literal

from msgspec import Struct

from prefork.config.compound import Trusted
from prefork.config.kinds import (
    Choice,
    Duration,
    Integer,
    LogFormat,
    Nullable,
    OrWord,
    Path,
    Percent,
    Size,
)
from prefork.config.option import Option, Section

Level = Literal["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"]
LEVELS: Final = ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg")

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
    ping: Annotated[
        float,
        Option(
            OrWord(Duration(0.01), off=0.0),
            "How long a WebSocket client may be silent before it is asked whether it is there.",
            example="1m",
            known_as=("ws_ping_interval", "websocket_ping_interval"),
        ),
    ] = 20.0
    pong: Annotated[
        float,
        Option(
            Duration(0.01),
            "How long a WebSocket client may take to answer that before it counts as gone.",
            example="10s",
            known_as=("ws_ping_timeout", "websocket_ping_timeout"),
        ),
    ] = 20.0
    abandoned: Annotated[
        float,
        Option(
            OrWord(Duration(0.01), off=0.0),
            "How long a handler may go on when its client has left before the answer was complete. "
            "It is told at once (`http.disconnect` in ASGI), and cancelled when it has not ended "
            "by then. `off` lets it run to its end.",
            example="5s",
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
    request: Annotated[
        float,
        Option(
            OrWord(Duration(0.01), off=0.0),
            "How long a request may take, from its head to the end of its answer. One that awaits "
            "is cancelled and answered with 504; one that blocks its worker is written to the "
            "error log with its stack, and the worker is replaced.",
            example="30s",
            known_as=("request_timeout", "harakiri", "request_terminate_timeout"),
        ),
    ] = 0.0
    hang: Annotated[
        float,
        Option(
            OrWord(Duration(0.1), off=0.0),
            "How long a worker's event loop may stand still before it is called hung. Its requests "
            "and stacks are written to the error log and it is replaced. A worker that computes "
            "meanwhile is busy, not hung, and is given ten times as long.",
            example="1m",
            known_as=("timeout", "worker_timeout", "heartbeat_timeout", "workers_kill_timeout"),
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
    message: Annotated[
        int,
        Option(
            Size(1, 1 << 40),
            "The largest message of a WebSocket client, unpacked. A larger one closes the socket "
            "with 1009.",
            example="1MiB",
            known_as=("ws_max_size", "websocket_max_size"),
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


class Forwarded(Struct, frozen=True, kw_only=True):
    trust: Annotated[
        tuple[str, ...],
        Option(
            Trusted(),
            "The proxies whose word about the client is taken: addresses, networks, `unix` for "
            "whoever connects to a Unix socket. From them `X-Forwarded-For`, `-Proto`, `-Host` and "
            "`-Port`, or else `Forwarded` (RFC 7239), and the PROXY protocol give the client's "
            "address, the scheme and the host; from others they are ignored. `*` believes "
            "everybody.",
            example="[127.0.0.1, 10.0.0.0/8, unix]",
            known_as=(
                "forwarded_allow_ips",
                "proxy_allow_ips",
                "set_real_ip_from",
                "trusted_proxies",
                "proxy_headers",
            ),
        ),
    ] = ()


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


class Reload(Struct, frozen=True, kw_only=True):
    parallel: Annotated[
        int,
        Option(
            Integer(1, 512),
            "How many workers of the new generation boot at a time, once the first has shown that "
            "it can.",
            example="4",
        ),
    ] = 1
    generations: Annotated[
        int,
        Option(
            Integer(2, 64),
            "How many generations of workers may be alive at once. When a reload would make one "
            "more, the oldest, which is still finishing its requests, is ended at once.",
            example="3",
        ),
    ] = 2


class Recycle(Struct, frozen=True, kw_only=True):
    max_requests: Annotated[
        int,
        Option(
            Integer(0, 1 << 40),
            "Replace a worker after this many requests; 0 never does. The replacement is ready "
            "before the old worker stops accepting.",
            example="10000",
            known_as=("max_requests", "limit_max_requests", "pm.max_requests"),
        ),
    ] = 0
    jitter: Annotated[
        float,
        Option(
            Percent(0.0, 1.0),
            "By how much at random `max_requests` and `max_age` are shortened for each worker, so "
            "that they do not all end at once.",
            example="25%",
            known_as=("max_requests_jitter", "limit_max_requests_jitter"),
        ),
    ] = 0.1
    max_age: Annotated[
        float,
        Option(
            OrWord(Duration(1.0), off=0.0),
            "Replace a worker that has lived this long.",
            example="12h",
            known_as=("max_worker_lifetime", "workers_lifetime", "worker_lifetime"),
        ),
    ] = 0.0
    max_memory: Annotated[
        int,
        Option(
            OrWord(Size(1 << 20, 1 << 50), off=0),
            "Replace a worker whose proportional share of memory (PSS) is larger than this.",
            example="512MiB",
            known_as=("reload_on_rss", "reload_on_pss", "workers_max_rss", "max_rss"),
        ),
    ] = 0
    min_lifetime: Annotated[
        float,
        Option(
            Duration(0.0),
            "How long a worker lives at least, whatever it has served or eaten.",
            example="1m",
            known_as=("min_worker_lifetime",),
        ),
    ] = 10.0


class Backoff(Struct, frozen=True, kw_only=True):
    first: Annotated[
        float,
        Option(
            Duration(0.01),
            "How long the place of a worker that crashes again stays empty. The time doubles with "
            "each further crash.",
            example="500ms",
        ),
    ] = 1.0
    longest: Annotated[
        float,
        Option(
            Duration(0.01),
            "The longest time between two attempts.",
            example="5m",
        ),
    ] = 60.0
    forget_after: Annotated[
        float,
        Option(
            Duration(0.01),
            "How long a worker must have lived for its predecessors' crashes to be forgotten.",
            example="10m",
        ),
    ] = 60.0
