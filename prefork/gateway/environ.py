"""The environ of a request: PEP 3333, "environ Variables", and RFC 3875 section 4.1.

Most of what an environ holds is the same for every request of a client: its own address, ours, and
nearly always its header fields. So that part is made once for a connection, kept with it, and
copied; as long as the client repeats itself, a request costs a comparison of bytes and a copy.

Strings are bytes in disguise, as PEP 3333 has it: each character is one byte (latin-1). Header
fields whose name has an underscore are dropped, for `X_User` and `X-User` would become one name
and a proxy in front of us checks only the one; and so is `Proxy`, which would become the variable
HTTP_PROXY that many clients obey (CVE-2016-5385).
"""

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from prefork.gateway.input import NO_INPUT
from prefork.gateway.wsgifile import FileWrapper

if TYPE_CHECKING:
    from prefork.gateway.wsgierrors import ErrorStream
    from prefork.http.exchange import Exchange

Environ = dict[str, Any]

_KEYS_LIMIT: Final = 512  # clients invent names
_SPECIAL: Final = {
    "": None,
    "content-length": "CONTENT_LENGTH",
    "content-type": "CONTENT_TYPE",
    "proxy": None,
}


class _Keys(dict[str, str | None]):
    """Variables by the name of their header field, as sent; None for what is dropped."""

    __slots__ = ()

    def __missing__(self, name: str) -> str | None:
        lower = name.lower()
        if lower in _SPECIAL:
            key = _SPECIAL[lower]
        elif "_" in name:
            key = None
        else:
            key = f"HTTP_{name.upper().replace('-', '_')}"
        if len(self) >= _KEYS_LIMIT:
            self.clear()
        self[name] = key
        return key


class Environs:
    """Makes the environs of one worker. `root_path` is what a proxy has taken off the path."""

    __slots__ = ("_base", "_keys")

    def __init__(
        self,
        *,
        errors: "ErrorStream",
        multithread: bool,
        multiprocess: bool,
        root_path: str = "",
    ) -> None:
        self._keys = _Keys()
        self._base: Environ = {
            "SCRIPT_NAME": root_path.encode().decode("latin-1"),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": "prefork",
            "GATEWAY_INTERFACE": "CGI/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": NO_INPUT,
            "wsgi.input_terminated": True,
            "wsgi.errors": errors,
            "wsgi.multithread": multithread,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
        }

    def make(self, exchange: "Exchange") -> Environ:
        """The environ of `exchange`, with no input."""
        connection = exchange.connection
        fields = exchange.head[len(exchange.request_line) :]
        known = connection.gateway
        if known is None or known[0] != fields:
            known = connection.gateway = (fields, self._of_client(exchange, fields))
        environ: Environ = known[1].copy()
        environ["REQUEST_METHOD"] = exchange.method
        target = exchange.raw_target.decode("latin-1")
        environ["REQUEST_URI"] = environ["RAW_URI"] = target
        if target[0] == "/":
            path, _, environ["QUERY_STRING"] = target.partition("?")
            environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        else:
            environ["QUERY_STRING"] = target.partition("?")[2]
            environ["PATH_INFO"] = unquote_to_bytes(exchange.raw_path).decode("latin-1")
            # RFC 9112 section 3.2.2: the authority of the target wins over the Host field.
            environ["HTTP_HOST"] = exchange.host
            if exchange.forwarded is not None:
                connection.gateway = None  # what was made of its authority is for it alone
        if exchange.version != "1.1":
            environ["SERVER_PROTOCOL"] = f"HTTP/{exchange.version}"
        return environ

    def _of_client(self, exchange: "Exchange", fields: bytes) -> Environ:
        environ = self._base.copy()
        environ["wsgi.url_scheme"] = exchange.scheme
        host, port = exchange.local
        # PEP 3333: "SERVER_NAME and SERVER_PORT can never be empty strings". A UNIX socket has
        # neither a name nor a port that a URL could have.
        environ["SERVER_NAME"] = host if port else "localhost"
        environ["SERVER_PORT"] = str(port or (443 if exchange.scheme == "https" else 80))
        peer = exchange.peer
        environ["REMOTE_ADDR"] = "" if peer == "unix:" else peer
        environ["REMOTE_PORT"] = str(exchange.peer_port or "")
        keys = self._keys
        for line in fields[2:-4].decode("latin-1").split("\r\n"):
            name, _, value = line.partition(":")
            key = keys[name]
            if key is None:
                continue
            value = value.strip(" \t")
            if key in environ:
                # RFC 9110 section 5.3; RFC 6265 section 5.4 for cookies.
                value = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ', '}{value}"
            environ[key] = value
        # The same fields from the same peer: what proxies say in them can be kept with the rest.
        if exchange.forwarded is not None and exchange.forwarded.host:
            environ["HTTP_HOST"] = exchange.forwarded.host
        return environ
