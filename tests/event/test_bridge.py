"""asyncio on the reactor: every part of it that applications use, and the first step at once."""

import asyncio
import contextvars
import os
import signal
import socket
import sys
import threading
import time

import pytest

from prefork.event.bridge import ReactorLoop
from prefork.event.executor import Executor
from prefork.event.poller import PollPoller, best_poller
from prefork.event.reactor import NOMORE, READABLE, Reactor
from prefork.event.wakeup import Wakeup

variable = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(params=[best_poller, PollPoller])
def loop(request):
    reactor = Reactor(request.param())
    reactor.errors = []
    reactor.on_error = lambda error, where: reactor.errors.append((error, where))
    loop = ReactorLoop(reactor)
    loop.unhandled = []
    loop.set_exception_handler(lambda _loop, context: loop.unhandled.append(context))
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert not reactor._files, "asyncio left descriptors in the reactor"
    reactor.close()
    assert not reactor.errors
    assert not loop.unhandled


def run(loop, coro, seconds=30.0):
    return loop.run_until_complete(asyncio.wait_for(coro, seconds))


def in_reactor(loop, fn):
    """Call `fn` the way connections call: from a proc of the reactor, in no task."""
    done = []
    loop.reactor.create_time_event(0.0, lambda: done.append(fn()) or NOMORE)
    end = time.monotonic() + 30
    while not done:
        assert time.monotonic() < end
        run(loop, asyncio.sleep(0))
    return done[0]


# call_soon


def test_call_soon_is_asyncios(loop):
    calls = []
    variable.set("of the caller")
    other = contextvars.Context()
    loop.call_soon(lambda *args: calls.append((args, variable.get())), 1, 2)
    loop.call_soon(lambda: calls.append(variable.get()), context=other)
    loop.call_soon(calls.append, "cancelled").cancel()
    assert calls == []
    run(loop, asyncio.sleep(0))
    assert calls == [((1, 2), "of the caller"), "unset"]
    loop.set_debug(True)
    with pytest.raises(TypeError, match="coroutines cannot be used with call_soon"):
        loop.call_soon(asyncio.sleep)
    loop.set_debug(False)
    variable.set("unset")


def test_a_closed_loop_takes_no_call():
    reactor = Reactor()
    loop = ReactorLoop(reactor)
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.call_soon(print)
    reactor.close()


# spawn


def test_the_first_step_runs_at_once(loop):
    steps = []

    async def handler():
        steps.append("first")
        await asyncio.sleep(0)
        steps.append("second")

    def spawn():
        task = loop.spawn(handler())
        steps.append("spawned")
        return task

    task = in_reactor(loop, spawn)
    run(loop, asyncio.wait({task}))
    assert steps == ["first", "spawned", "second"]
    assert isinstance(task, asyncio.Task)
    assert task.get_name() == "exchange"


def test_done_when_it_never_waits(loop):
    async def handler():
        return None

    assert in_reactor(loop, lambda: loop.spawn(handler()).done())


def test_what_it_raises_is_in_the_task(loop):
    async def handler():
        raise KeyError("first step")

    task = in_reactor(loop, lambda: loop.spawn(handler()))
    assert task.done()
    assert isinstance(task.exception(), KeyError)
    # And the loop is as it was: call_soon queues again.
    calls = []
    loop.call_soon(calls.append, 1)
    assert calls == []
    run(loop, asyncio.sleep(0))
    assert calls == [1]


def test_it_is_the_current_task_with_a_context_of_its_own(loop):
    found = []

    async def handler(value):
        found.append((asyncio.current_task(), variable.get()))
        variable.set(value)
        await asyncio.sleep(0)
        found.append((asyncio.current_task(), variable.get()))
        assert asyncio.get_running_loop() is loop

    def spawn():
        tasks = [loop.spawn(handler(value)) for value in ("a", "b")]
        assert asyncio.current_task(loop) is None
        assert variable.get() == "unset"
        return tasks

    one, two = in_reactor(loop, spawn)
    run(loop, asyncio.wait({one, two}))
    assert found == [(one, "unset"), (two, "unset"), (one, "a"), (two, "b")]


def test_the_first_step_may_schedule_and_spawn_tasks(loop):
    order = []

    async def child():
        order.append("child")

    async def handler():
        loop.call_soon(order.append, "soon")
        task = asyncio.create_task(child())
        order.append("first")
        await task
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(child())
        order.append("last")

    task = in_reactor(loop, lambda: loop.spawn(handler()))
    run(loop, asyncio.wait({task}))
    assert order == ["first", "soon", "child", "child", "child", "last"]


def test_timeout_in_the_first_step(loop):
    async def handler():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(60), 0.01)
        return "in time"

    task = in_reactor(loop, lambda: loop.spawn(handler()))
    assert run(loop, _result_of(task)) == "in time"


