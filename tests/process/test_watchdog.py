"""Hung, busy, slow, stopped, dead: who is ended, who is let, and what the error log has of it."""

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from prefork.config.schema import Config
from prefork.config.sections import Timeouts
from prefork.process import dump
from prefork.process.obituary import Obituaries
from prefork.process.stacks import Stacks
from prefork.process.table import Death, ProcessSlot
from prefork.process.timers import Timers
from prefork.process.watchdog import Watchdog, check_interval
from prefork.scoreboard import BUSY_SINCE, Scoreboard

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server

APPLICATION = """
import asyncio
import ctypes
import os
import signal
import threading
import time

from prefork import Application

app = Application()


def sleep():
    time.sleep(1000)


def spin():
    while True:
        pass


def spin_for_a_while():
    end = time.monotonic() + 3.5
    while time.monotonic() < end:
        pass


def lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def hold_the_gil():
    mutex = ctypes.create_string_buffer(64)  # zeros: PTHREAD_MUTEX_INITIALIZER
    libc = ctypes.PyDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def crash():
    ctypes.string_at(0)


def leave():
    os._exit(7)


async def never():
    await asyncio.gather(forever())


async def stubborn():
    while True:
        try:
            await forever()
        except asyncio.CancelledError:
            pass


async def forever():
    await asyncio.Event().wait()


BLOCKING = {f"/{one.__name__}": one for one in
            (sleep, spin, spin_for_a_while, lock, hold_the_gil, crash, leave)}


@app.use
async def serve(ctx, next):
    if ctx.path in BLOCKING:
        BLOCKING[ctx.path]()
    if ctx.path == "/never":
        await never()
    if ctx.path == "/stubborn":
        await stubborn()
    if ctx.path == "/thread":
        await ctx.run(sleep)
    if ctx.path == "/half":
        async def pieces():
            yield b"half"
            await never()
        ctx.body = pieces()
        return
    if ctx.path.startswith("/block/"):
        time.sleep(float(ctx.path[7:]))
    if ctx.path.startswith("/await/"):
        await asyncio.sleep(float(ctx.path[7:]))
    ctx.body = str(os.getpid())
"""


def line_of(text: str) -> int:
    return 1 + next(n for n, line in enumerate(APPLICATION.splitlines()) if line.strip() == text)


@contextmanager
def asking(server: "Server", path: str) -> Iterator[socket.socket]:
    """A client that waits for an answer to `path`."""
    with server.connect() as client:
        client.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        yield client


@contextmanager
def sure_of_it() -> Iterator[None]:
    """What was asked for has begun."""
    time.sleep(0.3)
    yield


def answer(client: socket.socket) -> bytes:
    """All that comes until the end, be it a reset."""
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def record(server: "Server", pattern: str) -> str:
    """The first record of the error log that matches, with the lines below it."""
    server.wait_for(pattern)
    found = re.search(rf"^.*{pattern}.*\n(    .*\n)*", server.log, re.M)
    assert found is not None
    return found[0]


HANGS = [
    ("/sleep", "time.sleep(1000)", "sleep"),
    ("/lock", "lock.acquire()", "lock"),
    ("/hold_the_gil", "libc.pthread_mutex_lock(mutex)", "hold_the_gil"),
]


@pytest.mark.parametrize(("path", "source", "function"), HANGS)
def test_a_hung_worker_is_told_of_and_replaced_and_the_others_serve_on(
    daemon: "Daemons", load: "type[Load]", path: str, source: str, function: str
) -> None:
    server = daemon(app=APPLICATION, workers=2, timeouts={"hang": 2})
    before = server.pids()
    server.expect("is hung|SIGABRT|SIGKILL|exited on signal 6")
    # The last line of that text is where it hangs; the lock is taken once before.
    line = max(n for n, text in enumerate(APPLICATION.splitlines(), 1) if text.strip() == source)
    # The others come when it has begun to hang: what it had accepted by then ends with it.
    with asking(server, path) as client, sure_of_it(), load(server) as others:
        said = record(server, r"worker \d \d+ is hung: its loop has stood still for")
        server.wait_for(lambda: set(server.pids()) != set(before) and len(server.pids()) == 2)
        others.wait_more(50)
        assert not others.failures
        assert answer(client) == b""
    assert f'running: "GET {path} HTTP/1.1"' in said
    assert f'File "{server.directory}/application.py", line {line} in {function}' in said
    if path == "/hold_the_gil":
        assert "Python does not answer in it" in said
    else:
        assert re.search(rf"request GET {path}, \d+\.\d s, client: 127.0.0.1\n *runs right", said)
    assert len(set(server.pids()) & set(before)) == 1
    assert "(backoff)" not in server.log  # it comes back at once


