"""The master's life by signals: start, stop, escalation, death, respawn, and its sleep."""

import os
import platform
import re
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server


def context_switches(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)
    assert found is not None
    return int(found[1])


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def test_it_serves_and_says_so_in_one_line(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    assert server.get().status == 200
    assert len(server.pids()) == 2
    line = next(line for line in server.log.splitlines() if "ready on" in line)
    assert re.search(
        rf"ready on http://127\.0\.0\.1:{server.port}: application:app \(onion, from its class"
        rf" prefork\.Application\), 2 workers,"
        rf" pid {server.pid}, \S*conf\.yaml, \d+ ms; stop with kill -QUIT {server.pid}$",
        line,
    )
    assert server.pid_path.read_text().strip() == str(server.pid)
    assert server.stop() == 0


@pytest.mark.parametrize("master_process", [True, False])
def test_the_scoreboard_names_the_file_absolutely(daemon: "Daemons", master_process: bool) -> None:
    from prefork.scoreboard import Scoreboard

    server = daemon(master_process=master_process)
    board = Scoreboard.attach_pid(server.pid)
    try:
        assert board.header.config_path == str(server.config_path)
    finally:
        board.close()


def test_titles(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    assert re.fullmatch(r"prefork: master \S*conf\.yaml", title(server.pid))
    assert sorted(map(title, server.pids())) == ["prefork: worker 1", "prefork: worker 2"]


def test_an_idle_master_is_never_woken(daemon: "Daemons") -> None:
    """Ten seconds; and it sleeps where nginx's does.

    After a request the deadlines of its connection wake its worker once more, and what is awake is
    looked at once more by the watchdog: the time of both is short here.
    """
    server = daemon(workers=2, timeouts={"hang": 1, "head": 1})
    server.get()
    time.sleep(5)
    before = context_switches(server.pid)
    time.sleep(10)
    assert context_switches(server.pid) == before
    call = Path(f"/proc/{server.pid}/syscall").read_text().split()[0]
    assert call == RT_SIGSUSPEND.get(platform.machine(), call)


# Linux numbers system calls by machine (asm/unistd.h).
RT_SIGSUSPEND = {"x86_64": "130", "aarch64": "133", "riscv64": "133"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_an_idle_server_ends_at_once_with_0(daemon: "Daemons", number: int) -> None:
    server = daemon(workers=2)
    began = time.monotonic()
    assert server.stop(number) == 0
    assert time.monotonic() - began < 3
    assert server.log.rstrip().endswith("exit")


def test_quit_finishes_what_runs(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    with server.connect() as client:
        client.sendall(b"GET /sleep/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for(lambda: busy(server))
        server.send(signal.SIGQUIT)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer.lower()
    assert server.wait() == 0


def test_term_cuts_what_runs(daemon: "Daemons") -> None:
    server = daemon()
    with server.connect() as client:
        client.sendall(b"GET /sleep/30 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for(lambda: busy(server))
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 5
        assert read_all(client) == b""


def test_term_wins_over_a_quit_that_drains(daemon: "Daemons") -> None:
    server = daemon()
    with server.connect() as client:
        client.sendall(b"GET /sleep/30 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for(lambda: busy(server))
        server.send(signal.SIGQUIT)
        server.wait_for("gracefully shutting down")
        assert "draining (1 left)" in title(server.pids()[0])
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 5


def test_on_term_graceful_drains_and_a_second_term_does_not(daemon: "Daemons") -> None:
    server = daemon(on_term="graceful")
    with server.connect() as client:
        client.sendall(b"GET /sleep/30 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for(lambda: busy(server))
        server.send(signal.SIGTERM)
        server.wait_for("gracefully shutting down")
        assert "signal 15 (SIGTERM) received, shutting down" in server.log
        assert server.stop(signal.SIGTERM) == 0
    assert "signal 15 (SIGTERM) received, exiting" in server.log


def test_the_drain_has_a_deadline(daemon: "Daemons") -> None:
    server = daemon(timeouts={"graceful": 1})
    with server.connect() as client:
        client.sendall(b"GET /sleep/30 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for(lambda: busy(server))
        began = time.monotonic()
        assert server.stop(signal.SIGQUIT) == 0
        assert 0.7 < time.monotonic() - began < 6
        assert read_all(client).startswith(b"HTTP/1.1 503 ")
    assert 'request: "GET /sleep/30 HTTP/1.1"' in server.log


DEAF = """
import signal, time
from prefork import Application

app = Application()

@app.use
async def block(ctx, next):
    if ctx.path == "/block":
        time.sleep(60)
    ctx.body = "free"
"""


def test_the_escalation_of_term_is_nginxs(daemon: "Daemons") -> None:
    """A worker that is stopped hears nothing; KILL comes 3150 ms after the first TERM."""
    server = daemon()
    worker = server.pids()[0]
    os.kill(worker, signal.SIGSTOP)
    began = time.monotonic()
    assert server.stop(signal.SIGTERM) == 0
    took = time.monotonic() - began
    assert 3.1 < took < 8
    assert re.search(rf"worker 1 {worker} exited on signal 9 \(SIGKILL\)", server.log)


def test_a_worker_that_is_deaf_to_quit_is_ended_by_the_master(daemon: "Daemons") -> None:
    server = daemon(app=DEAF, timeouts={"graceful": 1})
    with server.connect() as client:
        client.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        began = time.monotonic()
        assert server.stop(signal.SIGQUIT) == 0
        assert time.monotonic() - began < 10
    assert "has not left within 1 s (timeouts.graceful): SIGTERM" in server.log
    assert "has not left: SIGKILL" in server.log


def test_a_killed_worker_comes_back(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    first, second = server.pids()
    os.kill(first, signal.SIGKILL)
    server.wait_for(lambda: len(server.pids()) == 2 and first not in server.pids())
    assert second in server.pids()
    server.expect("exited on signal 9")
    assert re.search(rf"worker 1 {first} exited on signal 9 \(SIGKILL\) after \d", server.log)
    server.wait_for(lambda: server.log.count("start worker 1 ") == 2)
    assert server.get().status == 200


def test_the_second_death_in_a_row_is_punished(daemon: "Daemons") -> None:
    server = daemon()
    server.expect("exited on signal 9")
    os.kill(server.pids()[0], signal.SIGKILL)
    server.wait_for(lambda: server.log.count("start worker 1 ") == 2)
    server.wait_for(lambda: server.get().status == 200)
    os.kill(server.pids()[0], signal.SIGKILL)
    server.wait_for(r"worker 1 comes back in [01]\.\d s")
    server.wait_for(lambda: server.log.count("start worker 1 ") == 3)


FATAL = """
import os
from prefork import Application

app = Application()

@app.use
async def serve(ctx, next):
    if ctx.path == "/fatal":
        os._exit(2)
    ctx.body = str(os.getpid())
"""


def test_exit_code_2_is_never_respawned(daemon: "Daemons") -> None:
    server = daemon(app=FATAL, workers=2)
    with pytest.raises((ConnectionError, OSError)):
        server.get("/fatal")
    server.expect("fatal code 2")
    server.wait_for("exited with fatal code 2 and cannot be respawned")
    assert len(server.pids()) == 1
    assert server.get().status == 200
    with pytest.raises((ConnectionError, OSError)):
        server.get("/fatal")
    server.expect("no worker is left")
    server.wait_for("no worker is left and none may be respawned")
    server.send(signal.SIGHUP)
    server.wait_for("reconfigured")
    assert len(server.pids()) == 2


def test_killing_the_master_leaves_nothing(daemon: "Daemons") -> None:
    """Idle workers are gone within 100 ms (more is allowed here: the machine is shared)."""
    server = daemon(workers=2)
    server.exit_code = -signal.SIGKILL
    workers = server.pids()
    server.send(signal.SIGKILL)
    server.wait()
    began = time.monotonic()
    while any(map(alive, workers)):
        assert time.monotonic() - began < 5
        time.sleep(0.002)
    assert time.monotonic() - began < 1
    assert server.log.count("the master process is gone: leaving") == 2
    server.pid_path.unlink()  # and the farewell binds the port


def test_a_stale_pid_file_is_replaced_and_a_held_one_is_not(daemon: "Daemons") -> None:
    server = daemon(start=False)
    server.pid_path.parent.mkdir()
    server.pid_path.write_text("4000000\n")
    server.start()
    assert "was stale" in server.log
    second = daemon(start=False, pid_file=str(server.pid_path))
    second.exit_code = 1
    second.start(ready=False)
    assert second.wait() == 1
    assert f"process {server.pid} holds the pid file" in second.stderr
    second.expect("holds the pid file")
    second.process = None  # its pid file is the other's: nothing to look for
    assert server.get().status == 200


def test_usr1_reopens_after_a_rotation(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    server.get("/before")
    for name in ("error.log", "access.log"):
        (server.directory / name).rename(server.directory / f"{name}.1")
    server.send(signal.SIGUSR1)
    server.wait_for(lambda: (server.directory / "access.log").exists())
    rotated_log = server.directory / "error.log.1"
    server.wait_for(lambda: rotated_log.read_text().count("reopening logs") == 3)
    server.get("/after")
    server.wait_for(lambda: "/after" in (server.directory / "access.log").read_text())
    assert server.get("/again").status == 200
    rotated = (server.directory / "access.log.1").read_text()
    assert "/before" in rotated
    assert "/after" not in rotated


def test_more_and_fewer(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=1)
    with load(server) as client:
        server.send(signal.SIGTTIN)
        server.wait_for(lambda: len(server.pids()) == 2)
        server.wait_for(r"workers: 1 -> 2")
        client.wait_more(50)
        server.send(signal.SIGTTOU)
        server.wait_for(r"workers: 2 -> 1, worker \d \(pid \d+\) leaves")
        server.wait_for(lambda: len(server.pids()) == 1)
        client.wait_more(50)
    assert not client.failures
    server.send(signal.SIGTTOU)
    server.wait_for("no worker is taken away: a server has at least one worker")
    assert len(server.pids()) == 1


def test_scale_on_the_command_line(daemon: "Daemons") -> None:
    server = daemon(workers=1)
    done = server.cli("scale", "3")
    assert done.returncode == 0, done.stderr
    assert "2 -> 3" in done.stdout
    assert len(server.pids()) == 3
    done = server.cli("scale", "-1")
    assert done.returncode == 0, done.stderr
    server.wait_for(lambda: len(server.pids()) == 2)


def test_a_step_up_that_fails_is_told(daemon: "Daemons") -> None:
    server = daemon(workers=1)
    good = (server.directory / "application.py").read_text()
    server.write_app("raise RuntimeError('out of coffee')\n")
    server.expect("failed to start")
    done = server.cli("scale", "+1")
    assert done.returncode == 1
    assert "workers: 1 -> 2, but the new one failed" in done.stderr
    assert "out of coffee" in done.stderr
    # It is tried again, in peace; here it is given up, and then works.
    done = server.cli("scale", "-1")
    assert done.returncode == 0, done.stderr
    server.write_app(good)
    assert server.cli("scale", "+1").returncode == 0
    assert len(server.pids()) == 2


def test_a_respawn_that_fails_leaves_the_others_alone(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    first, second = server.pids()
    good = (server.directory / "application.py").read_text()
    server.write_app("raise RuntimeError('out of coffee')\n")
    server.expect("failed to start|exited on signal 9")
    os.kill(first, signal.SIGKILL)
    server.wait_for(r"worker 1 comes back in [01]\.\d s")
    server.wait_for(r"worker 1 comes back in [12]\.\d s")
    assert server.log.count("Traceback") == 1
    assert server.get().text.startswith(f"{second} ")
    server.write_app(good)
    server.wait_for(lambda: len(server.pids()) == 2)


def test_winch_drains_and_hup_brings_them_back(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    server.send(signal.SIGWINCH)
    server.wait_for(lambda: not server.pids())
    assert "stop accepting connections" in server.log
    server.send(signal.SIGHUP)
    server.wait_for("reconfigured")
    assert len(server.pids()) == 2
    assert server.get().status == 200


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def busy(server: "Server") -> bool:
    """Has a worker a connection? Its board says so with each turn of its loop."""
    from prefork.scoreboard import Scoreboard

    board = Scoreboard.attach_pid(server.pid)
    try:
        return any(board.slot(n).connections for n in range(8))
    finally:
        board.close()


def read_all(client: socket.socket) -> bytes:
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionError:
        pass
    return data
