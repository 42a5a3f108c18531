"""500 slow clients beside fast ones: what a WSGI application with `threads: 0` keeps of its speed.

A slow client sends its request one byte at a time, reads its answer one byte at a time, and begins
again. With a synchronous worker of the usual kind a single one holds the worker for as long as that
takes. The slow ones live in a process on the client's core; wrk measures the fast ones, alone and
beside them, in turns, against the same server.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from load import SCENARIOS, wrk
from processes import ServeError
from report import Target, median, table
from servers import SERVERS, NotInstalledError, needs

CLIENTS = 500
PACE = 0.5  # seconds between two bytes of one client: 1,000 bytes a second of all
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
SERVER = "prefork-wsgi"
HERE = Path(__file__).resolve().parent


def trickle(port: int) -> None:
    """500 slow clients, until killed; "ready" when all are connected.

    Half of them are in the middle of their requests then, half have theirs sent and read.
    """
    clients = []
    sent = []
    for n in range(CLIENTS):
        sock = socket.create_connection(("127.0.0.1", port), 10.0)
        sent.append(len(REQUEST) if n % 2 else n // 2 % len(REQUEST))
        sock.send(REQUEST[: sent[n]])
        sock.setblocking(False)
        clients.append(sock)
    heard = [b""] * CLIENTS
    print("ready", flush=True)
    due = time.monotonic()
    while True:
        for n, sock in enumerate(clients):
            due += PACE / CLIENTS
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
            if sent[n] < len(REQUEST):
                sock.send(REQUEST[sent[n] : sent[n] + 1])
                sent[n] += 1
                continue
            with contextlib.suppress(BlockingIOError):
                byte = sock.recv(1)
                if not byte:
                    raise ServeError("the server closed a slow client's connection")
                heard[n] += byte
            if heard[n].endswith(b"Hello, world!\n"):
                sent[n], heard[n] = 0, b""


@contextlib.contextmanager
def trickling(port: int, core: int | None) -> Iterator["subprocess.Popen[str]"]:
    """The slow clients, once they are all connected and on their way."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    process = subprocess.Popen(
        [sys.executable, str(HERE / "slow.py"), str(port)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pin,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise ServeError("the slow clients could not connect")
        yield process
        if process.poll() is not None:
            raise ServeError("the slow clients have ended: see above")
    finally:
        process.kill()
        process.communicate()


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    server_core, client_core = options.cores
    scenario = SCENARIOS["bare-64"]
    rounds: list[dict[str, float]] = []
    try:
        program = needs("wrk", "wrk")
        with SERVERS[SERVER].start(options.cache, server_core) as running:

            def once() -> tuple[float, float]:
                before = running.cpu()
                load = wrk(program, running.port, scenario, options.duration, client_core)
                if load.errors:
                    raise ServeError(f"{load.errors} errors")
                return load.per_second, (running.cpu() - before) / load.requests * 1e6

            once()
            for _ in range(options.rounds):
                speed, cpu = once()
                with trickling(running.port, client_core):
                    slow_speed, slow_cpu = once()
                rounds.append(
                    {
                        "per_second": speed,
                        "cpu_us": cpu,
                        "beside_per_second": slow_speed,
                        "beside_cpu_us": slow_cpu,
                    }
                )
    except (NotInstalledError, ServeError, OSError, subprocess.SubprocessError) as problem:
        raise SystemExit(f"slow: {problem}") from None
    rows = [
        (
            name,
            f"{median([r[key + 'per_second'] for r in rounds]):,.0f}",
            f"{median([r[key + 'cpu_us'] for r in rounds]):.2f}",
        )
        for name, key in (("alone", ""), (f"beside {CLIENTS} slow clients", "beside_"))
    ]
    print("\n" + table((SERVERS[SERVER].label, "req/s", "CPU us"), rows))
    return {"clients": CLIENTS, "pace": PACE, "rounds": rounds}, [
        Target(
            f"{SERVER}: beside {CLIENTS} slow clients / alone",
            median([r["beside_per_second"] / r["per_second"] for r in rounds]),
            0.9,
            by_cpu=median([r["cpu_us"] / r["beside_cpu_us"] for r in rounds]),
        )
    ]


if __name__ == "__main__":
    trickle(int(sys.argv[1]))
