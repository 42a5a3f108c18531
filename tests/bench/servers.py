"""prefork and its peers: how each is had, and the command that starts it.

A peer is installed on first use into a room of its own under the cache directory, with the
Python that runs this harness. One that cannot be had stays in the tables, with the reason.
Every server gets the settings its own documentation recommends for speed: no access log, one
worker, its fastest parser and loop, and no limit of requests for a connection.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from processes import Running, free_port, run, temporary_room

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
INSTALL_SECONDS = 600.0


class NotInstalledError(Exception):
    """Why a peer cannot be measured here, in one line."""


@dataclass(frozen=True)
class Installed:
    version: str
    command: Callable[[int, Path, int], list[str]]  # port, room, workers
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = HERE / "peers"
    stop: int = signal.SIGTERM


@dataclass(frozen=True)
class Server:
    name: str
    label: str
    install: Callable[[Path], Installed]
    workers: bool = True  # can it run two?

    @contextmanager
    def start(self, cache_directory: Path, core: int | None, workers: int = 1) -> Iterator[Running]:
        """Raises NotInstalledError, or processes.ServeError."""
        installed = self.install(cache_directory)
        with temporary_room() as room:
            port = free_port()
            with run(
                self.name,
                installed.command(port, room, workers),
                port=port,
                room=room,
                core=core,
                env=installed.env,
                cwd=installed.cwd,
                stop=installed.stop,
            ) as running:
                yield running


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return (done.stdout + done.stderr).strip()


def needs(program: str, package: str) -> str:
    """Raise NotInstalledError unless `program` is on the PATH (or where Debian keeps daemons)."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise NotInstalledError(f"no {program}: apt-get install {package}")
    return path


def _install(command: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise NotInstalledError(str(problem)) from problem
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said or ["no output"]
        raise NotInstalledError(f"{' '.join(command[-3:])}: {errors[0].strip()[:160]}")


@cache
def python_room(room: Path, name: str, *packages: str) -> str:
    """The path of the Python in a virtual environment of its own with these packages."""
    home = room / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = home / "bin" / "python"
    done = home / "installed"  # written last: a room without it is one that was interrupted
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        print(f"installing {name} into {home}", file=sys.stderr)
        _install([sys.executable, "-m", "venv", str(home)], room)
        _install(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages],
            room,
        )
        done.write_text(" ".join(packages))
    return str(python)


def version_in(python: str, *packages: str) -> str:
    code = (
        "import sys; from importlib.metadata import version;"
        " print(*(f'{name} {version(name)}' for name in sys.argv[1:]), sep=', ')"
    )
    return output_of(python, "-c", code, *packages)


# prefork


def prefork(
    app: str, access_format: str = "off", directory: Path = HERE, **settings: object
) -> Callable[[Path], Installed]:
    def install(room: Path) -> Installed:
        del room

        def command(port: int, room: Path, workers: int) -> list[str]:
            # JSON is YAML: nothing to escape.
            configuration = room / "conf.yaml"
            configuration.write_text(
                json.dumps(
                    {
                        "app": app if ":" in app else f"apps:{app}",
                        "working_directory": str(directory),
                        "listen": [f"127.0.0.1:{port}"],
                        "workers": workers,
                        "log": {
                            "error": {"path": "stderr", "level": "warn"},
                            "access": {"path": str(room / "access.log"), "format": access_format},
                        },
                        "timeouts": {"keep_alive": "600s"},
                        "limits": {"connections": 18000},
                        **settings,
                    }
                )
            )
            return [sys.executable, "-m", "prefork", "start", "-c", str(configuration)]

        return Installed(
            version=f"{version_in(sys.executable, 'prefork', 'httptools')}{_commit()}",
            command=command,
            env={"PYTHONPATH": str(REPOSITORY)},
        )

    return install


@cache
def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    commit = output_of(git, "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD")
    return f" ({commit})" if re.fullmatch("[0-9a-f]+", commit) else ""


# Peers

NGINX = """
worker_processes {workers};
daemon off;
pid {room}/nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 20000;
events {{ worker_connections 18000; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_temp_path {room}/body;
  proxy_temp_path {room}/proxy;
  fastcgi_temp_path {room}/fastcgi;
  uwsgi_temp_path {room}/uwsgi;
  scgi_temp_path {room}/scgi;
  default_type text/plain;
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{ return 200 "Hello, world!\\n"; }}
  }}
}}
"""


def nginx(room: Path) -> Installed:
    del room
    program = needs("nginx", "nginx")

    def command(port: int, room: Path, workers: int) -> list[str]:
        configuration = room / "nginx.conf"
        configuration.write_text(NGINX.format(port=port, room=room, workers=workers))
        return [program, "-p", str(room), "-c", str(configuration)]

    return Installed(f"nginx {output_of(program, '-v').rpartition('/')[2]}", command)


