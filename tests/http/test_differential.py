"""Our parser against h11's: requests by a grammar, damaged at random, cut anywhere.

Whatever we serve, h11 must have understood as the same request: method, target, fields, body,
trailers and where the next one begins. What one accepts and the other refuses is where smuggling
starts, so every difference is listed below with its reason, and each of ours is the stricter side.
"""

import contextlib
import re

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# By hypothesis' own rule a function-scoped fixture is shared by all examples of a test; that is
# what is wanted here: one server sees them all, so that nothing may be left over from the last.
SETTINGS = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,  # the same requests on every machine; a longer hunt changes the seed
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH"])
TARGETS = st.sampled_from(
    [b"/", b"/a/b?c=d&e", b"/%41;b=c", b"//x", b"/" + b"a" * 300, b"http://b/c?d", b"*", b"a:80"]
)
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0"])
NAMES = st.sampled_from(
    [b"X-One", b"x", b"Accept", b"Cookie", b"X!#$%&'*+-.^_`|~9", b"Connection", b"Upgrade"]
)
VALUES = st.sampled_from(
    [
        b"",
        b"1",
        b"a b",
        b"a\tb",
        b"\xe9",
        b"a, b",
        b":",
        b"close",
        b"keep-alive",
        b"upgrade",
        b"h2c",
    ]
)
SPACES = st.sampled_from([b"", b" ", b"\t", b" \t "])


@st.composite
def fields(draw, most=4):
    lines = []
    for _ in range(draw(st.integers(0, most))):
        space = draw(SPACES)
        lines.append(draw(NAMES) + b":" + space + draw(VALUES) + draw(SPACES) + b"\r\n")
    return b"".join(lines)


@st.composite
def chunked(draw):
    body = b""
    for data in draw(st.lists(st.binary(min_size=1, max_size=40), max_size=4)):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % len(data)
        extension = draw(st.sampled_from([b"", b"", b";a", b';a="b c"']))
        body += size + extension + b"\r\n" + data + b"\r\n"
    trailers = draw(st.sampled_from([b"", b"", b"X-Sum: 1\r\n", b"A:\r\nB: \t2 \r\n"]))
    return body + b"0\r\n" + trailers + b"\r\n"


@st.composite
def requests(draw):
    head = draw(METHODS) + b" " + draw(TARGETS) + b" " + draw(VERSIONS) + b"\r\n"
    host = draw(st.sampled_from([b"Host: a\r\n", b"host:a:80\r\n", b"HOST: \t[::1] \r\n"]))
    parts = [host, draw(fields())]
    kind = draw(st.sampled_from(["none", "none", "length", "chunked"]))
    body = b""
    if kind == "length":
        body = draw(st.binary(max_size=60))
        parts.append(b"Content-Length: %d\r\n" % len(body))
    elif kind == "chunked":
        body = draw(chunked())
        parts.append(draw(st.sampled_from([b"chunked", b"Chunked", b"\tchunked "])).join(
            [b"Transfer-Encoding:", b"\r\n"]
        ))  # fmt: skip
    order = draw(st.permutations(parts))
    return head + b"".join(order) + b"\r\n" + body


# What makes parsers disagree, put in somewhere.
POISON = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"\x0b", b"\x0c",
     b"0", b"+", b"-", b"_", b"x", b"\x7f", b"\x80", b"\xa0", b"\xff", b"#", b"\r\n ",
     b"Content-Length: 1\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
     b"Transfer-Encoding: x\r\n",
     b"Transfer-Encoding:\r\n", b"Host: b\r\n", b"Expect: 100-continue\r\n", b"Expect: x\r\n",
     b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"chunked", b"identity", b"1"]
)  # fmt: skip


@st.composite
def damaged(draw):
    data = draw(requests())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["insert", "insert", "replace", "delete", "double", "line"])):
            case "insert":
                data = data[:at] + draw(POISON) + data[at:]
            case "replace":
                data = data[:at] + draw(POISON) + data[at + 1 :]
            case "delete":
                data = data[:at] + data[at + draw(st.integers(1, 4)) :]
            case "double":
                until = at + draw(st.integers(1, 30))
                data = data[:until] + data[at:]
            case "line":  # where a field would stand
                at = data.find(b"\r\n", at) + 2
                data = data[:at] + draw(POISON) + data[at:]
    return data


