"""Requests that are served, and what the handler is told of them."""

import pytest

from prefork.http.headers import Headers, split_fields


def seen(wire, data):
    """Send `data` whole to one server and byte by byte to another; both must see the same."""
    whole, bytewise = wire(), wire()
    client, answer = whole.ask(data)
    assert answer.status == 200, answer
    client = bytewise.connect()
    client.send_bytewise(data)
    assert client.answer().status == 200
    assert whole.seen == bytewise.seen
    (request,) = whole.seen
    return request


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("/", "a", "/", ""),
        ("/a/b?c=d", "a", "/a/b", "c=d"),
        ("/?", "a", "/", ""),
        ("/??", "a", "/", "?"),
        ("/%41%2f%c3%a9", "a", "/A/é", ""),
        ("/%ff", "a", "/\ufffd", ""),
        ("/%zz%", "a", "/%zz%", ""),
        ("/;a=b:@!$&'()*+,~-._", "a", "/;a=b:@!$&'()*+,~-._", ""),
        ("//a//b", "a", "//a//b", ""),
        ("/../b", "a", "/../b", ""),
        # RFC 9112 section 3.2.2: the target's authority replaces Host.
        ("http://b/c?d", "b", "/c", "d"),
        ("http://b:81/c", "b:81", "/c", ""),
        ("HTTP://b", "b", "/", ""),
        ("http://b?c", "b", "/", "c"),
        ("https://b/", "b", "/", ""),
        ("http://[::1]:80/", "[::1]:80", "/", ""),
    ],
)
def test_targets(wire, target, host, path, query):
    async def tell(exchange):
        found = (exchange.target, exchange.host, exchange.path, exchange.query_string)
        exchange.reply(200, b"", repr(found).encode())

    w = wire(tell)
    client = w.connect()
    answer = client.get(target)
    assert answer.status == 200
    assert answer.body.decode() == repr((target, host, path, query))


def test_asterisk_form_is_for_options(wire):
    request = seen(wire, b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (request.method, request.target) == ("OPTIONS", "*")


@pytest.mark.parametrize(
    "host",
    ["a", "A.example", "a:80", "a:", "127.0.0.1:8000", "[::1]", "[::1]:80", "[v1.a:b]", "xn--a_b~",
     "a%20b", "x" * 1000],
)  # fmt: skip
def test_hosts(wire, host):
    w = wire()
    for _ in range(2):  # the second time it is known
        _, answer = w.ask(f"GET / HTTP/1.1\r\nHost: \t{host} \r\n\r\n".encode())
        assert answer.status == 200
    assert [request.host for request in w.seen] == [host, host]


def test_the_memory_of_hosts_is_bounded(wire):
    w = wire()
    client = w.connect()
    for number in range(1500):
        client.send(f"GET / HTTP/1.1\r\nHost: a{number}\r\n\r\n".encode())
        assert client.answer().status == 200
    w.ask(b"GET / HTTP/1.1\r\nHost: " + b"a" * 10_000 + b"\r\n\r\n")
    known = w.server.check_host.known
    assert len(known) <= 1024
    assert max(map(len, known)) <= 256


def test_fields_are_told_as_they_came(wire):
    request = seen(
        wire,
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Empty:\r\nX-Space: \t a \tb\t \r\n"
        b"x-CASE:1\r\nX-Case: 2\r\nX-Latin: \xe9\r\nX!#$%&'*+-.^_`|~9: :\r\n\r\n",
    )
    assert request.headers == [
        (b"host", b"a"),
        (b"x-empty", b""),
        (b"x-space", b"a \tb"),
        (b"x-case", b"1"),
        (b"x-case", b"2"),
        (b"x-latin", b"\xe9"),
        (b"x!#$%&'*+-.^_`|~9", b":"),
    ]


def test_http_1_0_needs_no_host(wire):
    request = seen(wire, b"GET / HTTP/1.0\r\n\r\n")
    assert (request.version, request.host, request.headers) == ("1.0", "", [])


def test_one_empty_line_may_come_first(wire):
    request = seen(wire, b"\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n")
    assert request.target == "/a"


def test_an_empty_line_behind_a_body_is_no_request(wire):
    """Old clients send one; a connection that waits behind it is idle, not slow."""
    w = wire()
    data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\n"
    client, answer = w.ask(data)
    assert answer.body == b"abc"
    w.pass_time(11)
    client.assert_silent()
    assert client.get().status == 200
    client.send(data)
    assert client.answer().status == 200
    client.half_close()
    client.assert_closed()


def test_any_three_bytes_may_come_first(wire):
    w = wire()
    client = w.connect()
    client.send_pieces(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 3)
    assert client.answer().status == 200


def test_every_cut_is_the_same(wire):
    data = (
        b"POST /a?b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: 1\r\n\r\n"
        b"GET /c HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    w = wire()
    for cut in range(1, len(data)):
        client = w.connect()
        client.send_pieces(data, cut)
        assert client.answer().body == b"abc0123456789"
        assert client.answer().body == b""
        client.close()
    first, second = w.seen[:2]
    assert first.trailers == [(b"x", b"1")]
    assert w.seen == [first, second] * (len(data) - 1)


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "M-SEARCH"]
)
def test_methods(wire, method):
    assert seen(wire, f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode()).method == method


