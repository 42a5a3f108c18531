"""Starting: what is said when it fails, the background, privileges, Ctrl-C."""

import os
import pty
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Daemons, Server


def fails(daemon: "Daemons", code: int = 1, **config: object) -> "Server":
    server = daemon(start=False, **config)
    server.exit_code = code
    server.expect("")
    return server


def test_one_traceback_for_all_workers(daemon: "Daemons") -> None:
    server = fails(daemon, workers=4)
    server.write_app("def connect():\n    raise RuntimeError('out of coffee')\n\nconnect()\n")
    began = time.monotonic()
    server.start(ready=False)
    assert server.wait() == 1
    assert time.monotonic() - began < 5
    assert server.log.count("RuntimeError: out of coffee") == 1
    assert server.log.count("Traceback") == 1
    assert 'application.py", line 2, in connect' in server.log
    for foreign in ("importlib", "prefork/process", "loading.py"):
        assert foreign not in server.log
    assert server.log.count("failed to start for the same reason") == 3
    assert "no worker could start" in server.log
    # Nothing that is not so: nobody comes back, and nobody has sent a signal.
    assert "comes back" not in server.log
    assert "received" not in server.log
    # The error log is a file: the operator in front of the terminal gets it too.
    assert "RuntimeError: out of coffee" in server.stderr
    assert len(re.findall("Traceback", server.stderr)) == 1


def test_some_workers_are_better_than_none(daemon: "Daemons") -> None:
    server = daemon(start=False, workers=2)
    source = (server.directory / "application.py").read_text()
    server.write_app(
        "import os\ntry:\n    os.mkdir('first')\nexcept FileExistsError:\n"
        "    raise RuntimeError('only one of us') from None\n" + source
    )
    server.expect("failed to start")
    server.start()
    assert server.get().status == 200
    server.wait_for(r"worker \d comes back in [01]\.\d s")
    (server.directory / "first").rmdir()
    server.wait_for(lambda: server.log.count("] ") and len(server.pids()) == 2)


