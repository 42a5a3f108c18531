"""`prefork migrate`: option by option, whole files, and what it writes is checked and served."""

import os
import re
import subprocess
import sys
import sysconfig
import time
import urllib.request
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefork.cli.migration import accessformat, confpy, reference
from prefork.cli.migration.collect import SERVERS, server
from prefork.cli.migration.table import Found, Job
from prefork.cli.migration.words import parse, split
from prefork.config.compound import Addresses
from prefork.config.options import find
from prefork.errors import EXIT_CONFIG, OperatorError
from tests.conftest import free_port

PREFORK = Path(sysconfig.get_path("scripts")) / "prefork"
README = Path(__file__).parents[2] / "README.md"
WSGI = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "4")])
    return [b"wsgi"]
"""
ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"asgi"})


def create():
    return app
"""
FOREIGN = ("GUNICORN_", "UVICORN_", "GRANIAN_", "WEB_CONCURRENCY", "FORWARDED_", "PORT")


class Migrated:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.text = done.stdout
        # As one line, however it is wrapped for the terminal.
        self.told = " ".join(done.stderr.split())

    def __getitem__(self, key: str) -> Any:
        found = yaml.safe_load(self.text)
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found


@pytest.fixture
def migrate(tmp_path: Path) -> Any:
    (tmp_path / "shop.py").write_text(WSGI)
    (tmp_path / "chat.py").write_text(ASGI)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}

    def run(*argv: str, **environ: str) -> Migrated:
        return Migrated(
            subprocess.run(
                [PREFORK, "migrate", *argv],
                cwd=tmp_path,
                env={**clean, **environ},
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
        )

    return run


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("gunicorn shop", "app", "shop:application"),
        ("gunicorn shop:make()", "app", "shop:make()"),
        ("gunicorn shop", "workers", 1),
        ("gunicorn shop", "listen", ["127.0.0.1:8000"]),
        ("gunicorn shop", "log.access.format", False),
        ("gunicorn shop", "on_term", "graceful"),
        ("gunicorn shop", "interface", "wsgi"),
        ("gunicorn shop", "timeouts.request", "30s"),
        ("gunicorn shop --workers=4", "workers", 4),
        ("gunicorn shop -w4", "workers", 4),
        ("gunicorn -Dw 4 shop", "daemon", True),
        ("gunicorn --max-requests-j 5 --max-requests 95 shop", "recycle.max_requests", 100),
        ("gunicorn --max-requests 95 --max-requests-jitter=5 shop", "recycle.jitter", "5%"),
        ("gunicorn -b :80 -b unix:/run/x.sock shop", "listen", [":80", "unix:/run/x.sock"]),
        ("gunicorn -b 0.0.0.0 shop", "listen", ["0.0.0.0:8000"]),
        ("gunicorn -b fd://3 shop", "listen", ["fd:3"]),
        ("gunicorn -b [::]:80 shop", "listen", [{"address": "[::]:80", "v6only": False}]),
        ("gunicorn --backlog 9 shop", "listen", [{"address": "127.0.0.1:8000", "backlog": 9}]),
        ("PORT=81 gunicorn shop", "listen", ["0.0.0.0:81"]),
        ("WEB_CONCURRENCY=3 gunicorn shop", "workers", 3),
        ("GUNICORN_CMD_ARGS=-w5 gunicorn shop", "workers", 5),
        ("GUNICORN_CMD_ARGS=-w5 gunicorn shop -w 6", "workers", 6),
        ("gunicorn --threads 8 shop", "threads", 8),
        ("gunicorn -k gthread --threads 8 shop", "interface", "wsgi"),
        ("gunicorn -k gevent shop", "threads", 32),
        ("gunicorn -k uvicorn.workers.UvicornWorker chat:app", "interface", "asgi"),
        ("gunicorn -t 90 shop", "timeouts.request", "90s"),
        ("gunicorn -t 90 shop", "timeouts.hang", "90s"),
        ("gunicorn -t 90 -k gthread shop", "timeouts.request", None),
        ("gunicorn -t 0 shop", "timeouts.hang", False),
        ("gunicorn --keep-alive 0 shop", "timeouts.keep_alive", False),
        ("gunicorn --graceful-timeout 5 shop", "timeouts.graceful", "5s"),
        ("gunicorn --limit-request-line 0 shop", "limits.request_line", "1MiB"),
        ("gunicorn --limit-request-fields 50 shop", "limits.header_count", 50),
        ("gunicorn --limit-request-field_size 65536 shop", "limits.head", "64KiB"),
        ("gunicorn --preload shop", "preload", True),
        ("gunicorn -e A=1 -e B=${x} shop", "environment", {"A": "1", "B": "$${x}"}),
        ("gunicorn -p run/x.pid -m 0o27 shop", "umask", "0o027"),
        ("gunicorn -u 33 -g www-data shop", "group", "www-data"),
        ("gunicorn --log-level warning shop", "log.error.level", "warn"),
        ("gunicorn --access-logfile - shop", "log.access.format", "combined"),
        ("uvicorn chat:create --factory", "app", "chat:create()"),
        ("uvicorn chat:app --host ::1 --port 80", "listen", ["[::1]:80"]),
        ("uvicorn chat:app --uds /run/x", "listen", ["unix:/run/x"]),
        ("uvicorn chat:app --fd 3", "listen", ["fd:3"]),
        ("UVICORN_PORT=99 uvicorn chat:app", "listen", ["127.0.0.1:99"]),
        ("WEB_CONCURRENCY=3 uvicorn chat:app", "workers", 3),
        ("uvicorn chat:app --interface asgi3", "interface", "asgi"),
        ("uvicorn chat:app --no-access-log", "log.access.format", False),
        ("uvicorn chat:app", "log.access.format", None),
        ("uvicorn chat:app --ws-max-size 1024", "limits.message", "1KiB"),
        ("uvicorn chat:app --ws-ping-interval 7.5", "timeouts.ping", "7500ms"),
        ("uvicorn chat:app --limit-concurrency 7", "limits.connections", 7),
        ("uvicorn chat:app --limit-max-requests 7", "recycle.max_requests", 7),
        ("uvicorn chat:app --timeout-graceful-shutdown 7", "timeouts.graceful", "7s"),
        ("uvicorn chat:app --lifespan off", "lifespan", False),
        ("uvicorn chat:app --root-path /x", "root_path", "/x"),
        ("UVICORN_ROOT_PATH=/x/ uvicorn chat:app", "root_path", "/x"),
        ("uvicorn chat:app --root-path /", "root_path", ""),
        ("granian chat:app --url-path-prefix /x", "root_path", "/x"),
        ("hypercorn chat:app --root-path /x", "root_path", "/x"),
        ("gunicorn -k asgi --root-path /x chat:app", "root_path", "/x"),
        ("gunicorn -e SCRIPT_NAME=/x -e A=1 shop", "root_path", "/x"),
        ("gunicorn -e SCRIPT_NAME=/x -e A=1 shop", "environment", {"A": "1"}),
        ("SCRIPT_NAME=/x gunicorn shop", "root_path", "/x"),
        ("SCRIPT_NAME=/x gunicorn -k asgi chat:app", "root_path", None),
        ("granian chat:app --interface asginl", "lifespan", False),
        ("granian shop:application --interface wsgi --blocking-threads 3", "threads", 3),
        ("granian chat:app --workers-lifetime 6h", "recycle.max_age", "6h"),
        ("granian chat:app --workers-max-rss 100", "recycle.max_memory", "100MiB"),
        ("granian chat:app --http1-header-read-timeout 500", "timeouts.head", "500ms"),
        ("hypercorn -w 2 -b :80 chat:app", "listen", [":80"]),
        ("hypercorn wsgi:shop:application", "interface", "wsgi"),
        ("hypercorn --read-timeout 9 chat:app", "timeouts.body", "9s"),
        ("/srv/venv/bin/python -m uvicorn chat:app --workers 2", "workers", 2),
        ("poetry run gunicorn -w 2 shop", "workers", 2),
        ("gunicorn --proxy-protocol v2 shop", "app", "shop:application"),
        ("gunicorn --proxy-protocol shop:app", "app", "shop:app"),
        ("gunicorn --threads many -b :80 shop", "listen", [":80"]),
        ("gunicorn -e A=1,2 -e B shop", "environment", {"A": "1,2"}),
        ("hypercorn --acces-log - chat:app", "app", "chat:app"),
    ],
)
def test_an_option_becomes_a_setting(migrate: Any, command: str, key: str, value: object) -> None:
    done = migrate("--", *command.split())
    assert done.code == 0, done.told
    assert done[key] == value  # PyYAML reads YAML 1.1, in which `off` is false


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("gunicorn shop", "TERM and QUIT: they change places"),
        ("uvicorn chat:app", "TERM and QUIT: uvicorn stops gracefully on TERM"),
        ("gunicorn shop", "limits.body: gunicorn has no limit"),
        ("gunicorn", "app: no application is named"),
        ("gunicorn shop other:app", "other:app: is a second application"),
        ("gunicorn --wrokers 3 shop:app", "--wrokers 3: is no option of gunicorn that prefork"),
        ("gunicorn --wrokers 3 shop:app", '(did you mean "--workers"?)'),
        ("gunicorn --frobnicate shop:app", "--frobnicate: is no option"),
        ("gunicorn -X shop:app", "-X: is no option"),
        ("gunicorn --work 4 shop", "--work 4: is no option"),  # --workers, or --worker-class?
        ("gunicorn -w many shop", "-w many: is not understood"),
        ("gunicorn -w 4000 shop", "-w 4000: not written:"),
        ("gunicorn -w -4 shop", "is negative"),
        ("gunicorn -k my.Worker shop", "is a worker that prefork has no counterpart of"),
        ("gunicorn -k gevent shop", "Nothing is monkey-patched"),
        ("gunicorn -k gevent --threads 99 shop", "99 threads take the place of green ones"),
        ("gunicorn --threads many shop", "--threads many: is not understood"),
        ("gunicorn -e A=1 -e B shop", 'raw_env: "B" is no NAME=value'),
        ("gunicorn -e A=1 shop", "a secret is better off as `${NAME}`"),
        ("gunicorn --worker-connections 9 shop", "9: changes nothing here"),
        ("gunicorn --initgroups shop", "always done when the master is root's"),
        ("granian chat:app --access-log-fmt x", "--access-log-fmt x: changes nothing here"),
        ("gunicorn -t 60 -k gthread shop", "it never limited a request"),
        ("gunicorn -t 60 shop", "longest time of a request"),
        ("gunicorn --certfile c --keyfile k shop", "prefork terminates no TLS yet"),
        ("gunicorn --statsd-host x shop", "no statsd"),
        ("gunicorn --worker-tmp-dir /dev/shm shop", "they are in shared memory"),
        ("gunicorn --reuse-port shop", "the workers share one socket"),
        ("gunicorn --reload shop", "`prefork reload` after a change"),
        ("gunicorn --no-sendfile shop", "files always go out by sendfile"),
        ("gunicorn --max-requests 9 shop", "shortened for each worker by up to a tenth"),
        ("uvicorn chat:app --interface asgi2", "ASGI 2 is not hosted"),
        ("uvicorn chat:app --env-file .env", "not copied, it may hold secrets"),
        ("uvicorn chat:app --root-path x", 'not written: "root_path" must be a path such as /api'),
        ("hypercorn chat:app --root-path /x", "hypercorn leaves the prefix in the path, here the"),
        ("SCRIPT_NAME=/x gunicorn shop", "SCRIPT_NAME=/x: gunicorn leaves the prefix in the path"),
        ("uvicorn chat:app --header a:b", "a middleware of the application"),
        ("uvicorn chat:app --no-server-header", "there is no switch for it"),
        ("uvicorn chat:app --ws wsproto", "the websockets library, always"),
        ("granian chat:app", "default is RSGI"),
        ("hypercorn --quic-bind :443 chat:app", "no HTTP/3"),
        ("poetry run gunicorn shop", "poetry run: is no part of the configuration"),
    ],
)
def test_what_differs_is_told_and_written(migrate: Any, command: str, answer: str) -> None:
    done = migrate("--", *command.split())
    assert done.code == 0
    assert answer in done.told
    assert answer in " ".join(done.text.replace("#", "").split())


