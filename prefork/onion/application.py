"""`Application`: layers, hooks, and the handler that HTTP is given.

app = Application()

@app.use
async def hello(ctx, next):
    ctx.body = "Hello"
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from prefork.event.bridge import is_cancelled
from prefork.onion.compose import Middleware, check_middleware, layers_of, link
from prefork.onion.context import Context, Service
from prefork.onion.respond import as_mistake, close_held, respond, respond_to_error

if TYPE_CHECKING:
    from prefork.event.executor import Executor
    from prefork.http.exchange import Exchange, Handler
    from prefork.log import ErrorLog

M = TypeVar("M", bound=Middleware)
Hook = Callable[[], Any]  # what it returns is awaited when it can be
ErrorListener = Callable[[Exception, Context], Any]
H = TypeVar("H", bound=Hook)
L = TypeVar("L", bound=ErrorListener)


class Application:
    """An onion of middleware. Give it to prefork as `module:app`.

    `proxy`: believe X-Forwarded-Proto, -Host and -For, whoever sends them. The setting
    `forwarded.trust` is the better way: where it names anybody, it decides and `proxy` does not.

    `refork`: set it to False, at any time, where a worker must not become the process that others
    are forked from (`refork_after`): its state could not be shared, or its `on_shutdown` hooks do
    not undo what its `on_startup` hooks did.
    """

    def __init__(self, *, proxy: bool = False) -> None:
        self.proxy = proxy
        self.layers: list[Middleware] = []
        self.error_listeners: list[ErrorListener] = []
        self.mold_hooks: list[Hook] = []
        self.refork = True
        # Whom to ask for a worker in place of this one, and why; the worker sets it.
        self.replace_worker: Callable[[str], None] = _nothing
        self._asked = False
        self._startup: list[Hook] = []
        self._shutdown: list[Hook] = []

    def use(self, middleware: M) -> M:
        """Add the next inner layer; also as a decorator. See `prefork.onion.compose` for its forms.

        A layer with `startup` and `shutdown` of its own, as a hosted application is, has them
        called with the hooks. Raises TypeError for what cannot be a layer.
        """
        check_middleware(middleware)
        self.layers.append(middleware)
        for layer in layers_of(middleware):
            if hasattr(layer, "startup") and hasattr(layer, "shutdown"):
                self._startup.append(layer.startup)
                self._shutdown.append(layer.shutdown)
        return middleware

    def on_error(self, listener: L) -> L:
        """Call `listener(error, ctx)`, plain or async, for each error that leaves the onion.

        The listeners take the place of the error log's entry. The answer is made afterwards.
        """
        self.error_listeners.append(listener)
        return listener

    def on_mold(self, hook: H) -> H:
        """Call `hook()`, plain or async, once where the application is imported; in order.

        With `preload` that is the process from which all workers are forked: what the hook builds
        they share. It is no place for threads, connections and loops, which no fork carries along;
        those belong into `on_startup`. Without `preload` each worker imports, and calls it.
        """
        self.mold_hooks.append(hook)
        return hook

    def on_startup(self, hook: H) -> H:
        """Call `hook()`, plain or async, in each worker before it accepts; in order."""
        self._startup.append(hook)
        return hook

    def on_shutdown(self, hook: H) -> H:
        """Call `hook()`, plain or async, in each worker after its last request; last one first."""
        self._shutdown.append(hook)
        return hook

    async def startup(self) -> None:
        """Run the start-up hooks; the first that raises ends it."""
        for hook in self._startup:
            await _call(hook)

    async def shutdown(self) -> None:
        """Run all shut-down hooks, then raise what the first broken one raised."""
        first: Exception | None = None
        for hook in reversed(self._shutdown):
            try:
                await _call(hook)
            except (Exception, SystemExit, KeyboardInterrupt) as raised:
                error = raised if isinstance(raised, Exception) else as_mistake(raised)
                if first is None:
                    first = error
                else:
                    first.add_note(f"then {hook!r} raised {error!r}")
        if first is not None:
            raise first

    def callback(self, *, executor: "Executor", error_log: "ErrorLog") -> "Handler":
        """The handler for an HTTP server, made of the layers there are now."""
        service = Service(self, executor, error_log)
        enter = link(self.layers)

        async def handle(exchange: "Exchange") -> None:
            ctx = Context(exchange, service)
            try:
                await enter(ctx)
                streaming = respond(ctx)
                if streaming is not None:
                    await streaming
            except Exception as error:
                await respond_to_error(ctx, error)
            except (SystemExit, KeyboardInterrupt) as error:
                # asyncio would end its loop for these two, and every other request with it.
                await respond_to_error(ctx, as_mistake(error))
                if isinstance(error, SystemExit):
                    self.called_exit()
            except asyncio.CancelledError as error:
                if is_cancelled():
                    raise
                await respond_to_error(ctx, as_mistake(error))
            finally:
                if ctx._held is not None:
                    await close_held(ctx)

        return handle

    def called_exit(self) -> None:
        """A request called exit(): what it has left behind is not to be trusted for long."""
        if not self._asked:
            self._asked = True
            self.replace_worker("the application called exit()")


def _nothing(_reason: str) -> None:
    pass


async def _call(hook: Hook) -> None:
    result: Awaitable[None] | None = hook()
    if inspect.isawaitable(result):
        await result
