"""The end of the way out: what the layers left in the context becomes the response.

This is the only place that writes one. The usual answer is a single `exchange.reply`; only a body
that is a stream or a file makes `respond` return a coroutine. An error becomes an answer of its
own while the head is unsent; afterwards the connection is cut, because an error page glued to half
a body looks like a whole one.
"""

import asyncio
import errno
import inspect
import os
import stat
from collections.abc import Coroutine, Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import msgspec

from prefork.errors import HttpError, PeerError
from prefork.event.bridge import EXCHANGE_TASK
from prefork.http.dates import format_http_date
from prefork.http.status import REASONS
from prefork.onion import fields
from prefork.onion.bodies import (
    ASYNC,
    FILE,
    JSON,
    OCTETS,
    PATH,
    SYNC,
    TEXT,
    UNSET,
    implied_type,
    is_html,
    kind_of,
)
from prefork.onion.compose import QuickIterator
from prefork.onion.fields import field_line, values_of
from prefork.onion.response import is_bodiless
from prefork.onion.threads import run_blocking
from prefork.onion.websocket import close_websocket

if TYPE_CHECKING:
    from prefork.onion.context import Context

_encode_json: Final = msgspec.json.Encoder().encode
# What one read of a file without sendfile takes from it.
READ_SIZE: Final = 64 * 1024
_END: Final = object()
_SWITCHED: Final = 101  # to a WebSocket, which is closed by its own rules


def respond(ctx: "Context") -> Coroutine[Any, Any, None] | None:
    """Answer with what `ctx` holds: at once, or by the coroutine that is returned."""
    body = ctx._body
    exchange = ctx.exchange
    if body.__class__ is str and ctx._fields is None and not ctx._status and not exchange.head_sent:
        # The commonest answer: text, and nothing said about it.
        content_type = fields.HTML if body[:1] <= "<" and is_html(body) else fields.TEXT
        exchange.reply(200, content_type, body.encode())
        return None
    if exchange.head_sent:
        # The handler wrote to the exchange itself.
        if not exchange.finished:
            if exchange.status == _SWITCHED:
                return close_websocket(ctx)
            exchange.end()
        return None
    status = ctx.status
    if is_bodiless(status):
        exchange.reply(status, _fields(ctx, b""), b"")
        return None
    if body is UNSET:
        _reply_without_body(ctx, status)
        return None
    if body is None:
        exchange.reply(status, _fields(ctx, b""), b"")
        return None
    kind = kind_of(body)
    if kind is TEXT:
        exchange.reply(status, _fields(ctx), body.encode())
    elif kind is JSON:
        exchange.reply(status, _fields(ctx), _encode_json(body))
    elif kind is OCTETS:
        exchange.reply(status, _fields(ctx), bytes(body))
    elif kind is PATH:
        return _send_path(ctx, status, body)
    elif kind is FILE:
        return _send_open_file(ctx, status, body)
    elif kind is ASYNC:
        return _send_async(ctx, status, body)
    else:
        return _send_sync(ctx, status, body)
    return None


def _fields(ctx: "Context", content_type: bytes | None = None) -> bytes:
    """The response's field lines; the body's own type where none was set.

    `content_type` overrides both. Content-Length is left to the exchange.
    """
    lines = ctx._fields
    if lines is None:
        return implied_type(ctx._body) if content_type is None else content_type
    if "content-length" in lines:
        del lines["content-length"]
    if content_type is not None:
        lines["content-type"] = content_type
    elif "content-type" not in lines:
        lines["content-type"] = implied_type(ctx._body)
    return b"".join(lines.values())


def _reply_without_body(ctx: "Context", status: int) -> None:
    """Nobody set a body: the reason phrase stands in for it."""
    exchange = ctx.exchange
    length = ctx.response.length
    if exchange.method == "HEAD" and length is not None:
        # The handler says what GET would have sent.
        exchange.start(status, _fields(ctx, _set_type(ctx)), length)
        exchange.end()
        return
    text = ctx.message or str(status)
    exchange.reply(status, _fields(ctx, fields.TEXT), text.encode())


def _set_type(ctx: "Context") -> bytes:
    return ctx._fields.get("content-type", b"") if ctx._fields else b""


def _declared_length(ctx: "Context") -> int | None:
    lines = ctx._fields.get("content-length") if ctx._fields else None
    return int(values_of(lines)[0]) if lines else None


# Files