async def _result_of(task):
    return await task


def test_cancellation(loop):
    outcome = []

    async def handler():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    task = in_reactor(loop, lambda: loop.spawn(handler()))
    task.cancel()
    run(loop, asyncio.wait({task}))
    assert task.cancelled()
    assert outcome == ["cancelled"]


def test_a_task_group_that_fails_cancels_its_others(loop):
    outcome = []

    async def sleeper():
        try:
            await asyncio.sleep(60)
        finally:
            outcome.append("cancelled")

    async def failing():
        await asyncio.sleep(0)
        raise KeyError("one")

    async def handler():
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(sleeper())
                group.create_task(failing())
        except* KeyError:
            outcome.append("group")

    task = in_reactor(loop, lambda: loop.spawn(handler()))
    run(loop, asyncio.wait({task}))
    assert outcome == ["cancelled", "group"]


# asyncio


def test_streams(loop):
    async def serve(reader, writer):
        while data := await reader.read(65536):
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for size in (1, 100, 1_000_000):
                writer.write(b"a" * size + b"\n")
                await writer.drain()
                assert await reader.readexactly(size + 1) == b"A" * size + b"\n"
            writer.close()
            await writer.wait_closed()

    run(loop, main())


def test_raw_sockets(loop):
    async def main():
        left, right = socket.socketpair()
        left.setblocking(False)
        right.setblocking(False)
        with left, right:
            sender = asyncio.create_task(loop.sock_sendall(left, b"a" * 1_000_000))
            size = 0
            while size < 1_000_000:
                size += len(await loop.sock_recv(right, 65536))
            await sender

    run(loop, main())


def test_readers_and_writers_come_and_go(loop):
    async def main():
        left, right = socket.socketpair()
        left.setblocking(False)
        with left, right:
            calls = []
            loop.add_reader(left, calls.append, "read")
            loop.add_writer(left, calls.append, "write")
            while "write" not in calls:
                await asyncio.sleep(0)
            assert loop.remove_writer(left)
            assert not loop.remove_writer(left)
            calls.clear()
            right.send(b"a")
            while not calls:
                await asyncio.sleep(0)
            assert set(calls) == {"read"}
            loop.add_reader(left, calls.append, "other")
            calls.clear()
            while not calls:
                await asyncio.sleep(0)
            assert set(calls) == {"other"}
            assert loop.remove_reader(left)

    run(loop, main())


def test_a_descriptor_that_was_closed_before_it_was_removed(loop):
    async def main():
        left, right = socket.socketpair()
        with right:
            loop.add_reader(left, lambda: None)
            fd = left.fileno()
            left.close()
            loop.remove_reader(fd)
        left, right = socket.socketpair()
        with left, right:
            loop.add_reader(left, lambda: None)
            loop.remove_reader(left)

    run(loop, main())


def test_subprocesses(loop):
    async def main():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input()[::-1])",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate(b"hello\n")
        return process.returncode, out

    assert run(loop, main(), 60) == (0, b"olleh\n")


def test_timers(loop):
    async def main():
        order = []
        begun = loop.time()  # one moment for all: between two calls a busy machine may take longer
        for delay in (0.03, 0.01, 0.02):
            loop.call_at(begun + delay, order.append, delay)
        await asyncio.sleep(0.04)
        assert loop.time() - begun >= 0.04
        return order

    assert run(loop, main()) == [0.01, 0.02, 0.03]


def test_other_threads_wake_the_loop(loop):
    async def main():
        done = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(done.set))
        thread.start()
        await done.wait()
        thread.join()

    run(loop, main())


def test_getaddrinfo_and_to_thread(loop):
    executor = Executor(loop, threads=2)

    async def main():
        assert await loop.getaddrinfo("127.0.0.1", 80)
        return await asyncio.to_thread(threading.current_thread)

    assert run(loop, main()).name.startswith("prefork-executor")
    assert executor.shutdown(10.0)


def test_reactor_and_asyncio_share_one_sleep(loop):
    """Time events of the reactor and timers of asyncio both end it, and nothing spins."""
    turns = []
    order = []
    loop.reactor.before_sleep.append(lambda: turns.append(1))

    async def main():
        done = asyncio.Event()
        loop.reactor.create_time_event(0.05, lambda: order.append("reactor") or NOMORE)
        loop.call_later(0.1, lambda: (order.append("asyncio"), done.set()))
        await done.wait()

    run(loop, main())
    assert order == ["reactor", "asyncio"]
    assert len(turns) < 30


