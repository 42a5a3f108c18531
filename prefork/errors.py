"""Three families of error, by blame: the operator, the peer, the handler.

An operator's mistake ends in a message and an exit code, never a traceback. A peer's mistake
ends in its status code and a closed connection. A handler's ends in the onion. Whatever is
none of the three is a bug of prefork's own and keeps its traceback.
"""

import os
from collections.abc import Mapping
from typing import Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_NOT_RUNNING: Final = 3  # LSB: "program is not running"
EXIT_CONFIG: Final = 78  # sysexits.h, EX_CONFIG
EXIT_FATAL: Final = 2  # a worker's "never respawn me" (nginx: ngx_worker_process_init)


class OperatorError(Exception):
    """Something the operator can mend. `str()` is the whole message, ready to print."""

    exit_code: int = EXIT_FAILED


class PeerError(Exception):
    """The peer broke the protocol: answered with `status` and a closed connection."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class HttpError(Exception):
    """What `ctx.throw` raises: an answer chosen by a handler.

    `expose` says whether the message may reach the client; by Koa's rule it does below 500.
    """

    def __init__(
        self,
        status: int = 500,
        message: str | None = None,
        *,
        expose: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message or "")
        self.status = status
        self.message = message
        self.expose = status < 500 if expose is None else expose
        self.headers = dict(headers or {})


def errno_text(exc: OSError) -> str:
    """`(13: Permission denied)`, nginx's tail of a failed system call."""
    number = exc.errno or 0
    return f"({number}: {os.strerror(number) if number else exc})"
