"""Going to the background: what the launching command sees, and what the daemon is."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

START = """
import os, signal, sys
from prefork.unix import signals
from prefork.unix.daemon import daemonize
signals.block()
print("from the launcher", flush=False)
daemon = daemonize()
"""


def launch(body: str, *args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", START + textwrap.dedent(body), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=30,
    )


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.01)
    raise AssertionError(f"{path} was not written")


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


def test_the_command_returns_when_the_daemon_is_ready(tmp_path: Path) -> None:
    """communicate() ends only when nobody holds the pipes: the daemon really let them go."""
    out = tmp_path / "out"
    done = launch(
        """
        daemon.ready("ready at http://127.0.0.1:8000")
        names = [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)]
        with open(sys.argv[1], "w") as out:
            leader = os.getsid(0) == os.getpid()
            print(os.getpid(), os.getppid(), leader, *names, file=out)
        signal.sigwait([signal.SIGTERM])
        """,
        out,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == "from the launcher\nready at http://127.0.0.1:8000\n"
    pid, parent, leader, *streams = wait_for(out).split()
    assert streams == ["/dev/null"] * 3
    assert leader == "False", "a session leader could get a terminal back"
    assert int(parent) != os.getpid()
    os.kill(int(pid), signal.SIGTERM)
    wait_gone(int(pid))


def test_a_failure_is_printed_by_the_command_which_exits_with_its_code() -> None:
    done = launch(
        """
        daemon.failed(78, "prefork: bind() to 0.0.0.0:80 failed (13: Permission denied)")
        daemon.ready("too late")
        os._exit(78)
        """
    )
    assert done.returncode == 78
    assert done.stdout == "from the launcher\n"
    assert done.stderr == "prefork: bind() to 0.0.0.0:80 failed (13: Permission denied)\n"


def test_a_failure_never_exits_0() -> None:
    assert launch('daemon.failed(0, "impossible")').returncode == 1


def test_a_long_failure_comes_whole() -> None:
    done = launch('daemon.failed(1, "x" * 200_000 + " the end")')
    assert done.returncode == 1
    assert done.stderr == "x" * 200_000 + " the end\n"


def test_a_daemon_that_dies_without_a_word_is_a_failure() -> None:
    done = launch("os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 1
    assert "died before it was ready" in done.stderr


def test_errors_before_readiness_still_reach_the_terminal() -> None:
    done = launch('print("a library complains", file=sys.stderr); daemon.failed(1, "no")')
    assert done.stderr == "a library complains\nno\n"


def test_workers_do_not_keep_the_command_waiting(tmp_path: Path) -> None:
    """They were forked before the verdict and share its pipe and the terminal."""
    out = tmp_path / "out"
    log = tmp_path / "log"
    done = launch(
        """
        log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        ours, theirs = os.pipe()
        worker = os.fork()
        if worker == 0:
            signals.unblock_all()
            daemon.forget(stderr_fd=log)
            os.write(theirs, b"r")
            os.write(2, b"to the log\\n")
            signal.pause()
        os.read(ours, 1)
        daemon.ready(stderr_fd=log)
        with open(sys.argv[1], "w") as out:
            print(worker, os.getpid(), file=out)
        signal.sigwait([signal.SIGTERM])
        print("so does the master", file=sys.stderr, flush=True)
        os.kill(worker, signal.SIGTERM)
        os.wait()
        """,
        out,
        log,
    )
    assert done.returncode == 0
    worker, master = map(int, wait_for(out).split())
    os.kill(master, signal.SIGTERM)
    wait_gone(worker)
    wait_gone(master)
    assert log.read_text() == "to the log\nso does the master\n"


def test_ctrl_c_ends_the_launching_command_though_the_master_blocks_it() -> None:
    code = START + "import time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    daemon = int(process.stderr.readline())
    try:
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        assert process.returncode == -signal.SIGINT
    finally:
        os.kill(daemon, signal.SIGKILL)
        process.communicate()
