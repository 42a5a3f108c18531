"""gunicorn (27): what its settings become. Names and meanings are those of gunicorn/config.py."""

import os
from typing import Final

from prefork.cli.migration import accessformat
from prefork.cli.migration.table import (
    BESIDE,
    Job,
    Row,
    Server,
    address,
    directory,
    left_in,
    level,
    listen,
    path,
    root_path,
    row,
    seconds,
    switch,
    whole,
    words,
)
from prefork.config.compound import Addresses

_GREEN_THREADS: Final = 32
_OFF: Final = ("off", "false", "none", "0")


def worker_class(job: Job) -> str:
    """The family of the worker: sync, gthread, gevent, eventlet, tornado, asgi, or another name."""
    name = job.text("worker_class", "sync")
    lower = name.lower()
    if "uvicorn" in lower or lower.endswith(("asgi", ".asgiworker")):
        return "asgi"
    for family in ("gthread", "gevent", "eventlet", "tornado"):
        if family in lower:
            return family
    if lower in ("sync", "gunicorn.workers.sync.syncworker"):
        # As gunicorn itself does: more than one thread needs the worker that has them.
        return "gthread" if job.integer("threads", 1) > 1 else "sync"
    return name


def _app(job: Job, one: Row) -> None:
    put_app(job, one.name, "application")


def put_app(job: Job, name: str, attribute: str, *, factory: bool = False) -> None:
    """Write `app`; a module alone has the other server's default `attribute`."""
    text = job.text(name)
    if ":" not in text:
        text = f"{text}:{attribute}"
    if factory and not text.endswith(")"):
        text += "()"
    job.put("app", text, job.said(name))


def _bind(job: Job, one: Row) -> None:
    del one
    addresses = [address(text) for text in job.texts("bind")] or [default_address(job)]
    mode = None
    if job.get("umask") is not None:
        mode = 0o777 & ~job.integer("umask")
    listen(
        job,
        addresses,
        job.said("bind", "backlog", "proxy_protocol"),
        backlog=job.integer("backlog"),
        mode=mode,
        proxied=_proxied(job),
    )


def _proxied(job: Job) -> bool:
    word = job.text("proxy_protocol", "off").lower()
    return word not in _OFF and "proxy_protocol" in Addresses.extras


def default_address(job: Job) -> str:
    """gunicorn's own: PORT of the environment makes it every interface."""
    port = job.environ.get("PORT", "")
    return f"0.0.0.0:{port}" if port.isdigit() else "127.0.0.1:8000"


def _class(job: Job, one: Row) -> None:
    del one
    family = worker_class(job)
    threads = job.integer("threads", 1)
    said = job.said("worker_class", "threads")
    if family == "asgi":
        job.put("interface", "asgi", said)
    elif family == "sync":
        job.put("interface", "wsgi", said)
    elif family == "gthread":
        job.put("interface", "wsgi", said)
        job.put("threads", threads, said)
    elif family in ("gevent", "eventlet"):
        job.put("interface", "wsgi", said)
        job.put("threads", max(threads, _GREEN_THREADS), said)
        job.note(
            said,
            f"{max(threads, _GREEN_THREADS)} threads take the place of green ones, as a start: "
            "requests that "
            "wait need one each. Nothing is monkey-patched; what the application patches itself "
            "stays so, and should go",
        )
    else:
        job.note(
            said,
            "is a worker that prefork has no counterpart of: `interface: auto` looks at the "
            "application",
        )


def _timeout(job: Job, one: Row) -> None:
    """gunicorn's `timeout` is how long a worker may fail to say that it lives. A sync worker says
    it between requests, so there it limits a request; all others go on saying it."""
    seconds_ = float(job.number(one.name))
    said = job.said(one.name)
    if worker_class(job) == "sync":
        job.put("timeouts.request", seconds_, said)
        job.note(
            said,
            "in a sync worker this is the longest time of a request, so it is written as "
            "timeouts.request; a worker that blocks for longer is replaced, with its stack in the "
            "error log",
        )
    else:
        job.note(
            said,
            f"with {worker_class(job)} workers it never limited a request, only a worker that "
            "stands still: timeouts.hang. To limit requests set timeouts.request",
        )
    job.put("timeouts.hang", seconds_, said)


