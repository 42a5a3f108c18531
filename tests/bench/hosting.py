"""Applications of WSGI and ASGI under prefork and under the servers they come from.

One Python, one room: every server here, prefork among them, hosts the same code with the same
versions of the same packages. One worker on one core, `threads: 0` for WSGI.
"""

import argparse
import base64
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from load import Scenario, wrk
from processes import Running, ServeError
from report import Target, median, paired_ratio, table
from servers import Installed, NotInstalledError, Server, needs, prefork, python_room, version_in

HERE = Path(__file__).resolve().parent
SERVERS = ("uvicorn", "gunicorn", "granian", "websockets")
PARTS = ("uvloop", "httptools", "fastapi", "flask")
OURS = ("click", "msgspec", "psutil", "pyyaml", "setproctitle")  # what prefork itself needs
SOCKETS = 32
WARM_UP = 1


def room_of(cache: Path) -> str:
    return python_room(cache, "hosting", *SERVERS, *PARTS, *OURS)


def ours(app: str) -> Callable[[Path], Installed]:
    install = prefork(app, directory=HERE / "peers")

    def in_room(cache: Path) -> Installed:
        python, installed = room_of(cache), install(cache)
        return replace(
            installed,
            command=lambda port, room, workers: [
                python,
                *installed.command(port, room, workers)[1:],
            ],
        )

    return in_room


def uvicorn(app: str) -> Callable[[Path], Installed]:
    def install(cache: Path) -> Installed:
        python = room_of(cache)
        return Installed(
            version_in(python, "uvicorn"),
            lambda port, room, workers: [  # noqa: ARG005
                *(python, "-m", "uvicorn", "--port", str(port), "--workers", str(workers)),
                *("--loop", "uvloop", "--http", "httptools", "--ws", "websockets-sansio"),
                *("--lifespan", "off", "--no-access-log", "--log-level", "warning", app),
            ],
        )

    return install


def gunicorn(app: str, *kind: str) -> Callable[[Path], Installed]:
    def install(cache: Path) -> Installed:
        python = room_of(cache)
        return Installed(
            version_in(python, "gunicorn"),
            lambda port, room, workers: [  # noqa: ARG005
                *(python, "-m", "gunicorn", *kind, "-b", f"127.0.0.1:{port}"),
                *("--workers", str(workers), "--keep-alive", "600", "--log-level", "warning", app),
            ],
        )

    return install


def granian(app: str, interface: str, *more: str) -> Callable[[Path], Installed]:
    def install(cache: Path) -> Installed:
        python = room_of(cache)
        return Installed(
            version_in(python, "granian"),
            lambda port, room, workers: [  # noqa: ARG005
                *(python, "-m", "granian", "--interface", interface, *more, "--http", "1"),
                *("--port", str(port), "--workers", str(workers), "--runtime-threads", "1"),
                *("--no-access-log", "--log-level", "warning", app),
            ],
        )

    return install


def asgi_servers(app: str) -> dict[str, Server]:
    installs = {
        "prefork": ours(app),
        "uvicorn": uvicorn(app),
        "granian": granian(app, "asgi", "--loop", "uvloop"),
        "gunicorn": gunicorn(app, "-k", "asgi"),
    }
    labels = {"granian": "granian ASGI, uvloop", "gunicorn": "gunicorn asgi"}
    return {n: Server(n, labels.get(n, n), install) for n, install in installs.items()}


def wsgi_servers(app: str) -> dict[str, Server]:
    installs = {
        "prefork": ours(app),
        "granian": granian(app, "wsgi", "--blocking-threads", "1"),
        "gunicorn": gunicorn(app, "-k", "gthread", "--threads", "4"),
    }
    labels = {"granian": "granian WSGI", "gunicorn": "gunicorn gthread"}
    return {n: Server(n, labels.get(n, n), install) for n, install in installs.items()}


@dataclass(frozen=True)
class Row:
    scenario: Scenario
    servers: dict[str, Server]
    bounds: dict[str, float]  # prefork / the other, at least


def _scenarios() -> dict[str, Row]:
    asgi, wsgi = asgi_servers("hosted:asgi"), wsgi_servers("hosted:wsgi")
    lua = str(HERE / "upload.lua")
    download = "/download"
    par = {"uvicorn": 1.0, "granian": 1.0}
    rows = (
        Row(
            Scenario("asgi-hello", "ASGI hello", 64),
            asgi,
            {"uvicorn": 1.2, "granian": 1.15, "gunicorn": 2.2},
        ),
        Row(Scenario("asgi-upload", "ASGI, 64 KiB uploads", 64, script=lua), asgi, par),
        Row(Scenario("asgi-download", "ASGI, 1 MiB streamed", 16, path=download), asgi, par),
        Row(
            Scenario("wsgi-upload", "WSGI, 64 KiB uploads", 64, script=lua), wsgi, {"granian": 1.0}
        ),
        Row(
            Scenario("wsgi-download", "WSGI, 1 MiB streamed", 16, path=download),
            wsgi,
            {"granian": 1.0},
        ),
        Row(Scenario("fastapi", "FastAPI hello", 64), asgi_servers("with_fastapi:app"), {}),
        Row(Scenario("flask", "Flask hello", 64), wsgi_servers("with_flask:app"), {}),
        Row(
            Scenario("websocket", f"WebSocket, 32 bytes echoed, {SOCKETS} connections", SOCKETS),
            {name: asgi[name] for name in ("prefork", "uvicorn")},
            {"uvicorn": 1.0},
        ),
    )
    return {row.scenario.name: row for row in rows}


