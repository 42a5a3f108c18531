"""Process-wide state (masks, handlers, timers, ids) is tried in processes of its own."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python() -> Run:
    """Run a piece of Python; fails the test unless it exits with `code` and prints no error."""

    def run(
        source: str, *args: object, code: int = 0, env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(source), *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,  # so that its children can be ended with it
        )
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        assert process.returncode == code, out + err
        if code == 0:
            assert err == ""
        return subprocess.CompletedProcess(process.args, code, out, err)

    return run
