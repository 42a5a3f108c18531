"""granian (2.8): what its options become. Names are those of granian/cli.py."""

from typing import Final

from prefork.cli.migration import accessformat
from prefork.cli.migration.gunicorn import put_app
from prefork.cli.migration.table import (
    BESIDE,
    Job,
    Row,
    Server,
    directory,
    left_in,
    level,
    listen,
    path,
    root_path,
    row,
    terminated,
    whole,
)
from prefork.cli.migration.uvicorn import (
    ENV_FILE_SAYS,
    asgi_defaults,
    environment_files,
    put_address,
)


def _app(job: Job, one: Row) -> None:
    put_app(job, one.name, "app", factory=job.true("factory"))


def _listen(job: Job, one: Row) -> None:
    del one
    mode = None
    if job.get("uds_permissions") is not None:
        mode = int(job.text("uds_permissions").removeprefix("0o"), 8)
    put_address(job, backlog=job.integer("backlog"), mode=mode)


def _interface(job: Job, one: Row) -> None:
    value = job.text(one.name)
    if value == "rsgi":
        job.note(job.said(one.name), "RSGI is granian's own: serve the application's ASGI side")
        return
    job.put("interface", value.removesuffix("nl"), job.said(one.name))
    if value == "asginl":
        job.put("lifespan", "off", job.said(one.name))


def _threads(job: Job, one: Row) -> None:
    if job.text("interface") == "wsgi":
        whole(job, one)
    else:
        job.note(job.said(one.name), "threads of a WSGI application; there are none for ASGI")


def _access_log(job: Job, one: Row) -> None:
    if not job.true(one.name):
        return
    if not job.text("log_access_fmt"):
        job.put("log.access.format", "combined", job.said(one.name))
        return
    written, told = accessformat.translated(job.text("log_access_fmt"), accessformat.GRANIAN)
    job.put("log.access.format", written, job.said("log_access_fmt"))
    if told:
        job.note(job.said("log_access_fmt"), "; ".join(told))


def _head_timeout(job: Job, one: Row) -> None:
    job.put("timeouts.head", job.number(one.name) / 1000, job.said(one.name))


def _keep_alive(job: Job, one: Row) -> None:
    if not job.true(one.name):
        job.put("timeouts.keep_alive", 0.0, job.said(one.name))


def _memory(job: Job, one: Row) -> None:
    job.put("recycle.max_memory", job.integer(one.name) << 20, job.said(one.name))


def _duration(job: Job, one: Row) -> None:
    job.put_text(one.keys[0], job.text(one.name), job.said(one.name))