def by_h11(data):
    """The requests in `data` as h11 reads them, and "refused", "open" or "end" at their end."""
    found = []
    while True:
        judge = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        # RFC 9112 section 2.2 lets one empty line pass, h11 none.
        judge.receive_data(data.removeprefix(b"\r\n"))
        request = None
        try:
            while not isinstance(event := judge.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = {
                        "method": event.method,
                        "target": event.target,
                        "version": event.http_version,
                        "headers": list(event.headers),
                        "body": b"",
                    }
                elif isinstance(event, h11.Data):
                    request["body"] += bytes(event.data)
                else:
                    return found, "open"
        except h11.RemoteProtocolError:
            return found, "refused"
        found.append({**request, "trailers": list(event.headers)})
        # An offered upgrade is declined by answering.
        judge.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        judge.send(h11.EndOfMessage())
        if judge.our_state is h11.MUST_CLOSE and not persistent_1_0(request):
            return found, "end"
        data = judge.trailing_data[0]


def persistent_1_0(request):
    """RFC 9112 section 9.3; h11 ends every connection of HTTP/1.0 with its first answer."""
    values = [value for name, value in request["headers"] if name == b"connection"]
    tokens = [token.strip(b" \t").lower() for token in b",".join(values).split(b",")]
    return request["version"] == b"1.0" and b"keep-alive" in tokens and b"close" not in tokens


def by_us(wire, data, cuts=()):
    """The requests in `data` as our handler sees them, and the status of what was refused."""
    wire.seen.clear()
    client = wire.connect()
    client.send_pieces(data, *cuts)
    wire.settle()
    # What comes behind the last answer, in a segment of its own, is answered by RST.
    with contextlib.suppress(OSError):
        client.half_close()
    stream = b""
    while piece := client.receive():
        stream += piece
    client.close()
    wire.settle()
    found = [
        {
            "method": seen.method.encode(),
            "target": seen.target.encode(),
            "version": seen.version.encode(),
            # h11 hands this one on in lower case.
            "headers": [
                (name, value.lower() if name == b"transfer-encoding" else value)
                for name, value in seen.headers
            ],
            "body": seen.body,
            "trailers": seen.trailers,
        }
        for seen in wire.seen
    ]
    statuses = [int(one) for one in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", stream)]
    errors = [status for status in statuses if status >= 400]
    assert len(statuses) - len(errors) == len(found)
    return found, (errors[0] if errors else None)


def explained(data, request, status):
    """Why we refuse what h11 takes as `request`."""
    line = data.partition(b"\r\n")[0]
    headers = request["headers"]
    names = [name for name, _ in headers]
    hosts = [value for name, value in headers if name == b"host"]
    target = request["target"]
    match status:
        case 400:
            return (
                b"\n" in data.replace(b"\r\n", b"")  # h11 takes a bare LF (RFC 9112 section 2.2)
                or re.search(rb"\r\n[ \t]", data)  # and obs-fold (section 5.2)
                or data.startswith(b"\r\n")  # and any number of empty lines
                # Equal lengths are one to it.
                or re.search(rb"(?is)\ncontent-length:((?!\r\n\r\n).)*(,|\ncontent-length:)", data)
                # It takes anything in a chunk's extension, and white space behind the size.
                or re.search(
                    rb"\n[0-9A-Fa-f]+([ \t]|;[^\n]*(\r[^\n]|[\x00-\x08\x0b-\x1f\x7f]))", data
                )
                or {name for name, _ in request["trailers"]} & _NO_TRAILER
                # RFC 9112 section 6.3, rule 3: h11 prefers Transfer-Encoding where we refuse.
                or {b"content-length", b"transfer-encoding"} <= set(names)
                or (b"transfer-encoding" in names and request["version"] == b"1.0")
                # It looks at neither the grammar of Host nor that of the target.
                or any(not re.fullmatch(rb"([A-Za-z0-9.\-_]+|\[::1\])(:\d*)?", h) for h in hosts)
                or not re.fullmatch(
                    rb"(/|https?://([\w.-]+|\[::1\])(:\d*)?(/|\?|$))[^#\x80-\xff]*", target
                )
                or re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", b"".join(v for _, v in headers))
                or re.search(rb"[^\x21-\x7e ]", line)
            )
        case 411:
            return request["version"] == b"1.0"
        case 417:
            return b"expect" in names
        case 501:
            return request["method"] not in _KNOWN or re.search(rb"(?i)transfer-encoding:", data)
        case 505:
            return request["version"] not in (b"1.0", b"1.1")
    return False


_NO_TRAILER = {b"host", b"content-length", b"transfer-encoding"}
_KNOWN = {b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH"}


def compare(wire, data):
    theirs, their_end = by_h11(data)
    ours, status = by_us(wire, data)
    # Nothing that we serve is anything else to h11, or nothing at all.
    assert ours == theirs[: len(ours)], (ours, theirs, their_end)
    if len(ours) < len(theirs):
        # h11 went on: we must have refused, for a reason on the list.
        rest = theirs[len(ours)]
        assert status is not None, (rest, "neither served nor refused")
        assert explained(data, rest, status), (rest, status)
    if their_end == "refused" and len(ours) == len(theirs):
        # What h11 knows to be wrong we never wait for, but where the message is not whole yet.
        assert status is not None or incomplete(data), data


def incomplete(data):
    """The last request has no end: h11 judges each line on its own, we wait for the whole head."""
    return b"\r\n\r\n" not in data or not data.endswith(b"\r\n\r\n")


@SETTINGS
@given(data=requests())
def test_good_requests(differential_wire, data):
    theirs, end = by_h11(data)
    ours, status = by_us(differential_wire, data)
    if status is None:
        assert ours == theirs
        assert end != "refused"
    else:
        assert ours == []
        for request in theirs:
            assert explained(data, request, status), (request, status)


@SETTINGS
@given(data=st.lists(damaged(), min_size=1, max_size=3).map(b"".join))
def test_damaged_requests(differential_wire, data):
    compare(differential_wire, data)


@SETTINGS
@given(data=st.lists(st.one_of(requests(), damaged()), min_size=1, max_size=3).map(b"".join),
       cuts=st.lists(st.integers(0, 600), max_size=6))  # fmt: skip
def test_cuts_change_nothing(differential_wire, data, cuts):
    cuts = sorted(cut for cut in cuts if cut < len(data))
    whole, status = by_us(differential_wire, data)
    pieces, same = by_us(differential_wire, data, cuts)
    assert pieces == whole
    # With two faults the cut may decide which is seen first, never whether one is.
    assert (same is None) == (status is None)


@pytest.fixture
def differential_wire(wire):
    return wire()
