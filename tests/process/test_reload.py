"""HUP: a new generation, or the old one as if nothing had been asked."""

import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server


def test_a_reload_brings_new_code_and_loses_nothing(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=2)
    before = set(server.pids())
    with load(server) as client:
        server.write_app(source(server).replace("hello", "goodbye"))
        server.send(signal.SIGHUP)
        server.wait_for(r"reconfigured: generation 1 -> 2, workers 2 -> 2, 2 draining, \d")
        server.wait_for(lambda: before.isdisjoint(server.pids()))
        client.wait_more(50)
    assert not client.failures
    assert client.answers[0].endswith("hello")
    assert client.answers[-1].endswith("goodbye")
    assert len(server.pids()) == 2


def source(server: "Server") -> str:
    return (server.directory / "application.py").read_text()


SLOW_START = """
import time
time.sleep(1.5)
"""


def test_the_old_ones_leave_only_when_the_new_ones_are_ready(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    before = server.pids()
    server.write_app(SLOW_START + source(server))
    server.send(signal.SIGHUP)
    server.wait_for(lambda: len(server.pids()) == 4)
    time.sleep(0.3)
    assert server.pids()[:2] == before
    assert "gracefully shutting down" not in server.log
    server.wait_for("reconfigured")


def break_yaml(server: "Server") -> str:
    server.config_path.write_text("workers: [")
    return r"conf\.yaml"


def mistype(server: "Server") -> str:
    text = server.config_path.read_text()
    server.config_path.write_text(text.replace("workers:", "wrkers:"))
    return "wrkers"


def misspell_a_variable(server: "Server") -> str:
    server.write_config(log={"access": {"path": "access.log", "format": "$statsu"}})
    return r'log\.access\.format: unknown variable "\$statsu"'


def take_the_port(server: "Server") -> str:
    taken = socket.create_server(("127.0.0.1", 0))
    TAKEN.append(taken)
    port = taken.getsockname()[1]
    server.write_config(listen=[*server.config["listen"], f"127.0.0.1:{port}"])
    return rf"bind\(\) to 127\.0\.0\.1:{port} failed \(98: Address already in use\)"


def raise_at_import(server: "Server") -> str:
    server.write_app(source(server) + "\nraise RuntimeError('out of coffee')\n")
    return "out of coffee"


def exit_at_import(server: "Server") -> str:
    server.write_app("import os\nos._exit(7)\n")
    return "exited with code 7"


def fail_to_start_up(server: "Server") -> str:
    server.write_app(
        source(server)
        + "\n@app.on_startup\nasync def connect():\n    raise OSError('no database')\n"
    )
    return "no database"


TAKEN: list[socket.socket] = []


@pytest.mark.parametrize(
    "harm",
    [
        break_yaml,
        mistype,
        misspell_a_variable,
        take_the_port,
        raise_at_import,
        exit_at_import,
        fail_to_start_up,
    ],
)
def test_a_reload_that_fails_changes_nothing(
    daemon: "Daemons", load: "type[Load]", harm: Callable[["Server"], str]
) -> None:
    server = daemon(workers=2)
    before = server.pids()
    good = server.config_path.read_text(), source(server)
    try:
        with load(server) as client:
            reason = harm(server)
            server.expect("reload failed|failed to start")
            server.send(signal.SIGHUP)
            server.wait_for("reload failed, generation 1 serves on")
            server.wait_for(reason)
            server.wait_for(lambda: server.pids() == before)
            client.wait_more(50)
        assert not client.failures
        assert server.log.count("Traceback") <= 1
        # And mended, it works.
        server.config_path.write_text(good[0])
        server.write_app(good[1])
        server.send(signal.SIGHUP)
        server.wait_for("reconfigured: generation 1 -> 2")
        server.wait_for(lambda: set(before).isdisjoint(server.pids()))
    finally:
        while TAKEN:
            TAKEN.pop().close()


def test_a_worker_that_never_gets_ready_fails_the_reload(daemon: "Daemons") -> None:
    server = daemon(timeouts={"boot": 2})
    before = server.pids()
    server.write_app("import time\ntime.sleep(60)\n")
    server.expect("reload failed|was not ready within 2 s|exited on signal 6")
    server.send(signal.SIGHUP)
    server.wait_for(r"worker 2 \d+: worker 2 was not ready within 2 s \(timeouts.boot\)")
    assert f'File "{server.directory}/application.py", line 2 in <module>' in server.log
    server.wait_for("reload failed, generation 1 serves on")
    server.wait_for(lambda: server.pids() == before)


def test_a_dropped_generation_does_not_come_back(daemon: "Daemons") -> None:
    """The worker whose death had failed the reload was respawned for ever, by the dropped cycle."""
    server = daemon(workers=2)
    before = server.pids()
    server.expect("failed to start|reload failed|Traceback")
    raise_at_import(server)
    server.send(signal.SIGHUP)
    server.wait_for("reload failed, generation 1 serves on")
    server.wait_for(lambda: server.pids() == before)
    assert "comes back" not in server.log


def test_the_command_reports(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    done = server.cli("reload")
    assert done.returncode == 0, done.stderr
    assert "generation 1 -> 2, workers 2 -> 2" in done.stdout
    server.write_app("import nowhere_to_be_found\n")
    server.expect("reload failed|failed to start")
    done = server.cli("reload")
    assert done.returncode == 1
    assert "No module named 'nowhere_to_be_found'" in done.stderr
    assert 'application.py", line 1' in done.stderr
    assert "prefork/process" not in done.stderr


def test_listeners_are_adopted_bound_and_closed(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=1)
    second = free_port()
    unix = server.directory / "app.sock"
    with load(server) as client:
        server.write_config(
            listen=[f"127.0.0.1:{server.port}", f"127.0.0.1:{second}", f"unix:{unix}"]
        )
        server.send(signal.SIGHUP)
        server.wait_for("generation 1 -> 2")
        assert server.get(port=second).status == 200
        assert unix.is_socket()
        server.write_config(listen=[f"127.0.0.1:{server.port}"])
        server.send(signal.SIGHUP)
        server.wait_for("generation 2 -> 3")
        server.wait_for(rf"closed http://127\.0\.0\.1:{second}")
        client.wait_more(20)
    assert not client.failures
    assert not unix.exists()
    with pytest.raises(ConnectionRefusedError):
        server.get(port=second)


def test_an_address_given_up_and_wanted_again(daemon: "Daemons") -> None:
    """While an old worker still drains on it, the socket is there to be adopted."""
    server = daemon(workers=1, reload={"generations": 3})
    unix = server.directory / "app.sock"
    both = [f"127.0.0.1:{server.port}", f"unix:{unix}"]
    server.write_config(listen=both)
    server.send(signal.SIGHUP)
    server.wait_for("generation 1 -> 2")
    with server.connect() as client:
        client.sendall(b"GET /sleep/2 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.2)
        server.write_config(listen=both[:1])
        server.send(signal.SIGHUP)
        server.wait_for("generation 2 -> 3")
        server.write_config(listen=both)
        server.send(signal.SIGHUP)
        server.wait_for("generation 3 -> 4")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    server.wait_for(lambda: len(server.pids()) == 1)
    assert "closed" not in server.log
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(unix))
        other.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        assert other.recv(4096).startswith(b"HTTP/1.1 200")


def test_what_needs_a_restart_is_said(daemon: "Daemons") -> None:
    server = daemon()
    server.write_config(pid_file="run/other.pid")
    server.send(signal.SIGHUP)
    server.wait_for(r"pid_file: \S+prefork\.pid -> \S+other\.pid \(needs a restart\)")
    assert server.pid_path.exists()


def test_the_number_of_workers_follows_the_file(daemon: "Daemons") -> None:
    server = daemon(workers=1)
    server.write_config(workers=3)
    server.send(signal.SIGHUP)
    server.wait_for("workers 1 -> 3")
    server.wait_for(lambda: len(server.pids()) == 3)
    server.write_config(workers=1)
    server.send(signal.SIGHUP)
    server.wait_for("workers 3 -> 1")
    server.wait_for(lambda: len(server.pids()) == 1)


def test_a_stop_ends_a_reload(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    server.write_app("import time\ntime.sleep(60)\n")
    server.send(signal.SIGHUP)
    server.wait_for(lambda: len(server.pids()) == 3)
    began = time.monotonic()
    assert server.stop(signal.SIGQUIT) == 0
    assert time.monotonic() - began < 8


def test_two_reloads_in_a_row(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=2)
    server.write_app("import time\ntime.sleep(0.5)\n" + source(server))
    with load(server) as client:
        server.send(signal.SIGHUP)
        server.wait_for("reconfiguring")
        server.send(signal.SIGHUP)
        server.wait_for("generation 2 -> 3")
        server.wait_for(lambda: len(server.pids()) == 2)
    assert not client.failures


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
