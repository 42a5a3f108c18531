"""From the object an operator named to something that answers requests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prefork.gateway.detect import Detected, InterfaceError, detect
from prefork.process.loading import AppLoadError

if TYPE_CHECKING:
    from prefork.config.schema import Config
    from prefork.event.executor import Executor
    from prefork.http.exchange import Handler
    from prefork.log import ErrorLog


class Hostable(Protocol):
    """What a worker asks of an application, whatever interface it speaks.

    It is made before the worker may have a loop and starts nothing; `startup` runs in the worker's
    loop before it accepts, `shutdown` after the last request.
    """

    async def startup(self) -> None: ...
    async def shutdown(self) -> None: ...
    def callback(self, *, executor: "Executor", error_log: "ErrorLog") -> "Handler": ...


@runtime_checkable
class AsksToBeReplaced(Protocol):
    """An application that may find that its worker should not live on: it calls
    `replace_worker(why)`."""

    replace_worker: Callable[[str], None]


@dataclass(frozen=True)
class Hosted:
    """`interface` is for the ready line: "WSGI, from its two-argument callable"."""

    interface: str
    application: Hostable


def host(application: Any, conf: "Config") -> Hosted:
    """`application` as it is to be served by `conf`. Raises AppLoadError."""
    try:
        found = detect(application, conf.interface)
    except InterfaceError as error:
        raise AppLoadError(f'app "{conf.app}": {error}') from None
    interface = f"{found}{_without_effect(found, conf)}"
    # Imported by need: a worker pays for the one interface it has.
    if found.interface == "onion":
        return Hosted(interface, application)
    if found.interface == "asgi":
        from prefork.gateway.asgi import AsgiHost

        asgi = AsgiHost(application, lifespan=conf.lifespan, root_path=conf.root_path)
        return Hosted(interface, asgi)
    if found.interface == "wsgi":
        from prefork.gateway.wsgi import Wsgi

        wsgi = Wsgi(
            application,
            threads=conf.threads,
            multiprocess=conf.master_process,
            root_path=conf.root_path,
        )
        return Hosted(interface, wsgi)
    raise AppLoadError(f'app "{conf.app}": it is {found}, which is not hosted yet')


def _without_effect(found: Detected, conf: "Config") -> str:
    """What is set for another interface than this one: the ready line says so."""
    if conf.threads and found.interface != "wsgi":
        return f"; `threads: {conf.threads}` has no effect: it is for WSGI"
    if conf.lifespan == "on" and found.interface != "asgi":
        return '; `lifespan: "on"` has no effect: it is for ASGI'
    return ""
