"""The access log: one line for a finished request, at a price nobody turns it off for.

Facts (CPython 3.11, nanoseconds): `logging` takes 7,000 for a line, an unbuffered `write` 1,200,
a search through the 600 bytes of a browser's head 250, a hash of those bytes 150, a call of
`time.monotonic` 45. A whole request of ours takes about 8,000.
Consequence: the time stamp is text that is renewed once a second, lines are kept in memory and
leave by one `write`, and nothing is decoded that the line does not show.
Choice: a format is compiled once into the source of one function with one f-string in it, as
nginx compiles `log_format` into a list of operations (ngx_http_log_module.c). The fields of the
request's head come from a memo keyed by the bytes after the request line, because one client
sends the same fields over and over; it lives no longer than a buffer of lines.
Cost: a client whose fields never repeat pays for the memo without using it, so the memo rests
when it is seen not to pay.
"""

import base64
import binascii
import os
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
# formatted without it takes the long way round through `format()`: 40 ns more.
VARIABLES: Final = {
    "remote_addr": "exchange.connection.peer",
    "remote_user": "",  # a field of the head, as is every $http_NAME
    "time_local": "log.time_local",
    "time_iso8601": "log.time_iso8601",
    "msec": "wall:.3f",
    "request": "request",
    "request_method": "method",
    "request_uri": "uri",
    "args": "args",
    "server_protocol": "protocol",
    "status": "exchange.status!s",
    "body_bytes_sent": "exchange.bytes_sent!s",
    "request_time": "now - exchange.started:.3f",
    "connection": "exchange.connection.number!s",
    "pid": "log.pid",
}

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MEMO_ENTRIES: Final = 256
MEMO_KEY: Final = 4096  # bytes: with the entries it bounds what the memo can hold to 1 MiB
MEMO_REST: Final = 16  # flushes for which a memo that did not pay is left alone

# nginx, ngx_http_log_escape: `"`, `\` and everything outside 32..126 is written as \xXX. The
# table turns such a byte into another one and leaves the rest alone, and `bytes.translate` gives
# back the very same object when no byte changed: the cheapest test there is (41 ns).
_UNSAFE: Final = frozenset({*range(32), *range(127, 256), *b'"\\'})
_MARK: Final = bytes(byte ^ 0x80 if byte in _UNSAFE else byte for byte in range(256))
_JSON_SHORT: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Client(Protocol):
    """Who asked: a connection."""

    @property
    def peer(self) -> str: ...
    @property
    def number(self) -> int: ...


class Finished(Protocol):
    """What a line is made of: an exchange after its last byte (or what there is of one).

    `request_line` and `head` are bytes as received and `lower` is `head.lower()`; of a request
    that was refused `head` is what came, perhaps nothing. `started` is a `time.monotonic`,
    `bytes_sent` counts the body alone.
    """

    @property
    def connection(self) -> Client: ...
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


class Sink(Protocol):
    """The file below: `prefork.log.LogFile`. `write` never raises."""

    def write(self, data: bytes, /) -> object: ...
    def reopen(self, owner: tuple[int, int] | None = None) -> str | None: ...


