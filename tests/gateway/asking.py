"""Plain sockets to ask a real server with."""

import http.client
import socket
from typing import Any

PATIENCE = 20.0

# An upload, and its Content-Type.
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="more"\r\n\r\nyes\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    + b"x" * 200_000
    + b"\r\n--b--\r\n"
)
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


def ask(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own: the answer, and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers or {}, **more)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def ask_raw(port: int, data: bytes) -> bytes:
    """What comes back until the server closes; b"" also for a cut connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(data)
        got = b""
        try:
            while more := sock.recv(65536):
                got += more
        except ConnectionResetError:
            pass
        return got
