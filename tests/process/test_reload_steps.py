"""A reload step by step: who boots when, who serves meanwhile, and what comes in between."""

import os
import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from prefork.scoreboard import Scoreboard

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server

# A boot that lasts until `let_go`: each one, or each but the first, the canary's.
HOLD = """
import os, pathlib, time
try:
    os.mkdir("first")
    held = {canary}
except FileExistsError:
    held = True
while held and pathlib.Path("hold").exists():
    time.sleep(0.02)
"""


def source(server: "Server") -> str:
    return (server.directory / "application.py").read_text()


def hold(server: "Server", *, canary: bool = True) -> None:
    """From now on boots last until `let_go`."""
    (server.directory / "hold").touch()
    server.write_app(HOLD.format(canary=canary) + source(server))


def let_go(server: "Server") -> None:
    (server.directory / "hold").unlink()


def serving(server: "Server") -> set[int]:
    """The workers' pids, and not the mold's."""
    board = Scoreboard.attach_pid(server.pid)
    try:
        return {board.slot(index).pid for index in range(32)} - {0}
    finally:
        board.close()


def progress(server: "Server") -> str:
    """What the reload is waiting for; "" when there is none."""
    board = Scoreboard.attach_pid(server.pid)
    try:
        return board.header.reload_progress
    finally:
        board.close()


def generations(server: "Server") -> set[int]:
    """Those that have a process."""
    board = Scoreboard.attach_pid(server.pid)
    try:
        slots = (board.slot(index) for index in range(32))
        return {slot.generation for slot in slots if slot.pid}
    finally:
        board.close()


# Every way to fail, and then to succeed


def raise_at_import(server: "Server") -> str:
    server.write_app(f"{source(server)}\nraise RuntimeError('out of coffee')\n")
    return "RuntimeError: out of coffee"


def fail_to_start_up(server: "Server") -> str:
    hook = "@app.on_startup\nasync def connect():\n    raise OSError('no database')\n"
    server.write_app(f"{source(server)}\n{hook}")
    return "OSError: no database"


def hang(server: "Server") -> str:
    server.write_config(timeouts={"boot": 1})
    server.write_app("import time\ntime.sleep(60)\n")
    return r"was not ready within 1 s \(timeouts\.boot\)"


def kill_the_canary(server: "Server") -> str:
    """When it is ready, and the second worker boots."""
    server.write_app(
        f"""{source(server)}

@app.on_startup
async def live_a_little():
    async def die():
        await asyncio.sleep(0.3)
        os._exit(9)
    await asyncio.sleep(0.8)
    app.die = asyncio.create_task(die())
"""
    )
    return "worker [34] .*exited with code 9 after it had been ready"


def let_the_second_fail(server: "Server") -> str:
    server.write_app(
        "import os\ntry:\n    os.mkdir('first')\nexcept FileExistsError:\n"
        f"    raise RuntimeError('only one of us') from None\n{source(server)}"
    )
    return "RuntimeError: only one of us"


def take_the_port(server: "Server") -> str:
    TAKEN.append(socket.create_server(("127.0.0.1", 0)))
    port = TAKEN[0].getsockname()[1]
    server.write_config(listen=[*server.config["listen"], f"127.0.0.1:{port}"])
    return rf"127\.0\.0\.1:{port} failed \(98: Address already in use\)"


def name_a_bad_log(server: "Server") -> str:
    server.write_config(log={"access": {"path": "/proc/nowhere/access.log"}})
    return "/proc/nowhere/access.log"


def break_yaml(server: "Server") -> str:
    server.config_path.write_text("workers: [")
    return "conf.yaml:1:"


TAKEN: list[socket.socket] = []


IN_A_WORKER = (
    raise_at_import,
    fail_to_start_up,
    hang,
    kill_the_canary,
    let_the_second_fail,
    take_the_port,
    name_a_bad_log,
    break_yaml,
)
IN_THE_MOLD = (raise_at_import, fail_to_start_up, hang, kill_the_canary)


@pytest.mark.parametrize(
    ("harm", "preload"),
    [*((harm, False) for harm in IN_A_WORKER), *((harm, True) for harm in IN_THE_MOLD)],
)
def test_whatever_fails_nobody_notices(
    daemon: "Daemons", load: "type[Load]", harm: Callable[["Server"], str], preload: bool
) -> None:
    server = daemon(workers=2, preload=preload, timeouts={"boot": 30})
    before = serving(server)
    good = server.config_path.read_text(), source(server)
    server.expect("")
    named = ("--pid-file", str(server.pid_path))  # a file that is no YAML cannot tell where it is
    with load(server) as client:
        try:
            reason = harm(server)
            done = server.cli("reload", *named)
        finally:
            while TAKEN:
                TAKEN.pop().close()
        assert done.returncode == 1, done.stdout
        assert "reload failed, generation 1 serves on: " in done.stderr
        assert re.search(reason, done.stderr), done.stderr
        assert done.stderr.count("Traceback") <= 1
        assert "prefork/process" not in done.stderr
        client.wait_more(50)
        server.wait_for(lambda: serving(server) == before)
        # Nobody of the generation that was dropped has answered anything.
        assert {int(answer.split()[0]) for answer in client.answers} <= before
        server.config_path.write_text(good[0])
        server.write_app(good[1])
        done = server.cli("reload", *named)
        assert done.returncode == 0, done.stderr
        assert "generation 1 -> 2, workers 2 -> 2, 2 draining" in done.stdout
        server.wait_for(lambda: before.isdisjoint(serving(server)))
        client.wait_more(50)
    assert not client.failures


