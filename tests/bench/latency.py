"""Latency at a fixed rate, by an open loop.

wrk is a closed loop: while a server stalls it asks nothing, so the stall is hardly seen
(coordinated omission). Here request number n is due at n / rate whatever has become of the ones
before it, and its time runs from when it was due. The client spins on a core of its own; what
it is late by itself is in the numbers too, for every server alike.
"""

import argparse
import gc
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from processes import HELLO, ServeError
from report import median, table
from servers import SERVERS, NotInstalledError

CONNECTIONS = 64
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PATIENCE = 10.0  # seconds for what is still outstanding at the end


def generate(port: int, rate: int, seconds: float) -> list[float]:
    """Seconds from due to answered of rate * seconds requests; raises ServeError."""
    sockets = [socket.create_connection(("127.0.0.1", port), 5.0) for _ in range(CONNECTIONS)]
    epoll = select.epoll()
    waiting: dict[int, deque[float]] = {}  # due times: the first is on the wire
    by_fd = {sock.fileno(): sock for sock in sockets}
    for fd, sock in by_fd.items():
        sock.setblocking(False)
        epoll.register(fd, select.EPOLLIN)
        waiting[fd] = deque()
    order = list(by_fd)
    total = int(rate * seconds)
    times: list[float] = []
    clock = time.perf_counter
    sent = 0
    gc.disable()
    try:
        start = clock() + 0.01
        give_up = start + seconds + PATIENCE
        while len(times) < total:
            now = clock()
            if now > give_up:
                raise ServeError(f"{total - len(times)} of {total} requests were not answered")
            while sent < total and start + sent / rate <= now:
                fd = order[sent % CONNECTIONS]
                queue = waiting[fd]
                queue.append(start + sent / rate)
                if len(queue) == 1:
                    by_fd[fd].send(REQUEST)
                sent += 1
            for fd, _ in epoll.poll(0):
                data = by_fd[fd].recv(4096)
                if not data:
                    raise ServeError("the server closed a connection")
                if not data.endswith(HELLO):
                    continue  # the head came alone
                queue = waiting[fd]
                times.append(clock() - queue.popleft())
                if queue:
                    by_fd[fd].send(REQUEST)
    finally:
        gc.enable()
        epoll.close()
        for sock in sockets:
            sock.close()
    return times


def percentiles(times: Sequence[float]) -> dict[str, float]:
    ranked = sorted(times)

    def at(share: float) -> float:
        return ranked[min(int(len(ranked) * share), len(ranked) - 1)] * 1e3

    return {"p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999), "max_ms": at(1.0)}


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    server_core, client_core = options.cores
    everywhere = os.sched_getaffinity(0)
    found: dict[str, Any] = {}
    for number in range(options.rounds):
        for name in options.servers:
            if isinstance(found.get(name), str):
                continue
            try:
                with SERVERS[name].start(options.cache, server_core) as running:
                    if client_core is not None:
                        os.sched_setaffinity(0, {client_core})
                    generate(running.port, options.rate, 0.5)
                    one = percentiles(generate(running.port, options.rate, options.duration))
            except (NotInstalledError, ServeError, OSError, subprocess.SubprocessError) as problem:
                found[name] = str(problem)
                continue
            finally:
                os.sched_setaffinity(0, everywhere)
            found.setdefault(name, []).append(one)
            print(
                f"round {number + 1}/{options.rounds}  latency  {name:16}"
                f" p50 {one['p50_ms']:.3f} p99 {one['p99_ms']:.3f} ms",
                file=sys.stderr,
            )
    keys = ("p50_ms", "p99_ms", "p999_ms", "max_ms")
    rows: list[tuple[str, ...]] = []
    for name, rounds in found.items():
        label = SERVERS[name].label
        if isinstance(rounds, str):
            rows.append((label, f"not measured: {rounds}"))
        else:
            rows.append((label, *(f"{median([r[key] for r in rounds]):.3f}" for key in keys)))
    head = (f"ms at {options.rate:,} req/s, open loop", "p50", "p99", "p99.9", "max")
    print("\n" + table(head, rows))
    return {"rate": options.rate, "connections": CONNECTIONS, "servers": found}, []