def test_a_taken_port_is_found_before_the_application_is_imported(daemon: "Daemons") -> None:
    server = fails(daemon)
    server.write_app("import pathlib\npathlib.Path('imported').touch()\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server.write_config(listen=[f"127.0.0.1:{port}"])
        server.start(ready=False)
        assert server.wait() == 1
    lines = server.stderr.splitlines()
    assert len(lines) == 1
    assert re.search(
        rf"bind\(\) to 127\.0\.0\.1:{port} failed \(98: Address already in use\)", lines[0]
    )
    assert f"(pid {os.getpid()})" in lines[0]
    assert not (server.directory / "imported").exists()


def test_a_wrong_configuration_is_78(daemon: "Daemons") -> None:
    server = fails(daemon, code=78)
    server.config_path.write_text("app: application:app\nworkers: many\n")
    server.start(ready=False)
    assert server.wait() == 78
    assert "conf.yaml:2:" in server.stderr


def test_a_wrong_access_format_is_refused_by_the_master(daemon: "Daemons") -> None:
    server = fails(daemon, code=78, log={"access": {"path": "access.log", "format": "$statsu"}})
    server.start(ready=False)
    assert server.wait() == 78
    lines = server.stderr.splitlines()
    assert len(lines) == 1
    assert 'log.access.format: unknown variable "$statsu"' in lines[0]
    assert "start worker" not in server.log


def test_a_wrong_user_is_found_at_the_start(daemon: "Daemons") -> None:
    server = fails(daemon, code=1, user="nobodyy")
    server.start(ready=False)
    assert server.wait() in (1, 78)
    server.exit_code = server.wait()
    assert 'did you mean "nobody"' in server.stderr


def test_a_boot_that_takes_too_long(daemon: "Daemons") -> None:
    server = fails(daemon, timeouts={"boot": 1})
    server.write_app("import time\ntime.sleep(60)\n")
    server.start(ready=False)
    assert server.wait() == 1
    assert "was not ready within 1 s" in server.log


def test_a_stop_during_the_boot(daemon: "Daemons") -> None:
    server = daemon(start=False, workers=2)
    server.write_app("import time\ntime.sleep(60)\n")
    server.start(ready=False)
    server.wait_for("start worker 2")
    time.sleep(0.2)
    began = time.monotonic()
    assert server.stop(signal.SIGQUIT) == 0
    assert time.monotonic() - began < 5


def test_a_stop_when_only_some_are_ready(daemon: "Daemons") -> None:
    """The one that boots is told to leave, or gets ready all the same: nobody cares any more."""
    server = daemon(start=False, workers=2)
    source = (server.directory / "application.py").read_text()
    server.write_app(
        "import os, time\ntry:\n    os.mkdir('first')\nexcept FileExistsError:\n"
        f"    time.sleep(60)\n{source}"
    )
    server.start(ready=False)
    server.wait_for(lambda: (server.directory / "first").exists())
    server.wait_for(lambda: server.get().status == 200)
    assert server.stop(signal.SIGQUIT) == 0
    assert "ready on" not in server.log


def test_killing_the_master_during_the_boot(daemon: "Daemons") -> None:
    """A worker in the middle of a long import reads no channel; it goes all the same."""
    server = daemon(start=False, workers=2)
    server.write_app("import time\ntime.sleep(60)\n")
    server.start(ready=False)
    server.wait_for("start worker 2")
    time.sleep(0.3)
    server.exit_code = -signal.SIGKILL
    server.stop(signal.SIGKILL)
    server.pid_path.unlink()
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 5


def test_a_reload_mends_a_start_that_hangs(daemon: "Daemons") -> None:
    server = daemon(start=False, workers=2)
    source = (server.directory / "application.py").read_text()
    server.write_app("print('importing', flush=True)\nimport time\ntime.sleep(60)\n")
    server.start(ready=False)
    server.wait_for(lambda: server.stdout.count("importing") == 2)
    server.write_app(source)
    server.send(signal.SIGHUP)
    server.wait_for("ready on")
    server.wait_for(lambda: len(server.pids()) == 2)
    assert server.get().status == 200


def test_a_reload_is_waited_for_when_the_first_workers_die(daemon: "Daemons") -> None:
    """The operator has mended it already; and when he has not, the server gives up after all."""
    for mended in (True, False):
        server = daemon(start=False, workers=2)
        source = (server.directory / "application.py").read_text()
        server.write_app("import time\ntime.sleep(2)\nraise RuntimeError('out of coffee')\n")
        server.expect("out of coffee|failed|Traceback|no worker could start")
        server.start(ready=False)
        server.wait_for("start worker 2")
        time.sleep(0.3)
        server.write_app(
            f"import time\ntime.sleep(3)\n{source if mended else 'raise RuntimeError()'}"
        )
        server.send(signal.SIGHUP)
        server.wait_for("failed to start for the same reason")
        if mended:
            server.wait_for("ready on")
            server.wait_for(lambda it=server: len(it.pids()) == 2)
            assert server.get().status == 200
        else:
            server.exit_code = 1
            assert server.wait() == 1
            assert "no worker could start" in server.log


def test_the_background(daemon: "Daemons") -> None:
    """The launching command returns when the workers are ready, not sooner."""
    server = daemon(start=False, daemon=True, workers=2)
    source = (server.directory / "application.py").read_text()
    server.write_app(f"import time\ntime.sleep(1)\n{source}")
    began = time.monotonic()
    server.start(ready=False)
    assert server.wait() == 0
    assert time.monotonic() - began > 1
    assert "ready on" in server.stdout
    server.pid = int(server.pid_path.read_text())
    assert server.get().status == 200
    assert len(server.pids()) == 2
    assert os.getsid(server.pid) not in (server.process.pid, os.getsid(0))
    error_log = str(server.directory / "error.log")
    for pid in (server.pid, *server.pids()):
        streams = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)]
        assert streams == ["/dev/null", "/dev/null", error_log]
    # And after a rotation what a library prints to stderr is not lost in the old file.
    (server.directory / "error.log").rename(server.directory / "error.log.1")
    assert server.cli("reopen").returncode == 0
    server.wait_for(lambda: os.readlink(f"/proc/{server.pids()[0]}/fd/2") == error_log)
    assert server.cli("reload").returncode == 0
    assert os.readlink(f"/proc/{server.pid}/fd/2") == error_log
    # Its parent is process 1, of which nothing may be known: it is found all the same.
    again = server.cli("start")
    assert again.returncode == 1
    assert f"(pid {server.pid}); stop it" in again.stderr
    done = server.cli("stop")
    assert done.returncode == 0, done.stderr


def test_what_is_printed_while_the_background_boots_is_not_lost(daemon: "Daemons") -> None:
    server = daemon(start=False, daemon=True, workers=2)
    source = (server.directory / "application.py").read_text()
    noise = "import os\nos.write(2, b'a library is worried\\n')\n"
    server.write_app(noise + source)
    server.start(ready=False)
    assert server.wait() == 0
    server.pid = server.written_pid
    assert server.log.count("a library is worried\n") == 2
    assert "worried" not in server.stderr
    assert server.cli("stop").returncode == 0


def test_the_background_that_fails(daemon: "Daemons") -> None:
    server = fails(daemon)
    server.write_config(daemon=True)
    server.write_app("raise RuntimeError('out of coffee')\n")
    server.start(ready=False)
    assert server.wait() == 1
    assert "out of coffee" in server.stderr


