"""What asyncio's tasks wait for, read from the outside.

A traceback of a suspended task ends at its outermost coroutine; where it really waits is at the end
of the chain of `cr_await`. CPython shows the links (`cr_await`, `gi_yieldfrom`, `ag_await`) but for
a few wrappers of its own (`anext()`, `__await__()`), which only the collector sees through. Nothing
here runs code of the application, not even a `repr`: this is read from a signal handler, in the
middle of whatever hangs.
"""

import asyncio
import gc
import inspect
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

_DEEPEST: Final = 100  # links of a chain, and levels of a tree
_MOST: Final = 1000  # tasks

# What a task that waits for a thread is told with: the lines of that thread's stack.
ThreadLines = Callable[["asyncio.Future[Any]"], list[str]]


def stack(task: "asyncio.Task[Any]", threads: ThreadLines | None = None) -> list[str]:
    """Where `task` waits: its frames, outermost first, and what the innermost one awaits."""
    lines, waits_for = _chain(task)
    if waits_for is not None:
        lines.append(f"  awaits {_name(waits_for)}")
        if threads is not None and isinstance(waits_for, asyncio.Future):
            lines += threads(waits_for)
    return lines


def forest(tasks: Iterable["asyncio.Task[Any]"], threads: ThreadLines | None = None) -> list[str]:
    """`tasks` and, indented below each, the tasks it waits for."""
    told: set[asyncio.Task[Any]] = set()
    lines: list[str] = []
    pending = [task for task in tasks if not task.done()][:_MOST]
    awaited = {child for task in pending for child in _awaited(task)}
    # Roots first; what is left then waits in a circle.
    for task in (*(one for one in pending if one not in awaited), *pending):
        _tell(task, 0, told, lines, threads)
    return lines


def frame_line(frame: FrameType) -> str:
    """As faulthandler and `traceback` write one."""
    code = frame.f_code
    return f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}'


def thread_lines(ident: int) -> list[str]:
    """The stack of one thread, outermost frame first; nothing when it has ended."""
    frame = sys._current_frames().get(ident)
    lines: list[str] = []
    while frame is not None and len(lines) < _DEEPEST:
        lines.append(frame_line(frame))
        frame = frame.f_back
    return lines[::-1]


def _tell(
    task: "asyncio.Task[Any]",
    depth: int,
    told: set["asyncio.Task[Any]"],
    lines: list[str],
    threads: ThreadLines | None,
) -> None:
    if task in told or depth > _DEEPEST:
        return
    told.add(task)
    indent = "  " * depth
    lines.append(f"{indent}task {task.get_name()}")
    lines += [indent + line for line in stack(task, threads)]
    for child in _awaited(task):
        _tell(child, depth + 1, told, lines, threads)


def _chain(task: "asyncio.Task[Any]") -> tuple[list[str], Any]:
    lines: list[str] = []
    at: Any = task.get_coro()
    for _ in range(_DEEPEST):
        if at is None:
            if task.done():
                break
            running = asyncio.current_task(task.get_loop()) is task
            lines.append("  runs right now" if running else "  is about to run")
            break
        if isinstance(at, asyncio.Future):
            return lines, at
        for kind, frame, inner in (
            (inspect.iscoroutine, "cr_frame", "cr_await"),
            (inspect.isgenerator, "gi_frame", "gi_yieldfrom"),
            (inspect.isasyncgen, "ag_frame", "ag_await"),
        ):
            if kind(at):
                held = getattr(at, frame)
                if held is not None:
                    lines.append(frame_line(held))
                at = getattr(at, inner)
                break
        else:
            inside = _inside(at)
            if inside is None:
                return lines, at
            at = inside
    return lines, None


def _inside(wrapper: Any) -> Any:
    """What an opaque awaitable of CPython's own wraps, or None."""
    for held in gc.get_referents(wrapper):
        if (
            isinstance(held, asyncio.Future)
            or inspect.iscoroutine(held)
            or inspect.isgenerator(held)
            or inspect.isasyncgen(held)
        ):
            return held
    return None


def _awaited(task: "asyncio.Task[Any]") -> list["asyncio.Task[Any]"]:
    """The tasks that `task` waits for, as far as that can be seen."""
    waiter = getattr(task, "_fut_waiter", None)
    if isinstance(waiter, asyncio.Task):
        return [waiter]
    # asyncio.gather: its future knows its children. The name has been the same since 3.4.
    children = getattr(waiter, "_children", None)
    if children is None:
        children = _of_group(task)
    return [child for child in children if isinstance(child, asyncio.Task)]


def _of_group(task: "asyncio.Task[Any]") -> Iterable[Any]:
    """The children of the `async with TaskGroup()` that `task` is leaving."""
    at: Any = task.get_coro()
    for _ in range(_DEEPEST):
        frame = getattr(at, "cr_frame", None)
        if frame is None:
            break
        if frame.f_code is asyncio.TaskGroup.__aexit__.__code__:
            return list(getattr(frame.f_locals.get("self"), "_tasks", ()))
        at = at.cr_await
    return ()


def _name(awaited: Any) -> str:
    if isinstance(awaited, asyncio.Task):
        return f"task {awaited.get_name()}"
    kind = type(awaited)
    name = kind.__qualname__.lstrip("_")
    if kind.__module__.startswith(("_asyncio", "asyncio")):
        return f"a {name}"
    return f"a {kind.__module__}.{name}"