@pytest.mark.parametrize(
    ("command", "trust"),
    [
        ("gunicorn shop", ["127.0.0.1", "::1"]),
        ("gunicorn -b unix:x shop --forwarded-allow-ips 10.0.0.0/8", ["10.0.0.0/8", "unix"]),
        ("FORWARDED_ALLOW_IPS=* uvicorn chat:app", ["*"]),
        ("uvicorn chat:app", ["127.0.0.1", "::1"]),
        ("uvicorn chat:app --no-proxy-headers", None),
    ],
)
def test_whom_to_believe(migrate: Any, command: str, trust: list[str] | None) -> None:
    done = migrate("--", *command.split())
    assert done["forwarded.trust"] == (trust if find("forwarded.trust") else None)
    if not find("forwarded.trust") and ("allow" in command or "ALLOW" in command):
        assert "prefork believes no Forwarded" in done.told


def test_proxy_protocol_is_written_or_told(migrate: Any) -> None:
    done = migrate("gunicorn", "--proxy-protocol", "-b", "127.0.0.1:80", "shop")
    if "proxy_protocol" in Addresses.extras:
        assert done["listen"] == [{"address": "127.0.0.1:80", "proxy_protocol": True}]
    else:
        assert "there is no PROXY protocol" in done.told


def test_a_password_is_not_repeated(migrate: Any) -> None:
    done = migrate("uvicorn", "chat:app", "--ssl-keyfile-password", "hunter2")
    assert "--ssl-keyfile-password" in done.told
    assert "hunter2" not in done.told + done.text