def test_privileges_are_dropped(daemon: "Daemons") -> None:
    nobody = pwd.getpwnam("nobody")
    server = daemon(user="nobody", workers=2)
    if os.geteuid() != 0:
        assert '"user" and "group" make sense only if the master runs as root' in server.log
        return
    for pid in server.pids():
        status = Path(f"/proc/{pid}/status").read_text()
        uids = re.search(r"^Uid:\s+(.*)$", status, re.M)
        gids = re.search(r"^Gid:\s+(.*)$", status, re.M)
        groups = re.search(r"^Groups:\s*(.*)$", status, re.M)
        assert uids is not None
        assert gids is not None
        assert groups is not None
        assert set(uids[1].split()) == {str(nobody.pw_uid)}
        assert set(gids[1].split()) == {str(nobody.pw_gid)}
        assert set(groups[1].split()) <= {str(nobody.pw_gid)}
    server.get("/before")
    # The rotated files belong to the workers' user, or they could not open them.
    server.directory.chmod(0o777)
    for name in ("error.log", "access.log"):
        (server.directory / name).rename(server.directory / f"{name}.1")
    server.send(signal.SIGUSR1)
    server.wait_for(lambda: (server.directory / "access.log").exists())
    server.wait_for(lambda: (server.directory / "error.log.1").read_text().count("reopening") == 3)
    for name in ("error.log", "access.log"):
        assert (server.directory / name).stat().st_uid == nobody.pw_uid
    server.get("/after")
    server.wait_for(lambda: "/after" in (server.directory / "access.log").read_text())


def test_environment_and_directory_are_the_applications_alone(daemon: "Daemons") -> None:
    server = daemon(environment={"GREETING_OF": "prefork"})
    assert server.get("/env/GREETING_OF").text == "prefork"
    maps = Path(f"/proc/{server.pid}/environ").read_bytes()
    assert b"GREETING_OF" not in maps


def test_the_master_never_imports_the_application(daemon: "Daemons") -> None:
    server = daemon(start=False)
    source = (server.directory / "application.py").read_text()
    server.write_app(f"import os\nopen(f'imported-{{os.getpid()}}', 'w').close()\n{source}")
    server.start()
    imported = {path.name for path in server.directory.glob("imported-*")}
    assert imported == {f"imported-{pid}" for pid in server.pids()}


class Terminal:
    """A server in the foreground of a terminal of its own."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(server.directory)
            os.execv(sys.executable, [sys.executable, "-m", "prefork", "start", "-c", "conf.yaml"])
        server.pid = self.pid

    def type(self, key: bytes) -> None:
        os.write(self.fd, key)

    def wait(self) -> int:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it does not end\n{self.server.account()}")


def test_ctrl_c_drains_and_the_second_one_does_not(daemon: "Daemons") -> None:
    server = daemon(start=False, workers=2)
    terminal = Terminal(server)
    server.wait_for("stop with Ctrl-C")
    with server.connect() as client:
        client.sendall(b"GET /sleep/30 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        terminal.type(b"\x03")
        server.wait_for("draining: 1 connection left in 2 workers; press Ctrl-C again")
        server.wait_for(r"draining: 1 connection left in 1 worker$", timeout=12)
        assert "signal 2 (SIGINT) received, shutting down" in server.log
        terminal.type(b"\x03")
        assert terminal.wait() == 0


def test_ctrl_c_means_the_same_to_a_single_process(daemon: "Daemons") -> None:
    server = daemon(start=False, master_process=False)
    terminal = Terminal(server)
    server.wait_for("stop with Ctrl-C")
    with server.connect() as client:
        client.sendall(b"GET /sleep/30 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        terminal.type(b"\x03")
        server.wait_for("draining: 1 connection left; press Ctrl-C again")
        terminal.type(b"\x03")
        assert terminal.wait() == 0


def test_ctrl_c_with_nothing_to_do_ends_at_once(daemon: "Daemons") -> None:
    server = daemon(start=False, workers=2)
    terminal = Terminal(server)
    server.wait_for("stop with Ctrl-C")
    began = time.monotonic()
    terminal.type(b"\x03")
    assert terminal.wait() == 0
    assert time.monotonic() - began < 5


def test_a_resized_window_drains_nobody(daemon: "Daemons") -> None:
    server = daemon(start=False, workers=1)
    terminal = Terminal(server)
    server.wait_for("stop with Ctrl-C")
    os.killpg(os.getpgid(terminal.pid), signal.SIGWINCH)
    time.sleep(0.3)
    assert "stop accepting" not in server.log
    assert server.get().status == 200
    terminal.type(b"\x03")
    assert terminal.wait() == 0


def test_an_address_on_the_command_line(daemon: "Daemons") -> None:
    """`prefork start module:app` with no file."""
    server = daemon(start=False)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "prefork", "start", "application:app"),
            *("--set", f"listen=127.0.0.1:{server.port}", "--set", "workers=1"),
        ],
        cwd=server.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                assert server.get("/").status == 200
                break
            except OSError:
                time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGQUIT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "no configuration file" in stderr
