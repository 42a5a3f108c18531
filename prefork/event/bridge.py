"""asyncio rides on the reactor.

`asyncio.SelectorEventLoop(selector)` is the public seam: asyncio asks a selector what is ready and
calls it back. Our selector is the reactor. Inside `select()` the reactor dispatches prefork's own
file and time events, and what asyncio registered comes back to asyncio. So there is one poll, one
sleep, and every asyncio library works inside a handler: streams, subprocesses, executors, timers.

What runs in a turn, in order: before_sleep hooks, poll, after_sleep hooks, our file events, our
time events, then asyncio's own ready callbacks, then the next turn's before_sleep hooks.

`spawn` runs a Task's first step at once. Most handlers end in their first step; queueing it would
cost another pass through asyncio's ready queue for nothing. Python 3.12 has `eager_start`. In 3.11
a Task hands its first step to `loop.call_soon` from its constructor: while one is being made, this
loop runs that step in the Task's own context instead of queueing it. The handler is in a real Task
either way: `current_task()`, `asyncio.timeout` and contextvars work.
"""

import asyncio
import contextlib
import contextvars
import selectors
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Final

from prefork.event.reactor import READABLE, WRITABLE, Reactor

Key = selectors.SelectorKey

# The name of every Task that `spawn` makes, and of no other: all of them can be found by it.
EXCHANGE_TASK: Final = "exchange"

if sys.version_info < (3, 12):
    # The set behind `asyncio.all_tasks()`, a WeakSet written in Python, to which a Task's
    # constructor adds it after handing over the first step. One whose first step has run and was
    # the last, as nearly every exchange's is, would only be taken out again: 0.35 of 8
    # microseconds. Private, and as fixed as 3.11 itself.
    from asyncio.tasks import _all_tasks  # type: ignore[attr-defined]

    def _add_unless_done(
        task: "asyncio.Task[Any]", add: Callable[[Any], None] = _all_tasks.add
    ) -> None:
        if not task.done():
            add(task)

    _all_tasks.add = _add_unless_done


def is_cancelled() -> bool:
    """Does somebody want the running task to end?

    If not, a CancelledError is a mistake of the handler's: it awaited what it has cancelled itself.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class ReactorSelector(selectors.BaseSelector):
    """The reactor, dressed as the selector that asyncio expects."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self._keys: dict[int, Key] = {}
        self._map = _KeyMap(self)
        self._ready: list[tuple[Key, int]] = []
        self.pending: Callable[[], bool] = lambda: False
        self.timers: Callable[[], list[Any]] = list
        self.loop: ReactorLoop | None = None
        self.dispatching = False
        self.hidden = False

    def register(self, fileobj: Any, events: int, data: Any = None) -> Key:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} (fd {fd}) is already registered")
        key = Key(fileobj, fd, events, data)
        self._watch(key)
        self._keys[fd] = key
        return key

    def _watch(self, key: Key) -> None:
        ready = self._ready
        if key.events & selectors.EVENT_READ:
            item = (key, selectors.EVENT_READ)
            self.reactor.create_file_event(key.fd, READABLE, lambda: ready.append(item))
        if key.events & selectors.EVENT_WRITE:
            wants = (key, selectors.EVENT_WRITE)
            self.reactor.create_file_event(key.fd, WRITABLE, lambda: ready.append(wants))

    def unregister(self, fileobj: Any) -> Key:
        key = self._key_of(fileobj)
        del self._keys[key.fd]
        # Closed by its owner before asyncio let go of it, an fd is forgotten by the kernel already.
        with contextlib.suppress(OSError):
            self.reactor.delete_file_event(key.fd, READABLE | WRITABLE)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> Key:
        old = self._key_of(fileobj)
        key = Key(old.fileobj, old.fd, events, data)
        gone = (READABLE if not events & selectors.EVENT_READ else 0) | (
            WRITABLE if not events & selectors.EVENT_WRITE else 0
        )
        self._watch(key)
        self.reactor.delete_file_event(old.fd, gone)
        self._keys[old.fd] = key
        return key

    def _key_of(self, fileobj: Any) -> Key:
        if not isinstance(fileobj, int):
            # A closed file answers -1; asyncio still knows it by the object it registered.
            fd = fileobj.fileno()
            if fd < 0:
                for key in self._keys.values():
                    if key.fileobj is fileobj:
                        return key
            fileobj = fd
        try:
            return self._keys[fileobj]
        except KeyError:
            raise KeyError(f"fd {fileobj!r} is not registered") from None

    def select(self, timeout: float | None = None) -> list[tuple[Key, int]]:
        """What asyncio waits for. Turns that were none of its business it does not hear of."""
        reactor = self.reactor
        ready = self._ready
        timers = self.timers()
        first = timers[0] if timers else None
        until = None if timeout is None else reactor.clock() + timeout
        while True:
            for hook in reactor.before_sleep:
                try:
                    hook()
                except Exception as error:
                    reactor.on_error(error, "a sleep hook")
            # asyncio reckoned its timeout before the hooks ran. A hook that woke a waiter (a flush
            # that let a writer go on) has queued a callback, and to sleep now would strand it.
            if timeout != 0 and self.pending():
                timeout = 0
            self.dispatching = True
            reactor.wait(timeout)
            self.dispatching = False
            if self.hidden and self.loop is not None:
                self.loop.show()
            if ready:
                answer = ready[:]
                ready.clear()
                return answer
            # A handler may have asked asyncio for something: a callback, or a timer that is due
            # before the one it knew of.
            if timeout == 0 or self.pending() or (timers and timers[0] is not first):
                return []
            if until is not None:
                timeout = until - reactor.clock()
                if timeout <= 0:
                    return []

    def close(self) -> None:
        self._keys.clear()

    def get_key(self, fileobj: Any) -> Key:
        return self._key_of(fileobj)

    def get_map(self) -> Mapping[Any, Key]:
        return self._map


