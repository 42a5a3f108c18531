"""The application, imported and not yet started: what a mold holds, and each worker without one."""

import asyncio
import inspect
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefork.process.hosting import Hosted, host
from prefork.process.loading import AppLoadError, load_application, user_traceback

if TYPE_CHECKING:
    from prefork.config.schema import Config


@dataclass(frozen=True)
class Preloaded:
    """`application` is what the operator named; `hosted` is made of it and has not started."""

    application: object
    hosted: Hosted

    def renewed(self, conf: "Config") -> "Preloaded":
        """The same application, hosted anew: what was started once starts from its beginning."""
        return Preloaded(self.application, host(self.application, conf))


def preload(conf: "Config") -> Preloaded:
    """Import the application and run its `on_mold` hooks. Raises AppLoadError.

    In the mold, and where there is none, in the worker that imports for itself: an application
    that gets something ready there finds it ready with and without `preload`.
    """
    spec = conf.app or ""
    application = load_application(spec, conf.working_directory)
    hosted = host(application, conf)
    # Applications of other interfaces have no such hooks; their modules' own code does it.
    hooks = getattr(hosted.application, "mold_hooks", ())
    try:
        for hook in hooks:
            result = hook()
            if inspect.isawaitable(result):
                asyncio.run(_wait(result))  # in a loop of its own, which is closed by the end
    except (Exception, SystemExit) as error:
        raise AppLoadError(f'app "{spec}": on_mold failed\n{user_traceback(error)}') from None
    return Preloaded(application, hosted)


async def _wait(result: Awaitable[object]) -> None:
    await result
