"""`prefork reload`: what it says, as text and as JSON, while it waits and at the end."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest import Daemons, Server


def report(server: Server, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = server.cli("reload", "--json", *arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


def source(server: Server) -> str:
    return (server.directory / "application.py").read_text()


def test_what_has_changed(daemon: Daemons) -> None:
    server = daemon(workers=2)
    (server.directory / "password").write_text("hunter2")
    server.write_config(
        workers=3,
        pid_file="run/other.pid",
        environment={"MODE": "fast", "API_TOKEN": "abc", "FROM_FILE": "${file:password}"},
        timeouts={"keep_alive": "5s"},
    )
    at = ("--pid-file", str(server.pid_path))  # where the file says it is now, nobody is
    folder = server.directory
    moved = {
        "key": "pid_file",
        "old": f"{folder}/run/prefork.pid",
        "new": f"{folder}/run/other.pid",
        "needs_restart": True,
    }
    seen = report(server, *at)
    assert 0 < seen.pop("seconds") < 30
    assert seen == {
        "ok": True,
        "generation": {"from": 1, "to": 2},
        "changed": [
            {"key": "workers", "old": 2, "new": 3, "needs_restart": False},
            moved,
            {"key": "timeouts.keep_alive", "old": 75.0, "new": 5.0, "needs_restart": False},
            *(
                {"key": f"environment.{name}", "old": None, "new": value, "needs_restart": False}
                for name, value in (
                    ("MODE", "fast"),
                    ("API_TOKEN", "[redacted]"),
                    ("FROM_FILE", "[redacted]"),
                )
            ),
        ],
        "workers": {"started": 3, "draining": 2},
        "error": None,
        "traceback": None,
    }
    # A secret that changes is said to change, and no more; what waits for a restart goes on to.
    (server.directory / "password").write_text("hunter3")
    done = server.cli("reload", *at)
    assert re.fullmatch(
        r"generation 2 -> 3, workers 3 -> 3, 3 draining, [\d.]+ s\n"
        rf"  pid_file: {folder}/run/prefork\.pid -> {folder}/run/other\.pid \(needs a restart\)\n"
        r"  environment\.FROM_FILE: \[redacted\] -> \[redacted\]\n",
        done.stdout,
    )
    server.write_config(pid_file="run/prefork.pid")
    server.config.pop("environment")
    server.write_config()
    assert [change["new"] for change in report(server)["changed"]] == [None] * 3
    assert report(server)["changed"] == []
    assert "hunter" not in server.log
    assert server.get().status == 200


def test_why_it_failed(daemon: Daemons) -> None:
    server = daemon(workers=2)
    server.expect("failed|Traceback")
    server.write_app("def connect():\n    raise RuntimeError('out of coffee')\n\nconnect()\n")
    seen = report(server, code=1)
    assert seen.pop("seconds") >= 0
    # Python 3.13 underlines also a call that is the whole line.
    seen["traceback"] = re.sub(r"\n +~+\^+(?=\n)", "", seen["traceback"])
    assert seen == {
        "ok": False,
        "generation": {"from": 1, "to": 1},
        "changed": [],
        "workers": {"started": 1, "draining": 0},
        "error": 'worker 3: app "application:app": importing application failed',
        "traceback": "Traceback (most recent call last):\n"
        f'  File "{server.directory}/application.py", line 4, in <module>\n    connect()\n'
        f'  File "{server.directory}/application.py", line 2, in connect\n'
        "    raise RuntimeError('out of coffee')\nRuntimeError: out of coffee",
    }
    server.write_config(workers="many")
    seen = report(server, code=1)
    assert seen["workers"] == {"started": 0, "draining": 0}
    assert re.match(r"conf\.yaml:\d+:\d+: error: .*workers", seen["error"])
    assert seen["traceback"] is None


def test_it_says_what_it_waits_for(daemon: Daemons) -> None:
    server = daemon(workers=2)
    good = source(server)
    server.write_app(f"import time\ntime.sleep(4)\n{good}")
    server.send(signal.SIGHUP)
    server.wait_for("reconfiguring")
    server.write_app(f"import time\ntime.sleep(2.5)\n{good}")
    done = server.cli("reload")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert re.fullmatch(
        r"reloading, 3 s: an earlier reload is at work: (canary: worker 3 of generation 2 boots"
        r"|1 of 2 workers ready)",
        lines[0],
    )
    assert re.fullmatch(
        r"reloading, \d+ s: (canary: worker \d of generation 3 boots|1 of 2 workers ready)",
        lines[-1],
    )
    assert "generation 2 -> 3" in done.stdout


def test_no_wait(daemon: Daemons) -> None:
    server = daemon()
    server.write_app(f"import time\ntime.sleep(2)\n{source(server)}")
    began = time.monotonic()
    done = server.cli("reload", "--no-wait")
    assert done.returncode == 0
    assert done.stdout.startswith(f"HUP sent to prefork (pid {server.pid})")
    assert "reconfigured" not in server.log or time.monotonic() - began > 2
    server.wait_for("reconfigured")
    both = server.cli("reload", "--no-wait", "--json")
    assert both.returncode == 2
    assert "no verdict" in both.stderr


def test_it_waits_as_long_as_the_master_does(daemon: Daemons) -> None:
    """Found by its pid file it knows no setting; the boot's time is the master's to tell."""
    server = daemon(start=False, timeouts={"boot": 300})
    server.start()
    server.write_app(f"import time\ntime.sleep(14)\n{source(server)}")
    done = server.cli("reload", "--pid-file", str(server.pid_path))
    assert done.returncode == 0, done.stderr
    assert "reloading, 12 s: canary" in done.stderr


def test_a_master_that_does_not_take_the_signal(daemon: Daemons) -> None:
    server = daemon()
    server.send(signal.SIGSTOP)
    try:
        done = server.cli("reload")
    finally:
        server.send(signal.SIGCONT)
    assert done.returncode == 1
    assert "the master has not taken the signal yet" in done.stderr
    server.wait_for("generation 1 -> 2")


def test_a_server_that_stops_meanwhile(daemon: Daemons) -> None:
    server = daemon(drain_delay=4)
    server.send(signal.SIGQUIT)
    server.wait_for("drain_delay")
    done = server.cli("reload")
    assert done.returncode == 1
    assert "the server is shutting down" in done.stderr


def test_the_old_master_of_an_upgrade_answers_too(daemon: Daemons) -> None:
    server = daemon()
    old = server.pid
    server.send(signal.SIGUSR2)
    server.wait_for(r"the new master \d+ is ready")
    new = server.written_pid
    seen = report(server, "--pid", str(old))
    assert (seen["ok"], seen["generation"]) == (True, {"from": 1, "to": 1})
    server.send(signal.SIGQUIT, new)
    server.wait_for(lambda: server.written_pid == old)


def test_a_single_process_tells_the_same(daemon: Daemons) -> None:
    server = daemon(master_process=False)
    server.write_config(umask="0o027", timeouts={"keep_alive": 5})
    seen = report(server)
    assert seen["generation"] == {"from": 1, "to": 2}
    assert [(change["key"], change["needs_restart"]) for change in seen["changed"]] == [
        ("timeouts.keep_alive", False),
        ("umask", True),
    ]
    server.write_config(workers=0)
    server.expect("reload failed")
    seen = report(server, code=1)
    assert "workers" in seen["error"]


def test_the_place_of_a_mistake_is_its_traceback(daemon: Daemons) -> None:
    server = daemon()
    good = source(server)
    server.expect("failed|Traceback")
    server.write_app("def f(:\n")
    seen = report(server, code=1)
    assert seen["error"] == 'worker 2: app "application:app": importing application failed'
    assert seen["traceback"].startswith(f'  File "{server.directory}/application.py", line 1\n')
    assert seen["traceback"].endswith("SyntaxError: invalid syntax")
    server.write_app(good + "\n@app.on_startup\nasync def connect():\n    raise OSError('no')\n")
    seen = report(server, code=1)
    assert seen["error"] == 'worker 2: app "application:app": on_startup failed'
    frames = re.findall(r'  File "([^"]+)"', seen["traceback"])
    assert frames == [f"{server.directory}/application.py"]
