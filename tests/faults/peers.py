"""The same faults for prefork and its peers, counted by the same client.

    python tests/faults/peers.py                       the table, as Markdown
    python tests/faults/peers.py --only prefork,uvicorn --json a.json
    python tests/faults/peers.py --tests reload,stop

Every server runs two workers of served.py with its own defaults, and gets of its options only
what a row is about: a limit of requests for a worker, or a stop that is graceful. A peer that is
missing is installed into --cache, as by tests/bench/run.py, or stays in the table with the
reason. The application takes a second to import. Each cell is one run: read it as a yes or no and
an order of magnitude.
"""

import argparse
import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))

from processes import free_port, temporary_room  # noqa: E402
from run import cache_directory, machine  # noqa: E402
from servers import (  # noqa: E402
    SERVERS,
    NotInstalledError,
    python_room,
    version_in,
)

BOOT_SECONDS = 30.0
MIX = "get:6,post:1,slow:1"


@dataclass(frozen=True)
class Peer:
    """How one server is had and started; what it lacks for a row is None."""

    name: str
    label: str
    packages: tuple[str, ...]
    versions: tuple[str, ...]
    command: Callable[[str, int, Path], list[str]]  # python, port, room
    recycling: tuple[str, ...] | None  # the option that replaces a worker after 100 requests


def gunicorn(*more: str) -> Callable[[str, int, Path], list[str]]:
    def command(python: str, port: int, room: Path) -> list[str]:
        del room
        return [
            *(python, "-m", "gunicorn", "--workers", "2", "-b", f"127.0.0.1:{port}"),
            *(*more, "served:wsgi"),
        ]

    return command


def uvicorn(python: str, port: int, room: Path) -> list[str]:
    del room
    return [
        *(python, "-m", "uvicorn", "--workers", "2", "--port", str(port)),
        *("--no-access-log", "served:asgi"),
    ]


def granian(python: str, port: int, room: Path) -> list[str]:
    del room
    return [
        *(python, "-m", "granian", "--interface", "asgi", "--workers", "2"),
        *("--port", str(port), "served:asgi"),
    ]


def hypercorn(python: str, port: int, room: Path) -> list[str]:
    del room
    return [*(python, "-m", "hypercorn", "-w", "2", "-b", f"127.0.0.1:{port}"), "served:asgi"]


def uwsgi(python: str, port: int, room: Path) -> list[str]:
    del room
    return [
        *(str(Path(python).with_name("uwsgi")), "--master", "--processes", "2", "--lazy-apps"),
        *("--http-socket", f"127.0.0.1:{port}", "--die-on-term", "--disable-logging"),
        *("--module", "served:wsgi"),
    ]


def prefork(python: str, port: int, room: Path) -> list[str]:
    (room / "conf.yaml").write_text(
        json.dumps(
            {
                "app": "served:app",
                "listen": [f"127.0.0.1:{port}"],
                "workers": 2,
                "on_term": "graceful",
                "log": {"access": {"format": "off"}},
            }
        )
    )
    return [python, "-m", "prefork", "start", "-c", "conf.yaml"]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "prefork",
            "prefork",
            (),
            ("prefork",),
            prefork,
            ("--set", "recycle.max_requests=100", "--set", "recycle.min_lifetime=0s"),
        ),
        Peer(
            "gunicorn-sync",
            "gunicorn sync",
            ("gunicorn", "gunicorn"),
            ("gunicorn",),
            gunicorn(),
            ("--max-requests", "100"),
        ),
        Peer(
            "gunicorn-gthread",
            "gunicorn gthread",
            ("gunicorn", "gunicorn"),
            ("gunicorn",),
            gunicorn("-k", "gthread", "--threads", "4"),
            ("--max-requests", "100"),
        ),
        Peer(
            "uvicorn",
            "uvicorn",
            ("uvicorn", "uvicorn", "uvloop", "httptools"),
            ("uvicorn", "uvloop"),
            uvicorn,
            ("--limit-max-requests", "100"),
        ),
        Peer(
            "granian",
            "granian",
            ("granian", "granian", "uvloop"),
            ("granian",),
            granian,
            None,
        ),
        Peer(
            "hypercorn",
            "hypercorn",
            ("hypercorn", "hypercorn"),
            ("hypercorn",),
            hypercorn,
            ("--max-requests", "100"),
        ),
        Peer(
            "uwsgi",
            "uWSGI",
            ("uwsgi", "uwsgi"),
            ("uwsgi",),
            uwsgi,
            ("--max-requests", "100"),
        ),
    )
}


