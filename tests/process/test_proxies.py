"""The real server behind proxies: trusted and not, with fields and with the PROXY protocol."""

import json
import socket

import pytest

ONION = """
import json
from prefork import Application
app = Application()

@app.use
async def say(ctx, next):
    ctx.body = json.dumps([ctx.ip, ctx.ips, ctx.protocol, ctx.host])
"""
PROXY = ONION.replace("Application()", "Application(proxy=True)")
WSGI = """
import json

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    names = ("REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT")
    return [json.dumps([environ[name] for name in names]).encode()]
"""
ASGI = """
import json

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("http only")
    host = dict(scope["headers"])[b"host"].decode()
    said = [scope["client"], scope["scheme"], host, scope["server"]]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: inner\r\n%b\r\n"
FIELDS = (
    b"X-Forwarded-For: 9.9.9.9, 203.0.113.7:55\r\n"
    b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: example.org\r\n"
)
V1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 49152 443\r\n"
V2 = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0f"
    b"\xcb\x00\x71\x07\xc0\x00\x02\x01\xc0\x00\x01\xbb\x04\0\0"
)


def answers(sock: socket.socket, count: int) -> list:
    """The JSON bodies of so many answers."""
    data, found = b"", []
    while len(found) < count:
        head, end, rest = data.partition(b"\r\n\r\n")
        lower = head.lower()
        if b"content-length:" in lower:
            size = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if end and len(rest) >= size:
                found.append(json.loads(rest[:size]))
                data = rest[size:]
                continue
        elif end and b"0\r\n\r\n" in rest:  # one chunk
            body, _, data = rest.partition(b"\r\n0\r\n\r\n")
            found.append(json.loads(body.partition(b"\r\n")[2]))
            continue
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    return found


def ask(server, *parts: bytes, count: int = 1) -> list:
    with server.connect() as sock:
        for part in parts:
            sock.sendall(part)
        return answers(sock, count)


def proxied(port: int) -> list:
    return [{"address": f"127.0.0.1:{port}", "proxy_protocol": True}]


@pytest.fixture
def behind(daemon):
    """A server on a listener with proxy_protocol."""

    def start(**config):
        server = daemon(start=False, **config)
        server.write_config(listen=proxied(server.port))
        server.start()
        return server

    return start


TRUST = {"trust": ["127.0.0.0/8"]}


@pytest.mark.parametrize(
    ("app", "said", "alone"),
    [
        (
            ONION,
            ["203.0.113.7", ["203.0.113.7"], "https", "example.org"],
            ["127.0.0.1", [], "http", "inner"],
        ),
        (
            PROXY,
            ["203.0.113.7", ["203.0.113.7"], "https", "example.org"],
            ["127.0.0.1", [], "http", "inner"],
        ),
        (WSGI, ["203.0.113.7", "https", "example.org", "example.org", "443"], None),
        (ASGI, [["203.0.113.7", 55], "https", "example.org", ["example.org", 443]], None),
    ],
)
def test_a_trusted_proxy_tells_who_the_client_is(daemon, app, said, alone):
    server = daemon(
        app=app,
        forwarded=TRUST,
        log={"access": {"path": "access.log", "format": "$remote_addr $realip_remote_addr"}},
    )
    # kept alive, pipelined: each request speaks for itself
    found = ask(server, (REQUEST % FIELDS) * 2 + REQUEST % b"", count=3)
    assert found[:2] == [said, said]
    assert "203.0.113.7" not in json.dumps(found[2])
    if alone is not None:
        assert found[2] == alone
    server.stop()
    assert (server.directory / "access.log").read_text().splitlines() == [
        "203.0.113.7 127.0.0.1",
        "203.0.113.7 127.0.0.1",
        "127.0.0.1 127.0.0.1",
    ]


def test_without_trust_nothing_is_believed(daemon):
    server = daemon(app=ONION)
    assert ask(server, REQUEST % FIELDS) == [["127.0.0.1", [], "http", "inner"]]


def test_the_applications_own_word_counts_where_the_configuration_is_silent(daemon):
    server = daemon(app=PROXY)
    assert ask(server, REQUEST % FIELDS)[0][0] == "9.9.9.9"


def test_who_is_on_a_unix_socket(daemon):
    server = daemon(app=WSGI, start=False, forwarded={"trust": "unix"})
    server.write_config(listen=["unix:run/app.sock"])
    server.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(server.directory / "run/app.sock"))
        sock.sendall(REQUEST % FIELDS)
        assert answers(sock, 1)[0][0] == "203.0.113.7"


@pytest.mark.parametrize("header", [V1, V2])
def test_the_proxy_protocol(behind, header):
    server = behind(
        app=ASGI,
        forwarded=TRUST,
        log={"access": {"path": "access.log", "format": "$remote_addr $realip_remote_addr"}},
    )
    said = [["203.0.113.7", 49152], "http", "inner", ["192.0.2.1", 443]]
    request = REQUEST % b""
    assert ask(server, header + request * 2, count=2) == [said, said]
    every_byte = [bytes([byte]) for byte in header]
    assert ask(server, *every_byte, request) == [said]
    # the client it names is not trusted, so what that one forwards is not believed
    assert ask(server, header, REQUEST % FIELDS) == [said]
    server.stop()
    lines = (server.directory / "access.log").read_text().splitlines()
    assert lines == ["203.0.113.7 127.0.0.1"] * 4


def test_a_proxy_that_speaks_for_itself(behind):
    server = behind(app=ONION, forwarded=TRUST)
    for header in (b"PROXY UNKNOWN\r\n", V2[:12] + b"\x20\x00\x00\x00"):
        assert ask(server, header + REQUEST % b"")[0][0] == "127.0.0.1"


def test_a_header_of_somebody_who_is_not_trusted_is_required_and_ignored(behind):
    server = behind(app=ONION)
    assert ask(server, V1 + REQUEST % b"")[0][0] == "127.0.0.1"


def test_what_is_no_header_is_closed(behind):
    server = behind(
        app=ONION,
        forwarded=TRUST,
        timeouts={"head": 0.3},
        log={"error": {"path": "error.log", "level": "info"}},
    )
    for data, reason in (
        (REQUEST % b"", "does not begin with a PROXY protocol header"),
        (V1[:-2], "took too long"),
        (b"", "took too long"),
    ):
        mark = len(server.log)
        with server.connect() as sock:
            sock.sendall(data)
            try:
                assert sock.recv(100) == b""
            except ConnectionResetError:
                pass
        server.wait_for(f"\\[info\\].*{reason}, closed, client: 127.0.0.1", since=mark)
    mark = len(server.log)
    server.connect().close()
    server.wait_for("left before the end of the PROXY", since=mark)


def test_elsewhere_it_is_an_invalid_request(daemon):
    server = daemon(app=ONION, forwarded=TRUST)
    with server.connect() as sock:
        sock.sendall(V1 + REQUEST % b"")
        assert sock.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_reload_that_asks_for_the_header(daemon):
    server = daemon(app=ONION, forwarded=TRUST)
    server.write_config(listen=proxied(server.port))
    assert server.cli("reload").returncode == 0
    server.wait_for(lambda: len(server.pids()) == 1)
    assert ask(server, V1 + REQUEST % b"")[0][0] == "203.0.113.7"


def test_warnings(daemon):
    server = daemon(start=False, forwarded={"trust": "*"})
    assert "whoever can connect chooses" in server.cli("check").stderr + server.cli("check").stdout
    server.write_config(forwarded={"trust": []}, listen=proxied(server.port))
    checked = server.cli("check")
    assert checked.returncode == 0
    assert 'but "forwarded.trust" is empty' in checked.stdout + checked.stderr
    server.write_config(forwarded={"trust": ["10.0.0.1/8", "proxy"]})
    checked = server.cli("check")
    assert checked.returncode == 78
    assert 'did you mean "10.0.0.0/8"' in checked.stdout + checked.stderr
