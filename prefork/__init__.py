"""prefork: a Python web application runs the way nginx runs.

`Application` is the public entry of the onion; it is imported on first use, so that the
command line and the master never pay for it.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Application", "__version__", "quick"]

if TYPE_CHECKING:
    from prefork.onion.application import Application
    from prefork.onion.compose import quick


def __getattr__(name: str) -> Any:
    if name == "Application":
        from prefork.onion.application import Application

        return Application
    if name == "quick":
        from prefork.onion.compose import quick

        return quick
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
