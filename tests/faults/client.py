"""An open-loop HTTP client that counts every outcome. A program of its own; JSON on stdout.

    python tests/faults/client.py --rate 200 --seconds 10 127.0.0.1:8000 unix:/run/app.sock

Requests are due at a constant rate, whatever became of those before them, and a latency runs from
the moment the request was due: a server that stalls cannot hide it by slowing its client down
(coordinated omission). What a request itself asks to wait for is taken off. A request goes on a
connection of its own or on one of `--keep` connections that are kept, and the two are counted
apart. It ends as one of these:

    ok              the right answer, whole
    refused         connect() was refused
    reset_early     a fresh connection was reset, or
    closed_early    closed, before a byte of the answer
    reused_closed   a kept connection ended before a byte of the answer. RFC 9112 section 9.3.1 lets
                    a client try again; one that does not has lost its request, so it counts here
    cut             the connection ended in the middle of the answer
    timeout         no whole answer within --timeout seconds of the moment it was due
    wrong           200, and not the body that was asked for
    error           a status from 500; `status`: another that is not 200
    not_sent        more than --most connections were open
    unserved        pipelined behind an answer that said `Connection: close`: the server has told
                    that it has not looked at it (RFC 9112 section 9.6). The only one, beside ok,
                    that is no failure

A kept connection is not used again when it was idle for more than --idle seconds: a server closes
such a one when it likes, and a request that meets the end on its way is lost by nobody's fault (the
server's side of this is prefork's timeouts.keep_alive_min). One that the server ends while nothing
is under way is `idle_closed`, no outcome: a client sees that before it uses the connection again,
and so does this one.

Times are of CLOCK_MONOTONIC, which all processes of a machine share. It ends after --seconds, or
when its standard input does, and has waited for the answers by then. With --progress it says on
stderr, ten times a second: how many are ok, how many failed, how many are open.

The application answers `PID VERSION ID` and a line end, with the X-Id that came, and then what
the path asks for; see application.py beside this file.
"""

import argparse
import contextlib
import errno
import heapq
import json
import os
import random
import select
import socket
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

IN = select.EPOLLIN
OUT = select.EPOLLOUT
RECORDED = 2000  # failures that are listed one by one; all are counted
FINE = ("ok", "unserved")
LINE = b"." * 999 + b"\n"
DEFAULT_MIX = "get:9,post:2,slow:2,half:2,upload:1,continue:1,chunked:1,stream:2,old:1,pipe:1"


class MessageError(Exception):
    """What came is no HTTP response."""


class Answer:
    """One response, as its bytes come."""

    def __init__(self) -> None:
        self.status = 0
        self.close = False
        self.done = False
        self.received = 0
        self.body = bytearray()
        self.rest = b""  # what came behind it
        self._data = b""
        self._left: int | None = 0  # None: until the end of the connection
        self._chunked = False

    def feed(self, data: bytes) -> None:
        """Raises MessageError."""
        self.received += len(data)
        self._data += data
        if not self.status:
            self._head()
        if self.status and not self.done:
            self._read_body()

    def eof(self) -> bool:
        """The connection has ended: is the answer whole?"""
        if self.status and not self.done and not self._chunked and self._left is None:
            self.done = True
        return self.done

    def _head(self) -> None:
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.split(b"\r\n")
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise MessageError(f"status line {first[:60]!r}")
        fields = {}
        for line in lines:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip().lower()
        self._data = rest
        if words[1] == b"100":  # the answer proper comes behind it
            self._head()
            return
        self.status = int(words[1])
        kept = fields.get(b"connection", b"")
        self.close = b"close" in kept or (words[0] == b"HTTP/1.0" and b"keep-alive" not in kept)
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            self._chunked = True
        elif b"content-length" in fields:
            self._left = int(fields[b"content-length"])
        else:
            self._left = None
            self.close = True

    def _read_body(self) -> None:
        if self._chunked:
            self._read_chunks()
        elif self._left is None:
            self.body += self._data
            self._data = b""
        else:
            self.body += self._data[: self._left]
            taken = min(self._left, len(self._data))
            self._left -= taken
            self.rest = self._data[taken:]
            self._data = b""
            self.done = not self._left

    def _read_chunks(self) -> None:
        while True:
            size, found, rest = self._data.partition(b"\r\n")
            if not found:
                return
            try:
                length = int(size.partition(b";")[0], 16)
            except ValueError:
                raise MessageError(f"chunk size {size[:60]!r}") from None
            if len(rest) < length + 2:
                return
            self.body += rest[:length]
            self._data = rest[length + 2 :]
            if not length:
                self.done = True
                self.rest = self._data
                return


