"""A WSGI application as the innermost layer of an onion: `app.use(wsgi(flask_app))`.

Like every plain function in the onion it runs in a thread. What it answers is put into the context,
as if a handler had done so: layers further out see its status, its header fields and its body, and
may change them. A worker that serves the application alone is faster (`prefork.gateway.wsgi`).
"""

import io
from collections.abc import Callable, Iterator
from contextvars import Context as Variables
from contextvars import copy_context
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from prefork.gateway.environ import Environs
from prefork.gateway.inline import LONG, give_body, short
from prefork.gateway.input import collect
from prefork.gateway.rootpath import checked
from prefork.gateway.start import ApplicationError, Start, bodiless, octets, pieces_of
from prefork.gateway.wsgierrors import ErrorStream
from prefork.gateway.wsgifile import FileWrapper
from prefork.http.body import NO_BODY
from prefork.onion.fields import NO_TYPE, Fields
from prefork.onion.threads import run_blocking

if TYPE_CHECKING:
    from prefork.log import ErrorLog
    from prefork.onion.context import Context


class WsgiLayer:
    """Middleware that answers every request with `application`."""

    def __init__(self, application: Callable[..., Any], root_path: str = "") -> None:
        self.application = application
        self._root_path = root_path
        self._environs: tuple[ErrorLog, Environs] | None = None

    async def __call__(self, ctx: "Context") -> None:
        exchange = ctx.exchange
        body = exchange.body
        file, size = (io.BytesIO(), 0) if body is NO_BODY else await collect(body)
        with file:
            environ = self._environs_of(ctx._service.error_log).make(exchange)
            if body is not NO_BODY:
                give_body(environ, file, size)
            if ctx._rewritten is not None:
                environ["PATH_INFO"] = ctx.path.encode().decode("latin-1")
                environ["QUERY_STRING"] = ctx.querystring
            start = LayerStart()
            variables = copy_context()
            begin = partial(_begin, self.application, environ, start, variables)
            answer = await run_blocking(ctx, lambda: variables.run(begin))
            ctx.body = answer
            _tell(ctx, start, answer)
            if isinstance(answer, Pieces) and body is not NO_BODY:
                # It may read on while it is iterated over.
                kept, file = file, io.BytesIO()
                ctx.on_finished(kept.close)

    def _environs_of(self, log: "ErrorLog") -> Environs:
        """A reconfigured server has another log."""
        if self._environs is None or self._environs[0] is not log:
            environs = Environs(
                errors=ErrorStream(log),
                multithread=True,
                multiprocess=True,
                root_path=self._root_path,
            )
            self._environs = (log, environs)
        return self._environs[1]


def wsgi(application: Callable[..., Any], *, root_path: str = "") -> WsgiLayer:
    """`application` as a layer for `Application.use`.

    `root_path` is what a proxy, or a layer further out by setting `ctx.path`, has taken off the
    path: the application has it as SCRIPT_NAME. Raises TypeError, ValueError.
    """
    if not callable(application):
        raise TypeError(f"a WSGI application is callable, {type(application).__name__} is not")
    return WsgiLayer(application, checked(root_path))


class LayerStart(Start):
    """`write()` collects: nothing is sent before the layers further out have had their say."""

    __slots__ = ("written",)

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(octets(data))


class Pieces:
    """An iterable's pieces as a body of the onion, pulled and closed in threads."""

    def __init__(self, pieces: Iterator[Any], result: Any, variables: Variables) -> None:
        self._pieces = pieces
        self._result = result
        self._variables = variables

    def __iter__(self) -> "Pieces":
        return self

    def __next__(self) -> bytes:
        return octets(self._variables.run(next, self._pieces))

    def close(self) -> None:
        close = getattr(self._result, "close", None)
        if close is not None:
            self._variables.run(close)


def _begin(application: Any, environ: Any, start: LayerStart, variables: Variables) -> Any:
    """What becomes the body: bytes, a file, or Pieces of which the first one is there."""
    result = application(environ, start.start_response)
    if isinstance(result, list | tuple):
        start.check()
        return b"".join([*start.written, *map(octets, result)])
    try:
        if isinstance(result, FileWrapper) and not start.written:
            region = result.region()
            if region is not None and start.length in (None, region.size):
                start.check()
                return result.filelike
        pieces = pieces_of(result)
        begun = start.written
        for piece in pieces:
            if piece := octets(piece):
                begun.append(piece)
                break
        start.check()
    except BaseException:
        close = getattr(result, "close", None)
        if close is not None:
            close()
        raise
    return Pieces(chain(begun, pieces), result, variables)


def _tell(ctx: "Context", start: LayerStart, answer: Any) -> None:
    """Put status and fields into the context; what was set there of the same name is replaced."""
    lines: Fields = {}
    for line in start.fields.split(b"\r\n")[:-1]:
        key = line.partition(b":")[0].decode("ascii").lower()
        lines[key] = lines.get(key, b"") + line + b"\r\n"
    lines.setdefault("content-type", NO_TYPE)
    length = start.length
    wrong = isinstance(answer, bytes) and length not in (None, len(answer))
    if wrong and ctx.method == "HEAD" and not answer:
        ctx.body = Pieces(iter(()), None, copy_context())  # the length is that of a GET
    elif wrong and not bodiless(start.status):
        raise ApplicationError(short(len(answer), length) if len(answer) < (length or 0) else LONG)
    if length is not None:
        lines["content-length"] = b"Content-Length: %d\r\n" % length
    ctx._status = start.status
    if start.reason is not None:
        ctx.message = start.reason.decode("latin-1")
    ctx._fields = {**(ctx._fields or {}), **lines}
