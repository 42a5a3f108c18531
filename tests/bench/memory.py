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
SETTLE = 3.0  # seconds: closing 10,000 connections is work, and not what is measured
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


def busy_latency(options: argparse.Namespace) -> dict[str, float]:
    """p99 in ms of one busy connection: alone, beside 10,000 idle ones, alone again."""
    program = needs("wrk", "wrk")
    server_core, client_core = options.cores
    scenario = SCENARIOS["bare-64"]

    def p99(running: Running) -> float:
        """The median of three, after one that is not counted.

        In the seconds after 10,000 connections were opened the kernel is busy with them: nginx's
        p99 is tenfold then, too.
        """
        found = [
            wrk(program, running.port, scenario, options.duration, client_core, connections=1).p99
            for _ in range(4)
        ]
        return statistics.median(found[1:]) * 1e3

    with SERVERS["prefork"].start(options.cache, server_core) as running:
        before = p99(running)
        with idle_connections(running.port, COUNTS[-1]) as sockets:
            beside = p99(running)
            lost = sum(1 for sock in sockets if not alive(sock))
        time.sleep(SETTLE)
        return {"before": before, "beside": beside, "after": p99(running), "lost": lost}


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
    latency: dict[str, float] | None
    try:
        latency = busy_latency(options)
        print(
            f"\np99 of a busy connection: {latency['before']:.3f} ms alone,"
            f" {latency['beside']:.3f} ms beside {COUNTS[-1]:,} idle ones (of which"
            f" {latency['lost']:.0f} were lost), {latency['after']:.3f} ms alone again"
        )
    except NotInstalledError as problem:
        latency = None
        print(f"\np99 of a busy connection: not measured: {problem}")
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
            latency["beside"] / max(latency["before"], latency["after"]) if latency else None,
            1.25,
            at_least=False,
        ),
        Target(
            "idle connections lost meanwhile",
            latency["lost"] if latency else None,
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