@pytest.mark.parametrize(
    ("argv", "code", "answer"),
    [
        ([], 2, "nothing to migrate"),
        (["missing.py"], 1, 'missing.py" is no file'),
        (["gnicorn", "shop"], 2, 'did you mean "gunicorn"?'),
        (["--systemd", "uvicorn", "chat:app"], 2, "--systemd needs -o FILE"),
        (["gunicorn", "shop", "-w"], 1, "-w needs a value"),
        (["shop.py", "a:b", "c:d"], 2, "after a configuration comes the application"),
        (["--sytemd"], 2, "Did you mean '--systemd'?"),
    ],
)
def test_errors(migrate: Any, argv: list[str], code: int, answer: str) -> None:
    done = migrate(*argv)
    assert done.code == code
    assert answer in done.told
    assert done.text == ""


CONF = """
import multiprocessing
from multiprocessing import cpu_count

_private = 1
wrkers = 3
bind = ["127.0.0.1:8000"]
workers = max(2, cpu_count() * 0) + 1
max_requests = 1000
statsd_host = None
reload = False
raw_env = ["MODE=production"]
accesslog = "-"
access_log_format = '{"who": "%(h)s", "us": %(D)s, "x": "%({X-Id}i)s", "y": "%({y}o)s"}'


def post_fork(server, worker):
    pass


def when_raedy(server):
    pass


helper = 3
print("said on stdout", helper)
"""


