"""The reactor's turn, on every poller this kernel has."""

import contextlib
import os
import select
import socket

import pytest

from prefork.event import poller as pollers
from prefork.event.reactor import NOMORE, READABLE, WRITABLE, Reactor

POLLERS = [
    getattr(pollers, name)
    for name in ("EpollPoller", "KqueuePoller", "PollPoller")
    if hasattr(pollers, name)
]


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(params=POLLERS, ids=lambda kind: kind.name)
def clock_and_reactor(request):
    clock = Clock()
    reactor = Reactor(request.param(), clock)
    reactor.errors = []
    reactor.on_error = lambda error, where: reactor.errors.append((error, where))
    yield clock, reactor
    reactor.close()


@pytest.fixture
def reactor(clock_and_reactor):
    return clock_and_reactor[1]


@pytest.fixture
def clock(clock_and_reactor):
    return clock_and_reactor[0]


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    with left, right:
        yield left, right


def test_readable(reactor, pair):
    left, right = pair
    calls = []
    reactor.create_file_event(left.fileno(), READABLE, lambda: calls.append(left.recv(10)))
    assert reactor.process_events(0) == 0
    right.send(b"a")
    assert reactor.process_events(None) == 1
    assert reactor.process_events(0) == 0
    assert calls == [b"a"]


def test_it_is_level_triggered(reactor, pair):
    left, right = pair
    calls = []
    reactor.create_file_event(left.fileno(), READABLE, lambda: calls.append("readable"))
    right.send(b"a")
    for _ in range(3):
        assert reactor.process_events(0) == 1
    assert calls == ["readable"] * 3


def test_reading_comes_before_writing(reactor, pair):
    left, right = pair
    calls = []
    reactor.create_file_event(left.fileno(), WRITABLE, lambda: calls.append("write"))
    reactor.process_events(0)
    reactor.create_file_event(left.fileno(), READABLE, lambda: calls.append("read"))
    assert reactor.watched(left.fileno()) == READABLE | WRITABLE
    right.send(b"a")
    reactor.process_events(0)
    assert calls == ["write", "read", "write"]


def test_each_half_is_deleted_by_itself(reactor, pair):
    left, right = pair
    calls = []
    fd = left.fileno()
    reactor.create_file_event(fd, READABLE | WRITABLE, lambda: calls.append("event"))
    right.send(b"a")
    reactor.delete_file_event(fd, WRITABLE)
    reactor.delete_file_event(fd, WRITABLE)
    reactor.process_events(0)
    assert calls == ["event"]
    reactor.delete_file_event(fd, READABLE)
    reactor.delete_file_event(fd, READABLE | WRITABLE)
    assert reactor.watched(fd) == 0
    assert reactor.process_events(0) == 0
    reactor.create_file_event(fd, READABLE, lambda: calls.append("again"))
    reactor.process_events(0)
    assert calls == ["event", "again"]


def test_a_proc_is_replaced(reactor, pair):
    left, _ = pair
    calls = []
    reactor.create_file_event(left.fileno(), WRITABLE, lambda: calls.append(1))
    reactor.create_file_event(left.fileno(), WRITABLE, lambda: calls.append(2))
    reactor.process_events(0)
    assert calls == [2]


@pytest.mark.parametrize("mask", [READABLE, WRITABLE])
def test_hanging_up_wakes_whoever_waits(reactor, pair, mask):
    left, right = pair
    calls = []
    if mask == WRITABLE:  # fill it, so that there is no room to report
        with contextlib.suppress(BlockingIOError):
            while left.send(b"a" * 65536):
                pass
    reactor.create_file_event(left.fileno(), mask, lambda: calls.append("event"))
    right.close()
    reactor.process_events(0)
    assert calls == ["event"]


def test_a_proc_deletes_its_own_event(reactor, pair):
    left, _ = pair
    calls = []

    def once():
        calls.append("once")
        reactor.delete_file_event(left.fileno(), READABLE | WRITABLE)

    reactor.create_file_event(left.fileno(), READABLE, once)
    reactor.create_file_event(left.fileno(), WRITABLE, lambda: calls.append("write"))
    pair[1].send(b"a")
    reactor.process_events(0)
    reactor.process_events(0)
    assert calls == ["once"]


