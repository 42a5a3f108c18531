"""uvicorn (0.54): what its options become. Names are those of uvicorn/main.py."""

import os
from typing import Final

from prefork.cli.migration.gunicorn import put_app, recycle, trust, trusted
from prefork.cli.migration.table import (
    BESIDE,
    Job,
    Row,
    Server,
    address,
    directory,
    level,
    listen,
    root_path,
    row,
    seconds,
    terminated,
    whole,
    words,
)


def _app(job: Job, one: Row) -> None:
    put_app(job, one.name, "app", factory=job.true("factory"))


def put_address(job: Job, *, backlog: int = 0, mode: int | None = None) -> None:
    """`listen` from host, port, uds and fd, of which the later win."""
    said = job.said("host", "port", "uds", "fd", "backlog")
    where = address(job.text("host", "127.0.0.1"), job.integer("port", 8000))
    if job.get("uds") is not None:
        where = f"unix:{job.text('uds')}"
    if job.get("fd") is not None:
        where = f"fd:{job.integer('fd')}"
    listen(job, [where], said, backlog=backlog, mode=mode)


def _listen(job: Job, one: Row) -> None:
    del one
    put_address(job, backlog=job.integer("backlog"))


def _interface(job: Job, one: Row) -> None:
    value = job.text(one.name)
    if value == "asgi2":
        job.note(job.said(one.name), "ASGI 2 is not hosted: asgiref's double_to_single_callable")
    elif value != "auto":
        job.put("interface", value.removesuffix("3"), job.said(one.name))


def _access_log(job: Job, one: Row) -> None:
    if not job.true(one.name):
        job.put("log.access.format", "off", job.said(one.name))


def _trusted(job: Job, one: Row) -> None:
    if "forwarded_allow_ips" in job.found:
        trusted(job, "forwarded_allow_ips")
    elif not job.true(one.name) and job.get("proxy_headers") is not None:
        job.note(job.said(one.name), "as prefork does: nobody is trusted")


def _deflate(job: Job, one: Row) -> None:
    if not job.true(one.name):
        job.note(job.said(one.name), "prefork agrees to permessage-deflate whenever it is offered")


def _recycle(job: Job, one: Row) -> None:
    del one
    recycle(job, "limit_max_requests", "limit_max_requests_jitter")


def environment_files(job: Job, one: Row) -> None:
    """No secret is copied into the configuration: the unit names the files."""
    for text in job.texts(one.name):
        job.unit.append(f"EnvironmentFile={os.path.join(job.base, text)}")


ENV_FILE_SAYS: Final = (
    "not copied, it may hold secrets: start prefork with these variables (`EnvironmentFile=` of "
    "the unit, or `set -a; . ./.env`), or name single ones in `environment`"
)

