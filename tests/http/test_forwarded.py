"""Who the client is by Forwarded and X-Forwarded-*, and whose word counts."""

import pytest

from prefork.http.exchange import Exchange
from prefork.http.forwarded import (
    Forwarding,
    parse_forwarded,
    parse_node,
    split_host,
    split_list,
)
from prefork.http.h1.head import HostCheck


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("192.0.2.1", ("192.0.2.1", 0)),
        ("192.0.2.1:8080", ("192.0.2.1", 8080)),
        ("192.0.2.1:_hidden", ("192.0.2.1", 0)),
        ("[2001:DB8::1]", ("2001:db8::1", 0)),
        ("[2001:db8::1]:443", ("2001:db8::1", 443)),
        ("2001:db8::1", ("2001:db8::1", 0)),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ("[2001:db8::1", ("2001:db8::1", 0)),
        ("[2001:db8::1]x", None),
        ("192.0.2", None),
        ("192.0.2.256", None),
        ("fe80::1%eth0", None),
        ("1\0.2.3.4", None),
    ],
)
def test_nodes(text, node):
    assert parse_node(text) == node


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("for=192.0.2.1", [{"for": "192.0.2.1"}]),
        (
            'For="[2001:db8:cafe::17]:4711";proto=https;Host=example.org',
            [{"for": "[2001:db8:cafe::17]:4711", "proto": "https", "host": "example.org"}],
        ),
        (
            "for=192.0.2.43, for=_b ; by=203.0.113.60",
            [
                {"for": "192.0.2.43"},
                {"for": "_b", "by": "203.0.113.60"},
            ],
        ),
        ('for="a\\"b,;c"', [{"for": 'a"b,;c'}]),
        ("for=[::1]:80", [{"for": "[::1]:80"}]),
        (" , for=1.2.3.4,, ", [{"for": "1.2.3.4"}]),
        ("", []),
        ('for="open', None),
        ('for="x, for="[2001:db8::1]"', None),
        ("for=a;for=b", None),
        ("for", None),
        ("for = a", None),
        ("for=a b", None),
    ],
)
def test_elements(text, elements):
    assert parse_forwarded(text) == elements


@pytest.mark.timeout(20)
def test_no_field_takes_long_to_parse():
    """Sixteen thousand spaces once took seven seconds."""
    for text in (" " * 60_000 + "!", "for=a" + "\t" * 60_000 + "b", ";" * 60_000 + "!"):
        assert parse_forwarded(text) is None
    assert parse_forwarded('for="' + "\\a" * 60_000) is None


def test_small_parsers():
    assert split_list(" a ,, b,") == ["a", "b"]
    assert split_host("[::1]:80") == ("::1", 80)
    assert split_host("[::1]") == ("::1", 0)
    assert split_host("example.org:x") == ("example.org", 0)


@pytest.mark.parametrize(
    ("trust", "peer", "trusted"),
    [
        (("10.0.0.0/8",), "10.1.2.3", True),
        (("10.0.0.0/8",), "11.1.2.3", False),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("10.0.0.0/8",), "unix:", False),
        (("::1",), "::1", True),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("unix",), "unix:", True),
        (("unix",), "127.0.0.1", False),
        (("*",), "unix:", True),
        (("*",), "203.0.113.9", True),
        (("10.0.0.0/8",), "", False),
    ],
)
def test_trust(trust, peer, trusted):
    assert Forwarding(trust, HostCheck()).trusts(peer) is trusted


class Told:
    """What a request says in the end."""

    def __init__(self, exchange: Exchange) -> None:
        self.peer = exchange.peer
        self.port = exchange.peer_port
        self.scheme = exchange.scheme
        self.host = exchange.host
        self.local = exchange.local
        self.ips = exchange.forwarded.ips if exchange.forwarded else None


@pytest.fixture
def ask(wire):
    """Send fields over a real connection to a server that trusts `trust`; what its handler saw."""

    def send(*fields: str, trust: tuple[str, ...] = ("127.0.0.1", "10.0.0.0/8")) -> Told:
        told: list[Told] = []

        def handler(exchange: Exchange) -> None:
            told.append(Told(exchange))
            exchange.reply(200, b"", b"")

        made = wire(handler=handler, trust=trust)
        client = made.connect()
        head = "".join(f"{field}\r\n" for field in ("GET / HTTP/1.1", "Host: inner", *fields))
        client.send(f"{head}\r\n".encode("latin-1"))
        assert client.answer().status == 200
        return told[0]

    return send