class AccessLog:
    """Lines of finished requests in a buffer, written when it is full, old, reopened or closed.

    `record(exchange)` is the hot call. `flush_after` is the age in seconds at which the oldest
    line must leave: when the first line comes into an empty buffer, `on_first(flush_after)` is
    called so that the owner makes a time event of `tick`; with nothing to write there is no timer.
    A line is never torn: the buffer may pass `buffer_size` bytes by one line before it is written.
    """

    __slots__ = (
        "_armed",
        "_lines",
        "_memo",
        "_misses",
        "_oldest",
        "_second_ends",
        "_wall_offset",
        "buffer_size",
        "file",
        "flush_after",
        "on_first",
        "pid",
        "record",
        "resting",
        "size",
        "time_iso8601",
        "time_local",
    )

    def __init__(
        self,
        file: Sink,
        format: str = "combined",  # noqa: A002 -- the operator's own word for it
        *,
        buffer_size: int = 64 * 1024,
        flush_after: float = 1.0,
        on_first: Callable[[float], object] | None = None,
    ) -> None:
        """Raise OperatorError for a format that does not compile."""
        self.file = file
        self.buffer_size = buffer_size
        self.flush_after = flush_after
        self.on_first = on_first
        self.pid = str(os.getpid())
        self.size = 0
        self.resting = 0
        self.time_local = self.time_iso8601 = ""
        self._lines: list[str] = []
        self._memo: dict[bytes, tuple[str, ...]] = {}
        self._misses = 0
        self._oldest = 0.0
        self._armed = False
        self._second_ends = 0.0
        self._wall_offset = 0.0
        self.record: Final[Callable[[Finished], None]] = _Compiler(format).function(self)

    def flush(self) -> None:
        """Write what is buffered."""
        lines = self._lines
        if lines:
            text = "".join(lines)
            if self.resting:
                self.resting -= 1
            elif self._misses * 2 > len(lines):
                self.resting = MEMO_REST
            lines.clear()
            self._memo.clear()
            self._misses = self.size = 0
            self.file.write(text.encode())

    def tick(self) -> float | None:
        """Write the lines if the oldest is due; return the seconds to the next look, or None.

        None means that nothing is buffered: `on_first` will call again.
        """
        if self._lines:
            left = self._oldest + self.flush_after - time.monotonic()
            if left > 0:
                return left
            self.flush()
        self._armed = False
        return None

    def reopen(self, owner: tuple[int, int] | None = None) -> str | None:
        """Write what belongs into the old file, then open the new one; return why it failed."""
        self.flush()
        return self.file.reopen(owner)

    def close(self) -> None:
        """Write what is left; the file belongs to whoever opened it."""
        self.flush()
        self.on_first = None

    def _first(self, now: float) -> None:
        self._oldest = now
        if not self._armed and self.on_first is not None:
            self._armed = True
            self.on_first(self.flush_after)

    def _new_second(self, now: float) -> None:
        """Renew the time texts and learn when, by the monotonic clock, the next second begins."""
        wall = time.time()
        self._wall_offset = wall - now
        self._second_ends = now + 1.0 - wall % 1.0
        at = time.localtime(wall)
        sign = "-" if at.tm_gmtoff < 0 else "+"
        zone_hours, zone_minutes = divmod(abs(at.tm_gmtoff) // 60, 60)
        clock = f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
        # Not strftime: its %b speaks the language an application has set with setlocale.
        self.time_local = (
            f"{at.tm_mday:02}/{MONTHS[at.tm_mon - 1]}/{at.tm_year}:{clock}"
            f" {sign}{zone_hours:02}{zone_minutes:02}"
        )
        self.time_iso8601 = (
            f"{at.tm_year}-{at.tm_mon:02}-{at.tm_mday:02}T{clock}"
            f"{sign}{zone_hours:02}:{zone_minutes:02}"
        )
        self.pid = str(os.getpid())  # of the worker, wherever we were made


def check_format(format: str) -> None:  # noqa: A002 -- as above
    """Raise OperatorError if `AccessLog` would."""
    _Compiler(format)


class _Compiler:
    """One format: parsed into literal text and variables, then into a function."""

    def __init__(self, text: str) -> None:
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
            self.line += "{" + VARIABLES[name] + "}"
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
            "def build(log, lines, memo, append, clock, read_runs, escape, table):",
            "    def record(exchange):",
            "        now = clock()",
            "        if now >= log._second_ends:",
            "            log._new_second(now)",
            "        if not lines:",
            "            log._first(now)",
        ]
        parts = self.used & {"request_method", "request_uri", "args", "server_protocol"}
        if self.runs or parts or "request" in self.used:
            code += ["        request = exchange.request_line"]
        if self.runs:
            names = "".join(f"run_{n}, " for n in range(len(self.runs)))
            code += [
                "        if log.resting:",
                "            runs = read_runs(exchange)",
                "        else:",
                "            key = exchange.head[len(request) :]",
                "            runs = memo.get(key)",
                "            if runs is None:",
                "                runs = read_runs(exchange)",
                "                log._misses += 1",
                f"                if len(memo) < {MEMO_ENTRIES} and len(key) < {MEMO_KEY}:",
                "                    memo[key] = runs",
                f"        {names}= runs",
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
            code += ["        wall = now + log._wall_offset"]
        code += [
            f"        line = f'{self.line}'",
            "        append(line)",
            "        log.size = size = log.size + len(line)",
            "        if size >= log.buffer_size:",
            "            log.flush()",
            "    return record",
        ]
        return "\n".join(code)

    def function(self, log: AccessLog) -> Callable[[Finished], None]:
        # The text is made of the literals of this module and of `repr`s: a format can name
        # variables and nothing else, so nothing an operator writes is ever run as code.
        space: dict[str, Any] = {}
        exec(compile(self.source(), "<access log format>", "exec"), space)
        record: Callable[[Finished], None] = space["build"](
            log,
            log._lines,
            log._memo,
            log._lines.append,
            time.monotonic,
            self._run_reader(),
            self.escape,
            _MARK,
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
    return "".join(f"\\x{byte:02X}" if byte in _UNSAFE else chr(byte) for byte in value)


def escape_json(value: bytes) -> str:
    r"""nginx's `escape=json`; beyond it, bytes that are not UTF-8 become \u00XX.

    nginx passes them through, which makes a line that no JSON reader accepts.
    """
    if value.translate(_MARK) is value:
        return value.decode()
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
        return "".join(
            _JSON_SHORT.get(char) or (char if " " <= char <= "~" else f"\\u{ord(char):04x}")
            for char in text
        )
    return "".join(
        _JSON_SHORT.get(char) or (char if char >= " " else f"\\u{ord(char):04x}") for char in text
    )


def _hint(name: str, known: Any, prefix: str = "") -> str:
    from difflib import get_close_matches  # an operator's mistake may take the milliseconds

    close = get_close_matches(name, known, 1, 0.6)
    return f' (did you mean "{prefix}{close[0]}"?)' if close else ""
