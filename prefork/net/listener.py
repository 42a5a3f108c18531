"""Listening sockets: bind, adopt, and say who is in the way.

`open_listeners` is all or nothing. A reload calls it with the listeners of the running cycle:
equal addresses come back as *the same objects*, with the connections that wait in their queues;
only what is new is bound, and when that fails it is closed again and the old cycle has lost
nothing. Changes that need no new socket (backlog, a Unix socket's mode) are not made by it: the
new cycle may still come to nothing, so they wait for its commit (`apply_changes`).

A Unix socket's file outlives its server. Before binding over one, we connect to it: refused means
nobody is there (it is unlinked), anything else means somebody is. And it is unlinked at close
only while it is still the file we made: after a binary upgrade the name may belong to another.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from prefork.errors import OperatorError
from prefork.log import errno_text
from prefork.net.inherit import Inherited, InheritedSocket, bound_text

if TYPE_CHECKING:
    from prefork.config.address import ListenAddress

Origin = Literal["bound", "inherited", "systemd"]


class Listener:
    """A listening, non-blocking socket and the address it serves."""

    __slots__ = ("_giver", "_identity", "_path", "address", "origin", "own", "sock", "url")

    def __init__(
        self, address: "ListenAddress", sock: socket.socket, origin: Origin, *, own: bool = False
    ) -> None:
        """`own`: inherited, but from a master of ours that had bound it."""
        self.address = address
        self.sock = sock
        self.origin = origin
        self.own = own or origin == "bound"
        bound = bound_text(sock)
        self.url = bound if sock.family == socket.AF_UNIX else f"http://{bound}"
        # While the master that handed it over lives, the socket's file is that master's.
        self._giver = os.getppid() if origin == "inherited" else 0
        self._path = bound.removeprefix("unix:")
        self._identity = _unix_identity(sock)

    def __repr__(self) -> str:
        return f"Listener({self.url}, {self.origin}, fd {self.sock.fileno()})"

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def ours_alone(self) -> bool:
        """Made by this server, and shared with nobody but its workers.

        After a binary upgrade that is so when the master before has gone.
        """
        return self.own and not (self._giver and os.getppid() == self._giver)

    def close(self, unlink: bool = False) -> None:
        """Close our descriptor; the last close of a socket resets what waits in its queue.

        `unlink` removes a Unix socket's file, too: for the master that leaves for good, never
        for a worker, nor for a master whose successor serves the socket. It is left alone when
        it is not the file this socket was bound to, came from systemd, or still belongs to the
        living master that handed it over.
        """
        self.sock.close()
        if not (unlink and self._identity) or self.origin == "systemd":
            return
        if self._giver and os.getppid() == self._giver:
            return
        with contextlib.suppress(OSError):
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._path)


def open_listeners(
    addresses: Sequence["ListenAddress"],
    *,
    previous: Sequence[Listener] = (),
    inherited: Inherited,
) -> tuple[Listener, ...]:
    """A listener for each address (several for a systemd name), in the order given.

    Raises OperatorError, with everything as it was before: nothing new open, `previous` and
    `inherited` untouched.
    """
    _refuse_duplicates(addresses)
    result: list[Listener] = []
    fresh: list[Listener] = []
    claimed: list[InheritedSocket] = []
    try:
        for address in addresses:
            kept = [one for one in previous if _same(one.address, address)]
            if kept:
                result += kept
                continue
            given = inherited.take(address)
            claimed += given
            for one in given:
                result.append(_listen_inherited(address, one))
            if not given:
                new = _bind(address, previous)
                result.append(new)
                fresh.append(new)
    except BaseException:
        for listener in fresh:
            listener.close(unlink=True)
        inherited.give_back(claimed)
        raise
    return tuple(result)


def release(listener: Listener, inherited: Inherited) -> None:
    """Let go of a listener that no cycle wants.

    One that we have bound is closed. One that was given to us goes back to `inherited`, unclaimed:
    who gave it has it open as well, and will not give it a second time.
    """
    if listener.own or listener.origin == "bound":
        listener.close(unlink=True)
    else:
        label, bound = listener.address.text, bound_text(listener.sock)
        inherited.give_back([InheritedSocket(listener.sock, listener.origin, label, bound)])


def apply_changes(listeners: Sequence[Listener], addresses: Sequence["ListenAddress"]) -> None:
    """Give listeners that were adopted the backlog and the mode of their new addresses.

    `addresses` are those that `open_listeners` was called with; to be called when the cycle they
    belong to is committed. Nothing here can fail in a way that matters.
    """
    for listener in listeners:
        for address in addresses:
            if address is not listener.address and _same(listener.address, address):
                _change(listener, address)


def _same(one: "ListenAddress", two: "ListenAddress") -> bool:
    """Equal but for what can be changed on an open socket."""
    return one.text == two.text and (one.kind != "inet6" or one.v6only == two.v6only)


def _refuse_duplicates(addresses: Sequence["ListenAddress"]) -> None:
    seen = set()
    for address in addresses:
        # Port 0 asks the kernel for any free port: twice is two ports.
        wildcard = address.kind in ("inet", "inet6") and address.port == 0
        if address.text in seen and not wildcard:
            raise OperatorError(f'listen: "{address.text}" stands there twice')
        seen.add(address.text)


def _bind(address: "ListenAddress", previous: Sequence[Listener]) -> Listener:
    if address.kind == "fd":
        return _listen_fd(address)
    if address.kind == "systemd":
        raise OperatorError(
            f'listen: systemd passed no socket named "{address.name}"; name it with'
            f" FileDescriptorName={address.name} in the .socket unit and start that unit"
        )
    if address.kind == "unix":
        return _bind_unix(address, previous)
    return _bind_inet(address, previous)


def _bind_inet(address: "ListenAddress", previous: Sequence[Listener]) -> Listener:
    family = socket.AF_INET6 if address.kind == "inet6" else socket.AF_INET
    try:
        target = socket.getaddrinfo(
            address.host.encode(),  # as text it would cost the import of the idna codec
            address.port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0][4]
    except OSError as exc:
        # socket.gaierror has its own numbers, not errno's.
        raise OperatorError(f"{address.text}: host not found ({exc.strerror})") from exc
    call = "socket()"
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        call = f"setsockopt() for {address.text}"
        # Connections of a predecessor in TIME_WAIT must not keep us from the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.kind == "inet6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.v6only))
        call = f"bind() to {address.text}"
        sock.bind(target)
        call = f"listen() to {address.text}, backlog {address.backlog},"
        return _listening(address, sock, "bound")
    except OSError as exc:
        if sock is not None:
            sock.close()
        hint = _hint(exc, address, previous)
        raise OperatorError(f"{call} failed {errno_text(exc)}{hint}") from exc


def _bind_unix(address: "ListenAddress", previous: Sequence[Listener]) -> Listener:
    path = address.path
    where = f"bind() to unix:{path}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _clear_the_way(address)
    except OSError as exc:
        raise OperatorError(
            f"{where} failed {errno_text(exc)}{_hint(exc, address, previous)}"
        ) from exc
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode is set by the umask while binding: chmod afterwards would leave a moment in which
    # whoever may not connect could. The master has one thread, so nobody else sees the umask.
    umask = os.umask(0o777 & ~address.mode)
    try:
        sock.bind(path)
        where = f"listen() to unix:{path}, backlog {address.backlog},"
        return _listening(address, sock, "bound")
    except OSError as exc:
        sock.close()
        raise OperatorError(
            f"{where} failed {errno_text(exc)}{_hint(exc, address, previous)}"
        ) from exc
    finally:
        os.umask(umask)


def _clear_the_way(address: "ListenAddress") -> None:
    """Unlink a dead server's socket file. OperatorError when it is not dead, or no socket."""
    path = address.path
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OperatorError(
            f"bind() to unix:{path} failed: the file exists and is not a socket; remove it or"
            ' change "listen"'
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            pass
        except FileNotFoundError:
            return
        except BlockingIOError:  # its queue is full: very much alive
            raise OSError(errno.EADDRINUSE, "") from None
        else:
            raise OSError(errno.EADDRINUSE, "")
    with contextlib.suppress(FileNotFoundError):
        again = os.lstat(path)
        if (again.st_dev, again.st_ino) == (found.st_dev, found.st_ino):
            os.unlink(path)


def _listen_fd(address: "ListenAddress") -> Listener:
    """`fd:N` that no variable announced: a supervisor's (circus, s6) or a parent's."""
    try:
        sock = socket.socket(fileno=address.fd)
    except OSError as exc:
        raise OperatorError(
            f"listen: {address.text} is no open socket {errno_text(exc)};"
            " the process that starts prefork has to pass it"
        ) from exc
    sock.set_inheritable(False)
    try:
        return _listening(address, sock, "inherited")
    except (OSError, OperatorError) as exc:
        sock.detach()  # not ours: the caller's descriptor stays as we found it
        if isinstance(exc, OperatorError):
            raise
        raise OperatorError(f"listen() on {address.text} failed {errno_text(exc)}") from exc


def _listen_inherited(address: "ListenAddress", given: InheritedSocket) -> Listener:
    try:
        return _listening(address, given.sock, given.origin, own=given.own)
    except OSError as exc:
        raise OperatorError(
            f"listen() on inherited {address.text} failed {errno_text(exc)}"
        ) from exc


def _listening(
    address: "ListenAddress", sock: socket.socket, origin: Origin, *, own: bool = False
) -> Listener:
    if sock.type != socket.SOCK_STREAM:
        raise OperatorError(f"listen: {address.text} is no stream socket")
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        # Accepted sockets inherit it on Linux: one system call less per connection.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    given = address.kind in ("fd", "systemd")
    if not (given and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        sock.listen(address.backlog)  # a given socket keeps the backlog its giver chose
    return Listener(address, sock, origin, own=own)


def _change(listener: Listener, address: "ListenAddress") -> None:
    """listen() again changes the backlog of a listening socket and nothing else."""
    old, listener.address = listener.address, address
    with contextlib.suppress(OSError):
        if old.backlog != address.backlog:
            listener.sock.listen(address.backlog)
        if address.kind == "unix" and old.mode != address.mode:
            os.chmod(address.path, address.mode)


def _unix_identity(sock: socket.socket) -> tuple[int, int] | None:
    if sock.family != socket.AF_UNIX:
        return None
    name = sock.getsockname()
    if not isinstance(name, str) or not name:
        return None  # abstract or unnamed: there is no file
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _hint(exc: OSError, address: "ListenAddress", previous: Sequence[Listener]) -> str:
    if exc.errno == errno.EADDRINUSE:
        from prefork.net.holder import holder_of

        holder = holder_of(address, previous)
        own = holder.startswith("this server")
        advice = "that takes a restart" if own else 'stop it or change "listen"'
        return f": held by {holder}; {advice}"
    if exc.errno == errno.EACCES and 0 < address.port < 1024:
        return ": ports below 1024 need root or CAP_NET_BIND_SERVICE"
    if exc.errno == errno.EADDRNOTAVAIL:
        return ": this machine has no such address"
    return ""
