"""The samples under conf/, used as they say of themselves, serve the framework they are for."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Daemon = Callable[..., Any]
CONF = Path(__file__).parents[2] / "conf"


class Sample(NamedTuple):
    name: str
    module: str  # what its user has; "" for a project that Django writes
    source: str
    found: str  # the ready line, of what it hosts
    changes: tuple[tuple[str, str], ...] = ()  # that the file's comments speak of


TO_ASGI = ("interface: wsgi", "interface: asgi")
SAMPLES = {
    "flask": Sample(
        "flask",
        "main",
        """
from flask import Flask
app = Flask(__name__)

@app.get("/")
def hello():
    return "hello"
""",
        "WSGI",
    ),
    "django": Sample("django", "", "", "WSGI"),
    "django by asgi": Sample(
        "django",
        "",
        "",
        "ASGI 3",
        (("project.wsgi:application", "project.asgi:application"), TO_ASGI),
    ),
    "falcon": Sample(
        "falcon",
        "main",
        """
import falcon

class Hello:
    def on_get(self, req, resp):
        resp.text = "hello"

app = falcon.App()
app.add_route("/", Hello())
""",
        "WSGI",
    ),
    "falcon by asgi": Sample(
        "falcon",
        "main",
        """
import falcon.asgi

class Hello:
    async def on_get(self, req, resp):
        resp.text = "hello"

app = falcon.asgi.App()
app.add_route("/", Hello())
""",
        "ASGI 3",
        (TO_ASGI,),
    ),
    "fastapi": Sample(
        "fastapi",
        "main",
        """
from fastapi import FastAPI
app = FastAPI()

@app.get("/")
async def hello():
    return "hello"
""",
        "ASGI 3",
    ),
    "starlette": Sample(
        "starlette",
        "main",
        """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def hello(request):
    return PlainTextResponse("hello")

app = Starlette(routes=[Route("/", hello)])
""",
        "ASGI 3",
    ),
    "quart": Sample(
        "quart",
        "main",
        """
from quart import Quart
app = Quart(__name__)

@app.get("/")
async def hello():
    return "hello"
""",
        "ASGI 3",
    ),
    "litestar": Sample(
        "litestar",
        "app",
        """
from litestar import Litestar, get

@get("/")
async def hello() -> str:
    return "hello"

app = Litestar([hello])
""",
        "ASGI 3",
    ),
}


def test_each_sample_is_tried() -> None:
    names = {path.stem for path in CONF.glob("*.yaml")} - {"prefork"}
    assert names == {sample.name for sample in SAMPLES.values()}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_sample_serves(daemon: Daemon, sample: Sample) -> None:
    server = daemon(start=False)
    if sample.module:
        (server.directory / f"{sample.module}.py").write_text(sample.source)
    else:
        command = [sys.executable, "-m", "django", "startproject", "project", "."]
        subprocess.run(command, cwd=server.directory, check=True, timeout=60)
    text = (CONF / f"{sample.name}.yaml").read_text()
    for old, new in sample.changes:
        code, comment = next(line for line in text.splitlines() if old in line).split("  # ")
        # The line itself tells how.
        assert new.split(": ")[-1] in comment
        text = text.replace(code, code.replace(old, new))
    # Where its first line says it goes, and started as that says.
    told = re.match(r"#.*: copy this beside (\S+), then `prefork start -c (\S+)`\n", text)
    assert told is not None
    beside, name = told.groups()
    assert (server.directory / beside).exists()
    (server.directory / name).write_text(text)
    checked = subprocess.run(
        [sys.executable, "-m", "prefork", "check", "-c", name, "--app"],
        cwd=server.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert f"(imported: {sample.found}" in checked.stdout
    assert "warning" not in checked.stdout + checked.stderr
    here = {
        "listen": f"127.0.0.1:{server.port}",
        "workers": 1,
        "log.error.path": "error.log",
        "log.access.path": "access.log",
    }
    server.arguments = ("-c", name, *(f"--set={key}={value}" for key, value in here.items()))
    server.start()
    answer = server.get("/")
    assert answer.status == 200
    assert ("hello" if sample.module else "The install worked successfully") in answer.text
    assert sample.found in server.log
    assert "[warn]" not in server.log
    assert server.stop() == 0
    assert '"GET / HTTP/1.1" 200' in (server.directory / "access.log").read_text()
