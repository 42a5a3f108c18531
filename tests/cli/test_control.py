"""The control commands against a running server: one signal, its verdict, the exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemons, Server

BROKEN = "import nowhere_to_be_found\n"


def facts(server: Server) -> dict[str, object]:
    return dict(json.loads(server.cli("status", "--json").stdout))


def test_reload_waits_and_tells(daemon: Daemons) -> None:
    server = daemon()
    server.write_config(workers=2)
    done = server.cli("reload")
    assert done.returncode == 0, done.stderr
    assert "generation 1 -> 2, workers 1 -> 2" in done.stdout
    assert facts(server)["generation"] == 2


def test_reload_of_a_broken_application_fails_and_says_why(daemon: Daemons) -> None:
    server = daemon()
    server.expect("nowhere_to_be_found|failed|Traceback")
    server.write_app(BROKEN)
    done = server.cli("reload")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "nowhere_to_be_found" in done.stderr
    assert "generation 1 serves on" in done.stderr
    assert server.get("/").status == 200
    last = facts(server)["last_command"]
    assert isinstance(last, dict)
    assert (last["name"], last["verdict"]) == ("SIGHUP", "failed")
    assert re.search(
        r"last reload +failed, \d\S* ago: generation 1 serves on", server.cli("status").stdout
    )


def test_a_wrong_setting_is_for_the_master_to_refuse(daemon: Daemons) -> None:
    server = daemon()
    server.expect('unknown key "wrkers"')
    server.config_path.write_text(server.config_path.read_text() + "wrkers: 3\n")
    done = server.cli("reload")
    assert done.returncode == 1
    assert 'did you mean "workers"' in done.stderr
    assert "generation 1 serves on" in done.stderr
    assert server.cli("status").returncode == 0
    assert server.cli("stop").returncode == 0


def test_the_servers_variables_are_not_needed_to_control_it(daemon: Daemons) -> None:
    server = daemon(
        start=False,
        workers=1,
        environment={"SECRET": "${TEST_SECRET:?set it}"},
        timeouts={"graceful": "${TEST_GRACE}"},
    )
    server.start(environ={"TEST_SECRET": "x", "TEST_GRACE": "5s"})
    assert "TEST_SECRET" in server.cli("check").stderr
    for command in (["status"], ["reload"], ["reopen"], ["scale", "+1"], ["stop"]):
        done = server.cli(*command)
        assert done.returncode == 0, done.stderr
        assert "TEST_" not in done.stdout + done.stderr


@pytest.mark.parametrize("broken", ["syntax", "pid_file"])
def test_without_a_pid_file_to_read_nothing_is_sent(daemon: Daemons, broken: str) -> None:
    server = daemon()
    good = server.config_path.read_text()
    text = good + "workers: [\n"
    if broken == "pid_file":
        text = good.replace("run/prefork.pid", "${TEST_NOWHERE}/prefork.pid")
    server.config_path.write_text(text)
    done = server.cli("reload")
    assert done.returncode == 78
    assert "conf.yaml" in done.stderr
    assert "--pid-file" in done.stderr
    assert "reconfigur" not in server.log
    by_pid_file = prefork(server, "status", "--pid-file", str(server.pid_path))
    assert by_pid_file.returncode == 0


def prefork(server: Server, *argv: str) -> subprocess.CompletedProcess[str]:
    """The command line without -c."""
    return subprocess.run(
        [sys.executable, "-m", "prefork", *argv],
        cwd=server.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_reloads_at_once_may_be_one_reload(daemon: Daemons) -> None:
    """HUP coalesces with HUP; each operator is told of one that began after he had asked."""
    server = daemon()
    done: list[subprocess.CompletedProcess[str]] = []
    operators = [
        threading.Thread(target=lambda: done.append(server.cli("reload"))) for _ in range(3)
    ]
    for operator in operators:
        operator.start()
    for operator in operators:
        operator.join(60)
    assert [each.returncode for each in done] == [0, 0, 0]
    told = {re.findall(r"generation (\d+ -> \d+)", each.stdout)[0] for each in done}
    made = re.findall(r"reconfigured: generation (\d+ -> \d+)", server.log)
    # One more may follow, of which nobody is told: a HUP that came when the reload that answers its
    # operator had just begun.
    assert told <= set(made)


def test_no_verdict_in_time_is_a_failure_that_says_so(daemon: Daemons) -> None:
    server = daemon()
    server.send(signal.SIGSTOP)
    try:
        done = server.cli("reload", "--timeout", "0.3")
    finally:
        server.send(signal.SIGCONT)
    assert done.returncode == 1
    assert "no verdict on the reload after 0.3 s" in done.stderr
    server.wait_for("generation 1 -> 2")


def test_reopen(daemon: Daemons) -> None:
    server = daemon()
    (server.directory / "error.log").rename(server.directory / "error.log.1")
    done = server.cli("reopen")
    assert done.returncode == 0
    assert "log files reopened" in done.stdout
    assert (server.directory / "error.log").exists()


def test_scale(daemon: Daemons) -> None:
    server = daemon(workers=1)

    def after(*argv: str) -> object:
        done = server.cli("scale", *argv)
        assert done.returncode == 0, done.stderr
        return facts(server)["target_workers"]

    assert after("3") == 3
    assert after("-1") == 2
    assert after("+1") == 3
    assert after("1") == 1
    assert "as before" in server.cli("scale", "1").stdout
    refused = server.cli("scale", "-1")
    assert refused.returncode == 1
    assert "would leave none" in refused.stderr


def test_stop_waits_for_what_runs_and_reports(daemon: Daemons) -> None:
    server = daemon()
    answers: list[int] = []
    # Long enough for a command to start on a busy machine.
    client = threading.Thread(target=lambda: answers.append(server.get("/sleep/5").status))
    client.start()
    wait_for_connection(server)
    done = server.cli("stop")
    client.join(60)
    assert done.returncode == 0
    assert answers == [200]
    assert f"prefork (pid {server.pid}) stopped" in done.stdout
    assert "1 connection, 1 busy" in done.stderr
    assert not server.pid_path.exists()


def wait_for_connection(server: Server) -> None:
    def connected() -> bool:
        workers = facts(server)["workers"]
        assert isinstance(workers, list)
        return any(worker["connections"] for worker in workers)

    server.wait_for(connected)


def test_fast_stop_after_a_stop_that_takes_too_long(daemon: Daemons) -> None:
    server = daemon()
    with server.connect() as client:
        client.sendall(b"GET /sleep/60 HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_for_connection(server)
        began = time.monotonic()
        slow = server.cli("stop", "--timeout", "0.5")
        assert slow.returncode == 1
        assert "still runs after 0.5 s" in slow.stderr
        assert "--fast" in slow.stderr
        fast = server.cli("stop", "--fast")
        assert fast.returncode == 0
        assert time.monotonic() - began < 30  # the graceful timeout was not waited for


@pytest.mark.parametrize("single", [False, True])
def test_fast_stop_is_fast_where_term_is_graceful(daemon: Daemons, single: bool) -> None:
    server = daemon(on_term="graceful", master_process=not single)
    with server.connect() as client:
        client.sendall(b"GET /sleep/60 HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_for_connection(server)
        began = time.monotonic()
        done = prefork(server, "stop", "--fast", "--pid", str(server.pid))
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - began < 20  # and not the 30 s of the graceful timeout


def test_without_a_pid_file_it_says_how_to_mend_that(daemon: Daemons) -> None:
    server = daemon(pid_file=None)
    done = server.cli("stop")
    assert done.returncode == 1
    assert "pid_file: run/prefork.pid" in done.stderr
    assert prefork(server, "stop", "--pid", str(server.pid)).returncode == 0


COLLECTING = """
import gc
import os

