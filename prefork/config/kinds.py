"""How a setting is written: one class per kind of value.

A kind reads a node into a Python value, writes a value back as YAML, and says for the editor
(JSON Schema) and for the reader of the reference what may stand there.
"""

import os
import re
from typing import Any, Final

from prefork.config.nodes import Node, Scalar
from prefork.config.reader import Kind, Reader, Schema, guess, quote
from prefork.config.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    suggest_duration,
    suggest_size,
)

# What other servers and YAML 1.1 call true and false.
_YES: Final = frozenset(("yes", "on", "y", "enabled"))
_NO: Final = frozenset(("no", "off", "n", "disabled"))

_PERCENT: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)%", re.ASCII)


class Boolean:
    syntax = "true or false"

    def read(self, node: Node, reader: Reader) -> bool:
        scalar = reader.scalar(node, self.syntax)
        if scalar.looks == "bool":
            return scalar.text.lower() == "true"
        word = scalar.text.lower()
        if not scalar.plain and word in ("true", "false"):
            raise reader.say(scalar, f"must be {self.syntax}: write {word}, without quotes", word)
        hint = "true" if word in _YES | {"true", "1"} else "false"
        known = word in _YES | _NO | {"true", "false", "0", "1"}
        raise reader.refuse(scalar, self.syntax, hint if known else guess(word, ("true", "false")))

    def write(self, value: Any) -> str:
        return "true" if value else "false"

    def json_schema(self) -> Schema:
        return {"type": "boolean"}


class Integer:
    """A whole number; `0o17` and `0x1F` are read as YAML 1.2 says, `017` by nobody alike."""

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most
        self.syntax = f"a whole number from {least} to {most}"

    def read(self, node: Node, reader: Reader) -> int:
        scalar = reader.scalar(node, self.syntax)
        refuse_leading_zero(scalar, reader)
        text = scalar.text
        if not scalar.plain and text.isascii() and text.isdigit():
            raise reader.say(scalar, f"must be {self.syntax}: write {text}, without quotes", text)
        if scalar.looks != "int" or len(text) > 20:
            raise reader.refuse(scalar, self.syntax)
        value = int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if not self.least <= value <= self.most:
            raise reader.refuse(scalar, self.syntax)
        return value

    def write(self, value: Any) -> str:
        return str(value)

    def json_schema(self) -> Schema:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


def refuse_leading_zero(scalar: Scalar, reader: Reader) -> None:
    """`0660` is 432 in YAML 1.1 and 660 in YAML 1.2: nobody may guess which was meant."""
    text = scalar.text
    if not (len(text) > 1 and text[0] == "0" and text.isascii() and text.isdigit()):
        return
    octal = f"0o{text.lstrip('0') or '0'}"
    decimal = text.lstrip("0") or "0"
    if set(text) - set("01234567"):
        raise reader.say(scalar, f"must not begin with a zero: write {decimal}", decimal)
    raise reader.say(
        scalar,
        f"is {shown_number(scalar)}, which some read as octal and some as decimal: "
        f"write {octal} (or {decimal})",
        octal,
    )


def shown_number(scalar: Scalar) -> str:
    return "a number with a leading zero" if scalar.secret else scalar.text


class Octal:
    """Permission bits. Only `0o660` is unambiguous, so only that is taken."""

    syntax = "an octal number such as 0o660"

    def __init__(self, most: int) -> None:
        self.most = most

    def read(self, node: Node, reader: Reader) -> int:
        scalar = reader.scalar(node, self.syntax)
        text = scalar.text
        digits = text.removeprefix("0o").lstrip("0") or "0"
        if not set(digits) <= set("01234567") or not digits.isascii() or len(digits) > 6:
            raise reader.refuse(scalar, self.syntax)
        value = int(digits, 8)
        if text != "0" and not text.startswith("0o"):
            octal = self.write(value)
            raise reader.say(scalar, f"is octal: write {octal}", octal)
        if text == "0o" or value > self.most:
            raise reader.refuse(scalar, f"an octal number up to {self.write(self.most)}")
        return value

    def write(self, value: Any) -> str:
        return f"0o{value:03o}"

    def json_schema(self) -> Schema:
        return {"type": ["integer", "string"], "pattern": "^0o[0-7]+$"}


class Duration:
    """Seconds, as a float."""

    def __init__(self, least: float = 0.0, most: float = 365 * 86400.0) -> None:
        self.least = least
        self.most = most
        self.syntax = "a duration such as 30s, 5m or 250ms"

    def read(self, node: Node, reader: Reader) -> float:
        scalar = reader.scalar(node, self.syntax)
        text = scalar.text
        if text.isdigit():
            refuse_leading_zero(scalar, reader)
        value = None if scalar.is_null else parse_duration(text)
        if value is None:
            raise reader.refuse(scalar, self.syntax, suggest_duration(text))
        if not self.least <= value <= self.most:
            limits = f"from {format_duration(self.least)} to {format_duration(self.most)}"
            raise reader.refuse(scalar, f"a duration {limits}")
        return value

    def write(self, value: Any) -> str:
        return format_duration(value)

    def json_schema(self) -> Schema:
        return {
            "type": ["string", "number"],
            "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$",
            "minimum": 0,
        }