ROWS: Final = (
    row("app|factory --factory ! / --no-factory", "app", "", _app),
    row(
        "host --host|port --port|uds --uds|uds_permissions --uds-permissions|backlog --backlog",
        "listen",
        "",
        _listen,
    ),
    row("interface --interface", "interface", "RSGI is not hosted", _interface, quiet=True),
    row("workers --workers", "workers", "", whole),
    row("blocking_threads --blocking-threads", "threads", "", _threads),
    row(
        "blocking_threads_idle_timeout --blocking-threads-idle-timeout|"
        "runtime_threads --runtime-threads|runtime_blocking_threads --runtime-blocking-threads|"
        "runtime_mode --runtime-mode|loop --loop|task_impl --task-impl",
        "",
        "one event loop in each worker, asyncio on prefork's own reactor",
    ),
    row("websockets --ws ! / --no-ws", "", "the application decides"),
    row(
        "backpressure --backpressure",
        "limits.connections",
        "connections, not requests that run at once",
        whole,
    ),
    row(
        "http1_header_read_timeout --http1-header-read-timeout",
        "timeouts.head",
        "",
        _head_timeout,
    ),
    row(
        "http1_keep_alive --http1-keep-alive ! / --no-http1-keep-alive",
        "timeouts.keep_alive",
        "",
        _keep_alive,
    ),
    row(
        "http1_buffer_size --http1-buffer-size|"
        "http1_pipeline_flush --http1-pipeline-flush ! / --no-http1-pipeline-flush",
        "",
        "prefork's own buffers",
    ),
    row(
        "http --http|http2_adaptive_window --http2-adaptive-window ! / --no-http2-adaptive-window|"
        "http2_initial_connection_window_size --http2-initial-connection-window-size|"
        "http2_initial_stream_window_size --http2-initial-stream-window-size|"
        "http2_keep_alive_interval --http2-keep-alive-interval|"
        "http2_keep_alive_timeout --http2-keep-alive-timeout|"
        "http2_max_concurrent_streams --http2-max-concurrent-streams|"
        "http2_max_frame_size --http2-max-frame-size|"
        "http2_max_headers_size --http2-max-headers-size|"
        "http2_max_send_buffer_size --http2-max-send-buffer-size",
        "",
        "HTTP/1.1 only",
    ),
    row("log_enabled --log ! / --no-log", "", "the error log is always there: log.error.level"),
    row("log_level --log-level", "log.error.level", "", level),
    row("log_config --log-config", "", "prefork's logs do not go through `logging`"),
    row(
        "log_access_enabled --access-log ! / --no-access-log|log_access_fmt --access-log-fmt",
        "log.access.format",
        "",
        _access_log,
    ),
    row(
        "ssl_certificate --ssl-certificate|ssl_keyfile --ssl-keyfile|"
        "ssl_keyfile_password --ssl-keyfile-password|ssl_protocol_min --ssl-protocol-min|"
        "ssl_ca --ssl-ca|ssl_crl --ssl-crl *|"
        "ssl_client_verify --ssl-client-verify ! / --no-ssl-client-verify",
        "",
        "prefork terminates no TLS yet: the file serves plain HTTP, put a proxy before it",
    ),
    row("url_path_prefix --url-path-prefix", "root_path", left_in("granian"), root_path),
    row(
        "respawn_failed_workers --respawn-failed-workers ! / --no-respawn-failed-workers|"
        "respawn_interval --respawn-interval",
        "",
        "workers that die are always replaced (backoff)",
    ),
    row("workers_lifetime --workers-lifetime", "recycle.max_age", "", _duration),
    row("workers_max_rss --workers-max-rss", "recycle.max_memory", "PSS, not RSS", _memory),
    row(
        "rss_sample_interval --rss-sample-interval|rss_samples --rss-samples",
        "",
        "prefork chooses when it looks",
    ),
    row("workers_kill_timeout --workers-kill-timeout", "timeouts.graceful", "", _duration),
    row("working_dir --working-dir", "working_directory", "", directory),
    row("env_files --env-files *", "", ENV_FILE_SAYS, environment_files),
    row(
        "static_path_route --static-path-route *|static_path_mount --static-path-mount *|"
        "static_path_dir_to_file --static-path-dir-to-file|"
        "static_path_expires --static-path-expires",
        "",
        "files are served by the application (WhiteNoise, StaticFiles) or a proxy",
    ),
    row(
        "metrics_enabled --metrics ! / --no-metrics|"
        "metrics_scrape_interval --metrics-scrape-interval|metrics_address --metrics-address|"
        "metrics_port --metrics-port",
        "",
        "`prefork status --json`",
    ),
    row(
        "reload --reload ! / --no-reload|reload_paths --reload-paths *|"
        "reload_ignore_dirs --reload-ignore-dirs *|"
        "reload_ignore_patterns --reload-ignore-patterns *|"
        "reload_ignore_paths --reload-ignore-paths *|reload_tick --reload-tick|"
        "reload_ignore_worker_failure --reload-ignore-worker-failure ! / "
        "--no-reload-ignore-worker-failure",
        "",
        "nothing watches files: `prefork reload` after a change",
    ),
    row("process_name --process-name", "", "prefork names its processes itself"),
    row("pid_file --pid-file", "pid_file", "", path),
    row("version --version !", "", "`prefork --version -v`"),
)


def _finish(job: Job) -> None:
    if "listen" not in job.values:
        listen(job, ["127.0.0.1:8000"], "granian's default")
    if "interface" not in job.found:
        job.note(
            "--interface",
            "granian's default is RSGI, which prefork does not host: the "
            "application's ASGI or WSGI side is served",
        )
    if "log.access.format" not in job.values:
        job.put("log.access.format", "off", "granian writes none unless it is asked to")
    asgi_defaults(
        job,
        graceful="granian waits for requests without end unless it is told "
        "otherwise; prefork cuts them after 30 s",
    )


SERVER: Final = Server(
    "granian",
    ROWS,
    "GRANIAN_",
    False,
    _finish,
    signals=terminated("granian"),
    reload="granian starts a worker, waits, and ends an old one, whether the new one works or not. "
    + BESIDE,
)
