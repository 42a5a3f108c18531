"""The prefix of a URL that `root_path` names, written as it is read: `/shop`, `/Café/v1`."""

import re
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from prefork.config.nodes import Node
from prefork.config.reader import Reader, Schema, did_you_mean, quote

# A backslash is a slash to browsers; `?`, `#` and `%` would mean themselves here, and something
# else in every URL that is made of it.
_FORM: Final = re.compile(r"(?:/[^/?#%\\\s]+)*")


def is_root_path(text: str) -> bool:
    """Whether applications can be told this prefix: "", or segments that clients leave alone.

    `.` and `..` are none (RFC 3986 section 5.2.4): no client sends them.
    """
    return (
        _FORM.fullmatch(text) is not None
        and text.isprintable()  # not so are surrogates, from bytes of the environment
        and not {".", ".."}.intersection(text.split("/"))
    )


class RootPath:
    """Nothing at all is "", so that `${PREFIX:-}` can be."""

    syntax = 'a path such as /api, or ""'

    def read(self, node: Node, reader: Reader) -> str:
        scalar = reader.scalar(node, self.syntax)
        if scalar.is_null:
            return ""
        text = scalar.text
        if is_root_path(text):
            return text
        meant = None if scalar.secret else _meant(text)
        if "%" in text:
            hint = did_you_mean(meant)
            raise reader.say(scalar, f"is written without %-escapes{hint}", meant)
        if meant is None and text.startswith("/"):
            raise reader.refuse(scalar, 'a path without spaces, backslashes, "." and ".."')
        raise reader.refuse(scalar, self.syntax, meant)

    def write(self, value: Any) -> str:
        return quote(value)

    def json_schema(self) -> Schema:
        return {"type": ["string", "null"], "pattern": r"^(/[^/?#%\\\s]+)*$"}


def _meant(text: str) -> str | None:
    """`api/` and `https://example.org/api?` → `/api`, `/caf%C3%A9` → `/café`, `/` → ``."""
    try:
        path = urlsplit(text.strip()).path if "://" in text else re.split("[?#]", text.strip())[0]
    except ValueError:  # what it takes for an IPv6 address
        return None
    segments = [segment for segment in unquote(path).split("/") if segment not in ("", ".")]
    meant = "".join(f"/{segment}" for segment in segments)
    return meant if is_root_path(meant) else None
