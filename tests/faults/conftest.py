"""The open-loop client beside a server, and what it has counted.

def test_something(faulty: "Faulty", open_loop: "type[OpenLoop]") -> None:
    server = faulty(workers=2)
    with open_loop(server) as client:
        server.send(signal.SIGHUP)
        client.wait_more(50)
    client.assert_none_failed()
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemons, Server

HERE = Path(__file__).resolve().parent
PATIENCE = 60.0  # seconds that a wait may take on a loaded machine

Faulty = Callable[..., "Server"]


class OpenLoop:
    """client.py against `server` for as long as the block runs; afterwards, its account."""

    def __init__(
        self, server: "Server", *targets: str, rate: float = 100.0, **options: float | str
    ) -> None:
        self._server = server
        self._command = [sys.executable, str(HERE / "client.py"), "--progress"]
        for name, value in {"rate": rate, **options}.items():
            self._command += [f"--{name}", str(value)]
        self._command += targets or (f"127.0.0.1:{server.port}",)
        self._told = server.directory / "client.txt"
        self.result: dict[str, Any] = {}

    def __enter__(self) -> "OpenLoop":
        with self._told.open("wb") as told:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told
            )
        self.wait_more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more requests; wait for what is under way."""
        if not self.result:
            try:
                out, _ = self._process.communicate(timeout=PATIENCE)
            finally:
                self._process.kill()
                self._process.wait()
            assert self._process.returncode == 0, self._told.read_text()
            self.result = json.loads(out)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Until now: answered, failed, and how many connections are open."""
        lines = self._told.read_text().splitlines()
        for line in reversed(lines):
            words = line.split()
            if len(words) == 3:
                return int(words[0]), int(words[1]), int(words[2])
        return 0, 0, 0

    def wait_more(self, number: int) -> None:
        """Wait until that many more requests have been answered, or one has failed."""
        begun = self.counts
        deadline = time.monotonic() + PATIENCE
        while (now := self.counts)[0] < begun[0] + number and now[1] == begun[1]:
            if time.monotonic() > deadline:
                pytest.fail(f"no answers: {begun}, then {now}\n{self._server.account()}")
            time.sleep(0.02)

    @property
    def failures(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.result["failures"]
        return found

    def assert_none_failed(self) -> None:
        assert not self.result["failed"], self.account()
        assert self.result["requests"] > 20

    def account(self) -> str:
        """What was counted, and what the server has said."""
        text = json.dumps(self.result, indent=1)
        return f"the client:\n{text}\n{self._server.account()}"


@pytest.fixture
def open_loop() -> type[OpenLoop]:
    """See the head of this file."""
    return OpenLoop


@pytest.fixture
def faulty(daemon: "Daemons") -> Faulty:
    """The `daemon` fixture with application.py of this directory."""
    return partial(daemon, app=(HERE / "application.py").read_text())


@pytest.fixture
def new_version() -> Callable[["Server"], str]:
    """Write the server's application anew, as the next version; its name."""

    def write(server: "Server") -> str:
        path = server.directory / "application.py"
        source = path.read_text()
        line = next(one for one in source.splitlines() if one.startswith("VERSION = "))
        number = int(line.removeprefix('VERSION = "v').removesuffix('"')) + 1
        version = f"v{number}"
        server.write_app(source.replace(line, f'VERSION = "{version}"'))
        return version

    return write
