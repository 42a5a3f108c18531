"""`prefork stacks` against a running server: what is in it, when it works, how it exits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Daemons

APPLICATION = """
import asyncio
import ctypes
import time

from prefork import Application

app = Application()


async def inner():
    await asyncio.Event().wait()


@app.on_startup
async def start():
    app.background = asyncio.create_task(background(), name="janitor")


async def background():
    await asyncio.gather(asyncio.create_task(inner(), name="broom"))


@app.use
async def serve(ctx, next):
    if ctx.path == "/wait":
        await inner()
    if ctx.path == "/thread":
        await ctx.run(time.sleep, 1000)
    if ctx.path == "/sleep":
        time.sleep(1000)
    if ctx.path == "/gil":
        mutex = ctypes.create_string_buffer(64)
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)
    ctx.body = "ok"
"""


def test_stacks_requests_and_tasks_of_all_workers(daemon: Daemons) -> None:
    server = daemon(app=APPLICATION, workers=2, timeouts={"graceful": 1})
    with server.connect() as waiting, server.connect() as blocking:
        waiting.sendall(b"GET /wait?n=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        blocking.sendall(b"GET /thread HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.5)
        done = server.cli("stacks")
        assert done.returncode == 0, done.stderr
        first, second = server.pids()
        assert f"worker 1, pid {first}, ready" in done.stdout
        assert f"worker 2, pid {second}, ready" in done.stdout
        where = re.escape(f'File "{server.directory}/application.py"')
        assert re.search(
            rf"request GET /wait\?n=1, \d\.\d s, client: 127.0.0.1\n"
            rf"(.*\n)*? +{where}, line \d+, in serve\n +{where}, line \d+, in inner\n",
            done.stdout,
        ), done.stdout
        assert "thread prefork-executor" in done.stdout
        assert re.search(r"task janitor\n(.*\n)*? +task broom\n", done.stdout), done.stdout
        # The master's part of a worker's stack is none of its own.
        assert "master_process_cycle" not in done.stdout

        one = server.cli("stacks", "2", "--json")
        assert one.returncode == 0
        (worker,) = json.loads(one.stdout)
        assert (worker["n"], worker["pid"]) == (2, second)
        assert worker["python_runs"] is True
        assert any("most recent call first" in line for line in worker["lines"])


def test_it_works_while_the_master_is_stopped_and_the_workers_hang(daemon: Daemons) -> None:
    server = daemon(app=APPLICATION, workers=2, timeouts={"hang": "off"}, on_term="fast")
    (first, second) = server.pids()
    clients = [server.connect()]
    try:
        clients[0].sendall(b"GET /sleep HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.5)
        clients.append(server.connect())  # accepted by the worker that is left
        clients[1].sendall(b"GET /gil HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.5)
        server.send(signal.SIGSTOP)
        try:
            done = server.cli("stacks", "--timeout", "0.7")
        finally:
            server.send(signal.SIGCONT)
        assert done.returncode == 0, done.stderr
        assert "GET /sleep" in done.stdout
        assert "runs right now" in done.stdout
        assert "task exchange" not in done.stdout  # one request is not told of twice
        assert 'running: "GET /gil HTTP/1.1"' in done.stdout
        assert "Python does not answer in it" in done.stdout
        assert "pthread_mutex_lock" not in done.stderr
        assert {first, second} == set(server.pids())
    finally:
        for client in clients:
            client.close()
    assert server.stop(signal.SIGTERM) == 0


def test_it_is_asked_a_hundred_times(daemon: Daemons) -> None:
    """The memory that the answers are written to does not fill up."""
    server = daemon(app=APPLICATION)
    for _ in range(3):
        assert server.cli("stacks").returncode == 0
    (worker,) = server.pids()
    for _ in range(2000):
        os.kill(worker, signal.SIGUSR2)
        time.sleep(0.001)
    done = server.cli("stacks")
    assert done.returncode == 0
    assert done.stdout.count("most recent call first") == 1
    assert done.stdout.count("requests running: 0") == 1


def test_a_worker_that_cannot_answer(daemon: Daemons) -> None:
    server = daemon(app=APPLICATION, workers=2, timeouts={"hang": "off"})
    (first, _) = server.pids()
    server.send(signal.SIGSTOP, first)
    try:
        server.wait_for("was stopped on signal 19")
        done = server.cli("stacks")
        assert done.returncode == 1
        assert "it is stopped (SIGSTOP, or a debugger), and can answer nothing" in done.stdout
        assert "requests running: 0" in done.stdout  # the other one
    finally:
        server.send(signal.SIGCONT, first)


def test_who_cannot_be_asked(daemon: Daemons) -> None:
    server = daemon(app=APPLICATION, workers=2)
    done = server.cli("stacks", "7")
    assert done.returncode == 1
    assert "worker 7 is not running; these are: 1, 2" in done.stderr
    assert server.cli("stacks", "first").returncode == 2
    assert server.stop() == 0
    done = server.cli("stacks")
    assert done.returncode == 3
    assert "not running" in done.stderr


def test_a_single_process_says_so(daemon: Daemons) -> None:
    server = daemon(app=APPLICATION, master_process=False)
    done = server.cli("stacks")
    assert done.returncode == 1
    assert "a single process (master_process: false) cannot be asked" in done.stderr


def test_a_worker_that_boots(daemon: Daemons) -> None:
    app = "import time\n\ntime.sleep(3)\n"
    server = daemon(app=app + APPLICATION, ready=False)
    server.wait_for("start worker 1")
    time.sleep(0.7)
    done = server.cli("stacks")
    assert f'File "{server.directory}/application.py", line 3 in <module>' in done.stdout
    assert ", starting\n" in done.stdout
    server.wait_for("ready on ")


def test_two_at_once_wait_for_each_other(daemon: Daemons) -> None:
    server = daemon(app=APPLICATION, workers=2)
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "prefork", "stacks", "-c", "conf.yaml"],
            cwd=server.directory,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for one in both:
        out, _ = one.communicate(timeout=60)
        assert one.returncode == 0
        assert out.count("requests running: 0") == 2
