"""What an object is taken for, and what is said of it."""

import functools
import sys
import types
from typing import Any

import pytest

from prefork import Application
from prefork.gateway.detect import InterfaceError, detect


def wsgi(environ: Any, start_response: Any) -> Any: ...
def one_optional(environ: Any, start_response: Any = None) -> Any: ...
def anything(*args: Any, **kwargs: Any) -> Any: ...
def factory() -> Any: ...
def configured_factory(config: Any = None, debug: bool = False) -> Any: ...
def asgi_2(scope: Any) -> Any: ...
def one(name: Any) -> Any: ...
def four(a: Any, b: Any, c: Any, d: Any) -> Any: ...
def plain_asgi(scope: Any, receive: Any, send: Any) -> Any: ...
def three(a: Any, b: Any, c: Any) -> Any: ...
async def asgi(scope: Any, receive: Any, send: Any) -> None: ...
async def layer(ctx: Any, next: Any) -> None: ...
async def handler(ctx: Any) -> None: ...
async def nothing() -> None: ...
async def generator(scope: Any, receive: Any, send: Any) -> Any:
    yield scope, receive, send


class Wsgi:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class Asgi:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...


class SlotAsgi:
    """As sentry_sdk's middleware: which function is called is known by the instance alone."""

    __slots__ = ("__call__",)

    def __init__(self) -> None:
        self.__call__ = self._run

    async def _run(self, scope: Any, receive: Any, send: Any) -> None: ...


class Asgi2:
    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


class Aiohttp:
    """Called, aiohttp's gives itself, for gunicorn's sake: it is no factory."""

    def __call__(self) -> Any: ...


Aiohttp.__module__, Aiohttp.__qualname__, Aiohttp.__name__ = (
    "aiohttp.web_app",
    "Application",
    "Application",
)


class AppClass:
    """PEP 3333, "The Application/Framework Side"."""

    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Any: ...


class Shop(Application):
    pass


@functools.wraps(asgi)
def wrapped(*args: Any) -> Any:
    return asgi(*args)


@pytest.mark.parametrize(
    ("value", "interface", "said"),
    [
        (Application(), "onion", "onion, from its class prefork.Application"),
        (Shop(), "onion", f"onion, from its class {__name__}.Shop"),
        (wsgi, "wsgi", "WSGI, from its two-argument callable"),
        (one_optional, "wsgi", "WSGI, from its two-argument callable"),
        (Wsgi(), "wsgi", "WSGI, from its two-argument callable"),
        (Wsgi().__call__, "wsgi", "WSGI, from its two-argument callable"),
        (functools.partial(three, 1), "wsgi", "WSGI, from its two-argument callable"),
        (AppClass, "wsgi", "WSGI, from its two-argument class"),
        (asgi, "asgi", "ASGI 3, from its three-argument coroutine function"),
        (Asgi(), "asgi", "ASGI 3, from its three-argument coroutine function"),
        (Asgi().method, "asgi", "ASGI 3, from its three-argument coroutine function"),
        (functools.partial(asgi), "asgi", "ASGI 3, from its three-argument coroutine function"),
        (SlotAsgi(), "asgi", "ASGI 3, from its three-argument coroutine function"),
        (wrapped, "asgi", "ASGI 3, from its three-argument coroutine function"),
        (plain_asgi, "asgi", "ASGI 3, from its three arguments scope, receive and send"),
    ],
)
def test_what_it_is(value: Any, interface: str, said: str) -> None:
    found = detect(value)
    assert (found.interface, str(found)) == (interface, said)
    assert detect(value, interface) == found


