"""A WSGI application as a worker hosts it (PEP 3333)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefork.gateway.environ import Environs
from prefork.gateway.inline import Inline
from prefork.gateway.pool import ThreadPool
from prefork.gateway.threaded import Threaded
from prefork.gateway.transmitter import Transmitter
from prefork.gateway.wsgierrors import ErrorStream

if TYPE_CHECKING:
    from prefork.event.executor import Executor
    from prefork.http.exchange import Handler
    from prefork.log import ErrorLog


class Wsgi:
    """`threads` and `root_path` are the settings of these names; `multiprocess`: other processes
    may run it, too."""

    def __init__(
        self,
        application: Callable[..., Any],
        *,
        threads: int = 0,
        multiprocess: bool = True,
        root_path: str = "",
    ) -> None:
        self.application = application
        self.threads = threads
        self.multiprocess = multiprocess
        self.root_path = root_path
        # Whom to ask for a worker in place of this one, and why; the worker sets it.
        self.replace_worker: Callable[[str], None] = _nothing
        self._asked = False
        self._pool: ThreadPool | None = None
        self._transmitter = Transmitter()

    async def startup(self) -> None:
        """Nothing: WSGI has no such event."""

    async def shutdown(self) -> None:
        """Wait for the threads. Cancelled when the worker has no more time for them."""
        self._transmitter.close()
        if self._pool is not None:
            await self._pool.shutdown()

    def callback(self, *, executor: "Executor", error_log: "ErrorLog") -> "Handler":
        environs = Environs(
            errors=ErrorStream(error_log),
            multithread=self.threads > 1,
            multiprocess=self.multiprocess,
            root_path=self.root_path,
        )
        if not self.threads:
            inline = Inline(
                self.application,
                environs,
                executor.loop,
                error_log,
                self._exit,
                self._transmitter,
            )
            return inline.handle
        if self._pool is None:
            self._pool = ThreadPool(executor.loop, self.threads)
        return Threaded(self.application, environs, self._pool, error_log, self._exit).handle

    def _exit(self) -> None:
        """The application called exit(): what it has left behind is not to be trusted for long."""
        if not self._asked:
            self._asked = True
            self.replace_worker("the application called exit()")


def _nothing(_reason: str) -> None:
    pass
