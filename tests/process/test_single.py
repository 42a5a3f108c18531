"""One process that is master and worker at once."""

import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load

import pytest


def test_it_serves_without_a_child(daemon: "Daemons") -> None:
    server = daemon(master_process=False)
    assert server.get().status == 200
    assert server.pids() == []
    assert (
        "application:app (onion, from its class prefork.Application), a single process, pid"
        in server.log
    )
    assert server.written_pid == server.pid
    assert server.get().text.startswith(f"{server.pid} ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_it_ends_with_0(daemon: "Daemons", number: int) -> None:
    server = daemon(master_process=False)
    assert server.stop(number) == 0


def test_quit_finishes_what_runs(daemon: "Daemons") -> None:
    server = daemon(master_process=False)
    with server.connect() as client:
        client.sendall(b"GET /sleep/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        server.send(signal.SIGQUIT)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert server.wait() == 0


def test_a_reload_serves_by_the_new_configuration(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(master_process=False)
    with load(server) as client:
        server.write_config(timeouts={"keep_alive": 5}, log={"access": {"path": "second.log"}})
        server.send(signal.SIGHUP)
        server.wait_for("generation 1 -> 2, the application stays imported")
        client.wait_more(30)
        server.config_path.write_text("nonsense: 1\n")
        server.expect("reload failed")
        server.send(signal.SIGHUP)
        server.wait_for("reload failed, generation 2 serves on")
        client.wait_more(30)
    assert not client.failures
    server.wait_for(lambda: (server.directory / "second.log").stat().st_size)


def test_logs_are_reopened(daemon: "Daemons") -> None:
    server = daemon(master_process=False)
    server.get("/before")
    (server.directory / "access.log").rename(server.directory / "access.log.1")
    server.send(signal.SIGUSR1)
    server.wait_for(lambda: (server.directory / "access.log").exists())
    assert "/before" in (server.directory / "access.log.1").read_text()


def test_a_log_that_cannot_be_reopened_fails_the_command(daemon: "Daemons") -> None:
    server = daemon(master_process=False)
    log = server.directory / "access.log"
    log.rename(server.directory / "access.log.1")
    log.mkdir()
    server.expect("Is a directory")
    done = server.cli("reopen")
    assert done.returncode == 1
    assert "failed (21: Is a directory)" in done.stderr
    log.rmdir()
    assert server.cli("reopen").returncode == 0


def test_what_needs_a_master_is_refused(daemon: "Daemons") -> None:
    server = daemon(master_process=False)
    for number in (signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
        server.send(number)
        server.wait_for(f"{number.name} means nothing to a single process")
    done = server.cli("scale", "+1")
    assert done.returncode == 1
    assert "means nothing to a single process" in done.stderr


def test_an_application_that_fails(daemon: "Daemons") -> None:
    server = daemon(master_process=False, start=False)
    server.write_app("raise RuntimeError('out of coffee')\n")
    server.exit_code = 1
    server.expect("")
    server.start(ready=False)
    assert server.wait() == 1
    assert server.stderr.count("out of coffee") == 2  # the line of the source, and the error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_during_the_boot(daemon: "Daemons", number: int) -> None:
    server = daemon(master_process=False, start=False)
    server.write_app("print('importing', flush=True)\nimport time\ntime.sleep(60)\n")
    server.start(ready=False)
    server.wait_for(lambda: "importing" in server.stdout)
    began = time.monotonic()
    assert server.stop(number) == 0
    assert time.monotonic() - began < 5
    assert "stopped before it was ready" in server.log


def test_in_the_background(daemon: "Daemons") -> None:
    server = daemon(master_process=False, start=False, daemon=True)
    server.start(ready=False)
    assert server.wait() == 0
    server.pid = server.written_pid
    assert server.get().status == 200
    assert server.cli("stop").returncode == 0
