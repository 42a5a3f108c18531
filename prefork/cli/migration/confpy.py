"""gunicorn.conf.py is a program: it runs in a child process, and what it leaves is read.

    python -m prefork.cli.migration.confpy FILE   (or `python:package.module`)

prints a JSON object of its globals to the descriptor that is the second argument. The child is a
session of its own, so that whatever the file has started ends with the time it is given.
"""

import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from prefork.errors import OperatorError

TIMEOUT: Final = 20.0
_FAILED: Final = 70
_WORKERS: Final = (
    "gunicorn.workers.g",
    "gunicorn.workers.sync",
    "uvicorn.workers",
    "uvicorn_worker",
)


class Global(NamedTuple):
    """A name that the file has set. `value` is plain data, or None and `kind` says what it was.
    `source` is the expression when it is more than a literal; `used` tells a helper, which the
    file itself reads, from a setting that only the server could read."""

    value: Any
    kind: str
    source: str
    used: bool


def read(name: str, cwd: str, environ: Mapping[str, str], timeout: float) -> dict[str, Global]:
    """Execute the file and return what it has set. Raises OperatorError with the file's own
    traceback, or when it takes longer than `timeout` seconds."""
    if not name.startswith("python:"):
        name = os.path.join(cwd, name.removeprefix("file:"))
        if not os.path.isfile(name):
            raise OperatorError(f'"{name}" is no file')
    with tempfile.TemporaryFile() as answers:
        child = subprocess.Popen(
            [sys.executable, "-m", "prefork.cli.migration.confpy", name, str(answers.fileno())],
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(answers.fileno(),),
            start_new_session=True,
        )
        try:
            _, said = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            raise OperatorError(
                f"{name} was executed and has not ended after {timeout:g} s: killed"
            ) from None
        answers.seek(0)
        answer = answers.read()
    if child.returncode != 0 or not answer:
        text = said.decode(errors="replace").strip()
        raise OperatorError(f"{name} was executed and {_ended(child.returncode)}\n{text}".rstrip())
    return {key: Global(*fields) for key, fields in json.loads(answer).items()}


def _ended(status: int) -> str:
    if status < 0:
        return f"died of {signal.Signals(-status).name}"
    return "failed" if status == _FAILED else f"ended itself with the exit status {status}"


def main(name: str, descriptor: int) -> int:
    """The child: its own errors are the file's."""
    from prefork.process.loading import user_traceback

    os.set_inheritable(descriptor, False)
    sys.path.insert(0, os.getcwd())
    try:
        if name.startswith("python:"):
            import importlib

            module = importlib.import_module(name.removeprefix("python:"))
            space: dict[str, Any] = vars(module)
            name = module.__file__ or name
            with open(name, "rb") as file:
                text = file.read()
        else:
            with open(name, "rb") as file:
                text = file.read()
            space = {"__name__": "__config__", "__file__": name, "__builtins__": __builtins__}
            exec(compile(text, name, "exec"), space)
    except BaseException as error:
        sys.stderr.write(user_traceback(error) + "\n")
        if isinstance(error, ModuleNotFoundError):
            sys.stderr.write(
                f"it was executed by {sys.executable}: install prefork where {error.name} is, and"
                " run `prefork migrate` from there\n"
            )
        return _FAILED
    sources = expressions(text)
    used = {
        node.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    table = {}
    for key, value in space.items():
        if key.startswith("_") or type(value).__name__ == "module":
            continue
        plain, kind = _plain(value)
        table[key] = Global(plain, kind, sources.get(key, ""), key in used)
    with open(descriptor, "w") as pipe:
        json.dump(table, pipe)
    return 0


def expressions(text: bytes) -> dict[str, str]:
    """Name → the source of its last assignment, for those that are more than literals."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, (ast.Assign, ast.AnnAssign)):
                found[target.id] = _source(node.value)
    return found


def _source(node: ast.expr | None) -> str:
    try:
        ast.literal_eval(node)  # type: ignore[arg-type]  # None is refused as every other thing is
    except (ValueError, TypeError):
        return ast.unparse(node) if node is not None else ""
    return ""


def _plain(value: object) -> tuple[Any, str]:
    """What JSON can say, and for everything else what it is."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value, ""
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item)[0] for item in value], ""
    if isinstance(value, dict):
        return {str(key): _plain(item)[0] for key, item in value.items()}, ""
    if isinstance(value, type):
        # Of a worker class that the file makes itself, the server's own that it is made from.
        known = (one for one in value.__mro__ if one.__module__.startswith(_WORKERS))
        found = next(known, value)
        kind = "class" if found is value else "subclass"
        return f"{found.__module__}.{found.__qualname__}", kind
    if isinstance(value, os.PathLike):
        return str(value), ""
    return None, "function" if callable(value) else type(value).__name__


if __name__ == "__main__":
    status = main(sys.argv[1], int(sys.argv[2]))
    sys.stderr.flush()
    # Not by way of SystemExit: threads that the file has started would be waited for.
    os._exit(status)
