"""hypercorn (0.18): what its options become. Names are those of hypercorn/config.py."""

from typing import Final

from prefork.cli.migration import accessformat
from prefork.cli.migration.gunicorn import put_app, recycle
from prefork.cli.migration.table import (
    BESIDE,
    Job,
    Row,
    Server,
    address,
    left_in,
    level,
    listen,
    path,
    root_path,
    row,
    seconds,
    switch,
    terminated,
    whole,
)
from prefork.cli.migration.uvicorn import asgi_defaults


def _app(job: Job, one: Row) -> None:
    name = job.text(one.name)
    kind, _, rest = name.partition(":")
    if kind in ("asgi", "wsgi") and ":" in rest:
        job.put("interface", kind, job.said(one.name))
        job.found[one.name] = job.found[one.name]._replace(value=rest)
    put_app(job, one.name, "app")


def _listen(job: Job, one: Row) -> None:
    del one
    where = job.texts("bind") + job.texts("insecure_bind") or ["127.0.0.1:8000"]
    said = job.said("bind", "insecure_bind", "backlog")
    listen(job, [address(text) for text in where], said, backlog=job.integer("backlog"))


def _recycle(job: Job, one: Row) -> None:
    del one
    recycle(job, "max_requests", "max_requests_jitter")


def _access_log(job: Job, one: Row) -> None:
    name = job.text(one.name)
    if name != "-":
        job.put("log.access.path", job.path(name), job.said(one.name))
    written = "combined"
    told: list[str] = []
    if "access_log_format" in job.found:
        written, told = accessformat.translated(
            job.text("access_log_format"), accessformat.GUNICORN
        )
    job.put("log.access.format", written, job.said(one.name, "access_log_format"))
    if told:
        job.note(job.said("access_log_format"), "; ".join(told))


def _error_log(job: Job, one: Row) -> None:
    if job.text(one.name) != "-":
        path(job, one)


ROWS: Final = (
    row("application", "app", "", _app),
    row(
        "bind -b --bind *|insecure_bind --insecure-bind *|backlog --backlog", "listen", "", _listen
    ),
    row("quic_bind --quic-bind *", "", "no HTTP/3"),
    row("workers -w --workers", "workers", "", whole),
    row("worker_class -k --worker-class", "", "asyncio on prefork's own reactor, no trio"),
    row(
        "accesslog --access-logfile --access-log|access_log_format --access-logformat",
        "log.access.format log.access.path",
        "",
        _access_log,
    ),
    row("errorlog --error-logfile --log-file --error-log", "log.error.path", "", _error_log),
    row("loglevel --log-level", "log.error.level", "", level),
    row("logconfig --log-config", "", "prefork's logs do not go through `logging`"),
    row("graceful_timeout --graceful-timeout", "timeouts.graceful", "", seconds),
    row("keep_alive_timeout --keep-alive", "timeouts.keep_alive", "", seconds),
    row("read_timeout --read-timeout", "timeouts.body", "also timeouts.head", seconds),
    row(
        "max_requests --max-requests|max_requests_jitter --max-requests-jitter",
        "recycle.max_requests recycle.jitter",
        "",
        _recycle,
    ),
    row("websocket_ping_interval --websocket-ping-interval", "timeouts.ping", "", seconds),
    row("daemon -D --daemon !", "daemon", "", switch),
    row("debug --debug !", "", "PYTHONASYNCIODEBUG=1 is asyncio's own switch"),
    row("pid_path -p --pid", "pid_file", "", path),
    row(
        "umask -m --umask|user -u --user|group -g --group",
        "",
        "of Unix sockets there: `mode` of an address in `listen`; user, group and umask of prefork "
        "are the workers'",
    ),
    row("root_path --root-path", "root_path", left_in("hypercorn"), root_path),
    row("server_names --server-name *", "", "a proxy, or the application, compares Host"),
    row("statsd_host --statsd-host|statsd_prefix --statsd-prefix", "", "`prefork status --json`"),
    row("use_reloader --reload !", "", "nothing watches files: `prefork reload` after a change"),
    row(
        "certfile --certfile|keyfile --keyfile|keyfile_password --keyfile-password|"
        "ca_certs --ca-certs|cert_reqs --cert-reqs|ciphers --ciphers|verify_mode --verify-mode",
        "",
        "prefork terminates no TLS yet: the file serves plain HTTP, put a proxy before it",
    ),
    row("config -c --config", "", "not read: give its settings on the command line"),
)


def _finish(job: Job) -> None:
    if "listen" not in job.values:
        listen(job, ["127.0.0.1:8000"], "hypercorn's default")
    if "log.access.format" not in job.values:
        job.put("log.access.format", "off", "hypercorn writes none unless it is asked to")
    asgi_defaults(job, graceful="")


SERVER: Final = Server(
    "hypercorn",
    ROWS,
    "",
    True,
    _finish,
    signals=terminated("hypercorn"),
    reload="hypercorn has none. " + BESIDE,
)