def bjoern(room: Path) -> Installed:
    needs("cc", "gcc")
    include = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not include.exists():
        raise NotInstalledError("no Python.h: apt-get install python3-dev")
    if not any(Path(place, "ev.h").exists() for place in ("/usr/include", "/usr/local/include")):
        raise NotInstalledError("no ev.h: apt-get install libev-dev")
    python = python_room(room, "bjoern", "bjoern")
    return Installed(
        version_in(python, "bjoern"),
        lambda port, room, workers: [python, "hello.py", str(port)],  # noqa: ARG005
        stop=signal.SIGKILL,  # it has no other way
    )


def granian(loop: str, interface: str = "rsgi", *more: str) -> Callable[[Path], Installed]:
    def install(room: Path) -> Installed:
        python = python_room(room, "granian", "granian", "uvloop")

        def command(port: int, room: Path, workers: int) -> list[str]:
            del room
            return [
                *(python, "-m", "granian", "--interface", interface, "--loop", loop, *more),
                *("--port", str(port), "--workers", str(workers), "--runtime-threads", "1"),
                *("--http", "1", "--no-ws", "--backlog", "2048", "--backpressure", "18000"),
                *("--no-access-log", "--log-level", "warning", f"hello:{interface}"),
            ]

        names = ("granian", "uvloop") if loop == "uvloop" else ("granian",)
        return Installed(version_in(python, *names), command)

    return install


def uvicorn(room: Path) -> Installed:
    python = python_room(room, "uvicorn", "uvicorn", "uvloop", "httptools")

    def command(port: int, room: Path, workers: int) -> list[str]:
        del room
        return [
            *(python, "-m", "uvicorn", "--port", str(port), "--workers", str(workers)),
            *("--loop", "uvloop", "--http", "httptools", "--ws", "none", "--lifespan", "off"),
            *("--no-access-log", "--log-level", "warning", "--timeout-keep-alive", "600"),
            "hello:asgi",
        ]

    return Installed(version_in(python, "uvicorn", "uvloop", "httptools"), command)


def gunicorn(room: Path) -> Installed:
    python = python_room(room, "gunicorn", "gunicorn")

    def command(port: int, room: Path, workers: int) -> list[str]:
        del room
        return [
            *(python, "-m", "gunicorn", "-k", "gthread", "--threads", "4"),
            *("-b", f"127.0.0.1:{port}", "--workers", str(workers), "--keep-alive", "600"),
            *("--worker-connections", "18000", "--log-level", "warning", "hello:wsgi"),
        ]

    return Installed(version_in(python, "gunicorn"), command)


@cache
def _koa_room(room: Path) -> tuple[str, str]:
    node = needs("node", "nodejs")
    home = room / "koa"
    package = home / "node_modules" / "koa" / "package.json"
    if not package.exists():
        npm = needs("npm", "npm")
        home.mkdir(exist_ok=True)
        print(f"installing koa into {home}", file=sys.stderr)
        _install([npm, "install", "--no-audit", "--no-fund", "--prefix", str(home), "koa"], home)
    version = json.loads(package.read_text())["version"]
    return node, f"koa {version}, node {output_of(node, '--version').lstrip('v')}"


def koa(room: Path) -> Installed:
    node, version = _koa_room(room)
    return Installed(
        version,
        lambda port, room, workers: [node, "koa.js", str(port)],  # noqa: ARG005
        env={"NODE_PATH": str(room / "koa" / "node_modules"), "NODE_ENV": "production"},
    )


SERVERS = {
    server.name: server
    for server in (
        Server("prefork", "prefork, 2 layers", prefork("two")),
        Server("prefork-1", "prefork, 1 layer", prefork("one")),
        Server("prefork-10", "prefork, 10 layers", prefork("ten")),
        Server("prefork-log", "prefork, access log", prefork("two", "combined")),
        Server("prefork-json", "prefork, JSON log", prefork("two", "json")),
        Server("prefork-wsgi", "prefork, WSGI", prefork("hello:wsgi", directory=HERE / "peers")),
        Server(
            "prefork-wsgi-4",
            "prefork, WSGI, 4 threads",
            prefork("hello:wsgi", directory=HERE / "peers", threads=4),
        ),
        Server("nginx", "nginx, return 200", nginx),
        Server("bjoern", "bjoern", bjoern, workers=False),
        Server("granian", "granian RSGI, uvloop", granian("uvloop")),
        Server("granian-asyncio", "granian RSGI, asyncio", granian("asyncio")),
        Server("prefork-asgi", "prefork, ASGI", prefork("hello:asgi", directory=HERE / "peers")),
        Server("granian-asgi", "granian ASGI, uvloop", granian("uvloop", "asgi")),
        Server("granian-wsgi", "granian WSGI", granian("auto", "wsgi", "--blocking-threads", "1")),
        Server("uvicorn", "uvicorn", uvicorn),
        Server("gunicorn", "gunicorn gthread", gunicorn),
        Server("koa", "Koa on Node", koa, workers=False),
    )
}
OURS = tuple(name for name in SERVERS if name.startswith("prefork"))
PEERS = tuple(name for name in SERVERS if not name.startswith("prefork"))
