"""The chunked decoder on its own: any cut is the same, and its limits hold."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefork.errors import PeerError
from prefork.http.h1.chunked import MAX_EXTENSIONS, MAX_LINE, ChunkedDecoder


class Sink:
    """A decoder and what came out of it."""

    def __init__(self, limit=1 << 20, trailer_limit=1000):
        self.data = []
        self.ends = []
        self.decoder = ChunkedDecoder(
            self.data.append, self.ends.append, limit=limit, trailer_limit=trailer_limit
        )

    def feed(self, data):
        return self.decoder.feed(data)


@settings(derandomize=True)
@given(
    chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=8),
    rest=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 600), max_size=10),
)
def test_chunked_any_way_it_is_cut(chunks, rest, cuts):
    body = b"".join(b"%x;x=y\r\n%b\r\n" % (len(one), one) for one in chunks)
    body += b"0\r\nA: 1\r\nB: 2 \r\n\r\n"
    sink = Sink()
    places = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    for begin, end in itertools.pairwise(places):
        last = end == len(body)
        left = sink.feed(body[begin:end] + (rest if last else b""))
        assert left == (rest if last else b"")
    assert b"".join(sink.data) == b"".join(chunks)
    (trailers,) = sink.ends
    assert trailers.raw == [(b"a", b"1"), (b"b", b"2")]


@settings(derandomize=True, max_examples=500)
@example([b"0", b"\r\n", b"\r", b"\r\n"])
@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"0", b"3", b"abc", b";", b"X: 1", b" "])))
def test_chunked_noise_is_the_same_whole_and_byte_by_byte(pieces):
    data = b"".join(pieces)
    outcomes = []
    for parts in ([data], [data[i : i + 1] for i in range(len(data))]):
        sink = Sink()
        try:
            left = b"".join(sink.feed(part) for part in parts if not sink.ends)
            outcome = "ended" if sink.ends else "open"
        except PeerError as error:
            outcome = error.status
            left = b""
        outcomes.append((outcome, b"".join(sink.data) if outcome != 400 else b""))
        assert left == b"" or sink.ends
    assert outcomes[0] == outcomes[1]


def test_chunked_limits():
    with pytest.raises(PeerError) as caught:
        Sink(limit=10).feed(b"5\r\nabcde\r\n6\r\n")
    assert caught.value.status == 413
    with pytest.raises(PeerError) as caught:
        Sink().feed(b"1;" + b"a" * MAX_LINE + b"\r\n")
    assert caught.value.status == 400
    sink = Sink()
    line = b"1;" + b"a" * (MAX_LINE - 10) + b"\r\nx\r\n"
    for _ in range(MAX_EXTENSIONS // (MAX_LINE - 10)):
        sink.feed(line)
    with pytest.raises(PeerError, match="too many chunk extensions"):
        sink.feed(line)
    with pytest.raises(PeerError) as caught:
        Sink(trailer_limit=10).feed(b"0\r\nX: aaaaaaaaaaaa\r\n\r\n")
    assert caught.value.status == 431
