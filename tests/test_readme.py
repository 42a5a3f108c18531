"""Every command of the README is run, in a copy of the project, in the order of the page.

A fenced block says in its info string what becomes of it: `file=NAME` is written to that file,
`test=run` must succeed, `test=serve` runs in a terminal of its own until the next of its kind or
a `test=daemon`, `test=suite` is what CI runs, `test=container` is a Dockerfile whose command is
run, `test=systemd` is run on a machine of its own by tests/systemd. Port 8000 is replaced by a
free one wherever it appears.
"""

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
COPIED = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "prefork", "conf", "systemd")
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    role: str  # "test=run", "file=hello.py", ...
    text: str


BLOCKS = [Block(m[1], m[2].strip(), m[3]) for m in FENCE.finditer(README)]


def test_every_block_of_commands_says_how_it_is_tested() -> None:
    roles = {f"test={role}" for role in ("run", "serve", "daemon", "suite", "systemd", "container")}
    for block in BLOCKS:
        if block.language in ("sh", "bash", "console", "python", "dockerfile"):
            assert block.role in roles or block.role.startswith("file="), block
    assert sum(block.role == "test=suite" for block in BLOCKS) == 1
    assert "test=suite" in (REPOSITORY / ".ci/run").read_text()


class Reader:
    """Somebody who follows the page in a clone, with a shell and a second terminal."""

    def __init__(self, clone: Path, port: int) -> None:
        self.clone = clone
        self.port = port
        self.log = clone / "server.log"
        self.environ = {
            **os.environ,
            "PATH": f"{clone}/.venv/bin:{os.environ['PATH']}",
            "PYTHONPATH": "",
        }
        self.server: subprocess.Popen[bytes] | None = None

    def follow(self, block: Block) -> None:
        if block.role.startswith("file="):
            (self.clone / block.role.removeprefix("file=")).write_text(block.text)
        elif block.role == "test=serve":
            self.stop()
            self.serve(["bash", "-ec", self.ported(block.text)])
        elif block.role == "test=daemon":
            self.stop()
            self.run(block.text)
        elif block.role == "test=run":
            self.run(block.text)
        elif block.role == "test=container":
            self.stop()
            self.contain(block.text)

    def ported(self, text: str) -> str:
        """The same commands on our port: in the files they name, and where they name none."""
        for path in [self.clone / "conf.yaml", *self.clone.glob("conf/*.yaml")]:
            if path.exists() and "8000" in (found := path.read_text()):
                path.write_text(found.replace("8000", str(self.port)))
        text = text.replace("8000", str(self.port))
        here = f"--set listen=127.0.0.1:{self.port}"
        return re.sub(r"^(prefork start \w+:\w+)$", rf"\1 {here}", text, flags=re.MULTILINE)

    def run(self, text: str) -> None:
        if shutil.which("curl") is None and os.environ.get("CI") != "true":
            text = re.sub(r"^curl .*$", "true", text, flags=re.MULTILINE)
        text = text.replace("curl ", "curl -sS --fail ")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.ported(text)],
            cwd=self.clone,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"

    def serve(self, argv: list[str]) -> None:
        with self.log.open("wb") as log:
            self.server = server = subprocess.Popen(
                argv,
                cwd=self.clone,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # no terminal, and one group to signal as Ctrl-C does
            )
        deadline = time.monotonic() + 100
        while not self.answers():
            assert server.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ctrl-C; whatever serves must end with 0."""
        if self.server is None:
            return
        os.killpg(self.server.pid, number)
        assert self.server.wait(60) == 0, self.log.read_text()
        self.server = None

    def contain(self, dockerfile: str) -> None:
        """The image's command starts a server, and its stop signal ends it well."""
        said = dict(line.split(" ", 1) for line in dockerfile.splitlines())
        command = json.loads(said["CMD"])
        self.serve(shlex.split(self.ported(shlex.join(command))))
        self.stop(signal.Signals[said["STOPSIGNAL"]])

    def leave(self) -> None:
        """Whatever happened, nothing of ours stays behind."""
        if self.server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait(10)
        pid_file = self.clone / "run/prefork.pid"
        if pid_file.exists():
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Reader(tmp_path, port)
    try:
        yield made
    finally:
        made.leave()


@pytest.mark.timeout(600)
def test_following_the_page(reader: Reader) -> None:
    for block in BLOCKS:
        reader.follow(block)
    assert not (reader.clone / "run/prefork.pid").exists()
    assert not reader.answers()
