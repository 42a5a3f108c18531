"""USR2: a new program takes the listening sockets over, and how to take them back."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server


def upgrade(server: "Server") -> int:
    """USR2; the new master's pid when it is ready."""
    old = server.pid
    since = len(server.log)
    server.send(signal.SIGUSR2)
    server.wait_for(r"the new master \d+ is ready", since=since)
    new = server.written_pid
    assert new != old
    assert int(oldbin(server).read_text()) == old
    return new


def oldbin(server: "Server") -> Path:
    return server.pid_path.with_name("prefork.pid.oldbin")


def workers(server: "Server", master: int) -> list[int]:
    """The children of a master that are not a master themselves."""
    return [pid for pid in server.pids(master) if "worker" in title(pid)]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return ""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_upgrade_drain_and_farewell(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=2)
    old = server.pid
    with load(server) as client:
        server.write_app((server.directory / "application.py").read_text().replace("hello", "new"))
        new = upgrade(server)
        client.wait_more(20)
        server.send(signal.SIGWINCH, old)
        server.wait_for(lambda: not workers(server, old))
        assert len(workers(server, new)) == 2
        client.wait_more(20)
        server.send(signal.SIGQUIT, old)
        assert server.wait() == 0
        client.wait_more(20)
    assert not client.failures
    assert client.answers[-1].endswith("new")
    assert not oldbin(server).exists()
    assert server.written_pid == new
    server.pid = new
    server.send(signal.SIGQUIT)
    server.wait_for(lambda: gone(new))
    assert not server.pid_path.exists()


def test_rollback(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=2)
    old = server.pid
    with load(server) as client:
        new = upgrade(server)
        server.send(signal.SIGWINCH, old)
        server.wait_for(lambda: not workers(server, old))
        server.send(signal.SIGHUP, old)
        server.wait_for(lambda: len(workers(server, old)) == 2)
        server.wait_for("has started its workers again")
        server.send(signal.SIGQUIT, new)
        server.wait_for(lambda: gone(new))
        server.wait_for(lambda: server.written_pid == old)
        client.wait_more(20)
    assert not client.failures
    assert not oldbin(server).exists()
    assert len(workers(server, old)) == 2


def test_the_new_master_dies_after_winch(daemon: "Daemons") -> None:
    server = daemon(workers=2)
    old = server.pid
    new = upgrade(server)
    server.send(signal.SIGWINCH, old)
    server.wait_for(lambda: not workers(server, old))
    server.expect("exited on signal 9")
    server.send(signal.SIGKILL, new)
    server.wait_for(lambda: len(workers(server, old)) == 2)
    server.wait_for(lambda: server.written_pid == old)
    assert not oldbin(server).exists()
    assert server.get().status == 200
    # And an upgrade is possible again.
    new = upgrade(server)
    server.send(signal.SIGQUIT, new)
    server.wait_for(lambda: gone(new))
    server.wait_for(lambda: server.written_pid == old)


def test_a_new_program_that_cannot_start(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(workers=1)
    old = server.pid
    before = server.pids()
    with load(server) as client:
        server.config_path.write_text("workers: nonsense\n")
        server.send(signal.SIGUSR2)
        server.wait_for(r"new binary process \d+ exited with code 78")
        server.wait_for(lambda: server.pid_path.exists())
        client.wait_more(20)
    assert not client.failures
    assert server.written_pid == old
    assert server.pids() == before


def test_it_is_refused_while_two_masters_live(daemon: "Daemons") -> None:
    server = daemon(workers=1)
    old = server.pid
    new = upgrade(server)
    server.expect("changing binary signal is ignored")
    server.send(signal.SIGUSR2, old)
    server.wait_for(f"is ignored: the new master {new} runs already")
    server.send(signal.SIGUSR2, new)
    server.wait_for("is ignored: the master that started this one still runs")
    server.send(signal.SIGQUIT, new)
    server.wait_for(lambda: gone(new))


def test_unix_sockets_survive_it(daemon: "Daemons") -> None:
    server = daemon(start=False)
    unix = server.directory / "app.sock"
    server.write_config(listen=[f"127.0.0.1:{server.port}", f"unix:{unix}"])
    server.start()
    new = upgrade(server)
    assert server.stop(signal.SIGQUIT) == 0
    assert unix.is_socket()
    server.pid = new
    server.send(signal.SIGQUIT)
    server.wait_for(lambda: gone(new))
    assert not unix.exists()


def test_the_same_interpreter_is_executed(daemon: "Daemons") -> None:
    server = daemon(workers=1)
    new = upgrade(server)
    assert os.readlink(f"/proc/{new}/exe") == os.path.realpath(sys.executable)
    server.send(signal.SIGQUIT, new)
    server.wait_for(lambda: gone(new))