class Size:
    """Bytes, as an int."""

    syntax = "a size such as 8KiB, 64k or 16MiB"

    def __init__(self, least: int, most: int = 1 << 40) -> None:
        self.least = least
        self.most = most

    def read(self, node: Node, reader: Reader) -> int:
        scalar = reader.scalar(node, self.syntax)
        if scalar.text.isdigit():
            refuse_leading_zero(scalar, reader)
        value = None if scalar.is_null else parse_size(scalar.text)
        if value is None:
            raise reader.refuse(scalar, self.syntax, suggest_size(scalar.text))
        if not self.least <= value <= self.most:
            limits = f"from {format_size(self.least)} to {format_size(self.most)}"
            raise reader.refuse(scalar, f"a size {limits}")
        return value

    def write(self, value: Any) -> str:
        return format_size(value)

    def json_schema(self) -> Schema:
        return {
            "type": ["string", "integer"],
            "pattern": r"^[0-9]+(\.[0-9]+)?([bB]|[kKmMgG](iB)?)?$",
            "minimum": 0,
        }


class Percent:
    """A share such as `10%`, as a float: 0.1."""

    syntax = "a percentage such as 10%"

    def __init__(self, least: float = 0.0, most: float = 1.0) -> None:
        self.least = least
        self.most = most

    def read(self, node: Node, reader: Reader) -> float:
        scalar = reader.scalar(node, self.syntax)
        match = _PERCENT.fullmatch(scalar.text)
        if match is None:
            number = _PERCENT.fullmatch(f"{scalar.text}%")
            if number is None:
                raise reader.refuse(scalar, self.syntax)
            # Whoever writes 0.1 means a tenth, whoever writes 10 means ten of a hundred.
            share = float(number[1]) * (1.0 if "." in number[1] else 0.01)
            raise reader.refuse(scalar, self.syntax, self.write(share))
        value = float(match[1]) / 100
        if not self.least <= value <= self.most:
            limits = f"from {self.write(self.least)} to {self.write(self.most)}"
            raise reader.refuse(scalar, f"a percentage {limits}")
        return value

    def write(self, value: Any) -> str:
        return f"{round(value * 100, 4):g}%"

    def json_schema(self) -> Schema:
        return {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?%$"}


class Choice:
    """One word of a few."""

    def __init__(self, *words: str, meant: dict[str, str] | None = None) -> None:
        self.words = words
        self.meant = meant or {}
        self.syntax = "one of " + ", ".join(words) if len(words) > 2 else " or ".join(words)

    def read(self, node: Node, reader: Reader) -> str:
        scalar = reader.scalar(node, self.syntax)
        if scalar.text in self.words:
            return scalar.text
        word = scalar.text.lower()
        raise reader.refuse(scalar, self.syntax, self.meant.get(word) or guess(word, self.words))

    def write(self, value: Any) -> str:
        return str(value)

    def json_schema(self) -> Schema:
        return {"enum": list(self.words)}


class OrWord:
    """Another kind, or a word that stands for one value: `auto`, `off`, `unlimited`."""

    def __init__(self, kind: Kind, **words: Any) -> None:
        self.kind = kind
        self.words = words
        self.syntax = ", or ".join((kind.syntax, *words))

    def read(self, node: Node, reader: Reader) -> Any:
        reader.also = "".join(f", or {word}" for word in self.words)
        if not isinstance(node, Scalar):
            return self.kind.read(node, reader)
        scalar = reader.scalar(node, self.kind.syntax)
        if scalar.text in self.words:
            return self.words[scalar.text]
        if scalar.looks == "str" and (near := guess(scalar.text.lower(), tuple(self.words))):
            raise reader.refuse(scalar, self.kind.syntax, near)
        return self.kind.read(scalar, reader)

    def write(self, value: Any) -> str:
        for word, meaning in self.words.items():
            if value == meaning and type(value) is type(meaning):
                return word
        return self.kind.write(value)

    def json_schema(self) -> Schema:
        return {"anyOf": [self.kind.json_schema(), {"enum": list(self.words)}]}


class Nullable:
    """Another kind, or nothing at all: `null`, `~` or an empty value, also from `${VAR:-}`."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.syntax = f"{kind.syntax}, or null"

    def read(self, node: Node, reader: Reader) -> Any:
        if not isinstance(node, Scalar):
            return self.kind.read(node, reader)
        scalar = reader.scalar(node, self.kind.syntax)
        return None if scalar.is_null else self.kind.read(scalar, reader)

    def write(self, value: Any) -> str:
        return "null" if value is None else self.kind.write(value)

    def json_schema(self) -> Schema:
        return {"anyOf": [self.kind.json_schema(), {"type": "null"}]}


def text_of(node: Node, reader: Reader, wanted: str) -> Scalar:
    """A scalar that is text: numbers and booleans have to say so with quotes."""
    scalar = reader.scalar(node, wanted)
    if scalar.is_null:
        raise reader.refuse(scalar, wanted)
    if scalar.looks != "str" and not scalar.derived:
        raise reader.say(scalar, f"must be {wanted}; quote {scalar.text} if it is one")
    if "\0" in scalar.text:
        raise reader.say(scalar, "contains a NUL character")
    return scalar


class Name:
    """The name or number of a user or a group."""

    _FORM: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,255}\$?", re.ASCII)

    def __init__(self, syntax: str) -> None:
        self.syntax = syntax

    def read(self, node: Node, reader: Reader) -> str:
        scalar = reader.scalar(node, self.syntax)
        refuse_leading_zero(scalar, reader)
        if not self._FORM.fullmatch(scalar.text):
            raise reader.refuse(scalar, self.syntax)
        return scalar.text

    def write(self, value: Any) -> str:
        return value if value.isdigit() else quote(value)

    def json_schema(self) -> Schema:
        return {"type": ["string", "integer"]}


class Path:
    """A path, made absolute from the folder of the configuration; or one of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.syntax = ", ".join(("a path", *words[:-1])) + (f" or {words[-1]}" if words else "")

    def read(self, node: Node, reader: Reader) -> str:
        scalar = text_of(node, reader, self.syntax)
        text = scalar.text
        if text in self.words:
            return text
        if text.startswith("~"):
            hint = "${HOME}" + text[1:]
            if text == "~" or text.startswith("~/"):
                raise reader.say(scalar, f"is no path of a shell: write {hint}", hint)
        if not text:
            raise reader.refuse(scalar, self.syntax)
        if self.words and "/" not in text and (near := _misspelt(text, self.words)):
            raise reader.refuse(scalar, self.syntax, near)
        return os.path.normpath(os.path.join(reader.base, text))

    def write(self, value: Any) -> str:
        return quote(value)

    def json_schema(self) -> Schema:
        return {"type": "string", "minLength": 1}


def _misspelt(text: str, words: tuple[str, ...]) -> str | None:
    """`sterr` and `/dev` less `stdot` are no files that anybody wants beside the configuration."""
    word = text.lower()
    return None if "." in word else guess(word, words)


class AppSpec:
    """`module:attribute`, or `module:factory()`, perhaps with literals between the parentheses;
    `module` alone is its `app` or `application`. Whether it is there is for the process that
    imports it."""

    syntax = "module:attribute or module:factory()"
    _FORM: Final = re.compile(
        r"[^\W\d]\w*(?:\.[^\W\d]\w*)*(?::[^\W\d]\w*(?:\.[^\W\d]\w*)*(?:\([^\0\r\n]*\))?)?"
    )
    _FILE: Final = re.compile(r".*\.(?:py|ya?ml|toml|json|conf|ini)(?::.*)?")

    def read(self, node: Node, reader: Reader) -> str:
        scalar = text_of(node, reader, self.syntax)
        text = scalar.text
        if text.endswith((".yaml", ".yml")):
            raise reader.say(
                scalar, f"must be {self.syntax}; a configuration is named by -c {text}"
            )
        if not self._FORM.fullmatch(text) or self._FILE.fullmatch(text):
            raise reader.refuse(scalar, self.syntax, self._meant(text))
        return text

    def _meant(self, text: str) -> str | None:
        """`./my-project/web.py` → `my_project.web:app`."""
        module, _, attribute = text.strip().partition(":")
        module = module.strip().removeprefix("./")
        module = module.removesuffix(".py").replace("/", ".").replace("-", "_").strip(".")
        spec = f"{module}:{attribute.strip() or 'app'}"
        return spec if self._FORM.fullmatch(spec) and spec != text else None

    def write(self, value: Any) -> str:
        return quote(value)

    def json_schema(self) -> Schema:
        return {"type": "string", "pattern": r"^[^\s:]+(:[^:]+)?$"}


class LogFormat:
    """`off`, the name of a format, or a template."""

    syntax = "off, combined, json or a template"
    words = ("off", "combined", "json")

    def read(self, node: Node, reader: Reader) -> str:
        scalar = text_of(node, reader, self.syntax)
        text = scalar.text
        if text not in self.words and not set(text) & set("$%{"):
            word = text.lower()
            meant = "off" if word in ("none", "false", "no") else guess(word, self.words)
            raise reader.refuse(scalar, self.syntax, meant)
        if "\n" in text or "\r" in text:
            raise reader.say(scalar, "must be one line")
        return text

    def write(self, value: Any) -> str:
        return quote(value) if value != "off" else "off"

    def json_schema(self) -> Schema:
        return {"type": "string", "examples": list(self.words)}
