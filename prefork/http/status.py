"""Status codes, their reason phrases and their prebuilt status lines.

The table is the IANA registry of HTTP status codes (RFC 9110 section 15 and the documents it
lists), without the codes that are marked unused or historic. A code outside the table can still
be sent: RFC 9112 section 4 lets the reason phrase be empty.
"""

from typing import Final

REASONS: Final[dict[int, str]] = {
    100: "Continue",
    101: "Switching Protocols",
    102: "Processing",
    103: "Early Hints",
    200: "OK",
    201: "Created",
    202: "Accepted",
    203: "Non-Authoritative Information",
    204: "No Content",
    205: "Reset Content",
    206: "Partial Content",
    207: "Multi-Status",
    208: "Already Reported",
    226: "IM Used",
    300: "Multiple Choices",
    301: "Moved Permanently",
    302: "Found",
    303: "See Other",
    304: "Not Modified",
    305: "Use Proxy",
    307: "Temporary Redirect",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    409: "Conflict",
    410: "Gone",
    411: "Length Required",
    412: "Precondition Failed",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    417: "Expectation Failed",
    418: "I'm a Teapot",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    423: "Locked",
    424: "Failed Dependency",
    425: "Too Early",
    426: "Upgrade Required",
    428: "Precondition Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    451: "Unavailable For Legal Reasons",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
    506: "Variant Also Negotiates",
    507: "Insufficient Storage",
    508: "Loop Detected",
    510: "Not Extended",
    511: "Network Authentication Required",
}

# Ready to be sent, one concatenation less per response: b"HTTP/1.1 200 OK\r\n". RFC 9112 section
# 2.3: a server says its own highest minor version, so an HTTP/1.0 request gets this line too.
STATUS_LINES: Final[dict[int, bytes]] = {
    code: f"HTTP/1.1 {code} {reason}\r\n".encode("ascii") for code, reason in REASONS.items()
}

# RFC 9112 section 6.3, rule 1: these end after the head, whatever the header fields say.
NO_BODY: Final[frozenset[int]] = frozenset({*range(100, 200), 204, 304})


def status_line(status: int) -> bytes:
    """The status line of any code, CRLF included; an unknown code has an empty reason."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def reason(status: int) -> str:
    """The reason phrase, or "" for a code that nobody registered."""
    return REASONS.get(status, "")
