"""The `daemon` fixture: the real server, in a directory of its own, and a strict farewell.

    def test_something(daemon: "Daemons") -> None:
        server = daemon(workers=2, timeouts={"graceful": 5})
        assert server.get("/").status == 200
        server.send(signal.SIGHUP)
        server.wait_for("reconfigured")

`daemon(...)` writes `application.py` and `conf.yaml` into a fresh directory, starts `python -m
prefork start -c conf.yaml` on a free port, with no terminal, and returns a `Server` when it is
ready. Keyword arguments are configuration keys; a mapping given for `log`, `timeouts`, `limits`
is merged into the defaults here. `app=` is the source of `application.py` (default: APPLICATION
below), `arguments=` more words for the command line, `environ=` more variables, `start=False`
leaves starting to the test (`server.start()`), `ready=False` does not wait.

The error log is `error.log`, the access log `access.log`, the pid file `run/prefork.pid`.

At the end of the test each server that still runs gets QUIT, and then is asserted: its exit code
(0, or the `server.exit_code` that the test has set), no process left with its directory as the
current one, no listening port, no socket file, no pid file, no line of level [error] or worse in
the error log and no traceback on stderr, unless the test has declared it: `server.expect("regex")`.
"""

import contextlib
import http.client
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

APPLICATION = '''
"""Says who it is, waits when asked, and takes a body."""

import asyncio
import os

from prefork import Application

app = Application()


@app.use
async def serve(ctx, next):
    if ctx.path.startswith("/sleep/"):
        await asyncio.sleep(float(ctx.path.removeprefix("/sleep/")))
    if ctx.path.startswith("/env/"):
        ctx.body = os.environ.get(ctx.path.removeprefix("/env/"), "")
        return
    ctx.body = f"{os.getpid()} {GREETING}"


GREETING = "hello"
'''

SLOW = 20.0  # seconds a wait may take on a loaded machine; nothing waits that long when well
_BAD_LINE = re.compile(r"\[(error|crit|alert|emerg)\]")


