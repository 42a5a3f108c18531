"""Looks at a worker from time to time that never wake it: those who want one share the server's.

`HttpServer` has one hook for the first waking after a moment. A worker that idles is not woken, and
its looks are as late as its next request.
"""

import math
from collections.abc import Callable

from prefork.http.server import HttpServer

Look = Callable[[], float]  # returns when it is due again, by `time.monotonic()`


class Awake:
    """Takes the hook of `server` for itself."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._due: dict[Look, float] = {}
        server.on_awake = self._on_awake

    def look(self, look: Look, at: float = 0.0) -> None:
        """Call `look()` at the first waking at or after `at`, and again when it says."""
        self._due[look] = at
        self._server.awake_at = min(self._due.values())

    def _on_awake(self) -> float:
        now = self._server.reactor.now
        for look, at in self._due.items():
            if now >= at:
                self._due[look] = look()
        return min(self._due.values(), default=math.inf)
