"""Requests that are none: the status each is refused with, and that nothing follows it.

Each is sent in one piece and byte by byte, alone and behind a good one: what a request is refused
for must not depend on how the network cut it, and an attacker chooses the cuts.
"""

import pytest

HOST = b"Host: a\r\n"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(48, 96)) * 4


def get(fields: bytes = b"", *, line: bytes = b"GET / HTTP/1.1", host: bytes = HOST) -> bytes:
    return line + b"\r\n" + host + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return get(fields, line=b"POST / HTTP/1.1") + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


HEADS = {
    # RFC 9112 section 2.2: a bare CR or LF is no line end. (Recipients MAY take LF; we do not.)
    "bare-lf": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare-lf-after-line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare-lf-after-field": (get(b"X: 1\nY: 2\r\n"), 400),
    "bare-lf-at-end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "bare-cr-in-value": (get(b"X: 1\rY: 2\r\n"), 400),
    "bare-cr-after-field": (get(b"X: 1\r\r\n"), 400),
    "bare-cr-in-line": (get(line=b"GET / \rHTTP/1.1"), 400),
    # Section 5.1 and 5.2
    "space-before-colon": (get(b"X : 1\r\n"), 400),
    "tab-before-colon": (get(b"X\t: 1\r\n"), 400),
    "space-before-colon-cl": (post(b"Content-Length : 3\r\n", b"abc"), 400),
    "space-before-colon-te": (post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"), 400),
    "obs-fold": (get(b"X: 1\r\n 2\r\n"), 400),
    "obs-fold-tab": (get(b"X: 1\r\n\t2\r\n"), 400),
    "obs-fold-first": (get(host=b" Host: a\r\nHost: a\r\n"), 400),
    "space-before-first-field": (get(host=b" X: 1\r\nHost: a\r\n"), 400),
    "no-colon": (get(b"X\r\n"), 400),
    "empty-name": (get(b": 1\r\n"), 400),
    "name-with-space": (get(b"X Y: 1\r\n"), 400),
    "name-with-slash": (get(b"X/Y: 1\r\n"), 400),
    "name-not-ascii": (get(b"X\xe9: 1\r\n"), 400),
    "name-with-brace": (get(b"X{: 1\r\n"), 400),
    "name-with-nul": (get(b"X\0: 1\r\n"), 400),
    "nul-in-value": (get(b"X: a\0b\r\n"), 400),
    "control-in-value": (get(b"X: a\x01b\r\n"), 400),
    "escape-in-value": (get(b"X: a\x1bb\r\n"), 400),
    "delete-in-value": (get(b"X: a\x7fb\r\n"), 400),
    # Section 3.2: "A server MUST respond with a 400"
    "no-host": (get(host=b""), 400),
    "two-hosts": (get(HOST), 400),
    "two-hosts-differ": (get(b"hOST: b\r\n"), 400),
    "host-empty": (get(host=b"Host:\r\n"), 400),
    "host-with-space": (get(host=b"Host: a b\r\n"), 400),
    "host-with-slash": (get(host=b"Host: a/b\r\n"), 400),
    "host-with-user": (get(host=b"Host: me@a\r\n"), 400),
    "host-with-query": (get(host=b"Host: a?b\r\n"), 400),
    "host-list": (get(host=b"Host: a, b/c\r\n"), 400),
    "host-port-letters": (get(host=b"Host: a:b\r\n"), 400),
    "host-bracket": (get(host=b"Host: [::1\r\n"), 400),
    "host-not-ascii": (get(host=b"Host: \xe9\r\n"), 400),
    "host-percent": (get(host=b"Host: a%zz\r\n"), 400),
    "host-backslash": (get(host=b"Host: a\\b\r\n"), 400),
    "two-hosts-1.0": (get(HOST, line=b"GET / HTTP/1.0"), 400),
    # Section 6.3
    "cl-twice-differ": (post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abc"), 400),
    "cl-twice-equal": (post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"), 400),
    "cl-twice-zero": (post(b"Content-Length: 0\r\nContent-Length: 0\r\n"), 400),
    "cl-list": (post(b"Content-Length: 5, 5\r\n", b"abcde"), 400),
    "cl-plus": (post(b"Content-Length: +3\r\n", b"abc"), 400),
    "cl-minus": (post(b"Content-Length: -3\r\n", b"abc"), 400),
    "cl-hex": (post(b"Content-Length: 0x3\r\n", b"abc"), 400),
    "cl-inner-space": (post(b"Content-Length: 1 2\r\n", b"abc"), 400),
    "cl-empty": (post(b"Content-Length:\r\n"), 400),
    "cl-blank": (post(b"Content-Length: \t \r\n"), 400),
    "cl-letters": (post(b"Content-Length: three\r\n"), 400),
    "cl-float": (post(b"Content-Length: 3.0\r\n"), 400),
    "cl-underscore": (post(b"Content-Length: 1_0\r\n"), 400),
    "cl-superscript": (post(b"Content-Length: \xb2\r\n"), 400),
    "cl-64-bit": (post(b"Content-Length: 18446744073709551617\r\n"), 400),
    "cl-huge": (post(b"Content-Length: " + b"9" * 100 + b"\r\n"), 400),
    "cl-over-limit": (post(b"Content-Length: 16777217\r\n"), 413),
    "te-and-cl": (post(b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"0\r\n\r\n"), 400),
    "cl-and-te": (post(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "cl-zero-and-te": (post(b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"), 400),
    "te-not-last": (post(b"Transfer-Encoding: chunked, gzip\r\n"), 400),
    "te-chunked-twice": (post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), 400),
    "te-two-fields": (
        post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        400,
    ),
    "te-empty": (post(b"Transfer-Encoding:\r\n"), 400),
    "te-blank-get": (get(b"Transfer-Encoding: \t\r\n"), 400),
    "te-comma": (post(b"Transfer-Encoding: ,chunked\r\n", b"0\r\n\r\n"), 501),
    "te-identity": (post(b"Transfer-Encoding: identity\r\n"), 400),
    # Section 6.1: "SHOULD respond with 501 (Not Implemented)"
    "te-unknown": (post(b"Transfer-Encoding: gzip\r\n"), 501),
    "te-unknown-chunked": (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), 501),
    "te-parameter": (post(b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"), 501),
    "te-quoted": (post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"), 501),
    "te-vertical-tab": (post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), 501),
    "te-1.0": (
        get(b"Transfer-Encoding: chunked\r\n", line=b"POST / HTTP/1.0") + b"0\r\n\r\n",
        400,
    ),
    # RFC 1945 section 8.3
    "post-1.0-no-length": (get(line=b"POST / HTTP/1.0"), 411),
    # RFC 9110 section 10.1.1
    "expect-unknown": (post(b"Expect: tea\r\nContent-Length: 3\r\n"), 417),
    "expect-two": (post(b"Expect: 100-continue, tea\r\nContent-Length: 3\r\n"), 417),
    # The request line, section 3
    "http-0.9": (b"GET /\r\n", 400),
    "http-0.9-version": (get(line=b"GET / HTTP/0.9"), 505),
    "http-1.2": (get(line=b"GET / HTTP/1.2"), 505),
    "http-2.0": (get(line=b"GET / HTTP/2.0"), 505),
    "http-3.0": (get(line=b"GET / HTTP/3.0"), 505),
    "http-2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "version-lower": (get(line=b"GET / http/1.1"), 400),
    "version-two-digits": (get(line=b"GET / HTTP/1.10"), 400),
    "version-no-minor": (get(line=b"GET / HTTP/1"), 400),
    "version-comma": (get(line=b"GET / HTTP/1,1"), 400),
    "version-other": (get(line=b"GET / ICE/1.0"), 400),
    "version-missing": (get(line=b"GET / "), 400),
    "two-spaces": (get(line=b"GET  / HTTP/1.1"), 400),
    "two-spaces-no-target": (get(line=b"GET  HTTP/1.1"), 400),
    "two-spaces-before-version": (get(line=b"GET /  HTTP/1.1"), 400),
    "space-at-end": (get(line=b"GET / HTTP/1.1 "), 400),
    "space-at-begin": (get(line=b" GET / HTTP/1.1"), 400),
    "tabs": (get(line=b"GET\t/\tHTTP/1.1"), 400),
    "space-in-target": (get(line=b"GET /a b HTTP/1.1"), 400),
    "method-unknown": (get(line=b"BREW / HTTP/1.1"), 501),
    "method-lower": (get(line=b"get / HTTP/1.1"), 501),
    "method-begins-well": (get(line=b"GETS / HTTP/1.1"), 501),
    "method-no-token": (get(line=b"G(T / HTTP/1.1"), 400),
    "method-not-ascii": (get(line=b"G\xe9T / HTTP/1.1"), 400),
    "method-empty": (get(line=b" / HTTP/1.1"), 400),
    "connect": (get(line=b"CONNECT a:80 HTTP/1.1"), 501),
    "authority-form": (get(line=b"GET a:80 HTTP/1.1"), 400),
    "asterisk-get": (get(line=b"GET * HTTP/1.1"), 400),
    "relative-target": (get(line=b"GET a HTTP/1.1"), 400),
    "query-only": (get(line=b"GET ?a HTTP/1.1"), 400),
    "fragment": (get(line=b"GET /a#b HTTP/1.1"), 400),
    "fragment-absolute": (get(line=b"GET http://a/b#c HTTP/1.1"), 400),
    "target-nul": (get(line=b"GET /\0 HTTP/1.1"), 400),
    "target-control": (get(line=b"GET /\x01 HTTP/1.1"), 400),
    "target-delete": (get(line=b"GET /\x7f HTTP/1.1"), 400),
    "target-not-ascii": (get(line=b"GET /\xc3\xa9 HTTP/1.1"), 400),
    "query-not-ascii": (get(line=b"GET /?\xe9 HTTP/1.1"), 400),
    "absolute-no-host": (get(line=b"GET http:///a HTTP/1.1"), 400),
    "absolute-user": (get(line=b"GET http://me@a/ HTTP/1.1"), 400),
    "absolute-other-scheme": (get(line=b"GET ftp://a/ HTTP/1.1"), 400),
    "absolute-bad-port": (get(line=b"GET http://a:b/ HTTP/1.1"), 400),
    "absolute-without-host-field": (get(line=b"GET http://a/ HTTP/1.1", host=b""), 400),
    # No HTTP at all
    "tls-hello": (TLS_HELLO, 400),
    "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
    "garbage": (bytes(range(128, 256)), 400),
    "nul": (b"\0", 400),
    "space-first": (b" \t[::1] \r\n\r", 400),
    "crlf-thrice": (b"\r\n\r\n\r\n" + get(), 400),
    "crlf-twice": (b"\r\n\r\n" + get(), 400),
    # Limits
    "line-too-long": (get(line=b"GET /" + b"a" * 8192 + b" HTTP/1.1"), 414),
    "line-endless": (b"GET /" + b"a" * 9000, 414),
    "head-too-large": (get(b"X: " + b"a" * 32768 + b"\r\n"), 431),
    "head-endless": (b"GET / HTTP/1.1\r\nX: " + b"a" * 40000, 431),
    "too-many-fields": (get(b"X-Field: a\r\n" * 100), 431),
}

CHUNKS = {
    "size-empty": b"\r\nabc\r\n0\r\n\r\n",
    "size-letters": b"g\r\nabc\r\n",
    "size-prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "size-plus": b"+3\r\nabc\r\n0\r\n\r\n",
    "size-minus": b"-3\r\nabc\r\n",
    "size-space-before": b" 3\r\nabc\r\n0\r\n\r\n",
    "size-space-after": b"3 \r\nabc\r\n0\r\n\r\n",
    "size-underscore": b"0_3\r\nabc\r\n",
    "size-overflow": b"10000000000000003\r\nabc\r\n",
    "size-huge": b"1" * 300,
    "lf-after-size": b"3\nabc\r\n0\r\n\r\n",
    "cr-after-size": b"3\rabc\r\n0\r\n\r\n",
    "lf-after-data": b"3\r\nabc\n0\r\n\r\n",
    "nothing-after-data": b"3\r\nabc0\r\n\r\n",
    "data-too-long": b"3\r\nabcd\r\n0\r\n\r\n",
    "lf-after-last": b"0\n\r\n",
    "lf-after-trailers": b"0\r\nX: 1\n\r\n",
    "lf-at-end": b"0\r\n\n",
    "cr-at-end": b"0\r\n\rX",
    # RFC 9112 section 7.1.1 would have a recipient bear white space here; h11 and llhttp do not.
    "extension-space": b"3 ;a\r\nabc\r\n0\r\n\r\n",
    "extension-lf": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "extension-nul": b"3;a\0\r\nabc\r\n0\r\n\r\n",
    "extension-long": b"3;" + b"a" * 1000 + b"\r\nabc\r\n0\r\n\r\n",
    "extension-endless": b"3;" + b"a" * 1000,
    "trailer-no-colon": b"0\r\nX\r\n\r\n",
    "trailer-fold": b"0\r\nX: 1\r\n 2\r\n\r\n",
    "trailer-space": b"0\r\nX : 1\r\n\r\n",
    "trailer-length": b"0\r\nContent-Length: 3\r\n\r\n",
    "trailer-coding": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "trailer-host": b"0\r\nA: 1\r\nHOST: b\r\n\r\n",
    "trailer-nul": b"0\r\nX: \0\r\n\r\n",
    "trailer-empty-name": b"0\r\n: 1\r\n\r\n",
}


def refused(client, status):
    answer = client.answer()
    assert answer.status == status
    assert answer.complete
    assert answer.closes
    assert answer.get("date")
    client.half_close()
    client.assert_closed()


@pytest.mark.parametrize("name", HEADS)
def test_head(wire, name):
    data, status = HEADS[name]
    w = wire()
    whole = w.connect()
    whole.send(data)
    refused(whole, status)

    behind = w.connect()
    behind.send(get() + data)
    assert behind.answer().status == 200
    refused(behind, status)
    assert len(w.seen) == 1

    if len(data) < 4000:
        bytewise = w.connect()
        bytewise.send_bytewise(data)
        refused(bytewise, status)
    else:
        pieces = w.connect()
        pieces.send_pieces(data, 10, 1000, len(data) - 2)
        refused(pieces, status)
    assert len(w.seen) == 1


@pytest.mark.parametrize("name", CHUNKS)
def test_chunked_body(wire, name):
    w = wire()
    data = chunked(CHUNKS[name])
    whole = w.connect()
    whole.send(data + get())
    refused(whole, 400)
    bytewise = w.connect()
    bytewise.send_bytewise(data)
    refused(bytewise, 400)
    assert w.seen == []


def test_megabytes_of_chunk_extensions_are_refused(wire):
    w = wire()
    client = w.connect()
    client.send(chunked(b""))
    for _ in range(20_000):
        client.send(b"1;" + b"a" * 200 + b"\r\nb\r\n")
        w.turn()
        if client.reset or not w.server.requests_running:
            break
    assert client.answer().status == 400


def test_trailers_are_limited(wire):
    w = wire(limits={"head": 1000})
    data = chunked(b"3\r\nabc\r\n0\r\n" + b"X: aaaaaaaaaaaaaaa\r\n" * 100)
    client = w.connect()
    client.send(data)
    refused(client, 431)
    client = w.connect()
    client.send(data + b"\r\n")
    refused(client, 431)
    assert w.seen == []


def test_chunks_beyond_the_limit(wire):
    w = wire(limits={"body": 1000})
    data = b"64\r\n" + b"a" * 100 + b"\r\n"
    client, answer = w.ask(chunked(data * 10 + b"0\r\n\r\n"))
    assert answer.status == 200
    client.send(chunked(data * 11))
    refused(client, 413)
    client, answer = w.ask(chunked(b"ffffffff\r\n"))
    assert answer.status == 413
    assert len(w.seen) == 1


def test_too_large_by_its_length_is_refused_before_a_byte_of_it_came(wire):
    w = wire(limits={"body": 1000})
    client = w.connect()
    client.send(post(b"Content-Length: 1001\r\nExpect: 100-continue\r\n"))
    answer = client.answer()
    assert answer.status == 413
    assert answer.interim == []


def test_limits_are_met_exactly(wire):
    w = wire(limits={"request_line": 100, "head": 300, "header_count": 5, "body": 10})
    line = b"GET /" + b"a" * 86 + b" HTTP/1.1"
    assert len(line) == 100
    client, answer = w.ask(get(line=line))
    assert answer.status == 200
    client.send(get(line=line[:5] + b"a" + line[5:]))
    refused(client, 414)

    empty = len(get(b"X: \r\n"))
    client, answer = w.ask(get(b"X: " + b"a" * (300 - empty) + b"\r\n"))
    assert answer.status == 200
    client.send(get(b"X: " + b"a" * (301 - empty) + b"\r\n"))
    refused(client, 431)

    client, answer = w.ask(get(b"X-Field: a\r\n" * 4))
    assert answer.status == 200
    client.send(get(b"X-Field: a\r\n" * 5))
    refused(client, 431)

    client, answer = w.ask(post(b"Content-Length: 10\r\n", b"0123456789"))
    assert answer.status == 200
    client.send(post(b"Content-Length: 11\r\n"))
    refused(client, 413)


def test_a_refusal_says_why_to_the_client_and_to_the_log(wire):
    w = wire()
    client, answer = w.ask(get(host=b""))
    assert answer.body == b"400 Bad Request: no Host header\n"
    assert "client sent an invalid request: no Host header, answered 400" in w.log
    client.half_close()
    client.assert_closed()


def test_tls_is_answered_before_it_is_whole(wire):
    """A TLS client waits for ServerHello; without an answer both would wait for the deadline."""
    w = wire()
    client = w.connect()
    client.send(TLS_HELLO[:1])
    assert client.answer().status == 400


@pytest.mark.parametrize(
    "bait",
    [
        get(),
        get(b"Connection: close\r\n"),
        get(b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        get(line=b"GET / HTTP/1.0"),
        get(b"Connection: keep-alive\r\n", line=b"GET / HTTP/1.0"),
        get(line=b"HEAD / HTTP/1.1"),
        post(b"Content-Length: 3\r\n", b"abc"),
        post(b"Content-Length: 3\r\nConnection: close\r\n", b"abc"),
        chunked(b"3\r\nabc\r\n0\r\n\r\n"),
        post(b"Content-Length: 10000\r\n").replace(HOST, b""),
        post(b"Content-Length: 10000\r\nExpect: tea\r\n"),
        b"PRI * HTTP/2.0\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    ],
)
def test_a_request_leaves_nothing_in_the_parser(wire, bait):
    """One parser serves all connections: what it waited for must not come from another client."""
    w = wire()
    w.ask(bait)
    _, answer = w.ask(get(b"X : 1\r\n"))
    assert answer.status == 400
    w.ask(bait)
    _, answer = w.ask(get())
    assert answer.status == 200