def recycle(job: Job, requests: str, jitter: str) -> None:
    """`max_requests` + randint(0, jitter) is added there, and subtracted here: the same range."""
    most, spread = job.integer(requests), job.integer(jitter)
    said = job.said(requests, jitter)
    if not most:
        return
    job.put("recycle.max_requests", most + spread, said)
    if spread:
        job.put("recycle.jitter", spread / (most + spread), said)
    else:
        job.note(
            said,
            "is shortened for each worker by up to a tenth (recycle.jitter), so that they do not "
            "all end at once",
        )


def _recycle(job: Job, one: Row) -> None:
    del one
    recycle(job, "max_requests", "max_requests_jitter")


def _keep_alive(job: Job, one: Row) -> None:
    job.put("timeouts.keep_alive", float(job.number(one.name)), job.said(one.name))


def _fields(job: Job, one: Row) -> None:
    job.put("limits.header_count", job.integer(one.name) or 100_000, job.said(one.name))


def _field_size(job: Job, one: Row) -> None:
    size = job.integer(one.name) or 1 << 20
    if size > 32 << 10:
        job.put("limits.head", size, job.said(one.name))


def _request_line(job: Job, one: Row) -> None:
    size = min(max(job.integer(one.name) or 1 << 20, 64), 1 << 20)
    job.put("limits.request_line", size, job.said(one.name))
    if size > 32 << 10:
        job.put("limits.head", size + (32 << 10), job.said(one.name))


def _connections(job: Job, one: Row) -> None:
    if worker_class(job) != "sync":
        whole(job, one)


def _access_log(job: Job, one: Row) -> None:
    name = job.text(one.name)
    if not name or name == "None":
        return
    if name != "-":
        job.put("log.access.path", job.path(name), job.said(one.name))
    if "access_log_format" not in job.found:
        job.put("log.access.format", "combined", job.said(one.name))


def _access_format(job: Job, one: Row) -> None:
    if not job.text("accesslog"):
        job.note(job.said(one.name), "there is no access log it could be used for")
        return
    written, told = accessformat.translated(job.text(one.name), accessformat.GUNICORN)
    job.put("log.access.format", written, job.said(one.name))
    if told:
        job.note(job.said(one.name), "; ".join(told))


def _error_log(job: Job, one: Row) -> None:
    if job.text(one.name) not in ("", "-"):
        path(job, one)


def _variables(job: Job, one: Row) -> None:
    values = job.get(one.name)
    told = False
    for text in values if isinstance(values, list) else [values]:
        name, equals, value = str(text).partition("=")
        if not equals:
            job.note(one.name, f'"{text}" is no NAME=value: left out, as gunicorn refuses it')
        elif name.strip() == "SCRIPT_NAME" and worker_class(job) != "asgi":
            _script_name(job, value)
        else:
            job.put(f"environment.{name.strip()}", value, one.name)
            told = True
    if told:
        # Not as they were given: this is printed.
        job.note(one.name, "copied as they are; a secret is better off as `${NAME}` or `${file:…}`")


def _script_name(job: Job, value: str) -> None:
    """gunicorn looks for the prefix of a WSGI application in its own environment."""
    said = f"SCRIPT_NAME={value}"
    job.put("root_path", value.rstrip("/"), said)
    job.note(said, left_in("gunicorn"))


def _identity(job: Job, one: Row) -> None:
    for option in one.options:
        if job.text(option.name):
            job.put(option.name, job.text(option.name), job.said(option.name))


def _umask(job: Job, one: Row) -> None:
    job.put("umask", job.integer(one.name), job.said(one.name))


def trusted(job: Job, name: str) -> None:
    """Addresses of proxies → `forwarded.trust`, where there is such a setting."""
    addresses = job.texts(name)
    if not job.has("forwarded.trust"):
        job.note(
            job.said(name),
            "prefork believes no Forwarded and no X-Forwarded-*: the application sees the proxy's "
            "address and http",
        )
        return
    if "*" in addresses:
        job.note(job.said(name), "everybody is believed: better name your proxies")
    trust(job, addresses, job.said(name))


def trust(job: Job, addresses: list[str], why: str) -> None:
    """Write `forwarded.trust`."""
    listed = ", ".join(f'"{one}"' for one in dict.fromkeys(addresses))
    job.put_text("forwarded.trust", f"[{listed}]", why)


def _trusted(job: Job, one: Row) -> None:
    trusted(job, one.name)


def _proxy_protocol(job: Job, one: Row) -> None:
    if job.text("proxy_protocol", "off").lower() in _OFF:
        return
    if not _proxied(job):
        job.note(job.said("proxy_protocol"), "there is no PROXY protocol: nothing is written")
        return
    _bind(job, one)
    job.note(job.said("proxy_protocol"), one.say)


