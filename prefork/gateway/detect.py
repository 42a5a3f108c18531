"""Which interface an object speaks, and why we think so.

Python says how an object can be called; that is enough to tell the three interfaces apart, and to
tell what is none of them: a factory that nobody called, a middleware, ASGI 2. A guess that turned
out wrong would answer every request with 500, so the operator hears of it when the worker boots.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from prefork.errors import OperatorError
from prefork.onion.application import Application
from prefork.onion.compose import signature as signature_of

Interface = Literal["onion", "asgi", "wsgi"]

TITLES: Final = {"onion": "onion", "asgi": "ASGI 3", "wsgi": "WSGI"}

_ASGI_2: Final = (
    "an ASGI 2 application, which takes `scope` and returns another callable; only ASGI 3 is"
    " served: upgrade its framework, or wrap it with"
    " asgiref.compatibility.guarantee_single_callable"
)


# Frameworks whose applications can be called, but to another end.
_OWN_SERVERS: Final = ("aiohttp", "tornado")


class InterfaceError(OperatorError):
    """The object cannot be hosted, or not in the way that was asked for; `str()` says why."""


@dataclass(frozen=True)
class Detected:
    """What an object speaks. `str()` is what the ready line says of it."""

    interface: Interface
    reason: str
    sure: bool = True  # False: the operator may know better

    def __str__(self) -> str:
        return f"{TITLES[self.interface]}, {self.reason}"


def detect(application: object, wanted: str = "auto") -> Detected:
    """The interface of `application`; `wanted` is the setting `interface`.

    Raises InterfaceError when it has none, or another one than is wanted.
    """
    found = _look_at(application)
    if wanted == "auto":
        if isinstance(found, Detected):
            return found
        raise InterfaceError(found.text)
    if isinstance(found, Detected):
        if found.interface == wanted:
            return found if found.sure else Detected(found.interface, "as configured")
        if wanted == "asgi" and not found.sure:
            return Detected("asgi", "as configured")
        raise InterfaceError(_mismatch(found, wanted))
    for maybe in found.maybe:
        if maybe == wanted:
            return Detected(maybe, "as configured")
    raise InterfaceError(found.text)


@dataclass(frozen=True)
class _Refusal:
    """`maybe` is what it could be all the same, if the operator says so."""

    text: str
    maybe: tuple[Interface, ...] = ()


def _mismatch(found: Detected, wanted: str) -> str:
    text = f"it is {found}, but `interface` says {wanted}"
    if wanted == "onion":
        return (
            f"{text}: wrap it, app.use(prefork.{found.interface}(...)), or write `interface: auto`"
        )
    return f"{text}: write `interface: {found.interface}`, or leave the setting out"


def _look_at(value: Any) -> Detected | _Refusal:
    if isinstance(value, Application):
        return Detected("onion", f"from its class {_class_name(type(value))}")
    if inspect.ismodule(value):
        return _Refusal(f'it is the module "{value.__name__}": name the application in it')
    if inspect.iscoroutine(value):
        value.close()
        return _Refusal("it is a coroutine: a factory cannot be an async function")
    if not callable(value):
        return _Refusal(f"it is {_a(type(value).__name__)}, which is no application")
    if inspect.isclass(value):
        return _look_at_class(value)
    for one in type(value).__mro__:
        if one.__module__.partition(".")[0] in _OWN_SERVERS and one.__name__ == "Application":
            return _Refusal(
                f"it is {_a(_class_name(one))}, which speaks neither WSGI nor ASGI: only its own"
                " server can run it"
            )
    if inspect.isdatadescriptor(type(value).__call__):
        # A slot or a property: each instance has a `__call__` of its own, as sentry_sdk's
        # SentryAsgiMiddleware has.
        value = value.__call__
    signature = _signature(value)
    if signature is None:
        return _Refusal(
            "Python does not know its arguments: say what it is, `interface: wsgi` or"
            " `interface: asgi`",
            ("wsgi", "asgi"),
        )
    what = "function" if inspect.isroutine(_unwrapped(value)) else _class_name(type(value))
    if inspect.isasyncgenfunction(_unwrapped(value)):
        return _Refusal(
            f"it is an async {what} with a `yield`: ASGI 3 sends what it has by `await send(...)`"
        )
    if _is_async(value):
        return _look_at_async(signature, what)
    return _look_at_plain(signature, what)


def _look_at_async(signature: inspect.Signature, what: str) -> Detected | _Refusal:
    if _takes(signature, 3):
        return Detected("asgi", "from its three-argument coroutine function")
    if _takes(signature, 2) or _takes(signature, 1):
        return _Refusal(
            f"it is an async {what} of {_count(signature)}, a middleware of the onion:"
            " app = prefork.Application(), then app.use(...) it"
        )
    return _Refusal(
        f"it is an async {what} that takes {_count(signature)}; ASGI 3 takes three: scope, receive"
        " and send"
    )


def _look_at_plain(signature: inspect.Signature, what: str) -> Detected | _Refusal:
    names = _positional(signature)
    if names[:3] == ["scope", "receive", "send"] and _takes(signature, 3):
        return Detected("asgi", "from its three arguments scope, receive and send")
    if _has_var_positional(signature) and not names:
        reason = "a guess from its plain callable of any arguments (`interface` decides)"
        return Detected("wsgi", reason, sure=False)
    if _takes(signature, 0):
        either = _takes(signature, 2)
        return _Refusal(
            f"it is {_a(what)} that needs no arguments, which looks like a factory: to call it"
            " first, write it with ()"
            + (", and `interface: wsgi` if it is the application itself" if either else ""),
            ("wsgi",) if either else (),
        )
    if _takes(signature, 2):
        return Detected("wsgi", "from its two-argument callable")
    if _takes(signature, 1):
        if names[:1] == ["scope"]:
            return _Refusal(f"it is {_ASGI_2}")
        return _Refusal(
            f"it is {_a(what)} of one argument: WSGI takes two, ASGI 3 takes three. If it is a"
            " factory, write it with () and the argument in them"
        )
    if _takes(signature, 3):
        return _Refusal(
            f"it is a plain {what} of three arguments: write `interface: asgi` if it returns a"
            " coroutine",
            ("asgi",),
        )
    return _Refusal(
        f"it is {_a(what)} that takes {_count(signature)}: WSGI takes two, ASGI 3 three"
    )


def _look_at_class(value: Any) -> Detected | _Refusal:
    name = _class_name(value)
    signature = _signature(value)
    if issubclass(value, Application) or signature is None:
        return _Refusal(f"it is the class {name} itself: to make an application, write it with ()")
    names = _positional(signature)
    call = getattr(value, "__call__", None)  # noqa: B004 - of its instances, and to look inside
    inner = None if call is type.__call__ else _signature(call)
    if _takes(signature, 1) and names[:1] == ["scope"] and inner is not None:
        return _Refusal(f"it is the class {name}, {_ASGI_2}")
    if _takes(signature, 2) and not _takes(signature, 0) and hasattr(value, "__iter__"):
        # PEP 3333's AppClass: making an instance is the call, iterating over it the answer.
        return Detected("wsgi", "from its two-argument class")
    return _Refusal(f"it is the class {name} itself: to make an application, write it with ()")


# How it can be called


def _signature(value: Any) -> inspect.Signature | None:
    try:
        return signature_of(value)
    except (ValueError, TypeError):
        return None


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _positional(signature: inspect.Signature) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [one.name for one in signature.parameters.values() if one.kind in kinds]


def _has_var_positional(signature: inspect.Signature) -> bool:
    return any(one.kind is one.VAR_POSITIONAL for one in signature.parameters.values())


def _unwrapped(value: Any) -> Any:
    while isinstance(value, functools.partial):
        value = value.func
    return value


def _is_async(value: Callable[..., Any]) -> bool:
    """A coroutine function, or an object whose `__call__` is one; also behind functools.wraps."""
    value = _unwrapped(value)
    if inspect.iscoroutinefunction(value):
        return True
    call = value if inspect.isroutine(value) else type(value).__call__
    return inspect.iscoroutinefunction(inspect.unwrap(call))


# How it is said


def _count(signature: inspect.Signature) -> str:
    names = _positional(signature)
    if len(names) == 1:
        return f"one argument, {names[0]}"
    return f"{len(names)} arguments, {', '.join(names)}" if names else "no arguments"


def _class_name(value: type) -> str:
    module = value.__module__
    if value is Application:
        return "prefork.Application"
    return value.__qualname__ if module == "builtins" else f"{module}.{value.__qualname__}"


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