@pytest.mark.parametrize(
    ("source", "interface"),
    [
        ("async def app(scope: Scope, receive: Receive, send: Send) -> None: ...", "asgi"),
        ("def app(environ: Environ, start_response: StartResponse) -> Missing[bytes]: ...", "wsgi"),
    ],
)
def test_annotations_may_name_what_a_type_checker_alone_knows(source: str, interface: str) -> None:
    # Python 3.14 evaluates them no longer where the function is made, but where it is looked at.
    eager = sys.version_info < (3, 14)
    names: dict[str, Any] = {}
    exec(f"from __future__ import annotations\n{source}" if eager else source, names)
    assert detect(names["app"]).interface == interface


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "it is a NoneType, which is no application"),
        ([], "it is a list, which is no application"),
        (1, "it is an int, which is no application"),
        (types, 'it is the module "types": name the application in it'),
        (factory, "looks like a factory: to call it first, write it with ()"),
        (configured_factory, "looks like a factory: to call it first, write it with ()"),
        (configured_factory, "and `interface: wsgi` if it is the application itself"),
        (Aiohttp(), "it is an aiohttp.web_app.Application, which speaks neither WSGI nor ASGI"),
        (generator, "it is an async function with a `yield`: ASGI 3 sends what it has by"),
        (one, "it is a function of one argument: WSGI takes two, ASGI 3 takes three"),
        (three, "it is a plain function of three arguments: write `interface: asgi`"),
        (four, "it is a function that takes 4 arguments, a, b, c, d: WSGI takes two"),
        (asgi_2, "it is an ASGI 2 application, which takes `scope`"),
        (Asgi2, f"it is the class {__name__}.Asgi2, an ASGI 2 application"),
        (Asgi, f"it is the class {__name__}.Asgi itself: to make an application, write it with ()"),
        (Shop, f"it is the class {__name__}.Shop itself: to make an application, write it with ()"),
        (Wsgi, "to make an application, write it with ()"),
        (layer, "it is an async function of 2 arguments, ctx, next, a middleware of the onion"),
        (handler, "it is an async function of one argument, ctx, a middleware of the onion"),
        (nothing, "it is an async function that takes no arguments; ASGI 3 takes three"),
        (type("C", (), {"__call__": max})(), "say what it is, `interface: wsgi` or"),
    ],
)
def test_what_it_is_not(value: Any, said: str) -> None:
    with pytest.raises(InterfaceError) as caught:
        detect(value)
    assert said in str(caught.value)


def test_a_coroutine_of_an_async_factory() -> None:
    with pytest.raises(InterfaceError, match="a factory cannot be an async function"):
        detect(nothing())


@pytest.mark.parametrize(
    ("value", "wanted", "said"),
    [
        (asgi, "wsgi", "but `interface` says wsgi: write `interface: asgi`, or leave"),
        (wsgi, "asgi", "it is WSGI, from its two-argument callable, but `interface` says asgi"),
        (wsgi, "onion", "wrap it, app.use(prefork.wsgi(...)), or write `interface: auto`"),
        (Application(), "wsgi", "it is onion, from its class prefork.Application, but"),
        (factory, "wsgi", "write it with ()"),
        (None, "wsgi", "no application"),
    ],
)
def test_the_wrong_pairing(value: Any, wanted: str, said: str) -> None:
    with pytest.raises(InterfaceError) as caught:
        detect(value, wanted)
    assert said in str(caught.value)


def test_what_can_only_be_guessed() -> None:
    """A decorator without functools.wraps: what is behind it nobody can see."""
    assert str(detect(anything)) == (
        "WSGI, a guess from its plain callable of any arguments (`interface` decides)"
    )
    assert str(detect(anything, "wsgi")) == "WSGI, as configured"
    assert str(detect(anything, "asgi")) == "ASGI 3, as configured"


def test_what_only_the_operator_can_know() -> None:
    c_callable = type("C", (), {"__call__": max})()
    assert str(detect(c_callable, "wsgi")) == "WSGI, as configured"
    assert str(detect(c_callable, "asgi")) == "ASGI 3, as configured"
    assert str(detect(anything, "asgi")) == "ASGI 3, as configured"
    assert str(detect(configured_factory, "wsgi")) == "WSGI, as configured"
    assert str(detect(three, "asgi")) == "ASGI 3, as configured"