def test_a_file_is_executed_and_what_it_computes_is_kept(migrate: Any, tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(CONF)
    done = migrate("gunicorn.conf.py", "shop")
    assert done.code == 0
    assert done.told.startswith("gunicorn.conf.py was executed")
    assert done["workers"] == 3
    assert "# workers = max(2, cpu_count() * 0) + 1\nworkers: 3" in done.text
    assert done["app"] == "shop:application"
    assert done["environment"] == {"MODE": "production"}
    assert done["log.access.format"] == (
        'escape=json {"who": "$remote_addr", "us": $request_time, "x": "$http_x_id", "y": "-"}'
    )
    for answer in (
        "post_fork(): a hook in Python is not translated",
        'wrkers: is no setting of gunicorn\'s, which ignores it (did you mean "workers"?)',
        "when_raedy: is no setting",
        "%(D)s is $request_time (seconds, not microseconds)",
        "%({y}o)s, a field of the response, has no counterpart",
    ):
        assert answer in done.told
    for silent in ("cpu_count:", "_private", "statsd", "nothing watches", "said on", "helper"):
        assert silent not in done.told
    # gunicorn reads that file by itself, and its command line comes first.
    assert migrate("gunicorn", "shop")["workers"] == 3
    assert migrate("gunicorn", "-w", "7", "shop")["workers"] == 7


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("def broken():\n    raise KeyError('SECRET_KEY')\nbroken()\n", "KeyError: 'SECRET_KEY'"),
        ("workers = = 2\n", "SyntaxError"),
        ("import sys; sys.exit(3)\n", "SystemExit: 3"),
        ("import nothing_of_the_kind\n", "No module named 'nothing_of_the_kind'"),
        ("import nothing_of_the_kind\n", "install prefork where nothing_of_the_kind is"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("import os; os._exit(3)\n", "ended itself with the exit status 3"),
        ("import os; os.kill(os.getpid(), 9)\n", "died of SIGKILL"),
    ],
)
def test_a_file_that_fails_shows_its_own_frames(
    migrate: Any, tmp_path: Path, source: str, answer: str
) -> None:
    (tmp_path / "g.py").write_text(source)
    done = migrate("g.py")
    assert done.code == 1
    assert "g.py was executed and " in done.told
    assert answer in done.told
    assert "confpy" not in done.told
    assert done.text == ""


