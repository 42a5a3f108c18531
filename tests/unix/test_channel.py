"""Channels over real socketpairs."""

import os
import random
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from prefork.unix.channel import MAX_PAYLOAD, Channel, Command, Message, channel_pair


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    master, child = channel_pair()
    yield master, child
    master.close()
    child.close()


def test_messages_arrive_whole_and_in_order(pair: tuple[Channel, Channel]) -> None:
    master, child = pair
    sent = [
        Message(Command.READY, 3, os.getpid()),
        Message(Command.FAILED, -1, 0, b"Traceback (most recent call last):\n" * 900),
        Message(Command.QUIT),
    ]
    for message in sent:
        assert child.send(message)
    assert master.receive() == sent
    assert master.receive() == []
    assert not master.eof


def test_both_directions_are_independent(pair: tuple[Channel, Channel]) -> None:
    master, child = pair
    assert master.send(Message(Command.REOPEN))
    assert child.send(Message(Command.READY))
    assert [m.command for m in child.receive()] == [Command.REOPEN]
    assert [m.command for m in master.receive()] == [Command.READY]


def test_frames_cut_at_any_byte_are_put_together() -> None:
    near, far = socket.socketpair()
    spy, tap = channel_pair()
    messages = [Message(Command(1 + n % 5), n, n * 7, b"x" * (n * 13)) for n in range(20)]
    for message in messages:
        tap.send(message)
    stream = os.read(spy.fileno(), 1 << 20)
    channel = Channel(near)
    rng = random.Random(1)
    got: list[Message] = []
    while stream:
        size = rng.randint(1, 40)
        far.send(stream[:size])
        stream = stream[size:]
        got += channel.receive()
    assert got == messages
    for one in (channel, spy, tap, far):
        one.close()


def test_last_words_count_before_the_end(pair: tuple[Channel, Channel]) -> None:
    master, child = pair
    words = b"x" * MAX_PAYLOAD
    assert child.send(Message(Command.FAILED, 1, 2, words))
    child.close()
    assert [m.payload for m in master.receive()] == [words]
    assert master.eof
    assert master.receive() == []


def test_the_longest_message_fits_an_idle_channel_in_one_go(pair: tuple[Channel, Channel]) -> None:
    """A worker that failed to start sends and leaves: nobody may have read yet."""
    master, child = pair
    assert child.send(Message(Command.FAILED, 0, 0, b"y" * (MAX_PAYLOAD + 5000)))
    assert child.flush()
    assert len(master.receive()[0].payload) == MAX_PAYLOAD


def test_a_dead_peer_is_an_answer_not_an_exception(pair: tuple[Channel, Channel]) -> None:
    master, child = pair
    child.close()
    master.send(Message(Command.QUIT))
    assert not master.send(Message(Command.QUIT))
    assert master.eof
    assert master.receive() == []
    assert not child.send(Message(Command.READY))
    assert child.fileno() == -1


def test_a_peer_that_never_reads_is_refused_and_loses_nothing(
    pair: tuple[Channel, Channel],
) -> None:
    master, child = pair
    sent = 0
    while master.send(Message(Command.QUIT, sent, 0, b"z" * 5000)):
        sent += 1
        assert sent < 10_000
    got: list[Message] = []
    while len(got) < sent:
        got += child.receive()
        master.flush()
    assert [m.slot for m in got] == list(range(sent))
    assert master.send(Message(Command.QUIT))


def test_flush_waits_for_a_slow_reader_but_not_for_ever(pair: tuple[Channel, Channel]) -> None:
    master, _child = pair
    while master.send(Message(Command.QUIT, 0, 0, b"z" * MAX_PAYLOAD)):
        pass
    assert not master.flush(0.02)
    assert not master.eof


