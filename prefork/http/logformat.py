"""Log formats in nginx's variable syntax, compiled into one Python function.

As nginx compiles `log_format` into a list of operations (ngx_http_log_module.c), so is a format
compiled here, into the source of a function that holds a single f-string: the quickest way to
put a line together (200 ns for the combined format, against 300 for `%` and 270 for `join`).

`$name` and `${name}` are the variables below and `$http_NAME` for any field of the request. A
format may begin with `escape=json` (or `escape=default`), nginx's parameter of the same name: in
JSON a missing value is empty, otherwise it is a hyphen.
"""

import base64
import binascii
import re
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from prefork.errors import OperatorError

COMBINED: Final = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent'
    ' "$http_referer" "$http_user_agent"'
)
JSON: Final = (
    'escape=json {"time":"$time_iso8601","remote_addr":"$remote_addr",'
    '"remote_user":"$remote_user","request":"$request","status":$status,'
    '"body_bytes_sent":$body_bytes_sent,"request_time":$request_time,'
    '"http_referer":"$http_referer","http_user_agent":"$http_user_agent",'
    '"connection":$connection,"pid":$pid}'
)
FORMATS: Final = {"combined": COMBINED, "json": JSON}

# Variable -> the expression that stands for it in the f-string. `!s` because a number that is
# formatted without it takes the long way round through `format()`: 40 ns more. Small numbers,
# which most are, are looked up: 40 ns less.
VARIABLES: Final = {
    "remote_addr": "client.peer",
    "realip_remote_addr": "client.realip",
    "remote_user": "",  # a field of the head, as is every $http_NAME
    "time_local": "log.time_local",
    "time_iso8601": "log.time_iso8601",
    "msec": "wall:.3f",
    "request": "request",
    "request_method": "method",
    "request_uri": "uri",
    "args": "args",
    "server_protocol": "protocol",
    "status": "texts[exchange.status]",
    "body_bytes_sent": "texts[exchange.bytes_sent]",
    "request_time": "now - exchange.started:.3f",
    "connection": "client.number!s",
    "pid": "log.pid",
}


class _Texts(dict[int, str]):
    """Numbers as text, the small ones kept."""

    def __missing__(self, number: int) -> str:
        return str(number)


_TEXTS: Final = _Texts((number, str(number)) for number in range(1024))

REMEMBERED: Final = 4096  # bytes of a head; what is larger is read anew each time

# nginx, ngx_http_log_escape: `"`, `\` and everything outside 32..126 is written as \xXX. The
# table turns such a byte into another one and leaves the rest alone, and `bytes.translate` gives
# back the very same object when no byte changed: the cheapest test there is (41 ns).
_UNSAFE: Final = frozenset({*range(32), *range(127, 256), *b'"\\'})
_MARK: Final = bytes(byte ^ 0x80 if byte in _UNSAFE else byte for byte in range(256))
_ESCAPED: Final = tuple(f"\\x{byte:02X}" if byte in _UNSAFE else chr(byte) for byte in range(256))
_JSON_SHORT: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_JSON_ESCAPED: Final = tuple(
    _JSON_SHORT.get(char) or (char if char >= " " else f"\\u{ord(char):04x}")
    for char in map(chr, range(256))
)
_JSON_LATIN: Final = (*_JSON_ESCAPED[:128], *(f"\\u{code:04x}" for code in range(128, 256)))


class Client(Protocol):
    """Who asked: a connection."""

    @property
    def peer(self) -> str: ...
    @property
    def realip(self) -> str: ...
    @property
    def number(self) -> int: ...

    # The bytes behind the request line of its last request, and what was made of them.
    remembered: tuple[bytes, tuple[str, ...]] | None


