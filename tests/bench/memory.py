"""What prefork's master, an idle worker and an idle keep-alive connection weigh.

Bytes of Python memory are tracemalloc's, in a run of their own because tracemalloc weighs
something itself. RSS and PSS are the kernel's. The kernel's socket buffers are in neither.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from load import SCENARIOS, wrk
from processes import Running, ServeError, ask
from report import Target, table
from servers import SERVERS, Installed, NotInstalledError, Server, needs, prefork

MIB = 1024 * 1024
SETTLE = 5.0  # seconds: opening 10,000 connections is work, and not what is measured
TURN = 2  # seconds
COUNTS = (1000, 10_000)
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def traced_server() -> Server:
    plain = prefork("memory")

    def install(room: Path) -> Installed:
        installed = plain(room)
        return replace(installed, env={**installed.env, "PYTHONTRACEMALLOC": "1"})

    return Server("prefork-traced", "prefork, tracemalloc", install)


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[Sequence[socket.socket]]:
    """`count` connections, each of which has had one answer and is kept alive."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            sock.sendall(REQUEST)
            if not sock.recv(4096).startswith(b"HTTP/1.1 200"):
                raise ServeError("an idle connection got no answer")
            sockets.append(sock)
        yield sockets


def traced(running: Running) -> int:
    return int(json.loads(ask(running.port, "/traced", timeout=30)[2])["bytes"])


def python_bytes(options: argparse.Namespace) -> dict[int, float]:
    """Count of connections -> bytes of Python memory for each."""
    found = {}
    with traced_server().start(options.cache, options.cores[0]) as running:
        traced(running)
        before = traced(running)
        for count in COUNTS:
            with idle_connections(running.port, count):
                found[count] = (traced(running) - before) / count
    return found


def resident_bytes(options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Count of connections -> RSS and PSS of the worker for each, each in a fresh worker."""
    found = {}
    for count in COUNTS:
        with SERVERS["prefork"].start(options.cache, options.cores[0]) as running:
            worker = running.workers()[-1]
            with idle_connections(running.port, 64):
                pass  # what the first requests allocate for good
            before = running.memory(worker)
            with idle_connections(running.port, count):
                after = running.memory(worker)
            found[count] = {k: (after[k] - before[k]) / count for k in ("rss", "pss")}
    return found


def processes(options: argparse.Namespace) -> dict[str, Any]:
    """Bytes of the master and of its workers, before and after some work."""
    with SERVERS["prefork"].start(options.cache, None, workers=2) as running:
        master, *workers = running.tree()
        at_rest = {
            "master": running.memory(master),
            "workers": [running.memory(worker) for worker in workers],
        }
        for _ in range(1000):
            ask(running.port)
        return {
            **at_rest,
            "workers_after_1000": [running.memory(worker) for worker in workers],
        }


def busy_latency(options: argparse.Namespace, name: str) -> dict[str, float]:
    """p99 in ms of one busy connection: of `name` alone, and of one that holds 10,000 idle ones.

    Two servers on one core, asked in turn, so that what the machine does meanwhile befalls both;
    the medians of the turns. Not at once: for seconds after 10,000 connections were opened the
    kernel is busy with them, whoever the server is.
    """
    program = needs("wrk", "wrk")
    server_core, client_core = options.cores
    scenario = SCENARIOS["bare-64"]

    def p99(running: Running) -> float:
        return wrk(program, running.port, scenario, TURN, client_core, connections=1).p99 * 1e3

    found: dict[str, list[float]] = {"alone": [], "beside": []}
    with (
        SERVERS[name].start(options.cache, server_core) as alone,
        SERVERS[name].start(options.cache, server_core) as beside,
        idle_connections(beside.port, COUNTS[-1]) as sockets,
    ):
        time.sleep(SETTLE)
        for _ in range(2 * options.rounds + 1):
            found["alone"].append(p99(alone))
            found["beside"].append(p99(beside))
        lost = sum(1 for sock in sockets if not alive(sock))
    return {**{key: statistics.median(times) for key, times in found.items()}, "lost": lost}


def alive(sock: socket.socket) -> bool:
    """Neither closed nor reset by the server."""
    sock.setblocking(False)
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    weights = processes(options)
    resident, python = resident_bytes(options), python_bytes(options)
    rows = [("master", *_mib(weights["master"]))]
    rows += [(f"idle worker {n}", *_mib(one)) for n, one in enumerate(weights["workers"], 1)]
    rows += [
        (f"worker {n} after 1,000 requests to both", *_mib(one))
        for n, one in enumerate(weights["workers_after_1000"], 1)
    ]
    print("\n" + table(("MiB", "RSS", "PSS", "private"), rows))
    rows = [
        (
            f"{count:,} idle connections",
            f"{python[count]:,.0f}",
            f"{resident[count]['rss']:,.0f}",
            f"{resident[count]['pss']:,.0f}",
        )
        for count in COUNTS
    ]
    print("\n" + table(("bytes for each", "Python", "RSS", "PSS"), rows))
    latency: dict[str, dict[str, float]] = {}
    for name in ("prefork", "nginx"):
        try:
            one = latency[name] = busy_latency(options, name)
            print(
                f"\np99 of a busy connection, {name}: {one['alone']:.3f} ms alone,"
                f" {one['beside']:.3f} ms beside {COUNTS[-1]:,} idle ones (of which"
                f" {one['lost']:.0f} were lost)"
            )
        except NotInstalledError as problem:
            print(f"\np99 of a busy connection, {name}: not measured: {problem}")
    ours = latency.get("prefork")
    private = max(one["private"] for one in weights["workers"])
    targets = [
        Target("master RSS", weights["master"]["rss"] / MIB, 30, " MiB", at_least=False),
        Target("idle worker, private", private / MIB, 6, " MiB", at_least=False),
        *(
            Target(
                f"Python memory of one of {count:,} idle connections",
                python[count] / 1024,
                3,
                " KiB",
                at_least=False,
            )
            for count in COUNTS
        ),
        # "Keeps": the noise of two runs alone is of this order.
        Target(
            f"p99 beside {COUNTS[-1]:,} idle / p99 alone",
            ours["beside"] / ours["alone"] if ours else None,
            1.25,
            at_least=False,
        ),
        Target(
            "idle connections lost meanwhile",
            ours["lost"] if ours else None,
            0,
            at_least=False,
        ),
    ]
    found = {
        "processes": weights,
        "python_bytes_per_connection": python,
        "bytes_per_connection": resident,
        "busy_p99_ms": latency,
        "page_size": os.sysconf("SC_PAGE_SIZE"),
    }
    return found, targets


def _mib(memory: dict[str, int]) -> tuple[str, str, str]:
    return (
        f"{memory['rss'] / MIB:.1f}",
        f"{memory['pss'] / MIB:.1f}",
        f"{memory['private'] / MIB:.1f}",
    )