def test_a_file_that_does_not_end_is_killed(tmp_path: Path) -> None:
    (tmp_path / "g.py").write_text("import time\ntime.sleep(600)\n")
    began = time.monotonic()
    with pytest.raises(OperatorError, match=r"has not ended after 0\.5 s: killed"):
        confpy.read("g.py", str(tmp_path), os.environ, 0.5)
    assert time.monotonic() - began < 60


def test_a_thread_of_the_file_is_not_waited_for(migrate: Any, tmp_path: Path) -> None:
    (tmp_path / "g.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "workers = 2\n"
    )
    done = migrate("g.py", "shop")
    assert done.code == 0, done.told
    assert done["workers"] == 2


def test_a_worker_made_from_uvicorns_is_one(migrate: Any, tmp_path: Path) -> None:
    (tmp_path / "uvicorn_worker.py").write_text("class UvicornWorker:\n    pass\n")
    (tmp_path / "g.py").write_text(
        "from uvicorn_worker import UvicornWorker\n"
        "class Ours(UvicornWorker):\n    CONFIG_KWARGS = {'lifespan': 'off'}\n"
        "worker_class = Ours\n"
    )
    done = migrate("g.py", "chat:app")
    assert done["interface"] == "asgi"
    assert "worker_class = Ours: is a class of its own: what it overrides" in done.told
    (tmp_path / "g.py").write_text(
        "from uvicorn_worker import UvicornWorker\nworker_class = UvicornWorker\n"
    )
    done = migrate("g.py", "chat:app")
    assert done["interface"] == "asgi"
    assert "overrides" not in done.told


def test_a_file_without_a_worker_class_may_not_be_all(migrate: Any, tmp_path: Path) -> None:
    """The well-known gunicorn_conf.py of Docker images for FastAPI is used with -k."""
    (tmp_path / "g.py").write_text("workers = 2\n")
    assert "`prefork migrate -- gunicorn -c FILE -k …`" in migrate("g.py", "chat:app").told
    done = migrate("--", "gunicorn", "-c", "g.py", "-k", "uvicorn_worker.UvicornWorker", "chat:app")
    assert "gunicorn -c FILE" not in done.told
    assert (done["interface"], done["workers"]) == ("asgi", 2)


