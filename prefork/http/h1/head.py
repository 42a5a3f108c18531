"""What a request's head may say, and the status of each way to say it wrong.

llhttp (through httptools) checks the grammar of every line: bare CR or LF, white space before the
colon, obs-fold, control characters, names that are no tokens. What it lets pass or judges otherwise
than RFC 9112 is checked here. The usual request, without a body, pays for none of `framing`.
"""

import re
from typing import TYPE_CHECKING, Final

from prefork.errors import PeerError

if TYPE_CHECKING:
    from prefork.config.schema import Limits

# RFC 9110 section 9 and the registered extensions that llhttp knows, without CONNECT: a tunnel is
# not something an origin server offers.
_NAMES: Final = """
GET HEAD POST PUT DELETE OPTIONS TRACE PATCH
COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND UNBIND ACL
REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE
MKCALENDAR LINK UNLINK SOURCE QUERY
"""
METHODS: Final = {name.encode(): name for name in _NAMES.split()}

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
# RFC 3986 section 3.2.2: reg-name or IPv4 by its characters, or an IP literal in brackets.
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[!$&'()*+,;=:A-Za-z0-9\-._~]+\]"
    rb"|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?"
)
_ABSOLUTE: Final = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@\\]*)(?:[/?][^#]*)?")
BODY_EXPECTED: Final = frozenset({"POST", "PUT", "PATCH"})

_KNOWN_HOSTS_LIMIT: Final = 1024
_KNOWN_HOST_SIZE: Final = 256  # no name in the DNS is longer, and a head can hold 32 KiB


class HostCheck:
    """Which Host values are well-formed; remembers those it has seen.

    A server is asked for few names, each millions of times. The memory is bounded, so a client
    that invents names costs a regular expression each, and nothing more.
    """

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: dict[bytes, str] = {}

    def __call__(self, value: bytes) -> str:
        """The value, which is not known yet, as text; raises PeerError 400."""
        host = value.strip(b" \t")
        if not _HOST.fullmatch(host):
            raise PeerError(400, "invalid Host header")
        text = host.decode("ascii")
        if len(value) <= _KNOWN_HOST_SIZE:
            if len(self.known) >= _KNOWN_HOSTS_LIMIT:
                self.known.clear()
            self.known[value] = text
        return text


def refuse_line(line: bytes, limits: "Limits") -> PeerError:
    """Why this request line is not served."""
    if len(line) > limits.request_line:
        return PeerError(414, "the request line is too long")
    parts = line.split(b" ")
    if len(parts) != 3:
        return PeerError(400, "invalid request line")
    method, _, version = parts
    if not _TOKEN.fullmatch(method):
        return PeerError(400, "invalid method")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            return PeerError(505, f"{version.decode()} is not supported")
        return PeerError(400, "invalid HTTP version")
    if method not in METHODS:
        return PeerError(501, f"the method {method.decode('ascii')} is not implemented")
    return PeerError(400, "invalid request target")


def measure(line: bytes, head: bytes, limits: "Limits") -> None:
    """Raises PeerError when the head, or a part of it, is larger than allowed."""
    if (
        len(line) > limits.request_line
        or len(head) > limits.head
        or head.count(b"\n") - 2 > limits.header_count
    ):
        raise too_large(line, limits)


def too_large(line: bytes, limits: "Limits") -> PeerError:
    """A head beyond the limits: of the request line, or of the whole."""
    if len(line) > limits.request_line:
        return PeerError(414, "the request line is too long")
    return PeerError(431, "the header section is too large")


def why_refused(line: bytes, head: bytes, said: str, limits: "Limits") -> PeerError:
    """A head that llhttp refused: what the line or the framing is refused for, else 400."""
    refusal = refuse_line(line, limits)
    if refusal.status != 400:
        return refusal
    try:
        framing(head.lower(), "", http_1_0=False, limits=limits)
    except PeerError as known:
        return known
    return PeerError(400, said or "invalid request head")


def skip_empty_line(data: bytes) -> bytes:
    """`data` without the CRLF it begins with.

    RFC 9112 section 2.2: "a server that is expecting to receive and parse a request-line SHOULD
    ignore at least one empty line (CRLF) received prior to the request-line." One it is.
    """
    data = data[2:]
    if data.startswith(b"\r\n"):
        raise PeerError(400, "empty lines instead of a request")
    return data


def check_beginning(data: bytes, limits: "Limits") -> bytes:
    """The part of a head that has come, to be kept. Raises PeerError when no rest could mend it."""
    if data == b"\r\n" or data == b"\r\n\r":
        # Old clients send one behind a POST's body (RFC 9112 section 2.2). It begins no request,
        # but a second one must find it here.
        return data
    if data.startswith(b"\r\n"):
        data = skip_empty_line(data)
    # TLS on a plain port, or noise: no client that speaks HTTP begins so, and none that does not
    # would ever send the empty line that ends the wait.
    if data and not 0x21 <= data[0] <= 0x7E and data != b"\r":
        raise PeerError(400, "this is not HTTP")
    line_end = data.find(b"\n")
    if line_end < 0:
        if len(data) > limits.request_line:
            raise PeerError(414, "the request line is too long")
        return data
    line = data[:line_end].removesuffix(b"\r")
    if len(line) > limits.request_line or len(data) > limits.head:
        raise too_large(line, limits)
    if data.count(b"\n") != data.count(b"\r\n"):
        raise PeerError(400, "bare LF")
    if len(line.split(b" ")) != 3:
        raise refuse_line(line, limits)
    return data


def other_form(method: str, target: bytes) -> bytes | None:
    """The authority in an absolute-form target, None for the asterisk (RFC 9112 section 3.2).

    Raises PeerError 400 for what is neither.
    """
    if target == b"*" and method == "OPTIONS":
        return None
    authority = absolute_host(target)
    if authority is None:
        raise PeerError(400, "invalid request target")
    return authority


def absolute_host(target: bytes) -> bytes | None:
    """The authority of an absolute-form target, None when it is malformed.

    RFC 9112 section 3.2.2: "the origin server MUST ignore the received Host header field (if any)
    and instead use the host information of the request-target".
    """
    match = _ABSOLUTE.fullmatch(target)
    return match[1] if match and match[1] else None


# As they begin in a head in lower case. They are looked for by `partition`, because in CPython
# `key in lower` first tries to take `key` for a number and makes an exception of that: four times
# as slow.
_LENGTH: Final = b"\r\ncontent-length:"
_CODING: Final = b"\r\ntransfer-encoding:"
_EXPECT: Final = b"\r\nexpect:"
CONNECTION: Final = b"\r\nconnection:"
_UPGRADE: Final = b"\r\nupgrade:"


def values_of(lower: bytes, key: bytes) -> list[bytes]:
    """Every value of a field, in order, without outer white space, in lower case as `lower` is."""
    values = []
    _, found, rest = lower.partition(key)
    while found:
        values.append(rest.partition(b"\r\n")[0].strip(b" \t"))
        _, found, rest = rest.partition(key)
    return values


def framing(
    lower: bytes, method: str, *, http_1_0: bool, limits: "Limits"
) -> tuple[int | None, bool]:
    """(Content-Length or None for chunked, whether "100 Continue" is expected).

    RFC 9112 section 6.3. Raises PeerError: 400 for anything ambiguous, 501 for a coding that is
    not known, 411 for an HTTP/1.0 body without a length, 413 beyond the limit, 417.
    """
    length: int | None = None
    _, found, after = lower.partition(_LENGTH)
    if lower.partition(_CODING)[1]:
        # "A server MAY reject a request that contains both Content-Length and Transfer-Encoding":
        # an intermediary may have believed the other one.
        if found:
            raise PeerError(400, "both Content-Length and Transfer-Encoding")
        if http_1_0:
            raise PeerError(400, "Transfer-Encoding in HTTP/1.0")
        codings = b",".join(values_of(lower, _CODING))
        names = [name.strip(b" \t") for name in codings.split(b",")]
        if names[-1] != b"chunked" or names.count(b"chunked") > 1:
            known = all(name in (b"chunked", b"identity", b"") for name in names)
            if known or names[-1] == b"chunked" or b"chunked" in names:
                raise PeerError(400, "chunked must be the last transfer coding, once")
            raise PeerError(501, "unknown transfer coding")
        if len(names) > 1:
            raise PeerError(501, "unknown transfer coding")
    elif found:
        if after.partition(_LENGTH)[1]:
            raise PeerError(400, "more than one Content-Length")
        value = after.partition(b"\r\n")[0].strip(b" \t")
        if not value.isdigit() or len(value) > 18:
            raise PeerError(400, "invalid Content-Length")
        length = int(value)
        if length > limits.body:
            raise PeerError(413, f"the body is larger than {limits.body} bytes")
    else:
        # RFC 1945 section 8.3: an HTTP/1.0 POST needs a valid Content-Length.
        if http_1_0 and method in BODY_EXPECTED:
            raise PeerError(411, "a Content-Length is required")
        length = 0
    if http_1_0 or not lower.partition(_EXPECT)[1]:
        return length, False
    if values_of(lower, _EXPECT) != [b"100-continue"]:
        raise PeerError(417, "only 100-continue can be expected")
    return length, length != 0


def connection_tokens(lower: bytes) -> list[bytes]:
    """What the Connection field lists, lower case."""
    joined = b",".join(values_of(lower, CONNECTION))
    return [token.strip(b" \t") for token in joined.split(b",")]


def offered_protocol(lower: bytes) -> str:
    """The one protocol that the Upgrade field names, lower case; "" when it names several."""
    value = b",".join(values_of(lower, _UPGRADE))
    return "" if b"," in value else value.decode("latin-1").strip()
