"""What the Autobahn test suite asks of a WebSocket server, case by case: its groups 1 to 7, 10, 12.

A case is what the client sends, byte for byte, and what must come back before the close and in it.
Everything is sent once whole and once in small segments.
"""

import os
import struct
from collections.abc import Callable
from typing import Any

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode

from tests.gateway.test_asgi_websocket import Peer, echo

Make = Callable[..., Any]
Frames = list[tuple[int, bytes]]

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PROTOCOL, UTF8 = 1002, 1007


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """A masked frame, whatever the rules say of it."""
    size = len(data)
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += struct.pack("!BH", 0x80 | 126, size)
    else:
        head += struct.pack("!BQ", 0x80 | 127, size)
    mask = b"\x12\x34\x56\x78"
    return head + mask + bytes(one ^ mask[at % 4] for at, one in enumerate(data))


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def parts(opcode: int, *pieces: bytes) -> list[bytes]:
    last = len(pieces) - 1
    return [frame(CONT if at else opcode, piece, fin=at == last) for at, piece in enumerate(pieces)]


HELLO = "Hello-µ@ßöäüàá-UTF-8!!".encode()
CASES: dict[str, tuple[list[bytes], Frames, int]] = {}


def case(number: str, sent: list[bytes], answers: Frames, code: int = 1000) -> None:
    CASES[number] = (sent, answers, code)


for size in (0, 125, 126, 127, 128, 65535, 65536):
    case(f"1.1 text of {size}", [frame(TEXT, b"*" * size)], [(TEXT, b"*" * size)])
    case(f"1.2 binary of {size}", [frame(BINARY, b"\xfe" * size)], [(BINARY, b"\xfe" * size)])
for data in (b"", b"Hello", b"\0\xff\xfe\xfd", b"\xfe" * 125):
    case(f"2.1 ping {data[:6]!r}", [frame(PING, data)], [(PONG, data)])
case("2.5 long ping", [frame(PING, b"\xfe" * 126)], [], PROTOCOL)
case("2.7 pongs nobody asked for", [frame(PONG), frame(PONG, b"x"), frame(PING)], [(PONG, b"")])
ten = [b"payload-%d" % number for number in range(10)]
case("2.10 pings", [frame(PING, one) for one in ten], [(PONG, one) for one in ten])
for rsv in range(1, 8):
    case(
        f"3.{rsv} reserved bits",
        [frame(TEXT, HELLO), frame(TEXT, HELLO, rsv=rsv), frame(PING)],
        [(TEXT, HELLO)],
        PROTOCOL,
    )
    case(f"3.{rsv} in a ping", [frame(PING, rsv=rsv)], [], PROTOCOL)
    case(f"3.{rsv} in a close", [frame(CLOSE, rsv=rsv)], [], PROTOCOL)
for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
    for data in (b"", b"x"):
        sent = [frame(TEXT, HELLO), frame(opcode, data), frame(PING)]
        case(f"4 opcode {opcode} {data!r}", sent, [(TEXT, HELLO)], PROTOCOL)
case("5.1 ping in fragments", parts(PING, b"a", b"b"), [], PROTOCOL)
case("5.2 pong in fragments", parts(PONG, b"a", b"b"), [], PROTOCOL)
case("5.3 fragments", parts(TEXT, b"one ", b"two ", b"three"), [(TEXT, b"one two three")])
first, second = parts(TEXT, b"one ", b"two")
case("5.6 a ping between", [first, frame(PING, b"p"), second], [(PONG, b"p"), (TEXT, b"one two")])
case("5.9 a continuation of nothing", [frame(CONT, b"x"), frame(TEXT, b"y")], [], PROTOCOL)
case("5.12 and not the last", [frame(CONT, b"x", fin=False), frame(TEXT, b"y")], [], PROTOCOL)
case("5.15 after the last", [first, second, frame(CONT, b"x")], [(TEXT, b"one two")], PROTOCOL)
case("5.18 a message in a message", [first, frame(TEXT, b"two")], [], PROTOCOL)
case("5.20 close in a message", [first, close(1000), second], [], PROTOCOL)
case("6.1 empty fragments", parts(TEXT, b"", b"", b""), [(TEXT, b"")])
case("6.1.3 empty around", parts(TEXT, b"", b"middle", b""), [(TEXT, b"middle")])
for text in ("κόσμε", "\0", "\u0080", "\u07ff", "\u0800", "\uffff", "\U0010ffff", "\ufffd", "𐀀"):
    data = text.encode()
    case(f"6.2 {text!r}", [frame(TEXT, data)], [(TEXT, data)])
    case(f"6.2.3 {text!r} torn", parts(TEXT, *[bytes([one]) for one in data]), [(TEXT, data)])
