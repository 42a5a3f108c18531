"""Access log formats of gunicorn and granian → nginx's variables."""

import re
from typing import Final

# gunicorn/glogging.py, Logger.atoms. What is not quite the same has a word on the difference.
GUNICORN: Final[dict[str, tuple[str, str]]] = {
    "h": ("$remote_addr", ""),
    "l": ("-", ""),
    "u": ("$remote_user", ""),
    "t": ("[$time_local]", ""),
    "r": ("$request", ""),
    "s": ("$status", ""),
    "m": ("$request_method", ""),
    "U": ("$request_uri", "with its query"),
    "q": ("$args", ""),
    "H": ("$server_protocol", ""),
    "b": ("$body_bytes_sent", ""),
    "B": ("$body_bytes_sent", ""),
    "f": ("$http_referer", ""),
    "a": ("$http_user_agent", ""),
    "T": ("$request_time", "seconds with three decimals"),
    "D": ("$request_time", "seconds, not microseconds"),
    "M": ("$request_time", "seconds, not milliseconds"),
    "L": ("$request_time", "three decimals"),
    "p": ("<$pid>", ""),
}

# granian/log.py
GRANIAN: Final[dict[str, tuple[str, str]]] = {
    "addr": ("$remote_addr", ""),
    "time": ("$time_local", ""),
    "dt_ms": ("$request_time", "seconds, not milliseconds"),
    "status": ("$status", ""),
    "path": ("$request_uri", "with its query"),
    "query_string": ("$args", ""),
    "method": ("$request_method", ""),
    "scheme": ("http", "prefork terminates no TLS"),
    "protocol": ("$server_protocol", ""),
}

_ATOM: Final = re.compile(r"%\((?P<name>[^)]*)\)[-#0 +]*[0-9.]*[a-zA-Z]|%%")
_NGINX_COMBINED: Final = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent'
    ' "$http_referer" "$http_user_agent"'
)


def translated(text: str, atoms: dict[str, tuple[str, str]]) -> tuple[str, list[str]]:
    """The format for `log.access.format`, and a sentence on each thing that is not the same."""
    told: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return "%"
        if header := re.fullmatch(r"\{([^}]+)\}([ioe])", name):
            if header[2] == "i":
                return "$http_" + re.sub(r"\W", "_", header[1].lower())
            what = {"o": "a field of the response", "e": "a variable of the request"}[header[2]]
            told.append(f"%({name})s, {what}, has no counterpart: written as -")
            return "-"
        if name not in atoms:
            told.append(f"%({name})s has no counterpart: written as -")
            return "-"
        variable, differs = atoms[name]
        if differs:
            told.append(f"%({name})s is {variable} ({differs})")
        return variable

    if "$" in text:
        told.append('"$" cannot stand for itself in a format of prefork: left out')
    # ${name} where a letter follows, as in %(s)sms.
    result = ""
    end = 0
    for match in _ATOM.finditer(text):
        result += text[end : match.start()].replace("$", "")
        made = replace(match)
        end = match.end()
        follows = text[end : end + 1]
        if made.startswith("$") and (follows.isalnum() or follows == "_"):
            made = f"${{{made[1:]}}}"
        result += made
    result += text[end:].replace("$", "")
    result = result.replace("\n", " ").replace("\r", " ")
    if result == _NGINX_COMBINED:
        return "combined", told
    if "$" not in result:
        told.append("it names nothing that prefork knows: combined is written instead")
        return "combined", told
    if result.lstrip().startswith("{"):
        result = f"escape=json {result}"
    return result, told