@dataclass(slots=True)
class Request:
    """One request and, once it is over, its outcome."""

    id: int
    kind: str
    due: float
    keep: bool
    expected: bytes = b""  # behind the first line
    pauses: float = 0.0  # seconds of it that were asked for: no delay of the server's
    reused: bool = False
    connected: float = 0.0
    sent: float = 0.0
    answer: Answer = field(default_factory=Answer)


Piece = tuple[float, bytes]  # seconds after the piece before it


def head(method: str, path: str, number: int, *more: str, version: str = "1.1") -> bytes:
    lines = (f"{method} {path} HTTP/{version}", "Host: faults", f"X-Id: {number}", *more, "", "")
    return "\r\n".join(lines).encode()


def pieces_of(request: Request, close: bool) -> list[Piece]:
    """What is sent, and when; sets what is expected."""
    number, end = request.id, ("Connection: close",) if close else ()

    def post(size: int) -> tuple[bytes, bytes]:
        body = (b"%d " % number) * (size // 8)
        request.expected = b"%d %d\n" % (len(body), zlib.crc32(body))
        return head("POST", "/post", number, f"Content-Length: {len(body)}", *end), body

    match request.kind:
        case "post":
            return [(0.0, b"".join(post(3_000)))]
        case "upload":
            start, body = post(300_000)
            request.pauses = 0.1
            return [
                (0.0, start + body[:100_000]),
                (0.05, body[100_000:200_000]),
                (0.05, body[200_000:]),
            ]
        case "continue":
            start, body = post(3_000)
            request.pauses = 0.05
            return [(0.0, start[:-2] + b"Expect: 100-continue\r\n\r\n"), (0.05, body)]
        case "chunked":
            start, body = post(3_000)
            length = b"Content-Length: %d" % len(body)
            request.pauses = 0.05
            return [
                (0.0, start.replace(length, b"Transfer-Encoding: chunked")),
                (0.05, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
            ]
        case "slow":
            request.pauses = 0.15
            return [(0.0, head("GET", "/slow/0.15", number, *end))]
        case "block":
            request.pauses = 0.05
            return [(0.0, head("GET", "/block/0.05", number, *end))]
        case "stream":
            request.expected = LINE * 10
            request.pauses = 0.2
            return [(0.0, head("GET", "/stream/10/0.02", number, *end))]
        case "half":
            whole = head("GET", "/", number, *end)
            request.pauses = 0.06
            return [(0.0, whole[:20]), (0.06, whole[20:])]
        case "old":
            return [(0.0, head("GET", "/", number, version="1.0"))]
        case _:
            return [(0.0, head("GET", "/", number, *end))]


class Wire:
    """A connection and the requests under way on it: more than one when they are pipelined."""

    __slots__ = (
        "answered",
        "connecting",
        "events",
        "keep",
        "pending",
        "pid",
        "served",
        "sock",
        "target",
        "unsent",
    )

    def __init__(self, sock: socket.socket, target: str, keep: bool) -> None:
        self.sock = sock
        self.target = target
        self.keep = keep
        self.connecting = True
        self.pending: deque[Request] = deque()
        self.unsent = b""
        self.served = 0
        self.answered = 0.0  # when the last answer was whole
        self.pid = 0  # of the worker that gave the last answer
        self.events = 0


class Client:
    """The loop, the connections and the count."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.random = random.Random(options.seed)
        self.kinds = [kind for kind, weight in options.mix for _ in range(weight)]
        self.epoll = select.epoll()
        self.wires: dict[int, Wire] = {}
        self.idle: deque[Wire] = deque()
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.timer_number = 0
        self.number = 0
        self.counts: dict[str, Counter[str]] = {"fresh": Counter(), "kept": Counter()}
        self.latencies: dict[str, list[float]] = {"fresh": [], "kept": []}
        self.worst: list[tuple[float, float, int, str]] = []
        self.failures: list[dict[str, Any]] = []
        self.dues: list[float] = []
        self.workers: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self.idle_closed = 0
        self.lateness = 0.0
        self.sending = True
        self.told = 0.0

    # The loop

    def run(self) -> dict[str, Any]:
        start = time.monotonic() + 0.02
        end = start + self.options.seconds
        due = start
        with contextlib.suppress(PermissionError):  # a file, which has no end to wait for
            self.epoll.register(0, IN)
        while True:
            now = time.monotonic()
            while self.sending and due <= now:
                self.lateness = max(self.lateness, now - due)
                self.arrive(due)
                due += 1.0 / self.options.rate
                now = time.monotonic()
            self.sending = self.sending and due < end
            while self.timers and self.timers[0][0] <= now:
                heapq.heappop(self.timers)[2]()
            if not self.sending and not any(wire.pending for wire in self.wires.values()):
                break
            self.tell(now)
            wake = due if self.sending else now + 0.1
            if self.timers:
                wake = min(wake, self.timers[0][0])
            for fd, _ in self.epoll.poll(min(0.1, max(0.0, wake - time.monotonic()))):
                if fd == 0:
                    if not os.read(0, 4096):
                        self.epoll.unregister(0)
                        self.sending = False
                elif fd in self.wires:
                    self.ready(self.wires[fd])
        self.tell(now, last=True)
        return self.result(start)

    def after(self, seconds: float, fn: Callable[[], None]) -> None:
        self.timer_number += 1
        heapq.heappush(self.timers, (time.monotonic() + seconds, self.timer_number, fn))

    def tell(self, now: float, *, last: bool = False) -> None:
        if self.options.progress and (last or now - self.told >= 0.1):
            self.told = now
            done = self.counts["fresh"] + self.counts["kept"]
            failed = sum(count for outcome, count in done.items() if outcome not in FINE)
            sys.stderr.write(f"{done['ok']} {failed} {len(self.wires)}\n")
            sys.stderr.flush()

    # Requests

    def request(self, due: float, kind: str, keep: bool) -> Request:
        self.number += 1
        request = Request(self.number, kind, due, keep)
        self.after(due + self.options.timeout - time.monotonic(), lambda: self.expired(request))
        return request

    def arrive(self, due: float) -> None:
        """One request is due now."""
        kind = self.random.choice(self.kinds)
        keep = kind != "old" and (kind == "pipe" or self.random.random() >= self.options.fresh)
        requests = [self.request(due, kind, keep)]
        if kind == "pipe":
            requests.append(self.request(due, kind, keep))
        pieces = [piece for one in requests for piece in pieces_of(one, close=not keep)]
        if kind == "pipe":
            pieces = [(0.0, b"".join(data for _, data in pieces))]
        wire = self.kept_wire() if keep else None
        if wire is not None:
            for request in requests:
                request.reused, request.connected = True, due
        elif len(self.wires) >= self.options.most:
            for request in requests:
                self.over(request, "not_sent", None)
            return
        else:
            target = self.random.choice(self.options.targets)
            try:
                wire = self.connect(target, keep)
            except OSError as error:
                for request in requests:
                    self.over(request, "refused", None, repr(error))
                return
        wire.pending.extend(requests)
        self.send(wire, requests[0], pieces)

    def send(self, wire: Wire, request: Request, pieces: list[Piece]) -> None:
        """Send the first piece now, the others in their time, unless it is over by then."""
        (_, data), *later = pieces
        wire.unsent += data
        if not wire.connecting:
            self.write(wire)
        if later:

            def go_on() -> None:
                if request in wire.pending and wire.sock.fileno() >= 0:
                    self.send(wire, request, later)

            self.after(later[0][0], go_on)

    # Connections

    def kept_wire(self) -> Wire | None:
        """An idle connection that still stands, the longest idle first."""
        while self.idle and len(self.wires) >= self.options.keep:
            wire = self.idle.popleft()
            if wire.sock.fileno() < 0:
                continue
            if time.monotonic() - wire.answered > self.options.idle:
                self.end(wire, "", "")
                continue
            try:
                wire.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return wire
            except OSError:
                pass
            self.idle_ended(wire)
        return None

    def connect(self, target: str, keep: bool) -> Wire:
        if target.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            address: Any = target.removeprefix("unix:")
        else:
            sock = socket.socket(socket.AF_INET)
            host, _, port = target.rpartition(":")
            address = (host, int(port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        problem = sock.connect_ex(address)
        if problem not in (0, errno.EINPROGRESS):
            sock.close()
            raise OSError(problem, os.strerror(problem))
        wire = Wire(sock, target, keep)
        self.wires[sock.fileno()] = wire
        wire.events = IN | OUT
        self.epoll.register(sock.fileno(), IN | OUT)
        return wire

    def ready(self, wire: Wire) -> None:
        if wire.connecting:
            problem = wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if problem:
                outcome = "refused" if problem == errno.ECONNREFUSED else "reset_early"
                self.end(wire, outcome, os.strerror(problem))
                return
            wire.connecting = False
            now = time.monotonic()
            for request in wire.pending:
                request.connected = now
        if wire.unsent:
            self.write(wire)
        else:
            self.watch(wire, IN)
        if wire.sock.fileno() >= 0:
            self.read(wire)

    def watch(self, wire: Wire, events: int) -> None:
        if events != wire.events:
            wire.events = events
            self.epoll.modify(wire.sock.fileno(), events)

    def write(self, wire: Wire) -> None:
        try:
            sent = wire.sock.send(wire.unsent)
            wire.unsent = wire.unsent[sent:]
        except BlockingIOError:
            pass
        except OSError:
            # An answer may have come before the end of what it answers: read() tells.
            wire.unsent = b""
        now = time.monotonic()
        for request in wire.pending:
            request.sent = request.sent or now
        self.watch(wire, IN | OUT if wire.unsent else IN)

    def read(self, wire: Wire) -> None:
        try:
            data = wire.sock.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError as error:
            self.ended(wire, error)
            return
        if not data:
            self.ended(wire, None)
            return
        while data:
            if not wire.pending:
                self.end(wire, "wrong", f"bytes nobody asked for: {data[:60]!r}")
                return
            request = wire.pending[0]
            try:
                request.answer.feed(data)
            except (MessageError, ValueError) as error:
                self.end(wire, "wrong", str(error))
                return
            if not request.answer.done:
                return
            data = request.answer.rest
            self.answered(wire, request)
            if wire.sock.fileno() < 0:
                return

    def answered(self, wire: Wire, request: Request) -> None:
        """A whole answer."""
        wire.pending.popleft()
        wire.served += 1
        wire.answered = time.monotonic()
        answer = request.answer
        first, _, rest = bytes(answer.body).partition(b"\n")
        words = first.decode("latin-1").split(" ")
        if answer.status >= 500:
            self.over(request, "error", wire, f"{answer.status} {words}"[:200])
        elif answer.status != 200:
            self.over(request, "status", wire, f"{answer.status} {words}"[:200])
        elif len(words) != 3 or words[2] != str(request.id) or rest != request.expected:
            self.over(request, "wrong", wire, f"{len(answer.body)} bytes, {first[:60]!r}")
        else:
            wire.pid = int(words[0])
            self.workers[wire.pid] += 1
            self.versions[words[1]] += 1
            self.over(request, "ok", wire)
        if not wire.keep or answer.close:
            self.end(wire, "unserved", "behind Connection: close")
        elif not wire.pending:
            self.idle.append(wire)

    def ended(self, wire: Wire, error: OSError | None) -> None:
        """The server has ended the connection."""
        if not wire.pending:
            self.idle_ended(wire)
            return
        request = wire.pending[0]
        if error is None and request.answer.eof():
            self.answered(wire, request)
        elif request.answer.received:
            self.end(wire, "cut", repr(error))
        elif request.reused or wire.served:
            self.end(wire, "reused_closed", repr(error))
        else:
            self.end(wire, "closed_early" if error is None else "reset_early", repr(error))

    def idle_ended(self, wire: Wire) -> None:
        self.idle_closed += 1
        self.end(wire, "", "")

    def expired(self, request: Request) -> None:
        for wire in self.wires.values():
            if request in wire.pending:
                self.end(wire, "timeout", f"{request.answer.received} bytes came")
                return

    def end(self, wire: Wire, outcome: str, detail: str) -> None:
        """Close; what was under way ends as `outcome`."""
        fd = wire.sock.fileno()
        if fd >= 0:
            self.epoll.unregister(fd)
            del self.wires[fd]
            wire.sock.close()
        while wire.pending:
            self.over(wire.pending.popleft(), outcome, wire, detail)

    def over(self, request: Request, outcome: str, wire: Wire | None, detail: str = "") -> None:
        now = time.monotonic()
        side = "kept" if request.keep else "fresh"
        self.counts[side][outcome] += 1
        if outcome == "ok":
            latency = now - request.due - request.pauses
            self.latencies[side].append(latency)
            if self.options.dues:
                self.dues.append(request.due)
            entry = (latency, request.due, request.id, request.kind)
            (heapq.heappush if len(self.worst) < 10 else heapq.heappushpop)(self.worst, entry)
        elif outcome not in FINE and len(self.failures) < RECORDED:
            self.failures.append(
                {
                    "id": request.id,
                    "outcome": outcome,
                    "kind": request.kind,
                    "reused": request.reused,
                    "due": request.due,
                    "connected": request.connected,
                    "sent": request.sent,
                    "at": now,
                    "idle": request.due - wire.answered if wire and wire.served else 0.0,
                    "bytes": request.answer.received,
                    "pid": 0 if wire is None else wire.pid,
                    "target": "" if wire is None else wire.target,
                    "detail": detail,
                }
            )

    # The account

    def result(self, start: float) -> dict[str, Any]:
        total = self.counts["fresh"] + self.counts["kept"]
        return {
            "started": start,
            "seconds": time.monotonic() - start,
            "rate": self.options.rate,
            "requests": self.number,
            "failed": sum(count for outcome, count in total.items() if outcome not in FINE),
            "fresh": dict(self.counts["fresh"]),
            "kept": dict(self.counts["kept"]),
            "idle_closed": self.idle_closed,
            "latency": {side: percentiles(found) for side, found in self.latencies.items()},
            "worst": [
                {"seconds": latency, "due": due, "id": number, "kind": kind}
                for latency, due, number, kind in sorted(self.worst, reverse=True)
            ],
            "own_lateness": self.lateness,
            "workers": {str(pid): count for pid, count in self.workers.items()},
            "versions": dict(self.versions),
            "failures": self.failures,
            **({"dues": self.dues} if self.options.dues else {}),
        }


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * part))]
        for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def parse_arguments() -> argparse.Namespace:
    def mix(text: str) -> list[tuple[str, int]]:
        found = [word.split(":") for word in text.split(",")]
        return [(kind, int(weight)) for kind, weight in found]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", metavar="ADDRESS", help="host:port or unix:path")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second (100)")
    parser.add_argument("--seconds", type=float, default=600.0, help="at most so long (600)")
    parser.add_argument("--timeout", type=float, default=15.0, help="of a request, seconds (15)")
    parser.add_argument("--keep", type=int, default=16, help="connections that are kept (16)")
    parser.add_argument("--idle", type=float, default=0.6, help="and are used again for (0.6)")
    parser.add_argument("--fresh", type=float, default=0.5, help="share of fresh ones (0.5)")
    parser.add_argument("--most", type=int, default=900, help="connections at once (900)")
    parser.add_argument("--mix", type=mix, default=mix(DEFAULT_MIX), help=DEFAULT_MIX)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--dues", action="store_true", help="list when each ok one was due")
    return parser.parse_args()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        json.dump(Client(parse_arguments()).run(), sys.stdout)
