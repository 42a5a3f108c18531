"""prefork: a Python web application runs the way nginx runs.

What an application imports is here and is loaded on first use, so that the command line and the
master never pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Application",
    "Context",
    "HttpError",
    "Next",
    "__version__",
    "asgi",
    "compose",
    "quick",
    "wsgi",
]

if TYPE_CHECKING:
    from prefork.errors import HttpError
    from prefork.gateway.asgi_layer import asgi
    from prefork.gateway.layer import wsgi
    from prefork.onion.application import Application
    from prefork.onion.compose import Next, compose, quick
    from prefork.onion.context import Context

_PLACES = {
    "Application": "prefork.onion.application",
    "Context": "prefork.onion.context",
    "HttpError": "prefork.errors",
    "Next": "prefork.onion.compose",
    "asgi": "prefork.gateway.asgi_layer",
    "compose": "prefork.onion.compose",
    "quick": "prefork.onion.compose",
    "wsgi": "prefork.gateway.layer",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
