"""A real nginx in front of real applications: who the client is, by its fields and by PROXY.

The clients are 127.0.0.7 and the like: Linux has all of 127.0.0.0/8, and only nginx, which comes
from 127.0.0.1, is trusted.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.conftest import free_port

Daemon = Callable[..., Any]
SLOW = 20.0
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")  # libnginx-mod-stream's

FLASK = """
from flask import Flask, request

app = Flask(__name__)

@app.get("/")
def who():
    return [request.environ["REMOTE_ADDR"], request.environ["wsgi.url_scheme"], request.url]
"""

FASTAPI = """
from fastapi import FastAPI, Request, WebSocket

app = FastAPI()

@app.get("/")
async def who(request: Request):
    return [request.scope["client"][0], request.scope["scheme"], str(request.url)]

@app.websocket("/ws")
async def ws(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_json([websocket.client.host, websocket.url.scheme])
    await websocket.close()
"""

# As its documentation has it: keep-alive to the upstream, WebSockets, and the three fields.
NGINX = """
load_module {module};
daemon off;
{user}
worker_processes 1;
pid {room}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {room}/body;
  proxy_temp_path {room}/proxy;
  fastcgi_temp_path {room}/fastcgi;
  uwsgi_temp_path {room}/uwsgi;
  scgi_temp_path {room}/scgi;
  upstream app {{ server 127.0.0.1:{app}; keepalive 4; }}
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  proxy_http_version 1.1;
  proxy_set_header Connection $connection_upgrade;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Host $host;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  # The second one is as behind another that ends its TLS.
  map $server_port $proto {{ {https} https; default $scheme; }}
  proxy_set_header X-Forwarded-Proto $proto;
  server {{
    listen 127.0.0.1:{http};
    listen 127.0.0.1:{https};
    location / {{ proxy_pass http://app; }}
  }}
}}
stream {{
  server {{
    listen 127.0.0.1:{stream};
    proxy_protocol on;
    proxy_pass 127.0.0.1:{proxied};
  }}
}}
"""


class Nginx:
    """In front of the two listeners of one server: plain, and with the PROXY protocol."""

    def __init__(self, program: str, app: int, proxied: int) -> None:
        # Not under pytest's own directory, which only its user may enter.
        self._room = tempfile.TemporaryDirectory(prefix="prefork-test-nginx-")
        room = Path(self._room.name)
        room.chmod(0o755)
        self.http, self.https, self.stream = (free_port() for _ in "123")
        (room / "nginx.conf").write_text(
            NGINX.format(
                module=STREAM_MODULE,
                room=room,
                user="user root root;" if os.getuid() == 0 else "",
                app=app,
                proxied=proxied,
                http=self.http,
                https=self.https,
                stream=self.stream,
            )
        )
        self._said = room / "said"
        with self._said.open("wb") as said:
            command = [program, "-p", str(room), "-c", "nginx.conf", "-e", "stderr"]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said)
        self._pid = room / "nginx.pid"

    def wait(self) -> None:
        deadline = time.monotonic() + SLOW
        while not (self._pid.exists() and self._answers()):
            assert self._process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return ask(self.http)[0] == 200
        except OSError:
            return False

    @property
    def said(self) -> str:
        return self._said.read_text()

    def close(self) -> None:
        self._process.send_signal(signal.SIGQUIT)
        code = self._process.wait(SLOW)
        said = self.said
        self._room.cleanup()
        assert (code, said) == (0, "")


def ask(port: int, client: str = "127.0.0.7", path: str = "/", **headers: str) -> tuple[int, Any]:
    """What that client is told of itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port, SLOW, source_address=(client, 0))
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers={"Host": "example.org", **named})
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if answer.status == 200 else body


@pytest.fixture
def nginx() -> Iterator[Callable[..., Nginx]]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    lack = ""
    if program is None:
        lack = "no nginx (Debian: apt-get install nginx)"
    elif not STREAM_MODULE.exists():
        lack = f"no {STREAM_MODULE} (Debian: apt-get install libnginx-mod-stream)"
    if lack:
        if os.environ.get("CI") == "true":
            pytest.fail(lack)
        pytest.skip(lack)
    made: list[Nginx] = []

    def make(app: int, proxied: int) -> Nginx:
        assert program is not None
        one = Nginx(program, app, proxied)
        made.append(one)
        one.wait()
        return one

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("app", [FLASK, FASTAPI], ids=["flask", "fastapi"])
def test_behind_nginx(daemon: Daemon, nginx: Callable[..., Nginx], app: str) -> None:
    server = daemon(start=False, app=app, forwarded={"trust": ["127.0.0.1"]})
    proxied = free_port()
    server.write_config(
        listen=[
            f"127.0.0.1:{server.port}",
            {"address": f"127.0.0.1:{proxied}", "proxy_protocol": True},
        ]
    )
    server.start()
    front = nginx(server.port, proxied)

    # Different clients over the connections that nginx keeps.
    for client in ("127.0.0.7", "127.0.0.8", "127.0.0.7"):
        for port, scheme in ((front.http, "http"), (front.https, "https")):
            said = [client, scheme, f"{scheme}://example.org/"]
            assert ask(port, client) == (200, said)
    # What a client claims is before what nginx appends, and nobody vouches for it.
    assert ask(front.http, X_Forwarded_For="192.0.2.1")[1][0] == "127.0.0.7"
    assert ask(front.http, X_Forwarded_Proto="https")[1][1] == "http"
    # By the PROXY protocol, where nginx adds no field, and a client's own is not believed.
    said = ["127.0.0.9", "http", "http://example.org/"]
    assert ask(front.stream, "127.0.0.9") == (200, said)
    claims = {"X_Forwarded_For": "192.0.2.1", "X_Forwarded_Proto": "https"}
    assert ask(front.stream, "127.0.0.9", **claims) == (200, said)
    if app is FASTAPI:
        for port, client, scheme in (
            (front.http, "127.0.0.7", "ws"),
            (front.https, "127.0.0.8", "wss"),
            (front.stream, "127.0.0.9", "ws"),
        ):
            with connect(f"ws://127.0.0.1:{port}/ws", source_address=(client, 0)) as websocket:
                assert json.loads(websocket.recv(SLOW)) == [client, scheme]
    assert server.stop() == 0
    lines = (server.directory / "access.log").read_text().splitlines()
    clients = [line.partition(" ")[0] for line in lines]
    assert set(clients) == {"127.0.0.7", "127.0.0.8", "127.0.0.9"}
    assert clients.count("127.0.0.9") == (3 if app is FASTAPI else 2)