from prefork import Application

app = Application()
at_import = gc.isenabled()


@app.use
async def serve(ctx, next):
    ctx.body = f"{at_import} {gc.isenabled()} {gc.get_threshold()[0] > 0}"
"""


@pytest.mark.parametrize("master", [True, False])
def test_garbage_is_collected_again_once_the_server_is_loaded(
    daemon: Daemons, master: bool
) -> None:
    """A worker is a copy of its master, and what it sees at import is what the master has."""
    server = daemon(app=COLLECTING, workers=1, master_process=master)
    assert server.get("/").text == f"{master} True True"


def test_start_tells_the_configurations_warnings(daemon: Daemons) -> None:
    server = daemon(rlimits={"nofile": 4096})
    assert '"rlimits.nofile" (4096) is too few for "limits.connections" (10000)' in server.stderr
    assert re.search(r"conf\.yaml:\d+:\d+: warning: ", server.stderr)


def test_start_in_the_background(daemon: Daemons) -> None:
    server = daemon(start=False)
    done = server.cli("start", "--daemon")
    assert done.returncode == 0, done.stderr
    pid = int(server.pid_path.read_text())
    try:
        assert pid != os.getpid()
        assert server.get("/").status == 200
    finally:
        stopped = server.cli("stop")
    assert stopped.returncode == 0, stopped.stderr


@pytest.mark.parametrize(
    ("argv", "code", "answer"),
    [
        (["--set", "wrkers=2"], 78, "wrkers"),
        (["--set", "workers=many"], 78, "workers"),
        (["--set", "app=application:appp"], 1, "appp"),
        (["--set", "app=nowhere:app"], 1, "nowhere"),
    ],
)
def test_start_that_fails_has_no_traceback_of_ours(
    daemon: Daemons, argv: list[str], code: int, answer: str
) -> None:
    server = daemon(start=False)
    done = server.cli("start", *argv, timeout=30)
    assert done.returncode == code
    assert answer in done.stderr + server.log
    assert "prefork/cli" not in done.stderr
    assert done.stdout == ""