def test_a_hook_that_wakes_a_waiter_before_the_sleep(loop):
    """asyncio has reckoned how long to sleep by then; the waiter must not be stranded."""
    waiter = loop.create_future()
    calls = []

    def hook():
        calls.append(1)
        if len(calls) == 3 and not waiter.done():
            waiter.set_result("woken")

    loop.reactor.before_sleep.append(hook)
    begun = time.monotonic()
    loop.call_later(0.01, lambda: None)
    loop.call_later(20.0, lambda: None)
    loop.reactor.create_time_event(0.02, lambda: NOMORE)

    async def main():
        return await waiter

    assert run(loop, main()) == "woken"
    assert time.monotonic() - begun < 15


def test_a_proc_that_raises_does_not_end_run_forever(loop):
    loop.reactor.create_time_event(0.0, lambda: 1 / 0)
    run(loop, asyncio.sleep(0.01))
    ((error, where),) = loop.reactor.errors
    assert isinstance(error, ZeroDivisionError)
    assert where == "a time event"
    loop.reactor.errors.clear()


def test_file_events_run_beside_asyncio(loop):
    left, right = socket.socketpair()
    with left, right:
        got = []

        async def main():
            done = asyncio.Event()

            def on_readable():
                got.append(left.recv(10))
                done.set()

            loop.reactor.create_file_event(left.fileno(), READABLE, on_readable)
            right.send(b"a")
            await done.wait()
            loop.reactor.delete_file_event(left.fileno(), READABLE)

        run(loop, main())
    assert got == [b"a"]


# Executor


def test_executor(loop):
    executor = Executor(loop, threads=2)

    def blocking(value, *, times):
        assert threading.current_thread() is not threading.main_thread()
        return f"{variable.get()} {value * times}"

    async def main():
        variable.set("request")
        assert await executor.run(blocking, "ab", times=2) == "request abab"
        with pytest.raises(ZeroDivisionError):
            await executor.run(lambda: 1 / 0)

        def change():
            variable.set("changed")

        await executor.run(change)
        assert variable.get() == "request"

    run(loop, main())
    assert variable.get() == "unset"
    assert executor.shutdown(10.0)


def test_executor_bounds_its_threads(loop):
    executor = Executor(loop, threads=2)
    running, most = [], []
    lock = threading.Lock()

    def work():
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.002)
        with lock:
            running.pop()

    async def main():
        await asyncio.gather(*(executor.run(work) for _ in range(20)))

    run(loop, main())
    assert max(most) <= 2
    assert executor.shutdown(10.0)


def test_executor_that_cannot_stop_says_so(loop):
    executor = Executor(loop, threads=1)
    release = threading.Event()

    async def main():
        busy = asyncio.create_task(executor.run(release.wait, 30))
        queued = asyncio.create_task(executor.run(int))
        await asyncio.sleep(0.01)
        assert not executor.shutdown(0.01)
        release.set()
        assert await busy
        with pytest.raises(asyncio.CancelledError):
            await queued

    run(loop, main())
    assert executor.shutdown(10.0)


def test_no_thread_before_the_first_call(loop):
    before = threading.active_count()
    executor = Executor(loop)
    assert threading.active_count() == before
    assert executor.shutdown(0.0)


# Signals


def test_a_signal_ends_the_sleep(loop):
    """By PEP 475 it would not, and the Python handler would run when something else wakes us."""
    calls = []
    before = signal.signal(signal.SIGUSR1, lambda *_: calls.append("handler"))
    wakeup = Wakeup(loop.reactor)
    sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    sender.start()
    try:
        end = time.monotonic() + 30
        while not calls:
            loop.reactor.process_events(20.0)
            assert time.monotonic() < end
        assert time.monotonic() < end - 15
    finally:
        sender.join()
        wakeup.close()
        signal.signal(signal.SIGUSR1, before)
    assert signal.set_wakeup_fd(-1) == -1


def test_many_signals_are_one_waking(loop):
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    wakeup = Wakeup(loop.reactor)
    try:
        for _ in range(5000):
            os.kill(os.getpid(), signal.SIGUSR1)
        while loop.reactor.process_events(0):
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
        assert loop.reactor.process_events(0) == 1
    finally:
        wakeup.close()
        signal.signal(signal.SIGUSR1, before)


def test_asyncio_may_take_the_wakeup_descriptor(loop):
    """An application that calls add_signal_handler is served, and closing leaves its fd alone."""
    wakeup = Wakeup(loop.reactor)

    async def main():
        called = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR2, called.set)
        os.kill(os.getpid(), signal.SIGUSR2)
        await called.wait()
        wakeup.close()
        called.clear()
        os.kill(os.getpid(), signal.SIGUSR2)
        await called.wait()
        loop.remove_signal_handler(signal.SIGUSR2)

    run(loop, main())
    signal.set_wakeup_fd(-1)
