"""Listening sockets that were open before this program began.

Two givers. A master that executes a new binary of itself says `PREFORK="7;8=systemd:http;"`:
descriptor numbers, as nginx's NGINX variable, each with the address it was asked for where
`getsockname` says something else (a host name, port 0, a name of systemd's). systemd says
LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES: descriptors from 3 on, names by position. Names repeat
where one socket unit has two ListenStream lines, so everything here is a list, never a dict by
name: the socket that a dict forgets is closed by the garbage collector, with the connections
that wait in it.

Both leave the descriptors inheritable; we set CLOEXEC first thing, or every subprocess of the
application would hold our ports. The variables are removed for the same reason: they are addressed
to us alone.
"""

import os
import socket
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from prefork.log import errno_text

if TYPE_CHECKING:
    from prefork.config.address import ListenAddress
    from prefork.net.listener import Listener

VARIABLE: Final = "PREFORK"
# Which of those descriptors the old master, or one before it, has bound itself: numbers with ";".
# Apart, for a program that does not know of it shall understand the other one.
BOUND: Final = "PREFORK_BOUND"
_SYSTEMD_FIRST: Final = 3  # sd_listen_fds(3), SD_LISTEN_FDS_START
_SYSTEMD_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

Origin = Literal["inherited", "systemd"]


@dataclass(slots=True)
class InheritedSocket:
    """`label` is the configured address where it was handed over, or `systemd:name`.

    `own`: this server has bound it, before a binary upgrade.
    """

    sock: socket.socket
    origin: Origin
    label: str
    bound: str
    own: bool = False

    def matches(self, address: "ListenAddress") -> bool:
        if address.kind == "fd":
            return self.sock.fileno() == address.fd or self.label == address.text
        if address.kind == "systemd":
            return self.label == address.text
        return address.text in (self.label, self.bound)


class Inherited:
    """Sockets not yet claimed by an address. `problems` are texts to log as warnings."""

    def __init__(
        self, sockets: Iterable[InheritedSocket] = (), problems: Sequence[str] = ()
    ) -> None:
        self.sockets = list(sockets)
        self.problems = tuple(problems)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] | None = None) -> "Inherited":
        """Read and remove the variables. Never raises: what is no socket becomes a problem.

        Call it before daemonizing: LISTEN_PID names the process systemd started.
        """
        environ = os.environ if environ is None else environ
        wanted: list[tuple[int, Origin, str]] = []
        problems: list[str] = []
        for item in filter(None, environ.pop(VARIABLE, "").split(";")):
            number, _, label = item.partition("=")
            if number.isdecimal():
                wanted.append((int(number), "inherited", _unquote(label)))
            else:
                problems.append(f'{VARIABLE}: "{item}" is no descriptor, ignored')
        own = {int(number) for number in environ.pop(BOUND, "").split(";") if number.isdecimal()}
        pid, count, names = (environ.pop(name, "") for name in _SYSTEMD_VARIABLES)
        if count.isdecimal() and pid == str(os.getpid()):
            labels = names.split(":") if names else []
            for index in range(int(count)):
                name = labels[index] if index < len(labels) else "unknown"
                wanted.append((_SYSTEMD_FIRST + index, "systemd", f"systemd:{name}"))
        elif count and pid != str(os.getpid()):
            problems.append(f"LISTEN_FDS is meant for process {pid or '?'}, ignored")
        sockets = []
        for fd, origin, label in wanted:
            found = _adopt(fd, origin, label)
            if isinstance(found, str):
                problems.append(found)
            else:
                found.own = origin == "inherited" and fd in own
                sockets.append(found)
        return cls(sockets, problems)

    def __bool__(self) -> bool:
        return bool(self.sockets)

    def take(self, address: "ListenAddress") -> list[InheritedSocket]:
        """Claim what belongs to `address`: one socket, or all of a systemd name."""
        found = [one for one in self.sockets if one.matches(address)]
        if address.kind != "systemd":
            found = found[:1]
        self.sockets = [one for one in self.sockets if one not in found]
        return found

    def give_back(self, sockets: Iterable[InheritedSocket]) -> None:
        self.sockets.extend(sockets)

    def close_unclaimed(self) -> list[str]:
        """Close what no address wanted, but for systemd's, which a reload may want later.

        Returns what is left unserved, as texts to warn with.
        """
        left = []
        for one in self.sockets:
            if one.origin == "systemd":
                left.append(
                    f"{one.label} ({one.bound}) was passed by systemd and is not listened on"
                )
            else:
                one.sock.close()
        self.sockets = [one for one in self.sockets if one.origin == "systemd"]
        return left

    def close(self) -> None:
        """Close all of them; what the giver still holds stays open there."""
        for one in self.sockets:
            one.sock.close()
        self.sockets.clear()


def hand_over(listeners: Iterable["Listener"]) -> str:
    """The value of PREFORK for a new binary, its descriptors made inheritable.

    Call it in the forked child that is about to exec: in the master it would leave the sockets
    open to every other child as well.
    """
    items = []
    for listener in listeners:
        fd = listener.fileno()
        os.set_inheritable(fd, True)
        label = listener.address.text
        known = label == bound_text(listener.sock)
        items.append(f"{fd};" if known else f"{fd}={_quote(label)};")
    return "".join(items)


def own_numbers(listeners: Iterable["Listener"]) -> str:
    """The value of PREFORK_BOUND for a new binary."""
    return "".join(f"{listener.fileno()};" for listener in listeners if listener.own)


def bound_text(sock: socket.socket) -> str:
    """What the kernel says the socket is bound to, in the grammar of `listen`."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        if isinstance(name, bytes):
            return f"unix:@{name[1:].decode('utf-8', 'replace')}"
        return f"unix:{name}"
    if sock.family == socket.AF_INET6:
        host, port = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        return f"[{host}]:{port}"
    if sock.family == socket.AF_INET:
        return f"{name[0]}:{name[1]}"
    return f"{sock.family.name}:{name}"


def _quote(label: str) -> str:
    """A systemd name may hold the separator."""
    return label.replace("%", "%25").replace(";", "%3B")


def _unquote(label: str) -> str:
    return label.replace("%3B", ";").replace("%25", "%")


def _adopt(fd: int, origin: Origin, label: str) -> InheritedSocket | str:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        return f"inherited descriptor {fd} is no socket {errno_text(exc)}, ignored"
    sock.set_inheritable(False)
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        return f"inherited descriptor {fd} is no stream socket, ignored"
    return InheritedSocket(sock, origin, label, bound_text(sock))