async def _send_path(ctx: "Context", status: int, path: Path) -> None:
    # Opened on the loop, as nginx does: on a local disk that takes 10 microseconds and a thread
    # 50. O_NONBLOCK, because opening a FIFO that nobody writes would stop the worker.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise HttpError(404) from error
        if error.errno == errno.EACCES:
            raise HttpError(403) from error
        raise
    except ValueError as error:  # a NUL in the name
        raise HttpError(404) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise HttpError(404)
        await _send_file(ctx, status, fd, 0, found)
    finally:
        os.close(fd)


async def _send_open_file(ctx: "Context", status: int, file: Any) -> None:
    try:
        fd = file.fileno()
        offset = file.tell()
        found = os.fstat(fd)
    except (OSError, ValueError):  # io.UnsupportedOperation is both: no descriptor, or a pipe
        found = None
    if found is not None and stat.S_ISREG(found.st_mode) and not hasattr(file, "encoding"):
        await _send_file(ctx, status, fd, offset, found)
        return

    def pull() -> Any:
        return file.read(READ_SIZE) or _END

    await _send_pulled(ctx, status, lambda: run_blocking(ctx, pull))


async def _send_file(
    ctx: "Context", status: int, fd: int, offset: int, found: os.stat_result
) -> None:
    count = max(0, found.st_size - offset)
    if not ctx.response.has("Last-Modified"):
        ctx.set("Last-Modified", format_http_date(found.st_mtime))
    exchange = ctx.exchange
    exchange.start(status, _fields(ctx), count)
    if count and exchange.method != "HEAD":
        await exchange.send_file(fd, offset, count)
        await exchange.drain()
    exchange.end()


# Streams


async def _send_async(ctx: "Context", status: int, body: Any) -> None:
    iterator = body.__aiter__()

    async def pull() -> Any:
        return await anext(iterator, _END)

    await _send_pulled(ctx, status, pull)


async def _send_sync(ctx: "Context", status: int, body: Iterator[Any]) -> None:
    if isinstance(body, QuickIterator):

        async def pull_here() -> Any:
            return next(body, _END)

        await _send_pulled(ctx, status, pull_here)
        return
    assert ctx._held is not None
    ctx._held = [held for held in ctx._held if held is not body]
    source = _ThreadedIterator(body)
    cancelled = True
    try:
        await _send_pulled(ctx, status, lambda: run_blocking(ctx, source.pull))
        cancelled = False
    except Exception:
        cancelled = False
        raise
    finally:
        # By that name it is one of those that a worker waits for before it leaves.
        closing = asyncio.create_task(_close(ctx, source), name=EXCHANGE_TASK)
        if not cancelled:
            await closing


class _ThreadedIterator:
    """An iterator that threads pull and close, one at a time.

    A cancelled request leaves a thread in `next`; a generator closed meanwhile would raise
    "generator already executing", so closing waits, in a thread of its own.
    """

    __slots__ = ("_iterator", "_lock")

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._lock = Lock()

    def pull(self) -> Any:
        with self._lock:
            return next(self._iterator, _END)

    def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            with self._lock:
                close()


async def _close(ctx: "Context", source: _ThreadedIterator) -> None:
    try:
        await run_blocking(ctx, source.close)
    except (SystemExit, KeyboardInterrupt) as error:
        # asyncio would end its loop for these two, and nobody may wait for this task any more.
        if isinstance(error, SystemExit):
            ctx.app.called_exit()
        raise as_mistake(error) from error


async def _send_pulled(ctx: "Context", status: int, pull: Any) -> None:
    """Send what `await pull()` gives, piece by piece, until it gives _END.

    The head waits for the first piece: a stream that fails before it has its error answered.
    """
    exchange = ctx.exchange
    length = _declared_length(ctx)
    if exchange.method == "HEAD":
        exchange.start(status, _fields(ctx), length)
        exchange.end()
        return
    chunk = await pull()
    exchange.start(status, _fields(ctx), length)
    while chunk is not _END:
        if chunk.__class__ is not bytes:
            chunk = _octets(chunk)
        exchange.write(chunk)
        await exchange.drain()
        chunk = await pull()
    exchange.end()


def _octets(chunk: Any) -> bytes:
    if isinstance(chunk, str):
        return chunk.encode()
    if isinstance(chunk, bytes | bytearray | memoryview):
        return bytes(chunk)
    raise TypeError(f"a stream gives str or bytes, not {type(chunk).__name__}")