@pytest.mark.parametrize(
    ("fields", "peer", "ips"),
    [
        (["X-Forwarded-For: 203.0.113.7"], "203.0.113.7", ("203.0.113.7",)),
        # what stands left of the first that is not trusted was written by nobody we know
        (["X-Forwarded-For: 1.1.1.1, 203.0.113.7"], "203.0.113.7", ("203.0.113.7",)),
        (
            ["X-Forwarded-For: 1.1.1.1, 203.0.113.7, 10.0.0.2"],
            "203.0.113.7",
            ("203.0.113.7", "10.0.0.2"),
        ),
        (
            ["X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 10.0.0.2"],
            "203.0.113.7",
            ("203.0.113.7", "10.0.0.2"),
        ),
        (["X-Forwarded-For: 10.0.0.3, 10.0.0.2"], "10.0.0.3", ("10.0.0.3", "10.0.0.2")),
        # an identifier ends the walk at the last address that is known
        (["X-Forwarded-For: 203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2", ("10.0.0.2",)),
        (["X-Forwarded-For: nonsense"], "127.0.0.1", ()),
        (["Forwarded: for=_hidden, for=10.0.0.2"], "10.0.0.2", ("10.0.0.2",)),
        (['Forwarded: for="[2001:db8::1]:99"'], "2001:db8::1", ("2001:db8::1",)),
        # a client adds the field that its proxy does not know, and passes on
        (["X-Forwarded-For: 1.1.1.1", "Forwarded: for=2.2.2.2"], "1.1.1.1", ("1.1.1.1",)),
        (["Forwarded: for=2.2.2.2", "X-Forwarded-Proto: https"], "127.0.0.1", ()),
        (["X-Forwarded-For: 1.1.1.1", 'Forwarded: for="x'], "1.1.1.1", ("1.1.1.1",)),
        (['Forwarded: for="x', "Forwarded: for=2.2.2.2"], "127.0.0.1", None),
        (["X-Other: forwarded"], "127.0.0.1", None),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_not_trusted(ask, fields, peer, ips):
    told = ask(*fields)
    assert (told.peer, told.ips) == (peer, ips)


def test_nobody_is_trusted_by_default(ask):
    fields = ("X-Forwarded-For: 1.1.1.1", "Forwarded: for=2.2.2.2;proto=https;host=evil")
    for trust in ((), ("10.0.0.0/8",), ("unix",)):
        told = ask(*fields, trust=trust)
        assert (told.peer, told.scheme, told.host, told.ips) == (
            "127.0.0.1",
            "http",
            "inner",
            None,
        )


@pytest.mark.parametrize(
    ("fields", "scheme", "host", "port"),
    [
        (["X-Forwarded-Proto: https"], "https", "inner", None),
        (
            ["X-Forwarded-Proto: https", "X-Forwarded-Host: example.org"],
            "https",
            "example.org",
            443,
        ),
        (["X-Forwarded-Host: example.org:81"], "http", "example.org:81", 81),
        (["X-Forwarded-Host: bad host"], "http", "inner", None),
        (["X-Forwarded-Proto: gopher"], "http", "inner", None),
        (["X-Forwarded-Proto: wss"], "https", "inner", None),
        (["X-Forwarded-Port: 8443"], "http", "inner:8443", 8443),
        (["X-Forwarded-Port: 443", "X-Forwarded-Proto: https"], "https", "inner", 443),
        (["X-Forwarded-Port: 99999"], "http", "inner", None),
        # of appended lists the value of the same hop, never what the client has put in front
        (["X-Forwarded-Proto: https, http"], "http", "inner", None),
        (
            [
                "X-Forwarded-For: 9.9.9.9, 203.0.113.7, 10.0.0.2",
                "X-Forwarded-Proto: http, https, http",
            ],
            "https",
            "inner",
            None,
        ),
        (
            ["X-Forwarded-For: 203.0.113.7, 10.0.0.2", "X-Forwarded-Proto: https"],
            "https",
            "inner",
            None,
        ),
        (["Forwarded: for=1.1.1.1;proto=https;host=example.org"], "https", "example.org", 443),
        (
            [
                "Forwarded: for=9.9.9.9;host=evil;proto=https, for=1.1.1.1;host=a",
                "Forwarded: for=10.0.0.2;host=b",
            ],
            "http",
            "a",
            80,
        ),
    ],
)
def test_scheme_host_and_port(ask, fields, scheme, host, port):
    told = ask(*fields)
    assert (told.scheme, told.host) == (scheme, host)
    if port is not None:
        assert told.local[1] == port