def test_nonsense_ends_the_conversation_and_unknown_commands_are_skipped() -> None:
    near, far = socket.socketpair()
    channel = Channel(near)
    far.send(struct.pack("=BxxxIii", 200, 3, 0, 0) + b"abc")
    far.send(struct.pack("=BxxxIii", Command.READY, 0, 4, 5))
    assert channel.receive() == [Message(Command.READY, 4, 5)]
    far.send(b"\xff" * 64)
    assert channel.receive() == []
    assert channel.eof
    channel.close()
    far.close()


def test_descriptors_are_closed_by_exec_and_never_block(pair: tuple[Channel, Channel]) -> None:
    for one in pair:
        assert not os.get_inheritable(one.fileno())
        assert not os.get_blocking(one.fileno())


def test_end_of_file_shows_when_the_last_copy_is_gone(pair: tuple[Channel, Channel]) -> None:
    """How a worker notices a killed master: poll wakes, receive says eof."""
    master, child = pair
    pid = os.fork()
    if pid == 0:
        child.close()
        os._exit(0)
    os.waitpid(pid, 0)
    master.close()
    poll = select.poll()
    poll.register(child.fileno(), select.POLLIN)
    assert poll.poll(5000)
    assert child.receive() == []
    assert child.eof


def test_a_message_interrupts_the_masters_sleep(run_python: Any) -> None:
    """SIGIO by O_ASYNC: twenty children, all heard, with nothing but sigsuspend to wait in."""
    run_python(
        """
        import os, select
        from prefork.unix import signals
        from prefork.unix.channel import Command, Message, channel_pair
        signals.block()
        flags = signals.SignalFlags()
        signals.install_master(flags)
        channels = {}
        for n in range(20):
            ours, theirs = channel_pair()
            ours.enable_sigio(os.getpid())
            pid = os.fork()
            if pid == 0:
                for inherited in (ours, *channels.values()):
                    inherited.close()  # or we would keep each other's channels open
                theirs.send(Message(Command.READY, n, os.getpid(), b"p" * 3000))
                # still there when the master looks: it is SIGIO that woke it, not our death
                while not theirs.eof:
                    select.select([theirs], [], [])
                    theirs.receive()
                os._exit(0)
            theirs.close()
            channels[pid] = ours
        ready = set()
        signals.set_alarm(45)
        while len(ready) < 20:
            signals.suspend()
            assert not flags.alarm, ready
            if flags.sigio:
                flags.sigio = False
                for pid, channel in channels.items():
                    for message in channel.receive():
                        assert message.pid == pid and len(message.payload) == 3000
                        ready.add(pid)
        for channel in channels.values():
            channel.close()
        while channels:
            pid, status = os.wait()
            assert status == 0
            del channels[pid]
        """
    )


def test_an_end_is_passed_on_with_its_message(pair: tuple[Channel, Channel]) -> None:
    master, child = pair
    child.take_channels()
    ours = []
    for slot in (1, 2):
        mine, passed = channel_pair()
        assert master.pass_on(Message(Command.SPAWN, slot, 0, b"x" * slot), passed)
        passed.close()
        ours.append(mine)
    assert [message.slot for message in child.receive()] == [1, 2]
    for mine in ours:
        theirs = child.taken()
        assert theirs is not None
        assert not os.get_inheritable(theirs.fileno())
        theirs.send(Message(Command.HELLO, 7, 8))
        assert mine.receive() == [Message(Command.HELLO, 7, 8)]
        theirs.close()
        assert mine.receive() == []
        assert mine.eof  # nobody else has that end
        mine.close()
    assert child.taken() is None


def test_an_end_that_nobody_takes_is_closed(pair: tuple[Channel, Channel]) -> None:
    master, child = pair
    child.take_channels()
    mine, passed = channel_pair()
    assert master.pass_on(Message(Command.SPAWN), passed)
    passed.close()
    child.receive()
    child.close()
    mine.receive()
    assert mine.eof
    mine.close()


def test_nothing_is_passed_on_to_the_dead(pair: tuple[Channel, Channel]) -> None:
    master, child = pair
    child.close()
    mine, passed = channel_pair()
    assert not master.pass_on(Message(Command.SPAWN), passed)
    mine.close()
    passed.close()