def _trust_defaults(job: Job) -> None:
    """gunicorn believes its own host unless told otherwise, and Unix sockets in any case."""
    if not job.has("forwarded.trust"):
        return
    addresses = job.texts("forwarded_allow_ips") or ["127.0.0.1", "::1"]
    why = job.said("forwarded_allow_ips") or "gunicorn's default"
    if "proxy_protocol: true" in job.values["listen"][0]:
        addresses += job.texts("proxy_allow_ips")
        why += f", {job.said('proxy_allow_ips')}" if "proxy_allow_ips" in job.found else ""
    if "unix:" in job.values["listen"][0]:
        addresses.append("unix")
    trust(job, addresses, why)
    job.note(
        "forwarded.trust",
        "gunicorn took the scheme from these proxies; prefork takes the client's address and the "
        "host, too",
    )


def _python_path(job: Job, one: Row) -> None:
    found = ":".join(os.path.join(job.base, part) for part in job.texts(one.name))
    job.unit.append(f"Environment=PYTHONPATH={found}")


def _hook(instead: str) -> str:
    return f"a hook in Python is not translated; {instead}"


ROWS: Final = (
    row("wsgi_app", "app", "`MODULE` alone is `MODULE:application` there", _app, quiet=True),
    row(
        "bind -b --bind *|backlog --backlog",
        "listen",
        "`::` was both families: `v6only: false`",
        _bind,
        quiet=True,
    ),
    row("workers -w --workers", "workers", "the default there is 1", whole, quiet=True),
    row(
        "worker_class -k --worker-class|threads --threads",
        "interface threads",
        "sync: `threads: 0`; gthread: `threads: N`; gevent, eventlet: threads; "
        "asgi and UvicornWorker: `interface: asgi`",
        _class,
        quiet=True,
    ),
    row(
        "worker_connections --worker-connections",
        "limits.connections",
        "of sync workers it meant nothing",
        _connections,
        quiet=True,
    ),
    row(
        "max_requests --max-requests|max_requests_jitter --max-requests-jitter",
        "recycle.max_requests recycle.jitter",
        "the jitter is a share, and shortens; the replacement is ready first",
        _recycle,
        quiet=True,
    ),
    row(
        "timeout -t --timeout",
        "timeouts.hang timeouts.request",
        "sync: the longest time of a request, and both are written; other workers: only of one "
        "that stands still, `timeouts.hang`",
        _timeout,
        quiet=True,
    ),
    row("graceful_timeout --graceful-timeout", "timeouts.graceful", "", seconds),
    row(
        "keepalive --keep-alive",
        "timeouts.keep_alive",
        "2 s there (none with sync workers), 75 s here",
        _keep_alive,
        quiet=True,
    ),
    row("limit_request_line --limit-request-line", "limits.request_line", "", _request_line),
    row("limit_request_fields --limit-request-fields", "limits.header_count", "", _fields),
    row(
        "limit_request_field_size --limit-request-field_size",
        "limits.head",
        "of one field there, of the whole head here",
        _field_size,
    ),
    row("preload_app --preload !", "preload", "a reload brings new code all the same", switch),
    row(
        "reload --reload !|reload_engine --reload-engine|reload_extra_files --reload-extra-file *",
        "",
        "nothing watches files: `prefork reload` after a change",
    ),
    row("chdir --chdir", "working_directory", "", directory),
    row("daemon -D --daemon !", "daemon", "the command returns when the workers are ready", switch),
    row(
        "raw_env -e --env *",
        "environment",
        "copied as they are, secrets too; `SCRIPT_NAME` is the setting `root_path`",
        _variables,
        quiet=True,
    ),
    row("pidfile -p --pid", "pid_file", "", path),
    row("user -u --user|group -g --group", "user group", "of the workers", _identity, quiet=True),
    row("initgroups --initgroups !", "", "always done when the master is root's"),
    row("umask -m --umask", "umask", "0 there, inherited here", _umask, quiet=True),
    row("pythonpath --pythonpath", "", "set PYTHONPATH for prefork itself", _python_path),
    row(
        "accesslog --access-logfile",
        "log.access.path log.access.format",
        "off there unless it is set: `log.access.format: off` is written then",
        _access_log,
        quiet=True,
    ),
    row(
        "access_log_format --access-logformat",
        "log.access.format",
        "`%(h)s` becomes `$remote_addr` and so on; fields of the response and `environ` have no "
        "counterpart",
        _access_format,
        quiet=True,
    ),
    row("errorlog --error-logfile --log-file", "log.error.path", "", _error_log),
    row(
        "loglevel --log-level",
        "log.error.level",
        "what is `info` there is `notice` here",
        level,
        quiet=True,
    ),
    row(
        "capture_output --capture-output !|"
        "enable_stdio_inheritance -R --enable-stdio-inheritance !",
        "",
        "what the application prints goes where prefork's own stdout and stderr go",
    ),
    row(
        "logger_class --logger-class|logconfig --log-config|logconfig_dict|"
        "logconfig_json --log-config-json",
        "",
        "prefork's logs do not go through `logging`; the application configures its own loggers",
    ),
    row(
        "syslog --log-syslog !|syslog_addr --log-syslog-to|syslog_prefix --log-syslog-prefix|"
        "syslog_facility --log-syslog-facility|"
        "disable_redirect_access_to_syslog --disable-redirect-access-to-syslog !",
        "",
        "no syslog: systemd's journal takes stdout and stderr",
    ),
    row(
        "statsd_host --statsd-host|statsd_prefix --statsd-prefix|dogstatsd_tags --dogstatsd-tags|"
        "enable_backlog_metric --enable-backlog-metric !",
        "",
        "no statsd: `prefork status --json` has the counters and the accept queue",
    ),
    row(
        "forwarded_allow_ips --forwarded-allow-ips",
        "forwarded.trust",
        "127.0.0.1 and ::1 were trusted there, nobody is here",
        _trusted,
        quiet=True,
    ),
    row(
        "secure_scheme_headers|forwarder_headers --forwarder-headers|header_map --header-map",
        "",
        "fields with `_` in their name never reach the application, and none sets its environ",
    ),
    row(
        "proxy_protocol --proxy-protocol ?|proxy_allow_ips --proxy-allow-from",
        "listen",
        "of each address, and the header is required then; `forwarded.trust` says from whom",
        _proxy_protocol,
        quiet=True,
    ),
    row(
        "keyfile --keyfile|certfile --certfile|ssl_version --ssl-version|cert_reqs --cert-reqs|"
        "ca_certs --ca-certs|suppress_ragged_eofs --suppress-ragged-eofs !|"
        "do_handshake_on_connect --do-handshake-on-connect !|ciphers --ciphers",
        "",
        "prefork terminates no TLS yet: the file serves plain HTTP, put nginx or another proxy "
        "before it",
    ),
    row("ssl_context", "", _hook("prefork terminates no TLS yet")),
    row(
        "http_protocols --http-protocols|http2_cleartext --http2-cleartext|"
        "http2_max_concurrent_streams --http2-max-concurrent-streams|"
        "http2_initial_window_size --http2-initial-window-size|"
        "http2_max_frame_size --http2-max-frame-size|"
        "http2_max_header_list_size --http2-max-header-list-size",
        "",
        "HTTP/1.1 only",
    ),
    row("protocol --protocol|uwsgi_allow_ips --uwsgi-allow-from", "", "HTTP only, no uwsgi"),
    row(
        "reuse_port --reuse-port !",
        "",
        "not needed: the workers share one socket and take turns",
    ),
    row("sendfile /--no-sendfile", "", "files always go out by sendfile"),
    row(
        "worker_tmp_dir --worker-tmp-dir|tmp_upload_dir",
        "",
        "not needed for heartbeats, they are in shared memory; large bodies use TMPDIR",
    ),
    row("proc_name -n --name|default_proc_name", "", "prefork names its processes itself"),
    row("spew --spew !", "", "`prefork stacks` prints what the workers are doing"),
    row(
        "check_config --check-config !|print_config --print-config !",
        "",
        "`prefork check --app` and `prefork config show`",
    ),
    row(
        "paste --paste --paster|raw_paste_global_conf --paste-global *",
        "",
        "no PasteDeploy: name a module whose attribute is the result of `loadapp`",
    ),
    row("asgi_loop --asgi-loop", "", "asyncio on prefork's own reactor, always"),
    row("http_parser --http-parser", "", "httptools, always"),
    row("asgi_lifespan --asgi-lifespan", "lifespan", "", words),
    row(
        "asgi_disconnect_grace_period --asgi-disconnect-grace-period",
        "timeouts.abandoned",
        "",
        seconds,
    ),
    row("websocket_max_message_size --websocket-max-message-size", "limits.message", "", whole),
    row("root_path --root-path", "root_path", left_in("gunicorn"), root_path),
    row(
        "permit_obsolete_folding --permit-obsolete-folding !|"
        "strip_header_spaces --strip-header-spaces !|"
        "permit_unconventional_http_method --permit-unconventional-http-method !|"
        "permit_unconventional_http_version --permit-unconventional-http-version !|"
        "casefold_http_method --casefold-http-method !",
        "",
        "requests that the RFC does not allow are refused",
    ),
    row(
        "dirty_apps --dirty-app *|dirty_workers --dirty-workers|dirty_timeout --dirty-timeout|"
        "dirty_threads --dirty-threads|dirty_graceful_timeout --dirty-graceful-timeout|"
        "on_dirty_starting|dirty_post_fork|dirty_worker_init|dirty_worker_exit",
        "",
        "no dirty arbiters: run a task queue beside the server",
    ),
    row(
        "control_socket --control-socket|control_socket_mode --control-socket-mode|"
        "control_socket_disable --no-control-socket !",
        "",
        "`prefork status` reads shared memory, commands are signals: no socket",
    ),
    row("on_starting", "", _hook("do it before `prefork start`: ExecStartPre= of the unit")),
    row("on_reload", "", _hook("do it before `prefork reload`, which says how it went")),
    row("when_ready", "", _hook("systemd is told (Type=notify), `start --daemon` waits for it")),
    row("pre_fork", "", _hook("with `preload: true`, `Application.on_mold` runs before the forks")),
    row(
        "post_fork",
        "",
        _hook(
            "each worker runs ASGI's lifespan start-up or `Application.on_startup`; without "
            "`preload` the import itself happens after the fork"
        ),
    ),
    row(
        "post_worker_init",
        "",
        _hook("each worker runs ASGI's lifespan start-up or `Application.on_startup`"),
    ),
    row("worker_int", "", _hook("lifespan's shutdown or `Application.on_shutdown`")),
    row(
        "worker_abort",
        "",
        _hook("the error log has requests and stacks of a hung worker before it is ended"),
    ),
    row("pre_exec", "", _hook("USR2 executes the program that lies there then")),
    row(
        "pre_request|post_request",
        "",
        _hook("a middleware of the onion around the application: `app.use(prefork.wsgi(…))`"),
    ),
    row(
        "child_exit|worker_exit",
        "",
        _hook("lifespan's shutdown or `Application.on_shutdown`; a crash is in the error log"),
    ),
    row("nworkers_changed", "", _hook("`prefork status --json` has the number")),
    row("on_exit", "", _hook("ExecStopPost= of the unit")),
    row("config -c --config", "", "read, as gunicorn does", quiet=True),
)


