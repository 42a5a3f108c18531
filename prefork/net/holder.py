"""Who holds the address we wanted: asked once, when bind() has failed.

psutil reads /proc; without privileges it sees the user's own processes only, and in a container
not the host's. Whatever goes wrong here, the operator still gets the bind error: a guess at the
holder is worth 15 ms, never an exception.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import psutil

    from prefork.config.address import ListenAddress
    from prefork.net.listener import Listener

_WILDCARDS: Final = ("0.0.0.0", "::")
_UNSEEN: Final = "a process that this user cannot see"


def holder_of(address: "ListenAddress", previous: Sequence["Listener"] = ()) -> str:
    """`nginx (pid 123)`, or what can be said instead."""
    for listener in previous:
        if _overlaps(listener.address, address):
            return f"this server's own {listener.address.text}"
    try:
        import psutil
    except ImportError:
        return _UNSEEN
    try:
        process = _find(address)
        return _UNSEEN if process is None else f"{process.name()} (pid {process.pid})"
    except (OSError, ValueError, RuntimeError, psutil.Error):
        return _UNSEEN


def _overlaps(one: "ListenAddress", two: "ListenAddress") -> bool:
    if one.kind == "unix" or two.kind == "unix":
        return one.kind == two.kind and one.path == two.path
    if one.port != two.port or not {one.kind, two.kind} <= {"inet", "inet6"}:
        return False
    return one.host == two.host or one.host in _WILDCARDS or two.host in _WILDCARDS


def _find(address: "ListenAddress") -> "psutil.Process | None":
    import psutil

    kind = "unix" if address.kind == "unix" else "tcp"
    for found in psutil.net_connections(kind):
        if found.pid is not None and _is_it(found.laddr, found.status, address):
            return _eldest(psutil.Process(found.pid), kind, address)
    return None


def _is_it(bound: object, status: str, address: "ListenAddress") -> bool:
    """`bound` is psutil's laddr: a path for a Unix socket, (ip, port) or () for the others."""
    if address.kind == "unix":
        return bound == address.path
    if status != "LISTEN" or not isinstance(bound, tuple) or len(bound) != 2:
        return False
    ip, port = bound
    if port != address.port:
        return False
    named = not address.host.replace(".", "").isdecimal() and ":" not in address.host
    return ip == address.host or ip in _WILDCARDS or address.host in _WILDCARDS or named


def _eldest(process: "psutil.Process", kind: str, address: "ListenAddress") -> "psutil.Process":
    """A forked server's workers hold its socket as well: the one to stop is their master."""
    import psutil

    try:
        parent = process.parent()
        while parent is not None and any(
            _is_it(one.laddr, one.status, address) for one in parent.net_connections(kind)
        ):
            process, parent = parent, parent.parent()
    except psutil.Error:
        pass  # a daemon's parent is process 1, which may be looked at by nobody else
    return process