class Response:
    """A whole answer."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()

    @property
    def text(self) -> str:
        return self.body.decode()


class Server:
    """One server and its directory. Made by the `daemon` fixture."""

    def __init__(self, app: str, config: dict[str, Any], arguments: tuple[str, ...]) -> None:
        # Not under pytest's own directory, which only its user may enter: workers drop privileges.
        self.directory = Path(tempfile.mkdtemp(prefix="prefork-test-")).resolve()
        self.directory.chmod(0o755)
        self.port = free_port()
        self.config: dict[str, Any] = {
            "app": "application:app",
            "working_directory": str(self.directory),
            "listen": [f"127.0.0.1:{self.port}"],
            "workers": 1,
            "pid_file": "run/prefork.pid",
            "log": {"error": {"path": "error.log"}, "access": {"path": "access.log"}},
        }
        self.arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.exit_code = 0
        self._pid = 0
        self._expected: list[re.Pattern[str]] = []
        self._merge(config)
        self.write_config()
        self.write_app(app)

    # Files

    @property
    def config_path(self) -> Path:
        return self.directory / "conf.yaml"

    @property
    def pid_path(self) -> Path:
        return self.directory / "run/prefork.pid"

    @property
    def written_pid(self) -> int:
        """What the pid file says; 0 while there is none."""
        try:
            return int(self.pid_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    @property
    def log(self) -> str:
        """The whole error log."""
        return self._read("error.log")

    @property
    def stderr(self) -> str:
        return self._read("stderr.txt")

    @property
    def stdout(self) -> str:
        return self._read("stdout.txt")

    def _read(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def write_app(self, source: str) -> None:
        """Write application.py."""
        # In one step: a worker that is respawned right now sees the one or the other.
        fresh = self.directory / "application.py.new"
        fresh.write_text(source)
        fresh.replace(self.directory / "application.py")
        # A source of the same size and second would be taken for the compiled one.
        shutil.rmtree(self.directory / "__pycache__", ignore_errors=True)

    def write_config(self, **changes: Any) -> None:
        """Write conf.yaml, with these keys changed."""
        self._merge(changes)
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def _merge(self, changes: Mapping[str, Any]) -> None:
        for key, value in changes.items():
            if isinstance(value, Mapping) and isinstance(self.config.get(key), dict):
                self.config[key] = {**self.config[key], **value}
            else:
                self.config[key] = value

    # Life

    def start(self, *, ready: bool = True, environ: Mapping[str, str] | None = None) -> None:
        """Execute the server; with `ready`, return when its workers are."""
        with (
            (self.directory / "stdout.txt").open("ab") as out,
            (self.directory / "stderr.txt").open("ab") as err,
        ):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prefork", "start", "-c", "conf.yaml", *self.arguments],
                cwd=self.directory,
                env={**_clean_environment(), **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._pid = self.process.pid
        if ready:
            self.wait_for("ready on ")

    @property
    def pid(self) -> int:
        """The master's. For a daemon, or after an upgrade, a test sets it to the one it means."""
        return self._pid

    @pid.setter
    def pid(self, pid: int) -> None:
        self._pid = pid

    def pids(self, parent: int | None = None) -> list[int]:
        """The living children of the master (or of `parent`), by age."""
        return children(parent or self._pid)

    def send(self, number: int, pid: int | None = None) -> None:
        os.kill(pid or self._pid, number)

    def wait(self, timeout: float = SLOW) -> int:
        """Wait for the master's end; its exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGQUIT) -> int:
        """Send a signal, wait for the end, give the exit code."""
        self.send(number)
        return self.wait()

    def cli(
        self, command: str, *arguments: str, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `prefork COMMAND -c conf.yaml ...`."""
        return subprocess.run(
            [sys.executable, "-m", "prefork", command, "-c", "conf.yaml", *arguments],
            cwd=self.directory,
            env=_clean_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    # Looking at it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str = "/", timeout: float = SLOW, port: int | None = None) -> Response:
        """GET over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Connection": "close"})
            return Response(connection.getresponse())

    def connect(self) -> socket.socket:
        """A connection of its own, with nothing sent."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=SLOW)

    def wait_for(
        self, what: str | Callable[[], object], *, since: int = 0, timeout: float = SLOW
    ) -> None:
        """Wait until the error log (from offset `since`) matches a regex, or a call is true."""
        if isinstance(what, str):
            pattern = re.compile(what)
            self._wait(lambda: pattern.search(self.log, since), what, timeout)
        else:
            self._wait(what, "the condition", timeout)

    def _wait(self, condition: Callable[[], object], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            process = self.process
            ours = process is not None and process.pid == self._pid
            if ours and process.poll() is not None and not condition():
                pytest.fail(f"the server ended before {what!r} came\n{self.account()}")
            if time.monotonic() > deadline:
                pytest.fail(f"{what!r} did not come within {timeout:g} s\n{self.account()}")
            time.sleep(0.01)

    def expect(self, pattern: str) -> None:
        """Declare lines of the error log, or tracebacks on stderr, that the test provokes."""
        self._expected.append(re.compile(pattern))

    def account(self) -> str:
        """Everything it has said."""
        return f"error.log:\n{self.log}\nstderr:\n{self.stderr}\nstdout:\n{self.stdout}"

    # The farewell

    def close(self) -> None:
        """Stop what still runs and assert that nothing is left of it."""
        if not self.directory.exists():
            return  # the test has done so itself
        try:
            if self.process is not None:
                if self.process.poll() is None:
                    self.send(signal.SIGQUIT, self.process.pid)
                try:
                    code = self.process.wait(SLOW + 20)
                except subprocess.TimeoutExpired:
                    pytest.fail(f"it does not stop\n{self.account()}")
                assert code == self.exit_code, self.account()
                if self._pid != self.process.pid and self._pid in living_in(self.directory):
                    self.send(signal.SIGQUIT)
                self._assert_nothing_left()
        finally:
            for pid in living_in(self.directory):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.directory, ignore_errors=True)

    def _assert_nothing_left(self) -> None:
        # A worker that is orphaned leaves on its own, but not in the same instant.
        deadline = time.monotonic() + SLOW
        while (left := living_in(self.directory)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left, f"processes left: {left}\n{self.account()}"
        # The kernel closes a dead process's sockets a moment after it forgot its directory.
        while not can_bind(self.port) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert can_bind(self.port), f"port {self.port} is still taken\n{self.account()}"
        for path in self.directory.rglob("*"):
            assert not stat.S_ISSOCK(path.lstat().st_mode), f"socket left: {path}"
            assert not path.name.endswith((".pid", ".oldbin")), f"pid file left: {path}"
        for text in (self.log, self.stderr):
            for line in text.splitlines():
                if _BAD_LINE.search(line) or line.startswith("Traceback"):
                    known = any(pattern.search(line) for pattern in self._expected)
                    assert known, f"unexpected: {line}\n{self.account()}"


class Daemons:
    """What the fixture is: call it for a server."""

    def __init__(self) -> None:
        self.servers: list[Server] = []

    def __call__(
        self,
        *,
        app: str = APPLICATION,
        arguments: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        start: bool = True,
        ready: bool = True,
        **config: Any,
    ) -> Server:
        server = Server(app, config, arguments)
        self.servers.append(server)
        if start:
            server.start(ready=ready, environ=environ)
        return server


@pytest.fixture
def daemon() -> Iterator[Daemons]:
    """See the head of this file."""
    daemons = Daemons()
    try:
        yield daemons
    finally:
        failures = []
        for server in daemons.servers:
            try:
                server.close()
            except (Exception, pytest.fail.Exception) as error:
                failures.append(error)
        if failures:
            raise failures[0]


class Load:
    """A small closed-loop client: `threads` of them ask `path` until told to stop.

    Half use a fresh connection for each request, half keep theirs until the server announces its
    end. `failures` holds what went wrong, `answers` what was answered; a keep-alive connection
    that the server closes without `Connection: close` between two requests counts as failed.
    """

    def __init__(self, server: Server, path: str = "/", threads: int = 4) -> None:
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._server = server
        self._path = path
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number % 2 == 0,), daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        self.wait_more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(SLOW)

    def wait_more(self, number: int) -> None:
        """Wait until that many more requests have been answered."""
        goal = len(self.answers) + number
        deadline = time.monotonic() + SLOW
        while len(self.answers) < goal and not self.failures and time.monotonic() < deadline:
            time.sleep(0.005)

    def _ask(self, keep: bool) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection(
                    "127.0.0.1", self._server.port, timeout=SLOW
                )
            try:
                connection.request(
                    "GET", self._path, headers={} if keep else {"Connection": "close"}
                )
                answer = connection.getresponse()
                text = answer.read().decode()
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {text}")
                else:
                    self.answers.append(text)
                if answer.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                connection = None
            time.sleep(0.002)
        if connection is not None:
            connection.close()


@pytest.fixture
def load() -> type[Load]:
    """`with load(server) as client: ...; assert not client.failures`."""
    return Load


def free_port() -> int:
    """A port nobody listens on, outside the range that outgoing connections take theirs from."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def children(parent: int) -> list[int]:
    """The children of `parent` that are no zombies, oldest first."""
    found = []
    for pid in _all_pids():
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append((int(fields[19]), pid))
    return [pid for _, pid in sorted(found)]


def living_in(directory: Path) -> list[int]:
    """The processes whose current directory this is, or is under this."""
    found = []
    for pid in _all_pids():
        with contextlib.suppress(OSError):
            where = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
            if Path(where).is_relative_to(directory):
                found.append(pid)
    return found


def _all_pids() -> list[int]:
    return [
        int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()
    ]


def _clean_environment() -> dict[str, str]:
    """Ours, without what another server or a service manager may have left in it."""
    foreign = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "PREFORK", "JOURNAL_STREAM")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