def test_a_generation_serves_nobody_before_the_commit(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(workers=2)
    before = server.pids()
    hold(server, canary=False)
    with load(server) as client:
        server.send(signal.SIGHUP)
        server.wait_for(lambda: progress(server) == "1 of 2 workers ready")
        assert len(server.pids()) == 4
        assert generations(server) == {1, 2}
        client.wait_more(50)
        assert {int(answer.split()[0]) for answer in client.answers} <= set(before)
        let_go(server)
        server.wait_for("reconfigured")
        server.wait_for(lambda: set(before).isdisjoint(server.pids()))
        client.wait_more(20)
    assert not client.failures
    assert len(server.pids()) == 2


BOOKKEEPER = """
import os, time
began = time.monotonic()
time.sleep(0.4)
with open("boots", "a") as file:
    file.write(f"{began} {time.monotonic()}\\n")
"""


@pytest.mark.parametrize("parallel", [1, 3])
def test_so_many_boot_at_a_time(daemon: "Daemons", parallel: int) -> None:
    server = daemon(workers=5, reload={"parallel": parallel})
    server.write_app(BOOKKEEPER + source(server))
    assert server.cli("reload").returncode == 0
    lines = (server.directory / "boots").read_text().splitlines()
    boots = sorted(tuple(map(float, line.split())) for line in lines)
    assert len(boots) == 5
    (_, canary_ready), *others = boots
    assert all(began > canary_ready for began, _ in others)
    together = [sum(other[0] <= began < other[1] for other in others) for began, _ in others]
    assert max(together) <= parallel
    assert (max(together) > 1) == (parallel > 1)


def test_a_listener_changes_at_the_commit_only(daemon: "Daemons") -> None:
    server = daemon()
    path = server.directory / "app.sock"
    good = source(server)

    def mode() -> int:
        return stat.S_IMODE(path.stat().st_mode)

    server.write_config(
        listen=[*server.config["listen"], {"address": f"unix:{path}", "mode": "0o600"}]
    )
    assert server.cli("reload").returncode == 0
    assert mode() == 0o600
    raise_at_import(server)
    server.expect("failed|Traceback")
    server.config["listen"][-1]["mode"] = "0o666"
    server.write_config()
    assert server.cli("reload").returncode == 1
    assert mode() == 0o600
    server.write_app(good)
    assert server.cli("reload").returncode == 0
    assert mode() == 0o666


def test_a_listener_that_is_wanted_again_stays_open(daemon: "Daemons") -> None:
    """Its last worker leaves while the mold of the generation that wants it again is made."""
    server = daemon(workers=1, preload=True)
    unix = server.directory / "app.sock"
    one = server.config["listen"]
    server.write_config(listen=[*one, f"unix:{unix}"], reload={"generations": 4})
    assert server.cli("reload").returncode == 0
    with server.connect() as client:
        client.sendall(b"GET /sleep/5 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        server.write_config(listen=one)
        assert server.cli("reload").returncode == 0
        server.write_config(listen=[*one, f"unix:{unix}"])
        halt(server, "mold: importing")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    server.wait_for(lambda: generations(server) == {3})
    time.sleep(0.2)
    assert unix.is_socket()
    let_go(server)
    server.wait_for("reconfigured: generation 3 -> 4")
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(unix))
        other.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        assert other.recv(4096).startswith(b"HTTP/1.1 200")


# Generations


DEAF = """
import time
from prefork import Application

app = Application()


@app.use
async def serve(ctx, next):
    if ctx.path == "/deaf":
        time.sleep(600)
    if ctx.path == "/long":
        import asyncio
        await asyncio.sleep(600)
    ctx.body = "0 hello"
"""


@pytest.mark.parametrize("path", ["/long", "/deaf"])
def test_the_oldest_generation_makes_room(daemon: "Daemons", load: "type[Load]", path: str) -> None:
    server = daemon(app=DEAF, workers=1, timeouts={"graceful": 300})
    server.expect("exited on signal 9")
    (oldest,) = server.pids()
    with server.connect() as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(0.3)
        assert server.cli("reload").returncode == 0
        assert generations(server) == {1, 2}
        with load(server) as others:
            assert server.cli("reload").returncode == 0
            server.wait_for(lambda: generations(server) == {3})
            others.wait_more(20)
        assert not others.failures
        assert oldest not in server.pids()
    assert re.search(
        r"generation 1 makes room for a new one \(reload.generations: 2\) and is ended in 2 s:"
        rf" worker 1 \(pid {oldest}\) with 1 connection, .*GET {path}",
        server.log,
    )
    if path == "/deaf":
        assert (
            f"worker 1 {oldest} has not left within 2 s (reload.generations): SIGTERM" in server.log
        )
        assert f"worker 1 {oldest} has not left: SIGKILL" in server.log


def test_more_generations_where_that_is_allowed(daemon: "Daemons") -> None:
    server = daemon(workers=1, reload={"generations": 3})
    with server.connect() as client:
        client.sendall(b"GET /sleep/4 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        for _ in range(2):
            assert server.cli("reload").returncode == 0
        assert 1 in generations(server)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    assert "makes room" not in server.log


# What comes in between


def test_one_more_reload_after_the_one_at_work(daemon: "Daemons") -> None:
    """However many have asked; and the one who waits hears of his, not of the one before."""
    server = daemon(workers=1)
    hold(server)
    server.send(signal.SIGHUP)
    server.wait_for(lambda: progress(server).startswith("canary"))
    server.write_config(workers=2)
    done = []
    operators = [
        threading.Thread(target=lambda: done.append(server.cli("reload"))) for _ in range(2)
    ]
    for operator in operators:
        operator.start()
    for _ in range(3):
        server.send(signal.SIGHUP)
        time.sleep(1.5)  # for the operators' commands to start on a busy machine
    assert done == []
    let_go(server)
    for operator in operators:
        operator.join(60)
    for each in done:
        assert each.returncode == 0
        assert "generation 2 -> 3, workers 1 -> 2" in each.stdout
        assert "workers: 1 -> 2" in each.stdout
    server.wait_for(lambda: len(server.pids()) == 2)
    assert server.log.count("reconfigured") == 2


STEPS = pytest.mark.parametrize("step", ["mold: importing", "canary", "1 of 2 workers ready"])


def halt(server: "Server", step: str) -> None:
    """Have a reload begun that goes no further than `step`."""
    hold(server, canary=step != "1 of 2 workers ready")
    server.send(signal.SIGHUP)
    server.wait_for(lambda: progress(server).startswith(step))


@STEPS
@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGTERM])
def test_a_stop_at_each_step(daemon: "Daemons", number: int, step: str) -> None:
    server = daemon(workers=2, preload=step.startswith("mold"))
    halt(server, step)
    began = time.monotonic()
    assert server.stop(number) == 0
    assert time.monotonic() - began < 8