ROWS = _scenarios()


# The WebSocket client, a process of its own: what it sends never changes, so it is cheap


def echo_client(port: int, seconds: float) -> dict[str, Any]:
    """Closed loop: every connection sends its next message when the last has come back."""
    payload = b"\xa5" * 32
    mask = b"\x01\x02\x03\x04"
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    frame = b"\x82\xa0" + mask + masked  # FIN and binary; masked, 32 bytes
    answer = b"\x82\x20" + payload
    key = base64.b64encode(b"0123456789abcdef").decode()
    epoll = select.epoll()
    clients = {}
    for _ in range(SOCKETS):
        sock = socket.create_connection(("127.0.0.1", port), 10.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n" % key.encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            more = sock.recv(4096)
            if not more:
                raise ServeError("no handshake")
            head += more
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ServeError(f"no handshake: {head[:60]!r}")
        clients[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLIN)
    count = 0
    start = time.perf_counter()
    end = start + seconds
    for sock in clients.values():
        sock.send(frame)
    while time.perf_counter() < end:
        for fd, _ in epoll.poll(1.0):
            sock = clients[fd]
            data = sock.recv(4096)
            if data != answer:
                raise ServeError(f"{data[:60]!r} came back")
            count += 1
            sock.send(frame)
    return {"count": count, "seconds": time.perf_counter() - start}


def echo(running: Running, seconds: int, core: int | None) -> tuple[int, float, float]:
    """Messages echoed, their number in a second, and the server's CPU in microseconds for one."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    before = running.cpu()
    done = subprocess.run(
        [sys.executable, str(HERE / "hosting.py"), str(running.port), str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=pin,
        check=False,
    )
    if done.returncode:
        raise ServeError(done.stderr.strip().rpartition("\n")[2])
    found = json.loads(done.stdout)
    spent = running.cpu() - before
    count = found["count"] or 1
    return found["count"], found["count"] / found["seconds"], spent / count * 1e6


def once(program: str, row: Row, name: str, options: argparse.Namespace) -> dict[str, Any]:
    server_core, client_core = options.cores
    scenario = row.scenario
    with row.servers[name].start(options.cache, server_core) as running:
        errors = 0
        if scenario.name == "websocket":
            echo(running, WARM_UP, client_core)
            requests, speed, cpu = echo(running, options.duration, client_core)
        else:
            wrk(program, running.port, scenario, WARM_UP, client_core)
            before = running.cpu()
            load = wrk(program, running.port, scenario, options.duration, client_core)
            requests, speed, errors = load.requests, load.per_second, load.errors
            cpu = (running.cpu() - before) / requests * 1e6 if requests else float("nan")
    return {
        "scenario": scenario.name,
        "server": name,
        "requests": requests,
        "per_second": speed,
        "cpu_us": cpu,
        "errors": errors,
    }


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    try:
        program = needs("wrk", "wrk")
        python = room_of(options.cache)
    except NotInstalledError as problem:
        raise SystemExit(f"hosting: {problem}") from None
    results: list[dict[str, Any]] = []
    failed: dict[tuple[str, str], str] = {}
    chosen = {name: row for name, row in ROWS.items() if name in options.scenarios}
    for number in range(options.rounds):
        for scenario, row in chosen.items():
            for name in row.servers:
                if (scenario, name) in failed:
                    continue
                try:
                    one = {**once(program, row, name, options), "round": number}
                except (ServeError, OSError, subprocess.SubprocessError) as problem:
                    failed[scenario, name] = str(problem)
                    continue
                results.append(one)
                print(
                    f"round {number + 1}/{options.rounds}  {scenario:14}{name:10}"
                    f"{one['per_second']:>10,.0f} /s {one['cpu_us']:8.2f} us CPU",
                    file=sys.stderr,
                )
    targets = []
    for scenario, row in chosen.items():
        rows: list[tuple[str, ...]] = []
        for name, server in row.servers.items():
            mine = [r for r in results if (r["scenario"], r["server"]) == (scenario, name)]
            if (scenario, name) in failed:
                rows.append((server.label, f"not measured: {failed[scenario, name]}"))
                continue
            ratios = [
                paired_ratio(results, scenario, "prefork", name),
                paired_ratio(results, scenario, name, "prefork", "cpu_us"),
            ]
            rows.append(
                (
                    server.label,
                    f"{median([r['per_second'] for r in mine]):,.0f}",
                    f"{median([r['cpu_us'] for r in mine]):.2f}",
                    *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
                    str(sum(r["errors"] for r in mine) or ""),
                )
            )
        head = (row.scenario.label, "a second", "CPU us", "prefork x", "by CPU", "errors")
        print("\n" + table(head, rows))
        for name, bound in row.bounds.items():
            targets.append(
                Target(
                    f"{row.scenario.label}: prefork / {row.servers[name].label}",
                    paired_ratio(results, scenario, "prefork", name),
                    bound,
                    by_cpu=paired_ratio(results, scenario, name, "prefork", "cpu_us"),
                )
            )
    versions = version_in(python, *SERVERS, *PARTS)
    print("\n" + versions)
    return {
        "versions": versions,
        "absent": {" ".join(key): why for key, why in failed.items()},
        "results": results,
    }, targets


if __name__ == "__main__":
    signal.alarm(int(sys.argv[2]) + 50)
    print(json.dumps(echo_client(int(sys.argv[1]), float(sys.argv[2]))))
