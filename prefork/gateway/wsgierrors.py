"""`wsgi.errors`: what an application complains about, line by line in the error log."""

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefork.log import ErrorLog


class ErrorStream:
    """A text stream that is written to by any thread.

    What one `write` brings up to its last line end is one record, so a traceback stays together;
    the beginning of a line waits for its end, or for `flush`.
    """

    encoding = "utf-8"

    def __init__(self, log: "ErrorLog") -> None:
        self._log = log
        self._begun = threading.local()

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"wsgi.errors takes str, not {type(text).__name__}")
        begun = getattr(self._begun, "text", "")
        whole, end, rest = (begun + text).rpartition("\n")
        self._begun.text = rest
        if end:
            self._record(whole)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        text = getattr(self._begun, "text", "")
        self._begun.text = ""
        self._record(text)

    def _record(self, text: str) -> None:
        text = text.strip("\n")
        if text:
            self._log.error(f"wsgi.errors: {text}")
