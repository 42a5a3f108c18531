"""`${VAR}`, `${VAR:-default}`, `${VAR:?message}`, `${file:path}` and `$$` in parsed scalars.

The grammar is Docker Compose's where the two overlap. Substitution happens after YAML has been
parsed, so nothing in a variable can add a key; the result is then read as if it had stood in
the file without quotes. A `$` before anything but `{` or another `$` is itself, which leaves
`$status` of a log template alone.
"""

import os
import re
import stat
from collections.abc import Mapping
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
SECRET_MAX: Final = 1 << 16
_DEPTH_MAX: Final = 16


class InterpolationError(ValueError):
    """`str()` is the message; `offset` is where in the scalar's text it applies."""

    def __init__(self, message: str, offset: int, expression: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.expression = expression


def interpolate(
    text: str, variables: Mapping[str, str], base: str, _depth: int = 0
) -> tuple[str, bool]:
    """The text with everything substituted, and whether it now holds a file's content.

    Files are looked up from the folder `base`. Raises InterpolationError.
    """
    if "$" not in text:
        return text, False
    out: list[str] = []
    secret = False
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        out.append(text[at:dollar])
        following = text[dollar + 1 : dollar + 2]
        if following == "$":
            out.append("$")
            at = dollar + 2
        elif following == "{":
            end = _closing_brace(text, dollar + 2)
            expression = text[dollar : end + 1] if end >= 0 else text[dollar:]
            try:
                if end < 0:
                    raise _BadExpressionError("${ is not closed: write $${ for the text itself")
                if _depth >= _DEPTH_MAX:
                    raise _BadExpressionError("${…} nested too deeply")
                value, hidden = _expand(expression[2:-1], variables, base, _depth + 1)
            except _BadExpressionError as error:
                raise InterpolationError(str(error), dollar, expression) from None
            except InterpolationError as inner:
                # The caret belongs under the innermost one.
                offset = dollar + max(0, expression.find(inner.expression, 2))
                raise InterpolationError(str(inner), offset, inner.expression) from None
            out.append(value)
            secret = secret or hidden
            at = end + 1
        else:
            out.append("$")
            at = dollar + 1
    out.append(text[at:])
    return "".join(out), secret


class _BadExpressionError(Exception):
    """The message of an InterpolationError that does not know its place yet."""


def _closing_brace(text: str, start: int) -> int:
    """Index of the `}` that closes the `${` before `start`, or -1; inner `${…}` are skipped."""
    depth = 1
    at = start
    while at < len(text):
        if text.startswith("$$", at):
            at += 2
            continue
        if text.startswith("${", at):
            depth += 1
            at += 2
            continue
        if text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return -1


def _expand(inside: str, variables: Mapping[str, str], base: str, depth: int) -> tuple[str, bool]:
    """The value of what stands between the braces."""
    if inside.startswith("file:"):
        path, _ = interpolate(inside[5:], variables, base, depth)
        return _content(path, base), True
    match = _NAME.match(inside)
    if match is None:
        raise _BadExpressionError(
            f"${{{inside}}} is no variable: ${{NAME}}, ${{NAME:-default}}, "
            "${NAME:?message} or ${file:path}; $${ for the text itself"
        )
    name, rest = match[0], inside[match.end() :]
    value = variables.get(name)
    if value is not None and not value.isprintable() and "\0" in value:
        raise _BadExpressionError(f"environment variable {name} contains a NUL character")
    if not rest:
        if value is None:
            raise _BadExpressionError(
                f"environment variable {name} is not set (give a default: ${{{name}:-value}})"
            )
        return value, False
    if rest.startswith(":-"):
        return (value, False) if value else interpolate(rest[2:], variables, base, depth)
    if rest.startswith(":?"):
        if value:
            return value, False
        message, _ = interpolate(rest[2:], variables, base, depth)
        state = "is not set" if value is None else "is empty"
        raise _BadExpressionError(
            f"environment variable {name} {state}: {message.strip() or 'required'}"
        )
    if rest[0] in "-?":
        raise _BadExpressionError(f"${{{inside}}}: write ${{{name}:{rest}}}")
    raise _BadExpressionError(f"${{{inside}}}: after {name} only :-default or :?message can follow")


def _content(path: str, base: str) -> str:
    """The text of a secret's file, without the newline that editors leave at its end."""
    if not path or "\0" in path:
        raise _BadExpressionError("${file:} wants a path")
    full = os.path.join(base, path)
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to must not hang the start.
        fd = os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _BadExpressionError(f"{full} is not a regular file")
            data = os.read(fd, SECRET_MAX + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise _BadExpressionError(
            f"open() {full} failed ({error.errno}: {error.strerror})"
        ) from None
    if len(data) > SECRET_MAX:
        raise _BadExpressionError(f"{full} is larger than {SECRET_MAX} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _BadExpressionError(f"{full} is not UTF-8 text") from None
    if "\0" in text:
        raise _BadExpressionError(f"{full} contains a NUL character")
    return text.removesuffix("\n").removesuffix("\r")
