"""Where the server listens: `host:port`, `[v6]:port`, `unix:path`, `fd:3`, `systemd:name`.

`:8000`, `*:8000` and a port alone mean every IPv4 interface, as nginx's `listen 8000` does.
Every IPv6 address is written in brackets; without them `::1:8000` would be two addresses.
"""

import os
import re
from typing import Final, Literal

from msgspec import Struct

Kind = Literal["inet", "inet6", "unix", "fd", "systemd"]

BACKLOG: Final = 2048
UNIX_MODE: Final = 0o666
UNIX_PATH_MAX: Final = 107  # sun_path is 108 bytes on Linux, and the last one is a NUL

_TEXT_MAX: Final = 4200  # PATH_MAX and a prefix

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII)
_IPV4: Final = re.compile(r"[0-9.]+", re.ASCII)
_FD_NAME: Final = re.compile(r"[!-9;-~]{1,255}", re.ASCII)  # sd_listen_fds(3): no ':' in it


class AddressError(ValueError):
    """`str()` says what is wrong; `suggestion` is the address that was probably meant."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.suggestion = suggestion


class ListenAddress(Struct, frozen=True, kw_only=True):
    """One address to listen on. `path` is absolute; `port` 0 lets the kernel choose."""

    kind: Kind
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1
    name: str = ""
    backlog: int = BACKLOG
    mode: int = UNIX_MODE
    v6only: bool = True
    proxy_protocol: bool = False  # every connection begins with a header of it

    @property
    def text(self) -> str:
        """As it is written in a configuration, in the one canonical way."""
        match self.kind:
            case "inet":
                return f"{self.host}:{self.port}"
            case "inet6":
                return f"[{self.host}]:{self.port}"
            case "unix":
                return f"unix:{self.path}"
            case "fd":
                return f"fd:{self.fd}"
            case "systemd":
                return f"systemd:{self.name}"

    @property
    def url(self) -> str:
        """What an operator pastes into a browser, or hands to a proxy."""
        return f"http://{self.text}" if self.kind in ("inet", "inet6") else self.text

    @classmethod
    def parse(cls, text: str, base: str) -> "ListenAddress":
        """Read one address; a relative Unix path is taken from the folder `base`.

        Raises AddressError.
        """
        return parse_address(text, base)


def parse_address(text: str, base: str) -> ListenAddress:
    """`ListenAddress.parse`, for whoever would rather import a function."""
    if len(text) > _TEXT_MAX:
        raise AddressError("no address is that long")
    scheme, colon, rest = text.partition(":")
    match scheme.lower() if colon else "":
        case "unix":
            return _unix(rest, base)
        case "fd":
            return _fd(rest)
        case "systemd":
            if not _FD_NAME.fullmatch(rest):
                raise AddressError('"systemd:" wants the FileDescriptorName= of a socket unit')
            return ListenAddress(kind="systemd", name=rest)
        case "http" | "https" | "tcp" if rest.startswith("//"):
            inner = rest[2:].partition("/")[0]
            raise AddressError("an address has no scheme and no path here", inner or None)
    if text.startswith("/"):
        raise AddressError("a Unix socket is written with its prefix", f"unix:{text}")
    if text.isascii() and text.isdigit():
        return ListenAddress(kind="inet", host="0.0.0.0", port=_port(text))
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            wanted = f"[{host}]:8000" if bracket and not rest else None
            raise AddressError("an IPv6 address is written [address]:port", wanted)
        return ListenAddress(kind="inet6", host=_ipv6(host), port=_port(rest[1:]))
    host, colon, port = text.rpartition(":")
    if ":" in host:
        raise AddressError("an IPv6 address is written in brackets", f"[{host}]:{port}")
    if not colon:
        guess = f"{text}:8000" if _NAME.fullmatch(text) else None
        raise AddressError("an address needs a port: host:port, unix:path, fd:N", guess)
    return ListenAddress(kind="inet", host=_host(host), port=_port(port))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > 65535:
        raise AddressError(f'"{text}" is no port: a number from 0 to 65535')
    return int(text)


def _host(text: str) -> str:
    if text in ("", "*"):
        return "0.0.0.0"
    if _IPV4.fullmatch(text):
        parts = text.split(".")
        if len(parts) != 4 or any(not p or len(p) > 3 or int(p) > 255 for p in parts):
            raise AddressError(f'"{text}" is no IPv4 address: four numbers from 0 to 255')
        if any(len(p) > 1 and p[0] == "0" for p in parts):
            raise AddressError("a number of an IPv4 address has no leading zero")
    elif not _NAME.fullmatch(text) or len(text) > 253:
        raise AddressError(f'"{text}" is no host name')
    return text


def _ipv6(text: str) -> str:
    import socket  # only here: reading an IPv4 address must not cost an import

    address, percent, zone = text.partition("%")
    try:
        packed = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        raise AddressError(f'"{text}" is no IPv6 address') from None
    if percent and not _NAME.fullmatch(zone):
        raise AddressError(f'"{zone}" is no network interface')
    return socket.inet_ntop(socket.AF_INET6, packed) + percent + zone


def _unix(text: str, base: str) -> ListenAddress:
    if text.startswith("//"):
        raise AddressError(
            "a Unix socket has no slashes before its path", f"unix:/{text[2:].lstrip('/')}"
        )
    if not text:
        raise AddressError('"unix:" wants a path')
    if "\0" in text or text.startswith("@"):
        raise AddressError("abstract sockets are not supported: give a path")
    path = os.path.normpath(os.path.join(base, text))
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise AddressError(
            f"the socket path is {len(os.fsencode(path))} bytes long, the kernel takes "
            f"{UNIX_PATH_MAX}: choose a shorter one ({path})"
        )
    return ListenAddress(kind="unix", path=path)


def _fd(text: str) -> ListenAddress:
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise AddressError(f'"{text}" is no file descriptor: fd:3')
    if int(text) < 3:
        raise AddressError("descriptors 0, 1 and 2 are the standard streams: use fd:3 or above")
    return ListenAddress(kind="fd", fd=int(text))
