"""What the ready line says of an application beside its interface."""

from pathlib import Path
from typing import Any

import pytest

from prefork import Application
from prefork.config.loader import ConfigSource
from prefork.process.hosting import host


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...
def wsgi(environ: Any, start_response: Any) -> Any: ...


@pytest.mark.parametrize(
    ("application", "setting", "said"),
    [
        (asgi, "threads=4", "; `threads: 4` has no effect: it is for WSGI"),
        (Application(), "threads=4", "; `threads: 4` has no effect: it is for WSGI"),
        (wsgi, "lifespan=on", '; `lifespan: "on"` has no effect: it is for ASGI'),
        (wsgi, "threads=4", "two-argument callable"),
        (asgi, "lifespan=on", "three-argument coroutine function"),
        (wsgi, "lifespan=off", "two-argument callable"),
    ],
)
def test_what_is_set_for_another_interface(
    application: Any, setting: str, said: str, tmp_path: Path
) -> None:
    conf = ConfigSource(None, (setting,), "shop:app", str(tmp_path)).load()
    assert host(application, conf).interface.endswith(said)