class Finished(Protocol):
    """What a line is made of: an exchange after its last byte (or what there is of one).

    `request_line` and `head` are bytes as received and `lower` is `head.lower()`; of a request
    that was refused `head` is what came, perhaps nothing. `started` is a `time.monotonic`,
    `bytes_sent` counts the body alone.
    """

    @property
    def connection(self) -> Client: ...
    @property
    def peer(self) -> str: ...
    @property
    def request_line(self) -> bytes: ...
    @property
    def head(self) -> bytes: ...
    @property
    def lower(self) -> bytes: ...
    @property
    def status(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    @property
    def started(self) -> float: ...


class Buffer(Protocol):
    """What the compiled function writes to: `prefork.http.accesslog.AccessLog`."""

    lines: list[str]


class LogFormat:
    """One format: parsed into literal text and variables, then into a function."""

    def __init__(self, text: str, *, forwarded: bool = False) -> None:
        """`forwarded`: `$remote_addr` may be another one than the connection's."""
        template = FORMATS.get(text, text)
        self.escape_name = "default"
        if match := re.match(r"escape=(\w*)\s+", template):
            self.escape_name = match[1]
            if self.escape_name not in ("default", "json"):
                raise OperatorError(
                    f'unknown escape "{self.escape_name}" in the access log format:'
                    ' "default" or "json"'
                )
            template = template[match.end() :]
        self.escape = escape_json if self.escape_name == "json" else escape_default
        self.missing = "" if self.escape_name == "json" else "-"
        self.used: set[str] = set()
        # What the head gives is put together with the text around it and remembered in one piece:
        # a run is [text, variable, text, variable, ..., text].
        self.runs: list[list[str]] = []
        self.line = ""
        parts = re.split(r"\$(?:(\w+)|\{(\w+)\}|)", template + "\n")
        run = [parts[0]]
        for bare, braced, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            name = bare or braced
            if not name:
                raise OperatorError(f'"$" without a name in the access log format "{template}"')
            self.used.add(name)
            if name == "remote_user" or name[:5] == "http_" != name:
                run += [name, literal]
                continue
            if name not in VARIABLES:
                known = [*VARIABLES, "http_referer", "http_user_agent", "http_host"]
                hint = _hint(name, known, "$")
                raise OperatorError(f'unknown variable "${name}" in the access log format{hint}')
            self._end_run(run)
            value = VARIABLES[name]
            if forwarded and name == "remote_addr":
                value = "exchange.peer"
            self.line += "{" + value + "}"
            run = [literal]
        self._end_run(run)
        if not self.used:
            hint = _hint(text, FORMATS)
            raise OperatorError(f'the access log format "{text}" names no variable{hint}')

    def _end_run(self, run: list[str]) -> None:
        if len(run) > 1:
            self.line += f"{{run_{len(self.runs)}}}"
            self.runs.append(run)
        else:
            # repr for the source, less its quotes; braces are the f-string's own.
            text = repr('"' + run[0])[2:-1]
            self.line += text.replace("{", "{{").replace("}", "}}")

    def source(self) -> str:
        """The text of `build(...)`, which returns `record`."""
        code = [
            "def build(log, lines, append, clock, read_runs, escape, table, texts):",
            "    def record(exchange):",
            "        client = exchange.connection",
            "        now = clock()",
            "        if now >= log.second_ends:",
            "            log.new_second(now)",
            "        if not lines:",
            "            log.first(now)",
        ]
        parts = self.used & {"request_method", "request_uri", "args", "server_protocol"}
        if self.runs or parts or "request" in self.used:
            code += ["        request = exchange.request_line"]
        if self.runs:
            names = "".join(f"run_{n}, " for n in range(len(self.runs)))
            code += [
                "        fields = exchange.head[len(request) :]",
                "        kept = client.remembered",
                "        if kept is not None and kept[0] == fields:",
                f"            {names}= kept[1]",
                "        else:",
                f"            {names}= runs = read_runs(exchange)",
                f"            if len(fields) < {REMEMBERED}:",
                "                client.remembered = (fields, runs)",
            ]
        if parts or "request" in self.used:
            code += [
                "        if request.translate(table) is request:",
                "            request = request.decode()",
                "        else:",
                "            request = escape(request)",
                "        if not request:",
                f"            request = {self.missing!r}",
            ]
        if parts:
            code += [
                '        method, _, uri = request.partition(" ")',
                '        uri, _, protocol = uri.rpartition(" ")',
                f"        uri = uri or {self.missing!r}",
                f"        protocol = protocol or {self.missing!r}",
            ]
        if "args" in self.used:
            code += [f'        args = uri.partition("?")[2] or {self.missing!r}']
        if "msec" in self.used:
            code += ["        wall = now + log.wall_offset"]
        code += [
            f"        line = f'{self.line}'",
            "        append(line)",
            "        log.size = size = log.size + len(line)",
            "        if size >= log.buffer_size:",
            "            log.flush()",
            "    return record",
        ]
        return "\n".join(code)

    def recorder(self, log: Buffer) -> Callable[[Finished], None]:
        # The text is made of the literals of this module and of `repr`s: a format can name
        # variables and nothing else, so nothing an operator writes is ever run as code.
        space: dict[str, Any] = {}
        exec(compile(self.source(), "<access log format>", "exec"), space)
        record: Callable[[Finished], None] = space["build"](
            log,
            log.lines,
            log.lines.append,
            time.monotonic,
            self._run_reader(),
            self.escape,
            _MARK,
            _TEXTS,
        )
        return record

    def _run_reader(self) -> Callable[[Finished], tuple[str, ...]]:
        """The function that finds the head's variables of this format and makes its runs."""
        escape, missing = self.escape, self.missing

        def needle(variable: str) -> bytes:
            name = "authorization" if variable == "remote_user" else variable[5:].lower()
            return b"\r\n" + name.replace("_", "-").encode() + b":"

        plan = [
            (
                run[0],
                [
                    (needle(variable), variable == "remote_user", text)
                    for variable, text in zip(run[1::2], run[2::2], strict=True)
                ],
            )
            for run in self.runs
        ]

        def read_runs(exchange: Finished) -> tuple[str, ...]:
            head, lower = exchange.head, exchange.lower
            runs = []
            for line, steps in plan:
                for name, is_user, text in steps:
                    at = lower.find(name)
                    if at < 0:
                        line += missing + text
                        continue
                    at += len(name)
                    value = head[at:].partition(b"\r")[0].strip(b" \t")
                    if is_user:
                        value = basic_user(value)
                    line += (escape(value) or missing) + text
                runs.append(line)
            return tuple(runs)

        return read_runs


def basic_user(credentials: bytes) -> bytes:
    """The user-id of RFC 7617 Basic `credentials`, or nothing. It was not verified by anyone."""
    scheme, _, token = credentials.partition(b" ")
    if scheme.lower() != b"basic":
        return b""
    try:
        user, colon, _ = base64.b64decode(token.strip(), validate=True).partition(b":")
    except binascii.Error:
        return b""
    return user if colon else b""


def escape_default(value: bytes) -> str:
    r"""nginx's `escape=default`: `"`, `\` and bytes outside 32..126 as \xXX."""
    if value.translate(_MARK) is value:
        return value.decode()
    return value.decode("latin-1").translate(_ESCAPED)


def escape_json(value: bytes) -> str:
    r"""nginx's `escape=json`; beyond it, bytes that are not UTF-8 become \u00XX.

    nginx passes them through, which makes a line that no JSON reader accepts.
    """
    if value.translate(_MARK) is value:
        return value.decode()
    try:
        return value.decode().translate(_JSON_ESCAPED)
    except UnicodeDecodeError:
        return value.decode("latin-1").translate(_JSON_LATIN)


def _hint(name: str, known: Any, prefix: str = "") -> str:
    from difflib import get_close_matches  # an operator's mistake may take the milliseconds

    close = get_close_matches(name, known, 1, 0.6)
    return f' (did you mean "{prefix}{close[0]}"?)' if close else ""
