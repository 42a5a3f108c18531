"""A burst: 200 connections at once, one request each, blocking work, four workers.

Who does best with that is a worker that sits in a blocking accept(): it takes a connection when it
has nothing else to do, and never before. So four such processes, of thirty lines, are what
prefork's workers with `threads: 0` are measured against; the work is the same few milliseconds.
It is slept, not burnt: with four workers on two cores the scheduler would be measured too.

`gap` is the time between a client's connect and its request: 0 is a client next door.
"""

import argparse
import contextlib
import multiprocessing
import os
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from processes import ServeError
from report import Target, median, table
from servers import Installed, NotInstalledError, Server, prefork

WORK = 0.005  # seconds
CONNECTIONS = 200
WORKERS = 4
PATIENCE = 20.0
GAPS = (0.0, 0.002)
HERE = Path(__file__).resolve().parent
REQUEST = b"GET /work HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%s"
)


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Hello at once; at /work the worker's pid, after the work."""
    body = b"Hello, world!\n"
    if environ["PATH_INFO"] == "/work":
        time.sleep(WORK)
        body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def accept_for_ever(sock: socket.socket) -> None:
    """The other side: one request at a time, from accept to close."""
    while True:
        client, _ = sock.accept()
        with client, contextlib.suppress(OSError):
            body = b"Hello, world!\n"
            if client.recv(65536).startswith(b"GET /work"):
                time.sleep(WORK)
                body = str(os.getpid()).encode()
            client.sendall(ANSWER % (len(body), body))


def serve_blocking(port: int, workers: int) -> None:
    sock = socket.create_server(("127.0.0.1", port), backlog=2048)
    context = multiprocessing.get_context("fork")
    for _ in range(workers):
        context.Process(target=accept_for_ever, args=(sock,), daemon=True).start()
    while True:
        time.sleep(3600)


def blocking(room: Path) -> Installed:
    del room
    return Installed(
        "",
        lambda port, room, workers: [  # noqa: ARG005
            *(sys.executable, str(HERE / "burst.py"), str(port), str(workers))
        ],
    )


SIDES = (
    Server("blocking accept", "blocking accept(), 30 lines", blocking),
    Server("prefork", "prefork, WSGI, threads: 0", prefork("burst:wsgi")),
)


def burst(port: int, gap: float) -> tuple[list[float], Counter[bytes]]:
    """Seconds from a client's connect to its answer, sorted; how many each worker answered."""
    epoll = select.epoll()
    clients: dict[int, socket.socket] = {}
    begun: dict[int, float] = {}
    heard: dict[int, bytes] = {}
    times: list[float] = []
    answered: Counter[bytes] = Counter()
    clock = time.perf_counter
    try:
        for _ in range(CONNECTIONS):
            sock = socket.socket()
            sock.setblocking(False)
            clients[sock.fileno()] = sock
        start = clock()
        for fd, sock in clients.items():
            begun[fd] = clock()
            with contextlib.suppress(BlockingIOError):
                sock.connect(("127.0.0.1", port))
            if not gap:
                sock.send(REQUEST)  # on loopback the connection stands when connect() returns
        for fd, sock in clients.items():
            if gap:
                wait = begun[fd] + gap - clock()
                if wait > 0:
                    time.sleep(wait)
                sock.send(REQUEST)
        for fd in clients:
            epoll.register(fd, select.EPOLLIN)
        while len(times) < CONNECTIONS:
            if clock() - start > PATIENCE:
                raise ServeError(f"{CONNECTIONS - len(times)} were not answered")
            for fd, _ in epoll.poll(1.0):
                data = clients[fd].recv(4096)
                heard[fd] = heard.get(fd, b"") + data
                _, end, body = heard[fd].partition(b"\r\n\r\n")
                if not data and not end:
                    raise ServeError("the server closed a connection")
                if end and body:
                    times.append(clock() - begun[fd])
                    answered[body] += 1
                    epoll.unregister(fd)
                    clients[fd].close()
    finally:
        epoll.close()
        for sock in clients.values():
            sock.close()
    return sorted(times), answered


@contextlib.contextmanager
def running(options: argparse.Namespace) -> Iterator[dict[str, int]]:
    """Both servers, started and asked once; their ports."""
    with contextlib.ExitStack() as stack:
        yield {
            one.name: stack.enter_context(one.start(options.cache, None, WORKERS)).port
            for one in SIDES
        }


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    rounds: list[dict[str, Any]] = []
    try:
        with running(options) as ports:
            for number in range(max(3 * options.rounds, 3)):
                for gap in GAPS:
                    for name, port in ports.items():
                        times, shares = burst(port, gap)
                        rounds.append(
                            {
                                "server": name,
                                "round": number,
                                "gap": gap,
                                "p50_ms": times[len(times) // 2] * 1e3,
                                "last_ms": times[-1] * 1e3,
                                "shares": sorted(shares.values(), reverse=True),
                            }
                        )
    except (NotInstalledError, ServeError, OSError, subprocess.SubprocessError) as problem:
        raise SystemExit(f"burst: {problem}") from None
    rows, targets = [], []
    for gap in GAPS:
        for side in SIDES:
            mine = [r for r in rounds if r["server"] == side.name and r["gap"] == gap]
            rows.append(
                (
                    f"{side.label}, request {gap * 1e3:g} ms after connect",
                    f"{median([r['p50_ms'] for r in mine]):.0f}",
                    f"{median([r['last_ms'] for r in mine]):.0f}",
                    "/".join(map(str, mine[len(mine) // 2]["shares"])),
                )
            )
        for key, bound in (("p50_ms", 1.2), ("last_ms", 1.2)):
            value = {(r["server"], r["round"]): r[key] for r in rounds if r["gap"] == gap}
            ratio = median(
                [
                    value["prefork", n] / value["blocking accept", n]
                    for s, n in value
                    if s == "prefork"
                ]
            )
            what = {"p50_ms": "median", "last_ms": "last"}[key]
            targets.append(
                Target(
                    f"burst, {gap * 1e3:g} ms to the request: {what} / blocking accept",
                    ratio,
                    bound,
                    at_least=False,
                )
            )
    head = (f"{CONNECTIONS} connections, {WORK * 1e3:g} ms of work", "p50 ms", "last ms", "shares")
    print("\n" + table(head, rows))
    return {"workers": WORKERS, "work": WORK, "rounds": rounds}, targets


if __name__ == "__main__":
    serve_blocking(int(sys.argv[1]), int(sys.argv[2]))