def test_a_proc_deletes_its_neighbour(reactor):
    """Both are ready in one turn; whichever comes first, the other must not be called."""
    calls = []
    with socket.socket() as one, socket.socket() as two:
        fds = [one.fileno(), two.fileno()]

        def delete_the_other(mine):
            calls.append(mine)
            for fd in fds:
                if fd != mine:
                    reactor.delete_file_event(fd, READABLE)

        for fd in fds:  # an unconnected socket is hung up
            reactor.create_file_event(fd, READABLE, lambda fd=fd: delete_the_other(fd))
        reactor.process_events(0)
        assert len(calls) == 1
        for fd in fds:
            reactor.delete_file_event(fd, READABLE)


def test_a_descriptor_is_reused_inside_a_turn(reactor):
    """One proc closes its neighbour and opens another file, which gets the same number.

    The event that was polled for the old file must not end the loop, and the new one works.
    """
    calls = []
    pairs = [socket.socketpair() for _ in range(2)]
    fresh = []
    for left, right in pairs:
        left.setblocking(False)
        right.send(b"a")

    def replace_the_other(mine):
        (other,) = (left for left, _ in pairs if left is not mine)
        fd = other.fileno()
        if fd < 0 or fresh:
            return
        reactor.delete_file_event(fd, READABLE)
        left, right = socket.socketpair()
        os.dup2(left.fileno(), fd)  # closes the old file, and the number is at once the new one's
        left.close()
        other.detach()
        new = socket.socket(fileno=fd)
        new.setblocking(False)
        fresh.extend((new, right))

        def on_readable():
            try:
                calls.append(new.recv(10))
            except BlockingIOError:
                calls.append("spurious")

        reactor.create_file_event(fd, READABLE, on_readable)

    for left, _ in pairs:
        reactor.create_file_event(left.fileno(), READABLE, lambda one=left: replace_the_other(one))
    reactor.process_events(0)
    assert calls in ([], ["spurious"])
    fresh[1].send(b"new")
    reactor.process_events(0)
    assert calls[-1] == b"new"
    assert not reactor.errors
    for left, right in (*pairs, fresh):
        if left.fileno() >= 0:
            reactor.delete_file_event(left.fileno(), READABLE)
        left.close()
        right.close()


def test_a_proc_that_raises_ends_nothing(reactor, clock, pair):
    left, right = pair
    calls = []

    def broken():
        raise KeyError("proc")

    reactor.create_file_event(left.fileno(), READABLE, broken)
    reactor.create_file_event(right.fileno(), WRITABLE, lambda: calls.append("write"))
    reactor.before_sleep += [broken, lambda: calls.append("before")]
    reactor.after_sleep += [broken, lambda: calls.append("after")]
    reactor.create_time_event(0.0, broken)
    reactor.create_time_event(0.0, lambda: calls.append("time") or NOMORE)
    right.send(b"a")
    reactor.process_events(0)
    assert sorted(calls) == ["after", "before", "time", "write"]
    assert [str(error) for error, _ in reactor.errors] == ["'proc'"] * 4
    assert [where for _, where in reactor.errors][:2] == ["a sleep hook"] * 2
    clock.now += 1
    reactor.process_events(0)
    assert calls.count("time") == 1


def test_file_events_come_before_time_events(reactor, clock, pair):
    """A deadline must not beat the bytes that would have met it."""
    left, right = pair
    calls = []
    reactor.create_time_event(1.0, lambda: calls.append("time") or NOMORE)
    reactor.create_file_event(left.fileno(), READABLE, lambda: calls.append("file"))
    reactor.before_sleep.append(lambda: calls.append("before"))
    reactor.after_sleep.append(lambda: calls.append("after"))
    clock.now += 5
    right.send(b"a")
    assert reactor.process_events(0) == 2
    assert calls == ["before", "after", "file", "time"]


