"""The samples under conf/ start the framework they are for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Daemon = Callable[..., Any]
CONF = Path(__file__).parents[2] / "conf"

APPLICATIONS = {
    "fastapi": """
from fastapi import FastAPI
app = FastAPI()

@app.get("/")
async def hello():
    return "hello"
""",
    "starlette": """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def hello(request):
    return PlainTextResponse("hello")

app = Starlette(routes=[Route("/", hello)])
""",
    "quart": """
from quart import Quart
app = Quart(__name__)

@app.get("/")
async def hello():
    return "hello"
""",
    "litestar": """
from litestar import Litestar, get

@get("/")
async def hello() -> str:
    return "hello"

app = Litestar([hello])
""",
}


@pytest.mark.parametrize("name", sorted(APPLICATIONS))
def test_a_sample_serves(daemon: Daemon, name: str) -> None:
    server = daemon(start=False)
    sample = yaml.load((CONF / f"{name}.yaml").read_text(), yaml.BaseLoader)
    module = sample["app"].partition(":")[0]
    (server.directory / f"{module}.py").write_text(APPLICATIONS[name])
    listen, log = server.config["listen"], server.config["log"]
    server.write_config(**sample)
    server.write_config(listen=listen, log=log, workers=1)
    server.start()
    assert "hello" in server.get("/").text
    assert "ASGI 3" in server.log
    assert "[warn]" not in server.log
