"""What `preload` and `refork_after` save: PSS of a whole server, which counts shared pages once.

    python tests/bench/preload.py [--heap 135] [--cache 60] [--workers 4] [--json]

The application holds `heap` MiB of dicts. Measured: the server after its start; after a full
collection in every worker, which visits every object there is; and after each worker has built a
cache of `cache` MiB and has read a part of the heap in every request, once with preload alone and
once after the workers have been forked again from a warmed one.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APPLICATION = """
import gc
import os
import random

from prefork import Application

app = Application()


def build(mib):
    return [{"id": n, "name": f"object number {n}", "tags": [str(n)]} for n in range(mib * 2100)]


DATA = build(int(os.environ["HEAP"]))
CACHE = []


@app.use
async def serve(ctx, next):
    what, _, share = ctx.path.strip("/").partition("/")
    if what == "collect":
        gc.collect()
    if what in ("row", "random"):
        if not CACHE:
            CACHE.extend(build(int(os.environ["CACHE"])))
        some = int(len(DATA) * int(share) / 100)
        hot = range(some) if what == "row" else random.Random(1).sample(range(len(DATA)), some)
        for n in hot:
            DATA[n]["name"]
    ctx.body = str(os.getpid())
"""
HOT = ("row/2", "row/20", "random/2", "random/20")
WAIT = 120.0  # seconds


class Running:
    """A server in a directory of its own."""

    def __init__(self, options: argparse.Namespace, room: Path, refork_after: list[int]) -> None:
        room.joinpath("application.py").write_text(APPLICATION)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.workers = options.workers
        self.log = room / "error.log"
        settings = {
            "workers": options.workers,
            "listen": [f"127.0.0.1:{self.port}"],
            "preload": not options.without,
            "refork_after": refork_after,
            "log.error.path": str(self.log),
            "log.access.format": "off",
        }
        sets = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefork", "start", "application:app", *sets],
            cwd=room,
            env={**os.environ, "HEAP": str(options.heap), "CACHE": str(options.cache)},
        )
        self.wait_for("ready on ")

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + WAIT
        while not (self.log.exists() and text in self.log.read_text()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{text!r} did not come:\n{self.log.read_text()}")
            time.sleep(0.02)

    def get(self, path: str) -> int:
        """The pid of the worker that answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        connection.request("GET", f"/{path}", headers={"Connection": "close"})
        pid = int(connection.getresponse().read())
        connection.close()
        return pid

    def ask_all(self, path: str) -> None:
        """Until each worker has answered at least once."""
        answered: set[int] = set()
        deadline = time.monotonic() + WAIT
        while len(answered & set(self.pids())) < self.workers:
            answered.add(self.get(path))
            if time.monotonic() > deadline:
                raise SystemExit(f"only {len(answered)} workers answer")

    def pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def pss(self) -> float:
        """MiB, of the master and all its children."""
        total = 0
        for pid in (self.process.pid, *self.pids()):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(WAIT)


def boot_and_collect(options: argparse.Namespace) -> tuple[float, float]:
    """PSS after the start, and after a full collection in every worker."""
    with tempfile.TemporaryDirectory() as room:
        server = Running(options, Path(room), [])
        try:
            server.ask_all("")
            boot = server.pss()
            server.ask_all("collect")
            return boot, server.pss()
        finally:
            server.stop()


def lazy_cache(options: argparse.Namespace, hot: str, *, refork: bool) -> float:
    """PSS when every worker has its cache and has read what is hot."""
    warm = 10 * options.workers
    with tempfile.TemporaryDirectory() as room:
        server = Running(options, Path(room), [warm, 1 << 40] if refork else [])
        try:
            server.ask_all(hot)
            if refork:
                for _ in range(2 * warm * options.workers):
                    server.get(hot)
                server.wait_for("all workers come from mold")
                deadline = time.monotonic() + WAIT
                while len(server.pids()) > options.workers + 1 and time.monotonic() < deadline:
                    time.sleep(0.02)  # the mold there was takes a moment to leave
            for _ in range(3):
                server.ask_all(hot)
            return server.pss()
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--heap", type=int, default=135, help="MiB that are preloaded")
    parser.add_argument("--cache", type=int, default=60, help="MiB that each worker caches")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--hot", nargs="+", default=list(HOT), help="row/PERCENT, random/PERCENT")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, float] = {}

    def note(key: str, value: float) -> None:
        found[key] = value
        if not options.json:
            print(f"  {key:24} {value:8.0f}", flush=True)

    if not options.json:
        print(f"{options.workers} workers, {options.heap} MiB preloaded; PSS in MiB", flush=True)
    for name, without in (("no preload", True), ("preload", False)):
        options.without = without
        boot, collected = boot_and_collect(options)
        note(f"{name}, boot", boot)
        note(f"{name}, collected", collected)
    for hot in options.hot:
        for name, refork in (("preload", False), ("refork", True)):
            note(f"{name}, {hot}", lazy_cache(options, hot, refork=refork))
    if options.json:
        print(json.dumps(found))
        return
    print(f"  collected / boot         {found['preload, collected'] / found['preload, boot']:8.2f}")
    for hot in options.hot:
        ratio = found[f"refork, {hot}"] / found[f"preload, {hot}"]
        print(f"  refork / preload, {hot:10} {ratio:4.2f}")


if __name__ == "__main__":
    main()
