"""`asgi`: an ASGI application behind the `wire` of tests/http (see the head of wire.py there).

def test_something(asgi):
    w = asgi(app)
    assert w.connect().get("/").status == 200

`hosted`: a WSGI application behind the real server, in the worker itself and in threads.
"""

from collections.abc import Callable
from typing import Any

import pytest

from prefork.event.executor import Executor
from prefork.gateway.asgi import AsgiHost
from tests.http.wire import wire

__all__ = ["wire"]

Make = Callable[..., Any]


@pytest.fixture
def asgi(wire: Make) -> Make:
    def make(app: Any, *, lifespan: str = "off", root_path: str = "", **settings: Any) -> Any:
        w = wire(**settings)
        host = AsgiHost(app, lifespan=lifespan, root_path=root_path)
        w.loop.run_until_complete(host.startup())
        w.server.handler = host.callback(executor=Executor(w.loop, 1), error_log=w.server.error_log)
        w.host = host
        return w

    return make


@pytest.fixture(params=[0, 2], ids=["inline", "threads"])
def hosted(request: pytest.FixtureRequest, daemon: Any) -> Callable[..., Any]:
    """`daemon(app=...)`, once with `threads: 0` and once with two threads."""

    def make(source: str, **config: Any) -> Any:
        server = daemon(app=source, threads=request.param, **config)
        server.threads = request.param
        return server

    return make
