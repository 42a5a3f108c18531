"""Server-sent events: `ctx.sse(source)` (WHATWG HTML, section 9.2, "Server-sent events").

A quiet stream is kept alive by comments, which is also how a client that is gone is noticed where
it did not say so. The stream ends, whole, when the worker begins to leave: the browser comes back
by itself, with the id of the last event it has seen in `Last-Event-ID`.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from prefork.onion.context import Context

_FIELDS: Final = ("event", "id", "retry", "data")
_encode_json: Final = msgspec.json.Encoder().encode
_KEEP_ALIVE: Final = b":\n\n"


def event(value: object) -> bytes:
    """One event as it is sent.

    A mapping names `data`, `event`, `id` and `retry` (milliseconds), the last three None where they
    are not meant; anything else is the data. Data that is no str is sent as JSON. Raises ValueError
    for what would be another event, or none to the client.
    """
    fields = value if isinstance(value, Mapping) else {"data": value}
    unknown = set(fields) - set(_FIELDS)
    if unknown or not fields:
        raise ValueError(f"an event has {', '.join(_FIELDS)}; not {sorted(map(str, unknown))}")
    lines = []
    for name in _FIELDS:
        if name not in fields:
            continue
        one = fields[name]
        if name == "data":
            text = one if isinstance(one, str) else _encode_json(one).decode()
            # The three ends of line that the grammar knows.
            lines += [f"data: {line}" for line in _lines(text)]
        elif one is not None:
            text = str(one)
            if len(_lines(text)) > 1 or "\0" in text:
                raise ValueError(f"the {name} of an event is one line, not {text!r}")
            if name == "retry" and not (text.isascii() and text.isdigit()):
                raise ValueError(f"the retry of an event is a number of milliseconds, not {text!r}")
            lines.append(f"{name}: {text}")
    return ("\n".join(lines) + "\n\n").encode()


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


async def event_stream(
    ctx: "Context", source: AsyncIterable[Any], keep_alive: float
) -> AsyncIterator[bytes]:
    """The body: the events of `source` until it ends, the client leaves, or the worker does."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if not over.done():
            over.set_result(None)

    ctx.on_drain(stop)
    ctx.exchange.on_client_left = stop
    iterator = aiter(source)
    # Each step is a task, so that it can be waited for and given up; to the source, which may set
    # a context variable in one step and reset it in another, all are one.
    variables = copy_context()
    pending: asyncio.Future[Any] | None = None
    try:
        yield _KEEP_ALIVE  # the head goes out now, and the client knows that it is connected
        while not over.done():
            if pending is None:
                pending = loop.create_task(_next(iterator), context=variables)
            await asyncio.wait(
                {pending, over}, timeout=keep_alive or None, return_when=asyncio.FIRST_COMPLETED
            )
            if pending.done():
                done, pending = pending, None
                try:
                    value = done.result()
                except StopAsyncIteration:
                    return
                yield event(value)
            elif not over.done():
                yield _KEEP_ALIVE
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait({pending})
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await loop.create_task(_call(close), context=variables)


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)


async def _call(close: Callable[[], Awaitable[None]]) -> None:
    await close()
