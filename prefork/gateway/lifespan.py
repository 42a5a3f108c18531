"""The lifespan of an ASGI application in one worker (ASGI lifespan 2.0).

An application that does not know the protocol raises on its scope, or answers with what belongs to
another, and the specification bids the server to go on without it. So `auto` cannot tell an
application that has no lifespan from one whose start-up is broken and says so by raising: where
start-up had begun, that is told loudly. `on` takes any of it for a failed boot.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from prefork.errors import OperatorError

if TYPE_CHECKING:
    from prefork.log import ErrorLog

Mode = Literal["auto", "on", "off"]


class LifespanError(OperatorError):
    """The application could not start; `str()` is what it said, `__cause__` what it raised."""


class _OtherProtocolError(RuntimeError):
    """It answers the lifespan with what belongs to a request: it does not look at the scope."""


class Lifespan:
    """One call of the application with the scope `lifespan`; `state` is what it left there."""

    def __init__(self, app: Callable[..., Any], mode: Mode) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._mode = mode
        self._log: ErrorLog | None = None
        self._untold: tuple[str, BaseException] | None = None
        self._inbox: asyncio.Queue[dict[str, Any]]
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None]
        self._stopped: asyncio.Future[None]
        self._begun = False  # it has taken lifespan.startup
        self._complete = False
        self._asked = False  # to shut down

    async def startup(self) -> None:
        """Return when the application is ready. Raises LifespanError."""
        if self._mode == "off":
            return
        loop = asyncio.get_running_loop()
        self._inbox = asyncio.Queue()
        self._started = loop.create_future()
        self._stopped = loop.create_future()
        self._inbox.put_nowait({"type": "lifespan.startup"})
        self._task = loop.create_task(self._run(), name="lifespan")
        await self._started

    def report_to(self, log: "ErrorLog") -> None:
        """Where to say what is no failure; also what should have been said by now."""
        self._log = log
        untold, self._untold = self._untold, None
        if untold is not None:
            self._tell(*untold)

    def _tell(self, text: str, error: BaseException) -> None:
        if self._log is None:
            self._untold = (text, error)
        else:
            self._log.warn(text, exc=error)

    async def shutdown(self) -> None:
        """Return when the application has cleaned up. Raises LifespanError when it could not."""
        if not self._complete or self._task is None or self._task.done():
            return
        self._asked = True
        self._inbox.put_nowait({"type": "lifespan.shutdown"})
        try:
            await self._stopped
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except GeneratorExit:
            raise
        except BaseException as error:
            # An exit() would end the loop, and with it the worker, without a word; and whoever
            # waits for a start-up that was cancelled from within would wait for ever.
            self._over(error)
        else:
            self._over(None)

    async def _receive(self) -> dict[str, Any]:
        message = await self._inbox.get()
        self._begun = True
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if not self._started.done():
            if kind == "lifespan.startup.complete":
                self._complete = True
                self._started.set_result(None)
                return
            if kind == "lifespan.startup.failed":
                said = str(message.get("message") or "").rstrip()
                self._fail(f"its start-up failed{': ' + said if said else ''}", None)
                return
        elif self._complete and not self._stopped.done():
            if kind == "lifespan.shutdown.complete":
                self._stopped.set_result(None)
                return
            if kind == "lifespan.shutdown.failed":
                said = str(message.get("message") or "").rstrip()
                self._stopped.set_exception(
                    LifespanError(f"its shut-down failed{': ' + said if said else ''}")
                )
                return
        raise _OtherProtocolError(f"ASGI message {kind!r} is not expected in the lifespan now")

    def _fail(self, text: str, error: BaseException | None) -> None:
        failure = LifespanError(text)
        failure.__cause__ = error
        self._started.set_exception(failure)

    def _over(self, error: BaseException | None) -> None:
        """The application has returned or raised."""
        if not self._started.done():
            exits = error is not None and not isinstance(error, Exception)
            if self._mode == "on" or exits:
                what = "it raised in its lifespan" if error else "it has no lifespan"
                self._fail(f"{what} (lifespan: {self._mode})", error)
                return
            if self._begun and error is not None and not isinstance(error, _OtherProtocolError):
                self._tell(
                    "the application raised while it started and is served all the same, because"
                    " `lifespan` is `auto`; with `on` this is a failed boot",
                    error,
                )
            self._started.set_result(None)
        elif self._complete and not self._stopped.done():
            if error is None:
                self._stopped.set_result(None)
            elif self._asked:
                failure = LifespanError("it raised in its lifespan")
                failure.__cause__ = error
                self._stopped.set_exception(failure)
            else:
                self._tell("the application's lifespan ended by an error; it is served on", error)