def test_who_computes_is_busy_and_not_hung(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, timeouts={"hang": 1})
    (worker,) = server.pids()
    assert server.get("/spin_for_a_while").text == str(worker)
    assert "hung" not in server.log


def test_who_computes_without_end_is_ended_after_ten_times_as_long(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, timeouts={"hang": "300ms"})
    server.expect("is hung|exited on signal 6|SIGKILL")
    (worker,) = server.pids()
    began = time.monotonic()
    with asking(server, "/spin"):
        said = record(server, "is hung: .* 10 times as long as is given, though it computes")
    assert time.monotonic() - began > 3
    assert f'File "{server.directory}/application.py", line {line_of("while True:")}' in said or (
        f'application.py", line {line_of("while True:") + 1} in spin' in said
    )
    server.wait_for(lambda: server.pids() and worker not in server.pids())


def test_an_await_that_never_ends_is_answered_504_and_cancelled(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(app=APPLICATION, timeouts={"request": 1})
    server.expect("request timed out")
    (worker,) = server.pids()
    with load(server) as others:
        assert server.get("/never").status == 504
        others.wait_more(20)
        assert not others.failures
    said = record(server, r"request timed out \(timeouts.request 1 s\): GET /never, 1\.\d s")
    assert f'application.py", line {line_of("await asyncio.gather(forever())")}, in never' in said
    assert "awaits a GatheringFuture" in said
    assert server.pids() == [worker]
    stacks = server.cli("stacks")
    assert "requests running: 0" in stacks.stdout
    assert f"{server.directory}/application.py" not in stacks.stdout


def test_an_answer_that_has_begun_is_cut(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, timeouts={"request": 1})
    server.expect("request timed out")
    with asking(server, "/half") as client:
        answered = answer(client)
    assert answered.startswith(b"HTTP/1.1 200 OK")
    assert answered.endswith(b"4\r\nhalf\r\n")
    server.wait_for("request timed out .*: GET /half")


def test_a_request_that_blocks_too_long_costs_its_worker(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(app=APPLICATION, workers=2, timeouts={"request": 1, "hang": "off"})
    server.expect("has blocked it|exited on signal 6|SIGKILL")
    before = server.pids()
    with asking(server, "/spin"), sure_of_it(), load(server) as others:
        said = record(server, r"a request has blocked it for .* \(timeouts.request 1 s\)")
        server.wait_for(lambda: set(server.pids()) != set(before) and len(server.pids()) == 2)
        others.wait_more(20)
        assert not others.failures
    assert 'running: "GET /spin HTTP/1.1"' in said
    assert 'application.py", line' in said


def test_a_thread_that_does_not_end_costs_its_worker_once_another_serves(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(app=APPLICATION, timeouts={"request": 1, "graceful": 1})
    server.expect("request timed out|its thread works on")
    (worker,) = server.pids()
    with load(server) as others:
        assert server.get("/thread").status == 504
        said = record(server, "GET /thread was answered 504, but its thread works on")
        server.wait_for(lambda: len(server.pids()) == 1 and worker not in server.pids())
        assert not others.failures
    assert f'application.py", line {line_of("time.sleep(1000)")} in sleep' in said
    told = record(server, "request timed out .*: GET /thread")
    assert f'application.py", line {line_of("time.sleep(1000)")}, in sleep' in told


def test_a_handler_that_will_not_be_cancelled_costs_its_worker_too(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, timeouts={"request": 1, "graceful": 1})
    server.expect("request timed out|its handler does not end")
    (worker,) = server.pids()
    assert server.get("/stubborn").status == 504
    said = record(server, "GET /stubborn was answered 504, but its handler does not end")
    assert f'application.py", line {line_of("await forever()")}, in stubborn' in said
    server.wait_for(lambda: len(server.pids()) == 1 and worker not in server.pids())


ASGI = """
import asyncio


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/begun":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
    await asyncio.Event().wait()
"""


def test_an_asgi_application_that_never_answers(daemon: "Daemons") -> None:
    server = daemon(app=ASGI, timeouts={"request": 1})
    server.expect("request timed out")
    assert server.get("/never").status == 504
    said = record(server, "request timed out .*: GET /never")
    assert f'File "{server.directory}/application.py", line 11, in app' in said
    with asking(server, "/begun") as client:
        assert answer(client).endswith(b"4\r\nhalf\r\n")
    stacks = server.cli("stacks").stdout
    assert "requests running: 0" in stacks
    assert "application.py" not in stacks


@pytest.mark.parametrize("hang", ["30s", "off"])
def test_a_slow_request_is_told_of_once_and_goes_on(daemon: "Daemons", hang: str) -> None:
    server = daemon(app=APPLICATION, slow_request="500ms", timeouts={"hang": hang})
    with asking(server, "/await/2"), asking(server, "/await/0.1"):
        said = record(server, r"slow request \(slow_request 0.5 s\): GET /await/2")
        assert server.get("/").status == 200
    assert "in serve" in said
    assert server.get("/await/1").status == 200
    blocked = server.get("/block/2")
    assert blocked.status == 200
    said = record(server, "slow request, it has blocked the loop for")
    assert 'running: "GET /block/2 HTTP/1.1"' in said
    line = line_of("time.sleep(float(ctx.path[7:]))")
    assert f'application.py", line {line} in serve' in said
    time.sleep(1)
    told = re.findall(r"slow request.*", server.log)
    assert len(told) == 3, told  # /await/2, /await/1, /block/2
    assert blocked.text == str(server.pids()[0])


def test_a_worker_that_was_stopped_is_replaced_when_it_does_not_go_on(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=2, timeouts={"hang": 2})
    server.expect("stopped|exited on signal 6|SIGKILL")
    first, second = server.pids()
    server.send(signal.SIGSTOP, first)
    server.wait_for(
        rf"worker 1 {first} was stopped on signal 19 \(SIGSTOP\); it is replaced unless it goes on"
    )
    server.send(signal.SIGCONT, first)
    server.wait_for(rf"worker 1 {first} goes on after")
    time.sleep(2.5)
    assert server.pids() == [first, second]
    server.send(signal.SIGSTOP, first)
    server.wait_for(rf"worker 1 {first} has been stopped for 2\.\d s .*: it is ended")
    server.wait_for(lambda: len(server.pids()) == 2 and first not in server.pids())
    assert second in server.pids()


def test_a_master_that_was_stopped_holds_nothing_against_anybody(daemon: "Daemons") -> None:
    """What a worker seems to have missed, the master has missed."""
    server = daemon(app=APPLICATION, timeouts={"hang": 2})
    (worker,) = server.pids()
    with asking(server, "/block/6") as client:
        time.sleep(0.7)  # the master has begun to look
        server.send(signal.SIGSTOP)
        time.sleep(4)
        server.send(signal.SIGCONT)
        client.settimeout(20)
        assert client.recv(65536).endswith(str(worker).encode())
    assert server.pids() == [worker]
    assert "hung" not in server.log


def context_switches(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)
    assert found is not None
    return int(found[1])


def wakings(server: "Server") -> list[int]:
    return [context_switches(pid) for pid in (server.pid, *server.pids())]


def test_an_idle_server_wakes_nobody_after_the_traffic_has_ended(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(
        app=APPLICATION,
        workers=2,
        slow_request=2,
        timeouts={"hang": 1, "request": 2, "head": 1, "keep_alive": 3},
    )
    with load(server, "/await/0.01") as client:
        client.wait_more(200)
    assert not client.failures
    # Deadlines, and the last look, are over by then.
    time.sleep(7)
    before = wakings(server)
    time.sleep(5)
    assert wakings(server) == before


def test_the_master_is_told_of_wakings_once_an_interval(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(app=APPLICATION, timeouts={"hang": 4})
    before, began = context_switches(server.pid), time.monotonic()
    with load(server) as client:
        client.wait_more(500)
        time.sleep(2)
    seconds = time.monotonic() - began
    assert len(client.answers) > 500
    # One message and one look of ours an interval (1 s), and a margin.
    assert context_switches(server.pid) - before < 3 * seconds + 10


@pytest.mark.parametrize(
    ("path", "how", "stack"),
    [
        ("/crash", r"exited on signal 11 \(SIGSEGV\)", "in crash"),
        ("/leave", "exited with code 7", ""),
        ("", r"exited on signal 9 \(SIGKILL\)", ""),
    ],
)
def test_a_death_is_reported_with_what_is_known(
    daemon: "Daemons", path: str, how: str, stack: str
) -> None:
    server = daemon(app=APPLICATION)
    server.expect("exited")
    (worker,) = server.pids()
    server.get("/first?n=1")
    with asking(server, path or "/never"):
        if not path:
            server.wait_for(lambda: "GET /never" in server.cli("stacks").stdout)
            server.send(signal.SIGKILL, worker)
        said = record(server, rf"worker 1 {worker} {how} after \d")
    assert re.search(r"1 request, peak RSS \d+\.\d MiB", said), said
    assert f'last requests: "GET {path or "/never"} HTTP/1.1", begun' in said
    assert 'last requests: "GET /first?n=1 HTTP/1.1", begun' in said
    if not path:
        assert 'waiting: 1, the oldest "GET /never HTTP/1.1"' in said
    if stack:
        assert "Fatal Python error: Segmentation fault" in said
        assert stack in said
    server.wait_for(lambda: server.pids() and worker not in server.pids())
    assert server.get().status == 200


def test_the_kernel_is_named_when_it_was_the_kernel_that_killed() -> None:
    """Of two deaths by SIGKILL the second comes with a count of the control group's that grew."""
    board = Scoreboard.create(slots=1)
    counts = iter([4, 4, 5, 5])
    obituaries = Obituaries(board, Stacks(-1), lambda: next(counts))
    row = ProcessSlot(0, pid=1, name="worker 1", ready=True)
    death = Death(row, signal.SIGKILL, 1.0, 50 * 2**20)
    told = "oom_kill: the control group ran out of memory, and the kernel chose it"
    assert obituaries.write(death, ours=False) == ["0 requests, peak RSS 50.0 MiB"]
    assert obituaries.write(death, ours=False) == ["0 requests, peak RSS 50.0 MiB", told]
    assert told not in obituaries.write(death, ours=False)
    board.close()


def test_a_death_that_was_asked_for_is_no_news(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION)
    server.get("/secret")
    assert server.stop() == 0
    assert "secret" not in server.log


def test_a_boot_that_never_ends_is_dumped(daemon: "Daemons") -> None:
    server = daemon(
        app="import time\n\ntime.sleep(1000)\n", start=False, timeouts={"boot": 1, "hang": 1}
    )
    server.expect("was not ready|exited on signal 6|no worker could start")
    server.exit_code = 1
    server.start(ready=False)
    assert server.wait() == 1
    said = record(server, r"worker 1 was not ready within 1 s \(timeouts.boot\)")
    assert f'File "{server.directory}/application.py", line 3 in <module>' in said


def test_a_mold_that_never_gets_ready_is_dumped(daemon: "Daemons") -> None:
    server = daemon(
        app="import time\n\ntime.sleep(1000)\n",
        start=False,
        preload=True,
        timeouts={"boot": 1},
    )
    server.expect("was not ready|no worker could start|mold")
    server.exit_code = 1
    server.start(ready=False)
    assert server.wait() == 1
    said = record(server, r"mold of generation 1 was not ready within 1 s \(timeouts.boot\): kill")
    assert f'File "{server.directory}/application.py", line 3 in <module>' in said
    assert "master_process_cycle" not in said


def test_a_worker_that_a_mold_has_made_is_dumped_as_others_are(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, preload=True, timeouts={"hang": 1})
    server.expect("is hung|exited on signal 6|SIGKILL")
    with asking(server, "/lock"):
        said = record(server, "is hung: its loop has stood still for")
    assert "application.py" in said
    assert "in lock" in said
    assert "request GET /lock" in said
    server.wait_for(lambda: server.log.count("start worker 1 ") == 2)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGTERM])
def test_a_worker_that_does_not_leave_is_dumped_before_it_is_killed(
    daemon: "Daemons", number: int
) -> None:
    server = daemon(app=APPLICATION, timeouts={"graceful": 1})
    with asking(server, "/sleep"), sure_of_it():
        assert server.stop(number) == 0
    said = record(server, r"worker 1 \d+ has not left: SIGKILL")
    assert 'running: "GET /sleep HTTP/1.1"' in said
    assert f'application.py", line {line_of("time.sleep(1000)")} in sleep' in said


def test_a_long_import_is_no_hang(daemon: "Daemons") -> None:
    """Not in Python, not with the interpreter's lock held: only timeouts.boot counts."""
    app = "import time\nend = time.monotonic() + 3\nwhile time.monotonic() < end: pass\n"
    server = daemon(app=app + APPLICATION, timeouts={"hang": "500ms"})
    assert "hung" not in server.log
    assert "start worker 1" in server.log
    assert server.log.count("start worker 1 ") == 1


def test_an_application_may_take_the_signal(daemon: "Daemons") -> None:
    app = "import signal\nsignal.signal(signal.SIGUSR2, lambda *_: None)\n" + APPLICATION
    server = daemon(app=app, timeouts={"hang": 1})
    server.expect("is hung|exited on signal 6|SIGKILL")
    (worker,) = server.pids()
    with asking(server, "/lock"):
        said = record(server, "is hung")
        server.wait_for(lambda: server.pids() and worker not in server.pids())
    assert 'running: "GET /lock HTTP/1.1"' in said
    assert "its application has taken SIGUSR2" in said
    assert "most recent call first" in said


def test_a_single_process_tells_and_answers_what_waits(daemon: "Daemons") -> None:
    server = daemon(
        app=APPLICATION,
        master_process=False,
        slow_request="500ms",
        timeouts={"request": 1},
    )
    server.expect("request timed out")
    answers: list[int] = []
    client = threading.Thread(target=lambda: answers.append(server.get("/never").status))
    client.start()
    record(server, "slow request .*: GET /never")
    client.join(20)
    assert answers == [504]
    record(server, "request timed out .*: GET /never")


def test_the_interval_follows_the_shortest_limit() -> None:
    def interval(hang: float, request: float, slow: float) -> float:
        return check_interval(
            Config(timeouts=Timeouts(hang=hang, request=request), slow_request=slow)
        )

    assert interval(30.0, 0.0, 0.0) == 5.0
    assert interval(8.0, 0.0, 0.0) == 2.0
    assert interval(30.0, 4.0, 0.0) == 1.0
    assert interval(30.0, 4.0, 2.0) == 0.5
    assert interval(0.0, 0.0, 0.01) == 0.05
    assert interval(0.0, 0.0, 0.0) == 0.0


def test_a_request_that_ends_while_it_is_told_of_has_no_age() -> None:
    """Of the two numbers the first was read before the worker wrote, the second after."""
    board = Scoreboard.create(slots=1)
    slot = board.slot(0)
    slot.publish(1, 1, 1, 0, 1, time.monotonic_ns(), 0)
    assert [line.partition(",")[0] for line in dump.requests(slot)] == ["waiting: 1"]
    slot.publish(1, 1, 1, 0, 1, 0, 0)
    assert dump.requests(slot) == []
    board.close()


class Dozing:
    """The cells of a worker that falls asleep each time just after it was seen awake."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def __getitem__(self, index: int) -> int:
        value = self._cells[index]
        if index == BUSY_SINCE:
            self._cells[index] = 0
        return value


def test_who_falls_asleep_while_it_is_looked_at_is_not_hung() -> None:
    """Looked at twice, it had been awake since the machine's start, and it was not seen to go on:
    now and then a worker with nothing but much to do was ended."""
    now = 1000.0
    board = Scoreboard.create(slots=1)
    slot = board.slot(0)
    slot.publish(1, 1, 1, 0, 1, int(now * 1e9), 0)  # a request waits in it
    cells, slot.cells = slot.cells, Dozing(slot.cells)  # type: ignore[assignment]
    cycle = SimpleNamespace(conf=Config(timeouts=Timeouts(hang=1, request=1)))
    worker = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    row = ProcessSlot(0, pid=worker.pid, name="worker 1", ready=True, cycle=cycle)
    master = SimpleNamespace(
        board=board,
        cycle=cycle,
        stacks=Stacks(-1),
        table=SimpleNamespace(living=lambda: [row]),
        timers=Timers(lambda: now),
    )
    watchdog = Watchdog(master)
    for _ in range(3):
        cells[BUSY_SINCE] = int(now * 1e9)
        watchdog.busy(row)
        now += check_interval(cycle.conf)
        master.timers.run()
    assert cells[BUSY_SINCE] == 0  # it was looked at
    worker.communicate()
    assert worker.returncode == 0  # no signal was sent
    slot.cells = cells
    board.close()