def _finish(job: Job) -> None:
    if "listen" not in job.values:
        listen(job, [default_address(job)], "gunicorn's default")
    if "workers" not in job.values:
        job.put("workers", 1, "gunicorn's default; auto is one for each CPU")
    if "interface" not in job.values and "worker_class" not in job.found:
        job.put("interface", "wsgi", "gunicorn's default, a sync worker")
    if "log.access.format" not in job.values:
        job.put("log.access.format", "off", "gunicorn writes none unless it is asked to")
    _trust_defaults(job)
    prefix = job.environ.get("SCRIPT_NAME", "")
    if prefix and "root_path" not in job.values and worker_class(job) != "asgi":
        _script_name(job, prefix)
    if worker_class(job) == "sync" and "timeout" not in job.found:
        job.put("timeouts.request", 30.0, "gunicorn's default `timeout` of a sync worker")
    job.put("on_term", "graceful", "TERM is graceful in gunicorn, and fast in nginx and prefork")


SERVER: Final = Server(
    "gunicorn",
    ROWS,
    "",
    True,
    _finish,
    signals="they change places. gunicorn stops gracefully on TERM and at once on QUIT and INT; "
    "prefork is nginx's way, QUIT graceful, TERM and INT at once. The file has `on_term: "
    "graceful`, so that TERM (systemd, Docker, Kubernetes) does what it did; QUIT is graceful now, "
    "too. At once is `prefork stop --fast`, or a second TERM",
    reload=f"HUP does it in both. {BESIDE}. With `preload: true` a reload brings new code as "
    "well. USR2, WINCH, TTIN, TTOU and USR1 are the same",
)