def test_no_length_is_no_body(wire):
    """RFC 9112 section 6.3, rule 7; an HTTP/1.1 POST without either field has an empty body."""
    assert seen(wire, b"POST / HTTP/1.1\r\nHost: a\r\n\r\n").body == b""


def test_an_offered_upgrade_is_declined_by_answering(wire):
    """And what is pipelined behind it is the next request, not the other protocol."""
    w = wire()
    client = w.connect()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    client.send(
        b"GET /1 HTTP/1.1\r\nHost: a\r\n" + offer
        + b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n" + offer + b"abc"
        + b"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n"
    )  # fmt: skip
    assert [client.answer().body for _ in range(3)] == [b"", b"abc", b""]
    assert [request.target for request in w.seen] == ["/1", "/2", "/3"]


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("1.1", "", True),
        ("1.1", "keep-alive", True),
        ("1.1", "close", False),
        ("1.1", "Close", False),
        ("1.1", "foo, close", False),
        ("1.1", "keep-alive, close", False),
        ("1.1", "closed", True),
        ("1.0", "", False),
        ("1.0", "keep-alive", True),
        ("1.0", "Keep-Alive", True),
        ("1.0", "close", False),
        ("1.0", "keep-alive, close", False),
    ],
)
@pytest.mark.parametrize("body", [b"", b"abc"])
def test_persistence(wire, version, connection, kept, body):
    """RFC 9112 section 9.3, with and without a body: two paths read the field."""
    w = wire()
    method = "POST" if body else "GET"
    request = f"{method} / HTTP/{version}\r\nHost: a\r\n"
    if connection:
        request += f"Connection: {connection}\r\n"
    if body:
        request += f"Content-Length: {len(body)}\r\n"
    data = request.encode() + b"\r\n" + body
    client, answer = w.ask(data)
    assert answer.status == 200
    assert answer.closes is not kept
    # RFC 9112 appendix C.2.2: a 1.0 client believes in persistence only when it is told.
    assert (answer.get("connection") == "keep-alive") is (kept and version == "1.0")
    if kept:
        client.send(data)
        assert client.answer().body == body
    else:
        client.assert_closed()


def test_headers_by_name():
    headers = Headers(
        split_fields(b"Accept: a\r\nCOOKIE: x=1\r\naccept:b\r\nCookie: y=2\r\nX: \xe9")
    )
    assert headers.get("ACCEPT") == "a, b"
    assert headers.get("Cookie") == "x=1; y=2"
    assert headers.get_all("accept") == ["a", "b"]
    assert headers["x"] == "é"
    assert headers.get("none") is None
    assert headers.get("none", "") == ""
    assert "ACCEPT" in headers
    assert "none" not in headers
    assert list(headers) == ["accept", "cookie", "x"]
    assert len(headers) == 5
    assert headers.items()[1] == ("cookie", "x=1")
    with pytest.raises(KeyError):
        headers["none"]