ROWS: Final = (
    row("app|factory --factory !", "app", "`--factory` is `module:factory()`", _app, quiet=True),
    row(
        "host --host|port --port|uds --uds|fd --fd|backlog --backlog",
        "listen",
        "`::` was both families: `v6only: false`",
        _listen,
        quiet=True,
    ),
    row("workers --workers", "workers", "the default there is 1", whole, quiet=True),
    row("interface --interface", "interface", "asgi2 is not hosted", _interface, quiet=True),
    row("lifespan --lifespan", "lifespan", "", words),
    row("loop --loop", "", "asyncio on prefork's own reactor, always; uvloop is not used"),
    row("http --http", "", "httptools, always"),
    row("http2 --http2 !", "", "HTTP/1.1 only"),
    row("ws --ws", "", "the websockets library, always"),
    row("ws_max_size --ws-max-size", "limits.message", "", whole),
    row("ws_max_queue --ws-max-queue", "", "prefork stops reading when the application is behind"),
    row("ws_ping_interval --ws-ping-interval", "timeouts.ping", "", seconds),
    row("ws_ping_timeout --ws-ping-timeout", "timeouts.pong", "", seconds),
    row(
        "ws_per_message_deflate --ws-per-message-deflate",
        "",
        "agreed to whenever it is offered",
        _deflate,
        quiet=True,
    ),
    row("env_file --env-file", "", ENV_FILE_SAYS, environment_files),
    row("app_dir --app-dir", "working_directory", "the application also runs in it", directory),
    row(
        "log_config --log-config",
        "",
        "prefork's logs do not go through `logging`; the application configures its own loggers",
    ),
    row(
        "log_level --log-level",
        "log.error.level",
        "what is `info` there is `notice` here",
        level,
        quiet=True,
    ),
    row(
        "access_log --access-log ! / --no-access-log",
        "log.access.format",
        "`off`; without the option the lines are `combined`, not uvicorn's",
        _access_log,
        quiet=True,
    ),
    row("use_colors --use-colors ! / --no-use-colors", "", "only to a terminal, and by NO_COLOR"),
    row(
        "proxy_headers --proxy-headers ! / --no-proxy-headers|"
        "forwarded_allow_ips --forwarded-allow-ips",
        "forwarded.trust",
        "127.0.0.1 and ::1 were trusted there, nobody is here",
        _trusted,
        quiet=True,
    ),
    row("server_header --server-header ! / --no-server-header", "", "there is no switch for it"),
    row("date_header --date-header ! / --no-date-header", "", "`Date` is always sent"),
    row("headers --header *", "", "a middleware of the application adds them"),
    row("root_path --root-path", "root_path", "", root_path),
    row(
        "limit_concurrency --limit-concurrency",
        "limits.connections",
        "at the limit clients wait in the accept queue, where uvicorn answers 503",
        whole,
    ),
    row(
        "limit_max_requests --limit-max-requests|"
        "limit_max_requests_jitter --limit-max-requests-jitter",
        "recycle.max_requests recycle.jitter",
        "the jitter is a share, and shortens; the replacement is ready first",
        _recycle,
        quiet=True,
    ),
    row("timeout_keep_alive --timeout-keep-alive", "timeouts.keep_alive", "", seconds),
    row(
        "timeout_graceful_shutdown --timeout-graceful-shutdown",
        "timeouts.graceful",
        "unlimited there unless it is set, 30 s here",
        seconds,
        quiet=True,
    ),
    row(
        "timeout_worker_healthcheck --timeout-worker-healthcheck",
        "",
        "there a thread of the worker is asked; here `timeouts.hang` says how long its event loop "
        "may stand still",
    ),
    row(
        "reload --reload !|reload_dirs --reload-dir *|reload_includes --reload-include *|"
        "reload_excludes --reload-exclude *|reload_delay --reload-delay",
        "",
        "nothing watches files: `prefork reload` after a change",
    ),
    row(
        "ssl_keyfile --ssl-keyfile|ssl_certfile --ssl-certfile|"
        "ssl_keyfile_password --ssl-keyfile-password|ssl_version --ssl-version|"
        "ssl_cert_reqs --ssl-cert-reqs|ssl_ca_certs --ssl-ca-certs|ssl_ciphers --ssl-ciphers",
        "",
        "prefork terminates no TLS yet: the file serves plain HTTP, put nginx or another proxy "
        "before it",
    ),
    row(
        "h11_max_incomplete_event_size --h11-max-incomplete-event-size",
        "limits.head",
        "of the whole head",
        whole,
    ),
    row("reset_contextvars --reset-contextvars !", "", "each request has a context of its own"),
    row("version --version !", "", "`prefork --version -v`"),
)


def asgi_defaults(job: Job, *, graceful: str) -> None:
    """What the servers of ASGI have in common."""
    if "workers" not in job.values:
        job.put("workers", 1, f"{job.server.name}'s default; auto is one for each CPU")
    if "timeouts.graceful" not in job.values and graceful:
        job.note("timeouts.graceful", graceful)
    job.put(
        "on_term",
        "graceful",
        f"TERM is graceful in {job.server.name}, and fast in nginx and prefork",
    )


def _finish(job: Job) -> None:
    if "listen" not in job.values:
        listen(job, ["127.0.0.1:8000"], "uvicorn's default")
    if job.has("forwarded.trust") and not {"forwarded_allow_ips", "proxy_headers"} & set(job.found):
        trust(job, ["127.0.0.1", "::1"], "uvicorn's default")
    asgi_defaults(
        job,
        graceful="uvicorn waits for requests without end unless it is told otherwise; prefork "
        "cuts them after 30 s",
    )


SERVER: Final = Server(
    "uvicorn",
    ROWS,
    "UVICORN_",
    False,
    _finish,
    signals=terminated("uvicorn"),
    reload="uvicorn restarts the workers of `--workers` on HUP, and ends without the option. "
    + BESIDE,
)