def test_time_events_in_order(reactor, clock):
    calls = []
    for name, delay in (("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0)):
        reactor.create_time_event(delay, lambda name=name: calls.append(name) or NOMORE)
    reactor.process_events(0)
    assert calls == []
    clock.now += 2.5
    assert reactor.process_events(0) == 3
    assert calls == ["a", "b1", "b2"]
    clock.now += 10
    reactor.process_events(0)
    assert reactor.process_events(0) == 0
    assert calls == ["a", "b1", "b2", "c"]


def test_a_time_event_returns_its_next_delay(reactor, clock):
    delays = [2.0, 0.0, 5.0, NOMORE]
    fired = []

    def periodic():
        fired.append(clock.now)
        return delays[len(fired) - 1]

    reactor.create_time_event(1.0, periodic)
    for _ in range(20):
        reactor.process_events(0)
        clock.now += 0.5
    assert fired == [101.0, 103.0, 103.5, 108.5]


def test_a_time_event_deletes_itself_and_others(reactor, clock):
    calls = []

    def first():
        calls.append("first")
        reactor.delete_time_event(event)
        reactor.delete_time_event(other)
        return 1.0

    event = reactor.create_time_event(1.0, first)
    other = reactor.create_time_event(1.0, lambda: calls.append("other") or NOMORE)
    clock.now += 2
    reactor.process_events(0)
    clock.now += 2
    reactor.process_events(0)
    assert calls == ["first"]


def test_what_a_time_event_creates_waits_for_the_next_turn(reactor):
    calls = []

    def again():
        calls.append("again")
        reactor.create_time_event(0.0, again)
        return NOMORE

    reactor.create_time_event(0.0, again)
    reactor.process_events(0)
    assert calls == ["again"]
    reactor.process_events(0)
    assert calls == ["again"] * 2


def test_now_stands_still_for_a_turn(reactor, clock, pair):
    left, _ = pair
    seen = []

    def blocks():
        seen.append(reactor.now)
        clock.now += 50

    reactor.create_file_event(left.fileno(), WRITABLE, blocks)
    reactor.create_time_event(10.0, lambda: seen.append("expired") or NOMORE)
    reactor.after_sleep.append(lambda: seen.append(reactor.now))
    reactor.process_events(0)
    assert seen == [100.0, 100.0]


@pytest.mark.parametrize("kind", POLLERS, ids=lambda kind: kind.name)
def test_it_sleeps_until_the_next_time_event(kind):
    reactor = Reactor(kind())
    calls = []
    begun = reactor.clock()
    reactor.delete_time_event(reactor.create_time_event(0.001, lambda: calls.append("no")))
    reactor.create_time_event(0.05, lambda: calls.append(reactor.now) or NOMORE)
    turns = 0
    while not calls:
        reactor.process_events(None)
        turns += 1
    assert turns <= 2  # it neither spins nor wakes early
    assert calls[0] >= begun + 0.05
    reactor.close()


def test_many_descriptors_in_one_turn(reactor):
    pairs = [socket.socketpair() for _ in range(300)]
    calls = []
    for left, right in pairs:
        reactor.create_file_event(left.fileno(), READABLE, lambda left=left: calls.append(left))
        right.send(b"a")
    reactor.process_events(0)
    assert len(calls) == 300
    for left, right in pairs:
        reactor.delete_file_event(left.fileno(), READABLE)
        left.close()
        right.close()


def test_an_error_without_a_log_is_printed(capsys):
    reactor = Reactor()
    reactor.create_time_event(0.0, lambda: 1 / 0)
    reactor.process_events(0)
    reactor.close()
    err = capsys.readouterr().err
    assert "prefork: exception in a time event" in err
    assert "ZeroDivisionError" in err


@pytest.mark.skipif(not hasattr(select, "EPOLLEXCLUSIVE"), reason="Linux only")
def test_an_exclusive_event_is_deleted_and_added_again():
    """It cannot be modified (EINVAL); the acceptor lives by this."""
    reactor = Reactor()
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        for _ in range(3):
            reactor.create_file_event(fd, READABLE, lambda: calls.append(1), exclusive=True)
            reactor.delete_file_event(fd, READABLE)
        reactor.create_file_event(fd, READABLE, lambda: calls.append(1), exclusive=True)
        with socket.create_connection(listener.getsockname()):
            reactor.process_events(1.0)
        reactor.delete_file_event(fd, READABLE)
    assert calls == [1]
    reactor.close()