def test_nothing_is_overwritten_without_force(migrate: Any, tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text("app: mine:app\n")
    done = migrate("-o", "conf.yaml", "uvicorn", "chat:app")
    assert done.code == 1
    assert "conf.yaml exists: remove it, or use --force" in done.told
    assert (tmp_path / "conf.yaml").read_text() == "app: mine:app\n"
    assert migrate("-o", "conf.yaml", "--force", "uvicorn", "chat:app").code == 0
    assert "app: chat:app" in (tmp_path / "conf.yaml").read_text()


def test_a_unit_is_written_beside_the_file(migrate: Any, tmp_path: Path) -> None:
    command = ("uvicorn", "chat:app", "--env-file", ".env", "--timeout-graceful-shutdown", "120")
    done = migrate("-o", "web.yaml", "--systemd", *command)
    assert done.code == 0
    unit = (tmp_path / "web.service").read_text()
    assert f"EnvironmentFile={tmp_path}/.env\n" in unit
    assert f"start -c {tmp_path}/web.yaml" in unit
    assert "TimeoutStopSec=135\n" in unit  # or systemd would kill what may take 120 s
    # The unit is in the way as the configuration is.
    (tmp_path / "web.yaml").unlink()
    assert migrate("-o", "web.yaml", "--systemd", "uvicorn", "chat:app").code == 1
    assert not (tmp_path / "web.yaml").exists()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("gunicorn -w 2 -b 127.0.0.1:{} --max-requests 1000 --access-logfile - shop", b"wsgi"),
        ("gunicorn --threads 2 -b 127.0.0.1:{} --preload shop", b"wsgi"),
        ("gunicorn -b 127.0.0.1:{} -k uvicorn.workers.UvicornWorker chat:app", b"asgi"),
        ("uvicorn chat:create --factory --port {} --workers 2", b"asgi"),
    ],
)
def test_what_is_written_is_right_and_serves(
    migrate: Any, tmp_path: Path, command: str, answer: bytes
) -> None:
    port = free_port()
    assert migrate("-o", "conf.yaml", "--", *command.format(port).split()).code == 0

    def prefork(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PREFORK, *argv, "-c", "conf.yaml"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    checked = prefork("check", "--app")
    assert checked.returncode == 0, checked.stderr
    assert "imported" in checked.stdout
    with (tmp_path / "log").open("wb") as log:
        served = subprocess.Popen(
            [PREFORK, "start", "-c", "conf.yaml"], cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
                    assert response.read() == answer
                break
            except OSError:
                assert served.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        served.terminate()
        code = served.wait(60)
    assert code == 0
    assert "gracefully" in (tmp_path / "log").read_text()


def test_what_prefork_would_refuse_is_still_refused_later(tmp_path: Path, migrate: Any) -> None:
    """A file without an application is written, and `check` says what is missing."""
    assert migrate("-o", "conf.yaml", "gunicorn").code == 0
    done = subprocess.run(
        [PREFORK, "check", "-c", "conf.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == EXIT_CONFIG
    assert "there is no application" in done.stderr


def test_paths_are_absolute_on_stdout_and_relative_beside_the_file(
    migrate: Any, tmp_path: Path
) -> None:
    command = ("gunicorn", "--chdir", "src", "-p", "run/x.pid", "shop")
    done = migrate(*command)
    assert done["working_directory"] == str(tmp_path / "src")
    assert done["pid_file"] == str(tmp_path / "src/run/x.pid")
    migrate("-o", "conf.yaml", *command)
    found = yaml.safe_load((tmp_path / "conf.yaml").read_text())
    assert found["working_directory"] == "src"
    assert found["pid_file"] == "src/run/x.pid"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"', "combined"),
        ("%(m)s %(U)s?%(q)s %(H)s", "$request_method $request_uri?$args $server_protocol"),
        ("%(s)s 100%% %(L)ss", "$status 100% ${request_time}s"),
        ("%(p)s %({Host}i)s %({x}e)s", "<$pid> $http_host -"),
        ("costs $5: %(s)s", "costs 5: $status"),
        ("nothing", "combined"),
    ],
)
def test_access_log_formats(text: str, written: str) -> None:
    found, told = accessformat.translated(text, accessformat.GUNICORN)
    assert found == written
    assert bool(told) == any(word in text for word in ("%(U)", "%(L)", "}e", "$", "nothing"))


@pytest.mark.parametrize("name", SERVERS)
def test_tables_name_each_option_once_and_only_settings_that_are_there(name: str) -> None:
    known = server(name)
    flags = [flag for option in known.options() for flag in (*option.flags, *option.off)]
    names = [option.name for option in known.options()]
    assert len(set(flags)) == len(flags)
    assert len(set(names)) == len(names)
    for one in known.rows:
        for key in one.keys:
            # `forwarded` is younger than this command.
            assert find(key) is not None or key == "forwarded.trust"
        assert one.say or one.keys
        assert one.how is not None or not one.keys


_VALUES = ("7", "x", "127.0.0.1:7", "on", "off", "info", "2h", "/x/y", "A=1", "CERT_NONE")


@pytest.mark.parametrize("name", SERVERS)
def test_no_option_is_dropped_without_a_word(name: str) -> None:
    """Whatever an option is set to, a setting that the README names is written, or it is told."""
    known = server(name)
    app = {known.rows[0].name: Found("a:b", "a:b")}

    def done(found: dict[str, Found]) -> Job:
        job = Job(known, {**app, **found}, cwd="/", output=None, environ={})
        job.run()
        return job

    plain = done({})
    for one in known.rows:
        for option in one.options:
            # What is the application's, what only counts with a socket, and what is read before.
            if option.name in (*app, "factory", "uds_permissions", "config"):
                continue
            for value in (True, False) if option.takes == "!" else _VALUES:
                given: object = [value] if option.takes == "*" else value
                job = done({option.name: Found(given, f"the {option.name}")})
                wrote = {key for key in job.values if job.values[key] != plain.values.get(key)}
                # What follows from the kind of worker and is told with another option.
                wrote -= {"timeouts.request"} if name == "gunicorn" else set()
                assert wrote or job.notes != plain.notes, (option.name, value)
                for key in wrote:
                    assert any(key == k or key.startswith(f"{k}.") for k in one.keys), option.name


def test_no_option_of_gunicorns_is_unknown() -> None:
    theirs = import_module("gunicorn.config").KNOWN_SETTINGS
    flags, names = _known("gunicorn")
    assert {flag for one in theirs for flag in one.cli or ()} <= flags
    assert {one.name for one in theirs} <= names


@pytest.mark.parametrize(
    ("name", "module", "command"),
    [("uvicorn", "uvicorn.main", "main"), ("granian", "granian.cli", "cli")],
)
def test_no_option_of_a_server_with_click_is_unknown(name: str, module: str, command: str) -> None:
    parameters = getattr(import_module(module), command).params
    flags, names = _known(name)
    theirs = {flag for one in parameters for flag in (*one.opts, *one.secondary_opts)}
    assert {flag for flag in theirs if flag.startswith("-")} <= flags
    assert {one.name for one in parameters} <= names


def test_no_option_of_hypercorns_is_unknown() -> None:
    page = subprocess.run(
        [sys.executable, "-m", "hypercorn", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    theirs = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*\b", page)) - {"-h", "--help"}
    assert len(theirs) > 30
    assert theirs <= _known("hypercorn")[0]


def _known(name: str) -> tuple[set[str], set[str]]:
    options = server(name).options()
    flags = {flag for option in options for flag in (*option.flags, *option.off)}
    return flags, {option.name for option in options}


def test_a_command_line_is_read_as_its_server_reads_it() -> None:
    line = parse(server("gunicorn"), ["-Dw4", "-b", ":1", "--bind=:2", "--preload", "--", "a:b"])
    assert line.targets == ["a:b"]
    assert line.unknown == []
    values = {name: one.value for name, one in line.found.items()}
    assert values == {"daemon": True, "workers": "4", "bind": [":1", ":2"], "preload_app": True}
    assert split(["A=b=c", "uv", "run", "/x/uvicorn", "a:b"], SERVERS) == (
        {"A": "b=c"},
        ["uv", "run"],
        "uvicorn",
        ["a:b"],
    )


def test_the_readme_has_the_tables_that_the_code_uses() -> None:
    """`python -m prefork.cli.migration.reference --write README.md` when this fails."""
    page = README.read_text()
    assert page == reference.rewritten(page)
