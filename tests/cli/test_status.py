"""`prefork status` of servers in every condition: it answers, and says what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from prefork.cli import statuspage
from prefork.cli.status import percentiles
from tests.process.test_upgrade import gone, upgrade, workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Daemons, Server

BLOCKING = """
import asyncio
import os
import time

from prefork import Application

app = Application()


@app.use
async def serve(ctx, next):
    if ctx.path.startswith("/block/"):
        time.sleep(float(ctx.path.removeprefix("/block/")))
    elif ctx.path.startswith("/await/"):
        await asyncio.sleep(float(ctx.path.removeprefix("/await/")))
    elif ctx.path == "/die":
        os._exit(3)
    elif ctx.path == "/fail":
        raise RuntimeError("on purpose")
    ctx.body = "ok"
"""


def facts(server: Server) -> dict[str, Any]:
    return dict(json.loads(server.cli("status", "--json").stdout))


def page(server: Server) -> str:
    return server.cli("status").stdout


def states(server: Server) -> list[str]:
    return [worker["state"] for worker in facts(server)["workers"]]


@contextlib.contextmanager
def asked(server: Server, *paths: str) -> Iterator[None]:
    """Requests that are sent and whose answers nobody waits for."""
    with contextlib.ExitStack() as connections:
        for path in paths:
            sock = connections.enter_context(server.connect())
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        yield


@contextlib.contextmanager
def stopped(server: Server, pids: list[int]) -> Iterator[None]:
    for pid in pids:
        server.send(signal.SIGSTOP, pid)
    try:
        yield
    finally:
        for pid in pids:
            server.send(signal.SIGCONT, pid)


def test_a_healthy_server(daemon: Daemons) -> None:
    server = daemon(workers=2, app=BLOCKING)
    server.expect("on purpose|Traceback|RuntimeError")
    for path in ("/", "/", "/fail"):
        server.get(path)
    done = server.cli("status")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout  # no terminal, no colour
    assert re.match(r"prefork \d\S* serving application:app \(onion\), pid", done.stdout)
    for pattern in (
        rf"pid {server.pid}, up \S+, generation 1\n",
        r"configuration  /\S+/conf\.yaml\n",
        r"workers        [01] of 2 busy  \[(__|B_|_B|BB)\]",
        rf"accept queue   0 of \d+ {server.url}\n",
        r"requests       3, [\d.]+/s over \S+; 3 connections, \d+B sent\n",
        r"responses      2xx 2  3xx 0  4xx 0  5xx 1\n",
        r"latency        p50 \S+  p90 \S+  p99 \S+\n",
        r"worker  state   +pid  gen +age  requests  run  conns +p99 +lag +cpu +pss  boots\n",
    ):
        assert re.search(pattern, done.stdout), (pattern, done.stdout)
    seen = facts(server)
    assert seen["pid"] == server.pid
    assert seen["config"] == str(server.config_path)
    assert (seen["stopped"], seen["last_reload"], seen["last_command"]) == (False, None, None)
    assert (seen["generation"], seen["target_workers"]) == (1, 2)
    assert [listener["url"] for listener in seen["listeners"]] == [server.url]
    assert seen["totals"]["requests"] == sum(w["requests"] for w in seen["workers"]) == 3
    assert seen["totals"]["responses"] == {"1xx": 0, "2xx": 2, "3xx": 0, "4xx": 0, "5xx": 1}
    assert sum(count for _, count in seen["totals"]["latencies"]) == 3
    assert seen["totals"]["accepted"] == 3
    assert [worker["n"] for worker in seen["workers"]] == [1, 2]
    assert {worker["pid"] for worker in seen["workers"]} == set(server.pids())
    for worker in seen["workers"]:
        assert worker["state"] in ("idle", "busy")  # busy: a timer may run right now
        assert 1 << 20 < worker["pss"] <= worker["rss"]
        assert (worker["boots"], worker["crashes"], worker["last_exit"]) == (1, 0, None)
    lines = sorted(note["line"] for worker in seen["workers"] for note in worker["recent"])
    assert lines == ["GET / HTTP/1.1", "GET / HTTP/1.1", "GET /fail HTTP/1.1"]


def test_every_worker_hangs(daemon: Daemons) -> None:
    """Each row says in which request, and for how long."""
    server = daemon(workers=2, app=BLOCKING, timeouts={"graceful": 1})
    server.expect("has not left|cut off|SIGKILL|exited on signal")
    with asked(server, "/block/31", "/block/32", "/block/33", "/block/34"):
        server.wait_for(lambda: states(server) == ["stuck", "stuck"])
        began = time.monotonic()
        done = server.cli("status")
        print(f"with all workers hung: {time.monotonic() - began:.3f} s")
        seen = facts(server)
    assert done.returncode == 0
    assert "  every worker that is ready is stuck: `prefork stacks` says in which" in done.stdout
    assert "2 of 2 busy  [!!]  ! 2 stuck" in done.stdout
    noted = re.findall(r"^ +GET /block/3\d HTTP/1.1, for \d\S*s$", done.stdout, re.MULTILINE)
    assert len(noted) == 2
    for worker in seen["workers"]:
        assert worker["request"]["line"].startswith("GET /block/3")
        assert 60 > worker["request"]["age"] >= worker["busy_for"] - 1 > 0
    assert seen["running"] == 2


def test_everything_is_stopped(daemon: Daemons) -> None:
    """The master, too: status asks nobody. What nobody accepts is seen in the queue."""
    server = daemon(workers=2)
    everyone = [server.pid, *server.pids()]
    with stopped(server, everyone), contextlib.ExitStack() as connections:
        for _ in range(7):
            connections.enter_context(server.connect())
        server.wait_for(lambda: facts(server)["listeners"][0]["waiting"] == 7)
        began = time.monotonic()
        done = server.cli("status")
        print(f"with all processes stopped: {time.monotonic() - began:.3f} s")
        assert done.returncode == 1
        assert "running application:app" in done.stdout
        assert "  no worker is ready\n" in done.stdout
        assert "  7 connections waiting to be accepted, and no worker free\n" in done.stdout
        assert f"the master is stopped: kill -CONT {server.pid}" in done.stdout
        assert re.search(rf"accept queue   7 of \d+ {server.url}", done.stdout)
        assert "T 2 stopped" in done.stdout
    server.wait_for(lambda: set(states(server)) <= {"idle", "busy"})
    server.wait_for(lambda: facts(server)["listeners"][0]["waiting"] == 0)


def test_a_unix_sockets_queue(daemon: Daemons) -> None:
    server = daemon(start=False)
    server.write_config(listen=[{"address": "unix:app.sock", "backlog": 19}])
    server.start()
    with stopped(server, server.pids()):
        listener = facts(server)["listeners"][0]
    assert listener["url"].endswith("app.sock")
    assert (listener["waiting"], listener["limit"]) == (0, 19)


def test_idle_serving_stuck_stopped_and_draining_are_told_apart(daemon: Daemons) -> None:
    server = daemon(workers=3, app=BLOCKING, timeouts={"graceful": 8})
    server.expect("has not left|cut off|SIGKILL|exited on signal")
    with asked(server, "/await/50"):
        server.wait_for(lambda: "serving" in states(server))
        row = next(worker for worker in facts(server)["workers"] if worker["state"] == "serving")
        assert row["request"]["line"] == "GET /await/50 HTTP/1.1"
        assert row["running"] == 1
        idle = next(w["pid"] for w in facts(server)["workers"] if w["state"] != "serving")
        with stopped(server, [idle]):
            assert sorted(states(server))[-1] == "stopped"
        server.send(signal.SIGWINCH)
        server.wait_for(lambda: states(server) == ["draining"])
        done = server.cli("status")
    assert done.returncode == 1
    assert "no worker is ready: WINCH has drained them, HUP starts new ones" in done.stdout
    assert "D draining" in done.stdout
    assert "GET /await/50 HTTP/1.1, for" in done.stdout
    server.wait_for(lambda: not states(server))
    assert server.cli("status").returncode == 1
    assert "no worker" in page(server).splitlines()[-1]


def test_a_worker_that_crashes_again_and_again(daemon: Daemons) -> None:
    server = daemon(workers=1, app=BLOCKING, backoff={"first": "5s", "longest": "20s"})
    server.expect("exited with code 3")
    back: dict[str, Any] = {}

    def waits() -> bool:
        with contextlib.suppress(OSError):
            server.get("/die")
        worker = facts(server)["workers"][0]
        back.update(worker)
        return bool(worker["state"] == "waiting")

    server.wait_for(waits)
    assert back["pid"] is None
    assert back["crashes"] >= 1
    assert back["last_exit"] == "exited with code 3"
    assert 0 <= back["comes_back_in"] <= 30
    done = server.cli("status")
    if "z waiting" in done.stdout:
        assert done.returncode == 1
        assert re.search(
            r"comes back in \S+ after \d crash(es)?, the last one exited with code 3", done.stdout
        )


def test_what_the_last_commands_came_to(daemon: Daemons) -> None:
    server = daemon()
    assert server.cli("reload").returncode == 0
    server.cli("reopen")
    text = page(server)
    assert re.search(r"last reload +ok, \d\S* ago: generation 1 -> 2", text)
    assert re.search(r"last command +SIGUSR1, ok: log files reopened", text)
    assert facts(server)["last_reload"]["verdict"] == "ok"


def test_a_stop_that_takes_its_time(daemon: Daemons) -> None:
    server = daemon(app=BLOCKING, timeouts={"graceful": 8})
    server.expect("cut off|cancelled")
    with asked(server, "/await/50"):
        server.wait_for(lambda: states(server) == ["serving"])
        server.send(signal.SIGQUIT)
        server.wait_for(lambda: facts(server)["stopping"])
        server.wait_for(lambda: states(server) == ["draining"])
        done = server.cli("status")
    assert done.returncode == 1
    assert "stopping application:app" in done.stdout
    assert "no worker is ready" not in done.stdout
    assert "D 1 draining" in done.stdout
    assert "GET /await/50 HTTP/1.1, for" in done.stdout
    assert server.wait() == 0


def test_an_upgrade_under_way(daemon: Daemons) -> None:
    server = daemon()
    old = server.pid
    new = upgrade(server)
    seen = facts(server)
    assert (seen["pid"], seen["old_master"]) == (new, old)
    assert f"upgrade        the old master {old} still runs" in page(server)
    server.send(signal.SIGWINCH, old)
    server.wait_for(lambda: not workers(server, old))
    drained = server.cli("status", "--pid", str(old))
    assert drained.returncode == 1
    server.send(signal.SIGQUIT, old)
    assert server.wait() == 0
    server.pid = new
    server.wait_for(lambda: facts(server)["old_master"] is None)
    server.send(signal.SIGQUIT)
    server.wait_for(lambda: gone(new))


def test_the_mold_stands_apart(daemon: Daemons) -> None:
    server = daemon(workers=2, preload=True)
    seen = facts(server)
    (mold,) = seen["molds"]
    assert len(seen["workers"]) == 2
    assert mold["pid"] in server.pids()
    assert mold["pid"] not in [worker["pid"] for worker in seen["workers"]]
    assert (mold["state"], mold["generation"], mold["promoted"]) == ("ready", 1, 0)
    assert 0 < mold["pss"] <= mold["rss"]
    said = rf"  mold of generation 1, ready, pid {mold['pid']}, \S+ old, pss \S+"
    assert re.fullmatch(said, page(server).splitlines()[-1])
    assert server.cli("reload").returncode == 0
    server.wait_for(lambda: [one["generation"] for one in facts(server)["molds"]] == [2])


def test_a_server_that_is_gone(daemon: Daemons) -> None:
    server = daemon()
    server.stop()
    done = server.cli("status")
    assert done.returncode == 3
    assert "not running" in done.stderr


def test_a_single_process(daemon: Daemons) -> None:
    server = daemon(master_process=False)
    assert server.get().status == 200
    seen = facts(server)
    assert [worker["pid"] for worker in seen["workers"]] == [server.pid]
    assert seen["app"] == "application:app (onion)"


def in_a_terminal(server: Server, environ: dict[str, str], columns: int = 80) -> bytes:
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    try:
        subprocess.run(
            [sys.executable, "-m", "prefork", "status", "-c", "conf.yaml"],
            cwd=server.directory,
            env={**clean, **environ, "COLUMNS": str(columns)},
            stdout=theirs,
            timeout=60,
            check=True,
        )
        return os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_on_a_terminal_only(
    daemon: Daemons, environ: dict[str, str], coloured: bool
) -> None:
    shown = in_a_terminal(daemon(), environ)
    assert (b"\x1b[32m" in shown) == coloured


def test_lines_end_at_the_terminals_edge(daemon: Daemons) -> None:
    shown = in_a_terminal(daemon(), {"NO_COLOR": "1"}, columns=50).decode()
    assert max(map(len, shown.splitlines())) == 50


# Its parts


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0"),
        (0.00004, "40us"),
        (0.00124, "1.2ms"),
        (0.25, "250ms"),
        (0.99949, "999ms"),
        (0.9996, "1.0s"),
        (9.94, "9.9s"),
        (9.96, "9s"),
        (59.9, "59s"),
        (200, "3m20s"),
        (18120, "5h02m"),
        (370800, "4d07h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert statuspage.duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0B"), (999, "999B"), (1024, "1.0K"), (150 << 10, "150K"), (3 << 40, "3.0T")],
)
def test_sizes(number: int, shown: str) -> None:
    assert statuspage.size(number) == shown


def test_a_cut_line_keeps_its_colours_and_loses_its_end() -> None:
    line = "ab\x1b[31mcdef\x1b[0mgh"
    assert statuspage.clipped(line, 3) == "ab\x1b[31mc\x1b[0m"
    assert statuspage.clipped(line, 99) == line


def test_percentiles_stay_in_the_bucket_they_come_from() -> None:
    counts = [0] * 32
    assert percentiles(tuple(counts)) == {"p50": None, "p90": None, "p99": None}
    counts[4] = 90  # 8 to 16 microseconds
    counts[21] = 10  # 1 to 2 seconds
    found = percentiles(tuple(counts))
    assert 8e-6 < (found["p50"] or 0) < 16e-6
    assert found["p90"] == 16e-6
    assert 1.048 < (found["p99"] or 0) < 2.098


def test_many_workers_and_many_calls(daemon: Daemons) -> None:
    """Looking costs the server nothing it would notice, and breaks nothing while it changes."""
    server = daemon(workers=2)
    stop = threading.Event()
    bad: list[str] = []

    def look() -> None:
        while not stop.is_set():
            done = server.cli("status", "--json")
            if done.returncode not in (0, 1) or not json.loads(done.stdout)["workers"]:
                bad.append(done.stdout + done.stderr)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for command in (["scale", "4"], ["reload"], ["scale", "1"], ["reload"]):
            assert server.cli(*command).returncode == 0
    finally:
        stop.set()
        looker.join(60)
    assert bad == []
