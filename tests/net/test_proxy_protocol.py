"""The PROXY protocol's header: what is one, what is none, and what is not one yet."""

import socket

import pytest

from prefork.net.proxy_protocol import ProxyProtocolError, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command: int, family: int, block: bytes, *, length: int | None = None) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + bytes([0x20 | command, family]) + size.to_bytes(2, "big") + block


INET = socket.inet_aton("203.0.113.7") + socket.inet_aton("192.0.2.1") + b"\xc0\x00\x01\xbb"
INET6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    + b"\xc0\x00\x01\xbb"
)
UNIX = b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")
TLV = b"\x04\x00\x03abc"
V4 = (("203.0.113.7", 49152), ("192.0.2.1", 443))
V6 = (("2001:db8::1", 49152), ("2001:db8::2", 443))
NOBODY = (None, None)

GOOD = [
    (b"PROXY TCP4 203.0.113.7 192.0.2.1 49152 443\r\n", V4),
    (b"PROXY TCP6 2001:DB8:0::1 2001:db8::2 49152 443\r\n", V6),
    (b"PROXY UNKNOWN\r\n", NOBODY),
    (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", NOBODY),
    (v2(1, 0x11, INET), V4),
    (v2(1, 0x11, INET + TLV), V4),
    (v2(1, 0x21, INET6), V6),
    (v2(1, 0x21, INET6 + TLV * 600), V6),
    (v2(1, 0x31, UNIX), (("unix:", 0), ("", 0))),
    (v2(1, 0x00, b""), NOBODY),
    (v2(1, 0x12, INET), NOBODY),
    (v2(0, 0x00, b""), NOBODY),
    (v2(0, 0x11, INET + TLV), NOBODY),
    (v2(0, 0xFF, b"anything"), NOBODY),
]


@pytest.mark.parametrize(("header", "found"), GOOD)
def test_a_header_is_read_and_what_follows_is_left(header, found):
    parsed = parse(header + b"GET / HTTP/1.1\r\n")
    assert parsed is not None
    assert (parsed.source, parsed.destination) == found
    assert parsed.size == len(header)


@pytest.mark.parametrize(("header", "_found"), GOOD)
def test_every_part_of_a_header_waits_for_the_rest(header, _found):
    for end in range(len(header)):
        assert parse(header[:end]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY\r\n",
        b"PROXX",
        b"\r\n\r\nG",
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP5 203.0.113.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 1\r\n",
        b"PROXY TCP4  203.0.113.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2 \r\n",
        b"PROXY TCP4 203.0.113.256 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP6 203.0.113.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 2\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 01 2\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 -1 2\r\n",
        b"PROXY TCP4 203.0.113.7\0 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 203.0.113.\xff 192.0.2.1 1 2\r\n",
        b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
        b"PROXY " + b"f" * 200,
        SIGNATURE + b"\x11\x11\x00\x0c" + INET,
        v2(2, 0x11, INET),
        v2(1, 0x41, INET),
        v2(1, 0x13, INET),
        v2(1, 0x11, INET[:-1]),
        v2(1, 0x21, INET),
        v2(1, 0x31, UNIX[:-1]),
        v2(1, 0x11, b"", length=4081),
    ],
)
def test_anything_else_is_refused(data):
    with pytest.raises(ProxyProtocolError):
        parse(data)
