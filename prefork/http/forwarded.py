"""Who the client is when a proxy stands in front of us: Forwarded (RFC 7239) and X-Forwarded-*.

Every proxy adds to the right of these lists who has connected to it; what stands further left came
with the request and may be invented. So a list is read from the right for as long as what speaks is
trusted (nginx: `set_real_ip_from` with `real_ip_recursive on`): the first address that is not is
the client. Without trust in the peer itself nothing is read at all.

A node that is no address (`unknown`, `_hidden`) ends the walk: the client is the last address that
is known. A Forwarded that cannot be parsed says nothing.

Where X-Forwarded-* is said, Forwarded is not asked. Nearly every proxy writes the former and passes
on the latter as it came; the other way about a client would choose its address by adding the field
that the proxy does not know.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from prefork.errors import PeerError

if TYPE_CHECKING:
    from prefork.http.exchange import Exchange, Handler

Node = tuple[str, int]  # address and port; 0 where none is told
Element = dict[str, str]

_KNOWN_PEERS_LIMIT: Final = 1024
_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# RFC 7239 section 4: pairs with ";" between them are an element, "," begins the next. Values that
# should have been quoted (`for=10.0.0.1:80`, `for=[::1]`) are taken, as many proxies write them.
# Possessive: two runs of spaces side by side would try every way to share the spaces of an attack.
_PAIR: Final = re.compile(
    r"[ \t]*+(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]++)="
    r'(?:"((?:[^"\\]|\\.)*+)"|([^\s",;=]++)))?[ \t]*+([;,]|$)'
)
_QUOTED_PAIR: Final = re.compile(r"\\(.)")


class Forwarded(Struct, frozen=True, kw_only=True):
    """What trusted proxies say about one request.

    `ips` are the addresses from the client's on to the peer that we trust, without that peer.
    `host` and `scheme` are "" and `port`, the one that the client connected to, is 0 when they say
    nothing of it.
    """

    client: Node
    ips: tuple[str, ...] = ()
    scheme: str = ""
    host: str = ""
    port: int = 0

    def local(self, connected: tuple[str, int], scheme: str) -> tuple[str, int]:
        """The host and port that the client connected to; `connected` is where the proxy did."""
        if not self.host:
            return (connected[0], self.port) if self.port else connected
        name, port = split_host(self.host)
        return name, self.port or port or _DEFAULT_PORTS[scheme]


class Forwarding:
    """Believes `trust`: addresses, networks, "unix" and "*", as `forwarded.trust` has them."""

    def __init__(self, trust: Sequence[str], check_host: Callable[[bytes], str]) -> None:
        self._unix = "unix" in trust or "*" in trust
        self._all = "*" in trust
        self._networks = [ipaddress.ip_network(one) for one in trust if one not in ("unix", "*")]
        self._known: dict[str, bool] = {}
        self._check_host = check_host

    def trusts(self, peer: str) -> bool:
        """`peer` is an address, or "unix:" for whoever is on a UNIX socket."""
        known = self._known.get(peer)
        if known is None:
            if len(self._known) >= _KNOWN_PEERS_LIMIT:
                self._known.clear()
            known = self._known[peer] = self._look_up(peer)
        return known

    def _look_up(self, peer: str) -> bool:
        if peer == "unix:":
            return self._unix
        if self._all:
            return True
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        # An IPv6 socket that takes IPv4, too, shows its clients as ::ffff:10.0.0.1.
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any(one in network for one in (address, mapped) if one for network in self._networks)

    def before(self, handler: "Handler") -> "Handler":
        """`handler`, for exchanges that know by then who their client is."""

        def handle(exchange: "Exchange") -> Coroutine[Any, Any, None] | None:
            self.read(exchange)
            return handler(exchange)

        return handle

    def read(self, exchange: "Exchange") -> None:
        """Give `exchange` the client, scheme and host that trusted proxies tell."""
        lower = exchange.lower
        at = lower.find(b"forwarded")
        if at < 0 or not self.trusts(exchange.connection.peer):
            return
        connection = exchange.connection
        peer = (connection.peer, connection.peer_port)
        found = self._de_facto(exchange, peer)
        if found is None:
            text = field(exchange.head, lower, b"forwarded")
            found = None if text is None else self._rfc7239(text, peer)
        if found is None:
            return
        exchange.forwarded = found
        if found.scheme:
            exchange.scheme = found.scheme
        if found.host:
            exchange.host = found.host

    def _walk(self, nodes: Sequence[str], peer: Node) -> tuple[Node, list[str], int]:
        """The client, the addresses from its own on, and how many of `nodes` are believed."""
        ips: list[str] = []
        client = peer
        for count, text in enumerate(reversed(nodes)):
            if not self.trusts(client[0]):
                return client, ips[::-1], count
            node = parse_node(text)
            if node is None:
                return client, ips[::-1], count + 1
            client = node
            ips.append(node[0])
        return client, ips[::-1], len(nodes)

    def _rfc7239(self, text: str, peer: Node) -> Forwarded | None:
        elements = parse_forwarded(text)
        if not elements:
            return None
        client, ips, count = self._walk([one.get("for", "") for one in elements], peer)
        believed = elements[-count:]
        scheme, host = (
            next((one[name] for one in believed if name in one), "") for name in ("proto", "host")
        )
        return Forwarded(
            client=client,
            ips=tuple(ips),
            scheme=_SCHEMES.get(scheme.lower(), ""),
            host=self._host(host),
        )

    def _de_facto(self, exchange: "Exchange", peer: Node) -> Forwarded | None:
        head, lower = exchange.head, exchange.lower
        nodes, protos, hosts, ports = (
            split_list(field(head, lower, b"x-forwarded-" + name) or "")
            for name in (b"for", b"proto", b"host", b"port")
        )
        if not (nodes or protos or hosts or ports):
            return None
        client, ips, count = self._walk(nodes, peer)
        scheme = _SCHEMES.get(_at(protos, count).lower(), "")
        host = self._host(_at(hosts, count))
        port = parse_port(_at(ports, count)) or 0
        if port and not host:
            # The port is a part of the authority that was asked for, unless its scheme implies it.
            name, with_port = split_host(exchange.host)
            if name and not with_port and port != _DEFAULT_PORTS[scheme or exchange.scheme]:
                host = f"{exchange.host}:{port}"
        elif port and not split_host(host)[1] and port != _DEFAULT_PORTS[scheme or exchange.scheme]:
            host = f"{host}:{port}"
        return Forwarded(client=client, ips=tuple(ips), scheme=scheme, host=host, port=port)

    def _host(self, text: str) -> str:
        try:
            return self._check_host(text.encode("latin-1")) if text else ""
        except PeerError:
            return ""


def _at(values: Sequence[str], hops: int) -> str:
    """What the proxy said that was `hops` away; proxies that do not append say it alone."""
    return values[max(len(values) - max(hops, 1), 0)] if values else ""


def field(head: bytes, lower: bytes, name: bytes) -> str | None:
    """The value of every field `name` (in lower case), joined by commas; None without one."""
    needle = b"\r\n" + name + b":"
    values = []
    at = lower.find(needle)
    while at >= 0:
        at += len(needle)
        values.append(head[at : head.find(b"\r\n", at)])
        at = lower.find(needle, at)
    return b",".join(values).decode("latin-1") if values else None


def split_list(text: str) -> list[str]:
    """RFC 9110 section 5.6.1: empty elements do not count."""
    return [one for part in text.split(",") if (one := part.strip(" \t"))]


def parse_forwarded(text: str) -> list[Element] | None:
    """The elements of a Forwarded field, names in lower case; None when it is malformed."""
    elements: list[Element] = []
    element: Element = {}
    at = 0
    while at <= len(text):
        match = _PAIR.match(text, at)
        if match is None:
            return None
        name, quoted, token, separator = match.groups()
        if name is not None:
            name = name.lower()
            if name in element:  # RFC 7239 section 4: "MUST NOT occur more than once"
                return None
            element[name] = token if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
        if separator != ";" and element:
            elements.append(element)
            element = {}
        if not separator:
            break
        at = match.end()
    return elements


def parse_node(text: str) -> Node | None:
    """RFC 7239 section 6, and what stands in X-Forwarded-For; None for what is no address."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest and not rest.startswith(":"):
            return None
        family, port = socket.AF_INET6, rest[1:]
    elif text.count(":") > 1:
        family, host, port = socket.AF_INET6, text, ""
    else:
        family = socket.AF_INET
        host, _, port = text.partition(":")
    try:
        packed = socket.inet_pton(family, host)
    except (OSError, ValueError):
        return None
    # A port may be obfuscated, too.
    return socket.inet_ntop(family, packed), parse_port(port) or 0


def parse_port(text: str) -> int | None:
    """A decimal from 0 to 65535; None for anything else."""
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > 65535:
        return None
    return int(text)


def split_host(host: str) -> Node:
    """An authority's host, without brackets, and its port; 0 when it names none."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, parse_port(rest[1:]) or 0
    name, _, port = host.partition(":")
    return name, parse_port(port) or 0
