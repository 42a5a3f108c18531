"""One timeout for many: who expires, when, and that nothing is armed for nobody."""

import pytest

from prefork.event.deadlines import Deadlines
from prefork.event.reactor import Reactor


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def reactor():
    reactor = Reactor(clock=Clock())
    reactor.errors = []
    reactor.on_error = lambda error, _where: reactor.errors.append(error)
    yield reactor
    reactor.close()
    assert not reactor.errors


def advance(reactor, seconds):
    reactor.clock.now += seconds
    reactor.process_events(0)
    reactor.process_events(0)


def test_in_the_order_of_the_last_touch(reactor):
    expired = []
    deadlines = Deadlines(reactor, 10.0, expired.append)
    for name in "abc":
        deadlines.touch(name)
        advance(reactor, 1)
    deadlines.touch("a")
    assert len(deadlines) == 3
    assert "a" in deadlines
    advance(reactor, 7.5)
    assert expired == []
    advance(reactor, 1)
    assert expired == ["b", "c"][: len(expired)]
    advance(reactor, 5)
    assert expired == ["b", "c", "a"]
    assert len(deadlines) == 0


def test_a_discarded_one_does_not_expire(reactor):
    expired = []
    deadlines = Deadlines(reactor, 10.0, expired.append)
    deadlines.touch("a")
    deadlines.touch("b")
    deadlines.discard("a")
    deadlines.discard("a")
    deadlines.discard("never")
    advance(reactor, 11)
    assert expired == ["b"]


def test_those_that_are_due_can_be_forgotten(reactor):
    """Somebody else has seen to them, before the sweep of the same turn."""
    expired = []
    deadlines = Deadlines(reactor, 10.0, expired.append)
    deadlines.touch("due")
    advance(reactor, 6)
    deadlines.touch("not yet")
    reactor.clock.now += 5
    reactor.now = reactor.clock.now
    deadlines.discard_due()
    advance(reactor, 0)
    assert expired == []
    advance(reactor, 6)
    assert expired == ["not yet"]


def test_nothing_is_armed_for_nobody(reactor):
    """An idle process must not be woken."""
    deadlines = Deadlines(reactor, 10.0, lambda _item: None)
    deadlines.touch("a")
    deadlines.discard("a")
    advance(reactor, 11)
    assert not reactor._timers
    deadlines.touch("a")
    advance(reactor, 11)
    assert not reactor._timers


def test_touched_again_when_it_expires(reactor):
    expired = []

    def again(item):
        expired.append(reactor.now)
        if len(expired) < 3:
            deadlines.touch(item)

    deadlines = Deadlines(reactor, 10.0, again)
    deadlines.touch("a")
    for _ in range(50):
        advance(reactor, 1)
    assert expired == [110.0, 120.0, 130.0]


def test_shorten(reactor):
    expired = []
    deadlines = Deadlines(reactor, 75.0, expired.append)
    deadlines.touch("old")
    advance(reactor, 10)
    deadlines.touch("young")
    deadlines.shorten(100.0)  # longer is no shortening
    deadlines.shorten(5.0)
    reactor.process_events(0)
    assert expired == ["old"]
    advance(reactor, 4)
    assert expired == ["old"]
    deadlines.touch("new")
    advance(reactor, 1)
    assert expired == ["old", "young"]
    advance(reactor, 4)
    assert expired == ["old", "young", "new"]


def test_shorten_with_nobody(reactor):
    expired = []
    deadlines = Deadlines(reactor, 75.0, expired.append)
    deadlines.shorten(5.0)
    assert not reactor._timers
    deadlines.touch("a")
    advance(reactor, 5)
    assert expired == ["a"]


def test_one_that_raises_does_not_spare_the_others(reactor):
    expired = []

    def broken(item):
        expired.append(item)
        if item == "a":
            raise KeyError(item)

    deadlines = Deadlines(reactor, 10.0, broken)
    for item in "ab":
        deadlines.touch(item)
    advance(reactor, 11)
    deadlines.touch("c")
    advance(reactor, 11)
    assert expired == ["a", "b", "c"]
    assert [str(error) for error in reactor.errors] == ["'a'"]
    reactor.errors.clear()