@STEPS
def test_a_drain_at_each_step(daemon: "Daemons", step: str) -> None:
    server = daemon(workers=2, preload=step.startswith("mold"))
    halt(server, step)
    server.send(signal.SIGHUP)  # is not obeyed, for the drain came later
    time.sleep(0.1)
    server.send(signal.SIGWINCH)
    server.wait_for(lambda: not serving(server))
    time.sleep(0.3)
    assert not serving(server)
    let_go(server)
    assert server.cli("reload").returncode == 0
    assert server.get().status == 200


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTTIN, 3), (signal.SIGTTOU, 1)])
def test_a_change_of_scale_waits_for_the_end(daemon: "Daemons", number: int, workers: int) -> None:
    server = daemon(workers=2)
    hold(server)
    server.send(signal.SIGHUP)
    server.wait_for(lambda: progress(server).startswith("canary"))
    server.send(number)
    server.wait_for(rf"{signal.Signals(number).name} waits for the end of the reload")
    assert "workers: 2 -> " not in server.log
    let_go(server)
    server.wait_for(f"workers: 2 -> {workers}")
    server.wait_for(lambda: generations(server) == {2} and len(server.pids()) == workers)


def test_an_upgrade_waits_for_the_end(daemon: "Daemons") -> None:
    server = daemon(workers=1)
    old = server.pid
    hold(server)
    server.send(signal.SIGHUP)
    server.wait_for(lambda: progress(server).startswith("canary"))
    server.send(signal.SIGUSR2)
    server.wait_for("SIGUSR2 waits for the end of the reload")
    assert "changing binary" not in server.log
    let_go(server)
    server.wait_for(r"the new master \d+ is ready")
    assert server.log.index("reconfigured") < server.log.index("changing binary")
    server.pid = server.written_pid
    server.send(signal.SIGQUIT, old)
    assert server.wait() == 0
    assert server.get().status == 200


def test_a_rotation_during_a_reload_reaches_both_generations(daemon: "Daemons") -> None:
    server = daemon(workers=1)
    hold(server)
    server.send(signal.SIGHUP)
    server.wait_for(lambda: progress(server).startswith("canary"))
    (server.directory / "error.log").rename(server.directory / "error.log.1")
    server.send(signal.SIGUSR1)
    server.wait_for(lambda: (server.directory / "error.log").exists())
    let_go(server)
    server.wait_for("reconfigured")
    server.wait_for("exited with code 0")
    assert "reconfigured" not in (server.directory / "error.log.1").read_text()
    assert os.path.getsize(server.directory / "error.log")