async def close_held(ctx: "Context") -> None:
    """Let go of every file and iterator that was a body of this request."""
    held, ctx._held = ctx._held, None
    for body in held or ():
        try:
            if hasattr(body, "aclose"):
                await body.aclose()
            elif kind_of(body) is SYNC and not isinstance(body, QuickIterator):
                # It was never sent. Its `finally` may block like the rest of it.
                await run_blocking(ctx, _ThreadedIterator(body).close)
            elif hasattr(body, "close"):
                result = body.close()
                if inspect.isawaitable(result):
                    await result
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            _log(ctx, error, "closing the body")
            if isinstance(error, SystemExit):
                ctx.app.called_exit()


# Errors


def as_mistake(error: BaseException) -> RuntimeError:
    """What becomes of what is no Exception: a mistake like any other, with its traceback."""
    what = (
        f"called exit(): {error!r}"
        if isinstance(error, SystemExit)
        else f"raised {type(error).__name__}"
    )
    mistake = RuntimeError(f"the application {what}")
    mistake.__cause__ = error
    return mistake


async def respond_to_error(ctx: "Context", error: Exception) -> None:
    """Koa's `ctx.onerror`: tell the application's listeners, then the client if it can be told."""
    exchange = ctx.exchange
    if exchange.status == _SWITCHED:
        from prefork.http.websocket import WebSocketClosedError

        closed = isinstance(error, WebSocketClosedError)
        if not closed:
            await _tell(ctx, error)
        if not exchange.finished:
            await close_websocket(ctx, failed=not closed)
        return
    if _by_client(ctx, error):
        if exchange.client_gone or exchange.head_sent:
            exchange.abort()
            return
        # It closed its side in the middle of its request and may still read.
        error = PeerError(400, "the body is incomplete")
    await _tell(ctx, error)
    if exchange.head_sent:
        exchange.abort()
        return
    status, text, lines = 500, REASONS[500], b""
    if isinstance(error, HttpError) and _is_error_status(error):
        try:
            own = dict([field_line(name, value) for name, value in error.headers.items()])
        except (ValueError, TypeError) as wrong:
            _log(ctx, wrong, "the headers of an error")
        else:
            own.pop("content-type", None)  # the text is ours
            own.pop("content-length", None)
            lines = b"".join(own.values())
            status = error.status
            text = (error.message if error.expose else None) or REASONS[status]
    elif isinstance(error, PeerError):
        status, text = error.status, error.reason
    elif isinstance(error, FileNotFoundError):
        status, text = 404, REASONS[404]
    ctx._status = status
    exchange.reply(status, lines + fields.TEXT, text.encode("utf-8", "backslashreplace"))


def _by_client(ctx: "Context", error: Exception) -> bool:
    """Whether the error is only that the client left, which is nobody's mistake.

    An aborted connection is our own doing (a file that shrank while it was sent).
    """
    if not isinstance(error, ConnectionError) or isinstance(error, ConnectionAbortedError):
        return False
    exchange = ctx.exchange
    return exchange.client_gone or exchange.body.failed


def _is_error_status(error: HttpError) -> bool:
    """A status that is none of an error, or nobody's, is a handler's mistake, and so 500."""
    return error.status >= 400 and error.status in REASONS


async def _tell(ctx: "Context", error: Exception) -> None:
    listeners = ctx.app.error_listeners
    if not listeners:
        if isinstance(error, PeerError):
            ctx._service.error_log.info(
                f"{error.reason}, answered {error.status}, {_request(ctx)}",
                connection=ctx.exchange.connection_number,
            )
        elif not (
            isinstance(error, HttpError)
            and _is_error_status(error)
            and (error.expose or error.status == 404)
        ):
            _log(ctx, error, None)
        return
    for listener in listeners:
        try:
            result = listener(error, ctx)
            if inspect.isawaitable(result):
                await result
        except (Exception, SystemExit, KeyboardInterrupt) as another:
            _log(ctx, another, "app.on_error")
            if isinstance(another, SystemExit):
                ctx.app.called_exit()


def _log(ctx: "Context", error: BaseException, where: str | None) -> None:
    what = f"{type(error).__name__} in {where}" if where else type(error).__name__
    said = str(error) or (f"{error.status}" if isinstance(error, HttpError) else "")
    ctx._service.error_log.error(
        f"{what}: {said}, {_request(ctx)}" if said else f"{what}, {_request(ctx)}",
        connection=ctx.exchange.connection_number,
        exc=error,
    )


def _request(ctx: "Context") -> str:
    """nginx's tail of a log line about a request."""
    exchange = ctx.exchange
    return (
        f"client: {exchange.peer}, "
        f'request: "{exchange.method} {exchange.target} HTTP/{exchange.version}"'
    )