# A server and the client beside it


def write_app(room: Path, *, version: str, ending: str = "") -> None:
    """The application, in one step."""
    source = (HERE / "served.py").read_text().replace('"v1"', f'"{version}"')
    fresh = room / "served.py.new"
    fresh.write_text(source + ending)
    fresh.replace(room / "served.py")


@dataclass
class Running:
    process: "subprocess.Popen[bytes]"
    port: int
    room: Path
    load: "subprocess.Popen[str] | None" = field(default=None)

    @property
    def output(self) -> str:
        return (self.room / "output").read_text(errors="replace")

    def family(self) -> list[int]:
        """Every process whose current directory is the room."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{name}/cwd") == str(self.room):
                        found.append(int(name))
        return found

    def workers(self) -> set[int]:
        """Those that answer."""
        found = set()
        for _ in range(20):
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                found.add(int(self.ask().split()[0]))
        return found

    def ask(self, path: str = "/", timeout: float = 5.0) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Connection": "close", "X-Id": "0"})
            return connection.getresponse().read().decode()

    def begin(self, *flags: str, **options: float | str) -> None:
        words = [sys.executable, str(HERE / "client.py"), f"127.0.0.1:{self.port}", *flags]
        for name, value in options.items():
            words += [f"--{name}", str(value)]
        self.load = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def end(self) -> dict[str, Any]:
        assert self.load is not None
        out, _ = self.load.communicate(timeout=120)
        found: dict[str, Any] = json.loads(out)
        return found


@contextlib.contextmanager
def start(peer: Peer, cache: Path, *more: str) -> Iterator[Running]:
    """Raises NotInstalledError."""
    python = python_room(cache, *peer.packages) if peer.packages else sys.executable
    with temporary_room() as room:
        port = free_port()
        command = [*peer.command(python, port, room), *more]
        write_app(room, version="v1")
        with (room / "output").open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=room,
                env={**os.environ, "PYTHONPATH": str(room), "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        running = Running(process, port, room)
        try:
            deadline = time.monotonic() + BOOT_SECONDS
            while len(running.workers()) < 1:
                if running.process.poll() is not None or time.monotonic() > deadline:
                    said = running.output.strip().splitlines() or ["nothing"]
                    raise NotInstalledError(f"does not serve: {said[-1][:160]}")
                time.sleep(0.05)
            time.sleep(2.0)  # the second worker imports, too
            yield running
        finally:
            if running.load is not None and running.load.poll() is None:
                running.load.kill()
                running.load.wait()
            deadline = time.monotonic() + 10
            while (left := running.family()) and time.monotonic() < deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.process.wait(0.2)
            running.process.wait()


# The rows

Cell = tuple[str, dict[str, Any]]


def failed(result: dict[str, Any]) -> str:
    """`3 of 400 fail (2 refused, 1 cut)`."""
    outcomes: dict[str, int] = {}
    for side in ("fresh", "kept"):
        for outcome, number in result[side].items():
            if outcome not in ("ok", "unserved"):
                outcomes[outcome] = outcomes.get(outcome, 0) + number
    if not outcomes:
        return f"0 of {result['requests']} fail"
    parts = ", ".join(
        f"{number} {outcome.replace('_', ' ')}" for outcome, number in outcomes.items()
    )
    return f"**{result['failed']}** of {result['requests']} fail ({parts})"


def slowest(result: dict[str, Any]) -> str:
    seconds = max((one.get("max", 0.0) for one in result["latency"].values()), default=0.0)
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def reload_good(peer: Peer, cache: Path) -> Cell:
    """HUP to new code, 40 requests a second"""
    with start(peer, cache) as running:
        running.begin(rate=40, mix=MIX, timeout=10)
        time.sleep(1.5)
        write_app(running.room, version="v2")
        running.process.send_signal(signal.SIGHUP)
        time.sleep(8)
        result = running.end()
    new = "" if result["versions"].get("v2") else "; **new code never served**"
    return f"{failed(result)}, slowest {slowest(result)}{new}", result


def reload_bad(peer: Peer, cache: Path) -> Cell:
    """HUP to code that raises at import"""
    with start(peer, cache) as running:
        before = running.workers()
        running.begin(rate=40, mix=MIX, timeout=10)
        time.sleep(1.5)
        write_app(running.room, version="v2", ending="\nraise RuntimeError('not today')\n")
        running.process.send_signal(signal.SIGHUP)
        time.sleep(8)
        result = running.end()
        after = running.workers()
        ended = running.process.poll()
        result["same_pids"] = before == after
        result["exit_code"] = ended
    how = (
        f"**the server ends** (code {ended}); "
        if ended is not None
        else "the same pids serve; "
        if before == after
        else "**nobody serves**; "
        if not after
        else "other pids serve; "
    )
    return how + failed(result), result


def recycling(peer: Peer, cache: Path) -> Cell:
    """a new worker every 100 requests, 60 a second"""
    if peer.recycling is None:
        return "has no such option", {}
    with start(peer, cache, *peer.recycling) as running:
        running.begin(rate=60, mix="get:6,post:1", timeout=10)
        time.sleep(15)
        result = running.end()
    workers = len(result["workers"])
    p99 = max((one.get("p99", 0.0) for one in result["latency"].values()), default=0.0)
    return f"{failed(result)}, p99 {p99 * 1000:.0f} ms, {workers} workers", result


def stop(peer: Peer, cache: Path) -> Cell:
    """TERM, 40 requests a second of 150 ms each: connections made before the signal"""
    with start(peer, cache) as running:
        running.begin("--dues", rate=40, mix="slow:1", fresh=1.0, timeout=30)
        time.sleep(3)
        told = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        # What is due later is refused; a second of it is enough.
        time.sleep(1)
        result = running.end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(30)
        took = time.monotonic() - told if running.process.poll() is not None else None
    before = [one for one in result["failures"] if one["connected"] and one["connected"] < told]
    made = len(before) + sum(1 for due in result["dues"] if due < told)
    result |= {"lost": len(before), "made": made, "told": told, "took": took}
    del result["dues"]
    text = f"**{len(before)}** of {made} lost" if before else f"0 of {made} lost"
    return text + ("; **never ends**" if took is None else ""), result


def kill_master(peer: Peer, cache: Path) -> Cell:
    """`kill -9` of the master"""
    with start(peer, cache) as running:
        running.process.kill()
        running.process.wait()
        killed = time.monotonic()
        free = None
        while time.monotonic() - killed < 20:
            if not running.family() and bindable(running.port):
                free = time.monotonic() - killed
                break
            time.sleep(0.02)
        left = len(running.family())
        serves = bool(running.workers()) if left else False
    if free is not None:
        return f"all gone and the port free after {free:.2f} s", {"free": free}
    text = f"**{left} orphans** after 20 s" + (", still serving" if serves else "")
    return text, {"orphans": left, "serves": serves}


def bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def hung(peer: Peer, cache: Path) -> Cell:
    """a handler in `time.sleep(1000)`, watched for 50 s, 20 other requests a second"""
    with start(peer, cache) as running:
        running.begin(rate=20, mix="get:1", fresh=1.0, timeout=5)
        time.sleep(1)

        def ask() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                running.ask("/hang", timeout=60)

        threading.Thread(target=ask, daemon=True).start()
        began = time.monotonic()
        gone = None
        while time.monotonic() - began < 50:
            time.sleep(0.1)
            with contextlib.suppress(OSError, ValueError):
                pid = int((running.room / "hung").read_text())
                if pid not in running.family():
                    gone = time.monotonic() - began
                    time.sleep(3)
                    break
        result = running.end()
        output = running.output
    stack = "hang_here" in output
    url = "/hang" in output
    result |= {"gone": gone, "stack": stack, "url": url}
    found = f"replaced after {gone:.0f} s" if gone is not None else "**never noticed**"
    logged = [name for name, there in (("stack", stack), ("URL", url)) if there]
    told = " and ".join(logged) + " logged" if logged else "**nothing logged of what it did**"
    return f"{found}; {told}; others: {failed(result)}", result


TESTS: dict[str, tuple[str, Callable[[Peer, Path], Cell]]] = {
    "reload": ("HUP to new code, 40 requests a second", reload_good),
    "broken": ("HUP to code that raises at import", reload_bad),
    "recycle": ("a new worker every 100 requests, 60 a second", recycling),
    "stop": ("TERM at 40 requests of 150 ms a second: connections made before it", stop),
    "kill": ("`kill -9` of the master", kill_master),
    "hang": ("a handler that hangs for ever, 20 other requests a second, 50 s", hung),
}


def table(report: dict[str, Any]) -> str:
    """Markdown: a row for each server, a column for each test."""
    names = list(report["tests"])
    lines = [
        "| | " + " | ".join(report["tests"][name] for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for server, cells in report["cells"].items():
        lines.append(
            f"| {PEERS[server].label} | " + " | ".join(cells.get(name, "") for name in names) + " |"
        )
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            for one in chosen:
                if one not in known:
                    raise argparse.ArgumentTypeError(f"no {one!r}; there are {', '.join(known)}")
            return chosen

        return parse

    parser.add_argument("--only", type=names(list(PEERS)), help=", ".join(PEERS))
    parser.add_argument("--tests", type=names(list(TESTS)), help=", ".join(TESTS))
    parser.add_argument("--json", metavar="FILE", help="write everything that was counted")
    parser.add_argument("--cache", metavar="DIRECTORY", help="where peers are installed")
    options = parser.parse_args(arguments)
    options.cache = cache_directory(options.cache)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    words = ["python", "tests/faults/peers.py"]
    for name in ("only", "tests"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", ",".join(value)]
    chosen = options.tests or list(TESTS)
    report: dict[str, Any] = {
        "command": shlex.join(words),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "tests": {name: TESTS[name][0] for name in chosen},
        "versions": {},
        "cells": {},
        "results": {},
    }
    for name in options.only or list(PEERS):
        peer = PEERS[name]
        cells: dict[str, str] = {}
        results: dict[str, Any] = {}
        report["cells"][name], report["results"][name] = cells, results
        try:
            python = python_room(options.cache, *peer.packages) if peer.packages else sys.executable
            report["versions"][name] = (
                version_in(python, *peer.versions)
                if peer.packages
                else SERVERS["prefork"].install(options.cache).version
            )
            for test in chosen:
                cells[test], results[test] = TESTS[test][1](peer, options.cache)
                if "failures" in results[test]:  # all are counted; a few say what they are like
                    results[test]["failures"] = results[test]["failures"][:3]
                print(f"{name:18}{test:9}{cells[test]}", file=sys.stderr)
        except NotInstalledError as problem:
            for test in chosen:
                cells.setdefault(test, str(problem))
    print(table(report))
    print("\n" + ", ".join(dict.fromkeys(report["versions"].values())))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    # A peer may be missing; a prefork that is not there is a failure.
    return 0 if report["versions"].get("prefork") or "prefork" not in report["cells"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
