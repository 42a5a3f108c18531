"""The PROXY protocol's header, versions 1 and 2: who a connection really is from.

After HAProxy's doc/proxy-protocol.txt. It stands once at the beginning of a connection, before
anything else. `parse` is strict where the text is and looks no further than what it needs: what
follows the addresses in version 2 (TLVs) is skipped.
"""

import socket
from typing import Final

from msgspec import Struct

_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"  # section 2.2
_V1: Final = b"PROXY "
_V1_LONGEST: Final = 107  # section 2.1, with its CRLF
_V2_LONGEST: Final = 4096  # with its TLVs; nginx: NGX_PROXY_PROTOCOL_MAX_HEADER
_V2_HEAD: Final = 16

_V1_FAMILIES: Final = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}
_V2_ADDRESSES: Final = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16)}
_V2_UNIX: Final = 0x31

Endpoint = tuple[str, int]


class ProxyProtocolError(ValueError):
    """What came is no header of the PROXY protocol; `str()` says why."""


class ProxyHeader(Struct, frozen=True):
    """A header of `size` bytes.

    `source` and `destination` are address and port; ("unix:", 0) and ("", 0) for a UNIX socket,
    None where the proxy speaks for itself (LOCAL) or does not know (UNKNOWN).
    """

    size: int
    source: Endpoint | None = None
    destination: Endpoint | None = None


def parse(data: bytes) -> ProxyHeader | None:
    """The header at the beginning of `data`; None while it is not complete.

    Raises ProxyProtocolError as soon as it can be told that it is none.
    """
    if data.startswith(_V1):
        return _version_1(data)
    if data.startswith(_V2):
        return _version_2(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    raise ProxyProtocolError("the connection does not begin with a PROXY protocol header")


def _version_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST:
            raise ProxyProtocolError("the line of the PROXY protocol is too long")
        return None
    size = end + 2
    protocol, *words = data[len(_V1) : end].split(b" ")
    if protocol == b"UNKNOWN":
        return ProxyHeader(size)  # "ignore anything presented before the CRLF"
    family = _V1_FAMILIES.get(protocol)
    if family is None or len(words) != 4:
        raise ProxyProtocolError("invalid line of the PROXY protocol")
    source, destination, source_port, destination_port = words
    return ProxyHeader(
        size,
        (_address(family, source), _port(source_port)),
        (_address(family, destination), _port(destination_port)),
    )


def _address(family: int, text: bytes) -> str:
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text.decode("ascii")))
    except (OSError, ValueError):
        raise ProxyProtocolError("invalid address in the PROXY protocol") from None


def _port(text: bytes) -> int:
    if not text.isdigit() or len(text) > 5 or int(text) > 65535 or text != b"%d" % int(text):
        raise ProxyProtocolError("invalid port in the PROXY protocol")
    return int(text)


def _version_2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_HEAD:
        return None
    version, command = data[12] >> 4, data[12] & 15
    if version != 2 or command > 1:
        raise ProxyProtocolError("unknown version or command of the PROXY protocol")
    family, length = data[13], int.from_bytes(data[14:16], "big")
    size = _V2_HEAD + length
    if size > _V2_LONGEST:
        raise ProxyProtocolError(f"the header of the PROXY protocol is too large ({size} bytes)")
    if len(data) < size:
        return None
    if command == 0:
        return ProxyHeader(size)  # LOCAL: "the receiver must accept this connection as valid"
    known = _V2_ADDRESSES.get(family)
    if known is None:
        if family >> 4 > 3 or family & 15 > 2:
            raise ProxyProtocolError("unknown address family in the PROXY protocol")
        if family == _V2_UNIX and length >= 216:
            return ProxyHeader(size, ("unix:", 0), ("", 0))
        if family == _V2_UNIX:
            raise ProxyProtocolError("the addresses of the PROXY protocol are cut off")
        return ProxyHeader(size)  # unspecified, or datagrams: "should ignore the address"
    kind, width = known
    if length < 2 * width + 4:
        raise ProxyProtocolError("the addresses of the PROXY protocol are cut off")
    at, ports = _V2_HEAD, _V2_HEAD + 2 * width
    return ProxyHeader(
        size,
        (
            socket.inet_ntop(kind, data[at : at + width]),
            int.from_bytes(data[ports : ports + 2], "big"),
        ),
        (
            socket.inet_ntop(kind, data[at + width : ports]),
            int.from_bytes(data[ports + 2 : ports + 4], "big"),
        ),
    )
