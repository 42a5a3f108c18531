"""Response header fields: checked and written out once, where the handler sets them.

A context keeps its fields as finished lines, `b"Name: value\\r\\n"` by lower-case name, several
lines of one name in one value. So answering is a join, and a bad value is an error in the handler
that set it, with its traceback, instead of a split response.
"""

import functools
import mimetypes
import re
from typing import Final

Fields = dict[str, bytes]

# RFC 9110 section 5.6.2, token; section 5.5, field-value (obs-text is what latin-1 makes of it).
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_BAD_VALUE: Final = re.compile(r"[^\t\x20-\x7e\x80-\xff]").search

# The exchange writes these: only it knows how the body is framed and whether the connection stays.
_SERVERS_OWN: Final = frozenset({"connection", "date", "keep-alive", "transfer-encoding"})

TEXT: Final = b"Content-Type: text/plain; charset=utf-8\r\n"
HTML: Final = b"Content-Type: text/html; charset=utf-8\r\n"
JSON: Final = b"Content-Type: application/json\r\n"
BINARY: Final = b"Content-Type: application/octet-stream\r\n"
# Removed on purpose: no line, and no default either.
NO_TYPE: Final = b""

_SHORT: Final = {
    "text": "text/plain",
    "json": "application/json",
    "bin": "application/octet-stream",
    "form": "application/x-www-form-urlencoded",
    "multipart": "multipart/form-data",
    "events": "text/event-stream",
}

# What the standard library does not know, or knows by an obsolete name (RFC 9239: JavaScript).
_EXTENSIONS: Final = {
    ".avif": "image/avif",
    ".gz": "application/gzip",
    ".ico": "image/vnd.microsoft.icon",
    ".js": "text/javascript",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zst": "application/zstd",
}
_COMPRESSED: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/octet-stream",
    "compress": "application/octet-stream",
}


@functools.lru_cache(512)
def _name_of(name: str) -> tuple[str, str]:
    """(lower-case name, `"Name: "`). Raises ValueError."""
    if not _TOKEN(name):
        raise ValueError(f"invalid header name {name!r}")
    key = name.lower()
    if key in _SERVERS_OWN:
        raise ValueError(f"{name} is written by the server and cannot be set")
    return key, f"{name}: "


def field_key(name: str) -> str:
    """The key of `name` in `Fields`. Raises ValueError for a name that cannot be set."""
    return _name_of(name)[0]


def field_line(name: str, value: str | int) -> tuple[str, bytes]:
    """(lower-case name, the whole line). Raises ValueError or TypeError for what cannot be sent."""
    key, start = _name_of(name)
    if not isinstance(value, str):
        if not isinstance(value, int):
            raise TypeError(f"header {name}: a str or an int, not {type(value).__name__}")
        value = str(int(value))
    elif not (value.isascii() and value.isprintable()) and _BAD_VALUE(value):
        raise ValueError(f"invalid character in the value of header {name}: {value!r}")
    if key == "content-length" and not value.isdecimal():
        raise ValueError(f"Content-Length must be a number of bytes, not {value!r}")
    return key, f"{start}{value}\r\n".encode("latin-1")


def values_of(lines: bytes) -> list[str]:
    """The values in the line or lines of one field."""
    return [line.partition(b": ")[2].decode("latin-1") for line in lines.split(b"\r\n") if line]


@functools.lru_cache(512)
def type_line(kind: str) -> bytes:
    """The Content-Type line for a media type, a short name (`html`, `json`) or an extension.

    A text type without parameters gets `charset=utf-8`, which is how str bodies are encoded.
    Raises ValueError for a name that means no type.
    """
    full = kind if "/" in kind else _by_short_name(kind)
    if full.startswith("text/") and ";" not in full:
        full += "; charset=utf-8"
    return field_line("Content-Type", full)[1]


def _by_short_name(kind: str) -> str:
    extension = kind if kind.startswith(".") else f".{kind}"
    full = _SHORT.get(kind) or _by_extension(extension.lower())
    if full is None:
        raise ValueError(f"no media type is known for {kind!r}")
    return full


def _by_extension(extension: str) -> str | None:
    return _EXTENSIONS.get(extension) or _standard().types_map[True].get(extension)


@functools.cache
def _standard() -> mimetypes.MimeTypes:
    # An instance holds the library's own table; the module's functions would add the tables that
    # this host has under /etc, and the same file would have another type elsewhere.
    return mimetypes.MimeTypes()


@functools.lru_cache(512)
def type_line_of_file(name: str) -> bytes:
    """The Content-Type line for a file by its name; application/octet-stream when unknown."""
    guess, encoding = _standard().guess_type("file:" + name.rpartition("/")[2])
    if encoding is not None:
        # The file is sent as it lies there: the compressed form is the content.
        return type_line(_COMPRESSED.get(encoding, "application/octet-stream"))
    extension = name[name.rfind(".") :].lower() if "." in name else ""
    full = _EXTENSIONS.get(extension) or guess
    return type_line(full) if full else BINARY