for bad in (
    *(
        b"\xce",
        b"\xce\xba\xe1",
        b"\x80",
        b"\xbf\x80",
        b"\xfe",
        b"\xff",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
    ),
    *(b"\xf0\x80\x80\xaf", b"\xf8\x88\x80\x80\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc1\xbf"),
    *(
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xed\xa0\x80\xed\xb0\x80",
        HELLO + b"\xed\xa0\x80",
    ),
):
    case(f"6.3 {bad!r}", [frame(TEXT, bad)], [], UTF8)
    case(f"6.3.2 {bad!r} torn", parts(TEXT, bad[:1], bad[1:], b""), [], UTF8)
    case(f"6.3.3 {bad!r} as binary", [frame(BINARY, bad)], [(BINARY, bad)])
    case(f"7.5 {bad!r} as a reason", [close(1000, bad)], [], UTF8)
CASES["7.1.2 close twice"] = ([close(1000), close(1000)], [], 1000)
CASES["7.1.3 ping after close"] = ([close(1000), frame(PING)], [], 1000)
CASES["7.1.4 text after close"] = ([close(1000), frame(TEXT, b"x")], [], 1000)
CASES["7.3.1 no code"] = ([close()], [], 1005)
CASES["7.3.2 half a code"] = ([frame(CLOSE, b"a")], [], PROTOCOL)
CASES["7.3.5 longest reason"] = ([close(1000, b"*" * 123)], [], 1000)
CASES["7.3.6 too long a reason"] = ([close(1000, b"*" * 124)], [], PROTOCOL)
for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 3000, 3999, 4000, 4999):
    CASES[f"7.7 code {code}"] = ([close(code)], [], code)
for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
    CASES[f"7.9 code {code}"] = ([close(code)], [], PROTOCOL)
large = os.urandom(300_000)
case("9.2 a large message", [frame(BINARY, large)], [(BINARY, large)])
pieces = [large[at : at + 1300] for at in range(0, 65536, 1300)]
case("10.1 in many fragments", parts(BINARY, *pieces), [(BINARY, b"".join(pieces))])


@pytest.mark.parametrize("segment", ["a frame", 1, 7])
def test_the_cases(asgi: Make, segment: Any) -> None:
    w = asgi(echo, limits={"message": 1 << 20})
    for number, (sent, answers, code) in CASES.items():
        peer = Peer(w.connect())
        if segment == "a frame":
            for one in sent:
                peer.client.send(one)
                w.settle()
        else:
            data = b"".join(sent)
            size = max(segment, len(data) // 50)
            peer.client.send_pieces(data, *range(size, len(data), size))
        got = []
        if number[0] != "7" and code == 1000:
            got = [peer.frame() for _ in answers]
            peer.client.send(close(1000))
        seen = peer.closed()[0]
        got += [one for one in peer.events if one.opcode is not Opcode.CLOSE]
        found = [(int(one.opcode), bytes(one.data)) for one in got]
        # What is broken closes at once, ahead of an echo of what came in the same segment.
        assert found == answers or (code == PROTOCOL and not found), number
        assert seen == code, number
        w.wait_for(lambda: not w.server.connections)


@pytest.mark.parametrize(
    "offer",
    [
        {},
        {"client_max_window_bits": True},
        {"client_max_window_bits": 9, "server_max_window_bits": 9},
        {"client_max_window_bits": 15, "server_max_window_bits": 15},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"server_no_context_takeover": True, "server_max_window_bits": 9},
    ],
)
def test_packed_messages(asgi: Make, offer: dict[str, Any]) -> None:
    """12 and 13: sizes, kinds, windows, and what the one side remembers of the other."""
    w = asgi(echo, limits={"message": 1 << 20})
    peer = Peer(w.connect(), deflate=ClientPerMessageDeflateFactory(**offer))
    assert peer.frames.extensions
    rows = "".join(f'{{"row": {number}, "name": "entry {number % 7}"}}\n' for number in range(9000))
    for size in (0, 1, 16, 64, 256, 1024, 4096, 8192, 16384, 131072):
        for message in (rows[:size], rows[:size].encode(), os.urandom(size)):
            peer.send(message)
            assert peer.receive() == message
    middle = len(rows) // 2
    peer.frames.send_text(rows[:middle].encode(), fin=False)
    peer.frames.send_ping(b"between")
    peer.frames.send_continuation(rows[middle:].encode(), fin=True)
    peer.flush()
    assert peer.frame().opcode is Opcode.PONG
    assert peer.receive() == rows
    peer.client.send(frame(TEXT, b"\xff\xff\xff", rsv=4))  # nothing that could be unpacked
    assert peer.closed()[0] == PROTOCOL
