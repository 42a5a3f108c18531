"""A reload that cannot be: nothing fails, and the same processes serve on."""

import signal
import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.faults.conftest import Faulty, OpenLoop


def broken_import(server: "Server") -> None:
    server.write_app("raise RuntimeError('not today')\n")


def broken_syntax(server: "Server") -> None:
    server.write_app("def f(:\n")


def broken_startup(server: "Server") -> None:
    source = (server.directory / "application.py").read_text()
    server.write_app(source + "\n\n@app.on_startup\nasync def fail():\n    raise OSError('no')\n")


def dies_while_booting(server: "Server") -> None:
    server.write_app("import os\nos.kill(os.getpid(), 9)\n")


def never_ready(server: "Server") -> None:
    server.write_app("import time\ntime.sleep(1000)\n")


def broken_config(server: "Server") -> None:
    server.config_path.write_text("workers: [many\n")


def wrong_config(server: "Server") -> None:
    server.write_config(workers="some")


def taken_port(server: "Server") -> None:
    listen = [f"127.0.0.1:{server.port}", server.config["taken"]]
    taken = server.config.pop("taken")
    server.write_config(listen=[*listen[:1], taken])


BROKEN = (
    broken_import,
    broken_syntax,
    broken_startup,
    dies_while_booting,
    never_ready,
    broken_config,
    wrong_config,
    taken_port,
)


LONG = pytest.param(10, marks=[pytest.mark.stress, pytest.mark.timeout(900)])


@pytest.mark.parametrize("number", [1, LONG])
def test_nothing_fails_and_the_same_pids_serve(
    faulty: "Faulty", open_loop: "type[OpenLoop]", number: int
) -> None:
    # Short, for the worker that never gets ready; long enough for those that do.
    server = faulty(workers=2, timeouts={"boot": "3s"})
    source = (server.directory / "application.py").read_text()
    good = dict(server.config)
    before = server.pids()
    server.expect("failed to start|reload failed|was not ready|exited on signal [69]|Traceback")
    with socket.socket() as somebody, open_loop(server) as client:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        for _ in range(number):
            for harm in BROKEN:
                server.write_app(source)
                server.config = dict(good)
                server.write_config()
                if harm is taken_port:
                    server.config["taken"] = f"127.0.0.1:{somebody.getsockname()[1]}"
                harm(server)
                since = len(server.log)
                server.send(signal.SIGHUP)
                server.wait_for("reload failed, generation 1 serves on", since=since, timeout=60)
                server.wait_for(lambda: server.pids() == before, timeout=60)
        client.wait_more(50)
    client.assert_none_failed()
    assert set(map(int, client.result["workers"])) <= set(before)
    assert set(client.result["versions"]) == {"v1"}

    # And when it is repaired, it goes on.
    server.write_app(source)
    server.config = good
    server.write_config()
    server.send(signal.SIGHUP)
    server.wait_for("reconfigured: generation", timeout=60)