class _KeyMap(Mapping[Any, Key]):
    """What is registered, found by its descriptor or by the object: `add_reader` takes both."""

    __slots__ = ("_selector",)

    def __init__(self, selector: ReactorSelector) -> None:
        self._selector = selector

    def __getitem__(self, fileobj: Any) -> Key:
        return self._selector._key_of(fileobj)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._selector._keys)

    def __len__(self) -> int:
        return len(self._selector._keys)


class ReactorLoop(asyncio.SelectorEventLoop):
    """asyncio's selector loop on a `Reactor`; `spawn`, `hide` and `show` are its additions."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        selector = ReactorSelector(reactor)
        super().__init__(selector)
        # `_ready`, the queue of asyncio's callbacks, `_scheduled`, the heap of its timers (now and
        # then another list), and `_stopping` are private but have kept their names and meanings
        # from Python 3.4 to 3.14; there is no public way to ask "is anything queued?".
        queue: Any = self._ready  # type: ignore[attr-defined]
        selector.pending = lambda: bool(queue) or self._stopping  # type: ignore[attr-defined]
        selector.timers = lambda: self._scheduled  # type: ignore[attr-defined]
        selector.loop = self
        self.selector = selector
        if sys.version_info < (3, 12):
            self._run_now = self._run_first_step  # a bound method, made once

    def hide(self) -> bool:
        """Let no running loop be found by the file events of this turn; False outside of them.

        For synchronous code that refuses to run where it finds one. Once a turn and not around
        each call: until Python 3.12 to tell asyncio of a loop asks the kernel for our pid.
        """
        selector = self.selector
        if selector.dispatching and not selector.hidden:
            selector.hidden = True
            asyncio._set_running_loop(None)
        return selector.hidden

    def show(self) -> None:
        """Undo `hide`: a Task is going to be made, and has to find its loop."""
        if self.selector.hidden:
            self.selector.hidden = False
            asyncio._set_running_loop(self)

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """As asyncio's, in one call instead of three: each wake-up of a Task comes by here."""
        if self._closed or self._debug:  # type: ignore[attr-defined]
            return super().call_soon(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def set_debug(self, enabled: bool) -> None:
        super().set_debug(enabled)
        # Every Task and Future asks `get_debug()` when it is made. `bool()` is False, and does not
        # take a Python frame to say so.
        if enabled:
            self.__dict__.pop("get_debug", None)
        else:
            self.get_debug = bool  # type: ignore[method-assign]

    if sys.version_info >= (3, 12):

        def spawn(self, coro: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
            """A Task whose first step has run when this returns. Not to be called in a Task."""
            return asyncio.Task(coro, loop=self, name=EXCHANGE_TASK, eager_start=True)

    else:

        def spawn(self, coro: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
            """A Task whose first step has run when this returns. Not to be called in a Task."""
            # An attribute of the instance hides the method until the Task has handed its step
            # over, so the ordinary `call_soon` pays nothing for this. A constant name spares the
            # counter and the formatting of "Task-17".
            self.call_soon = self._run_now  # type: ignore[method-assign, assignment]
            try:
                return asyncio.Task(coro, loop=self, name=EXCHANGE_TASK)
            except BaseException:
                self.__dict__.pop("call_soon", None)
                raise

        def _run_first_step(self, step: Any, context: contextvars.Context) -> None:
            del self.call_soon  # the step itself may call it
            context.run(step)
