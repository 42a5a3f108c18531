"""Real frameworks in the real server, and the samples under conf/ that start them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gateway.asking import ask

Hosted = Callable[..., Any]
CONF = Path(__file__).parents[2] / "conf"

FLASK = """
import io
from flask import (
    Flask, Response, redirect, request, send_file, session, stream_with_context, url_for
)

app = Flask(__name__)
app.secret_key = "k"

@app.get("/")
def hello():
    return "hello"

@app.get("/async")
async def asynchronous():
    return {"async": True}

@app.get("/stream")
def stream():
    def pieces():
        for n in range(3):
            yield f"{n} {request.path} "
    return Response(stream_with_context(pieces()), mimetype="text/plain")

@app.post("/upload")
def upload():
    file = request.files["file"]
    return {"name": file.filename, "size": len(file.read()), "more": request.form["more"]}

@app.post("/json")
def as_json():
    return request.get_json()

@app.get("/file")
def file():
    return send_file(__file__, mimetype="text/plain", conditional=True)

@app.get("/count")
def count():
    session["n"] = session.get("n", 0) + 1
    return str(session["n"])

@app.get("/links")
def links():
    return [url_for("hello"), url_for("static", filename="a.css"), request.url, request.root_path]

@app.get("/folder/")
def folder():
    return redirect(url_for("hello"))

@app.get("/fail")
def fail():
    raise ValueError("in a view")
"""

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="more"\r\n\r\nyes\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    + b"x" * 200_000
    + b"\r\n--b--\r\n"
)
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


def test_flask_below_a_prefix(hosted: Hosted) -> None:
    """As behind nginx's `proxy_pass http://…/;`: its links have what its paths come without."""
    port = hosted(FLASK, root_path="/old/shop").port
    prefix = "/old/shop"
    host = {"Host": "example.org"}
    links = json.loads(ask(port, "GET", "/links?q=1", headers=host)[1])
    assert links[:2] == [f"{prefix}/", f"{prefix}/static/a.css"]
    assert links[2] == f"http://example.org{prefix}/links?q=1"
    assert links[3] == prefix
    answer, _ = ask(port, "GET", "/folder", headers=host)  # the slash is the router's
    assert answer.headers["Location"] == f"http://example.org{prefix}/folder/"
    assert ask(port, "GET", "/folder/")[0].headers["Location"] == f"{prefix}/"
    assert ask(port, "GET", f"{prefix}/links")[0].status == 404  # not what that proxy sends


def test_flask(hosted: Hosted) -> None:
    server = hosted(FLASK)
    server.expect("in a view|Exception on /fail")
    port = server.port
    assert "WSGI, from its two-argument callable" in server.log
    answer, body = ask(port, "GET", "/")
    assert (answer.status, body, answer.headers["Content-Length"]) == (200, b"hello", "5")
    assert json.loads(ask(port, "GET", "/async")[1]) == {"async": True}
    assert ask(port, "GET", "/stream")[1] == b"0 /stream 1 /stream 2 /stream "
    said = json.loads(ask(port, "POST", "/upload", FORM, MULTIPART)[1])
    assert said == {"name": "a.bin", "size": 200_000, "more": "yes"}
    # Chunked: nobody said how long it is.
    said = json.loads(ask(port, "POST", "/upload", iter([FORM]), MULTIPART, encode_chunked=True)[1])
    assert said["size"] == 200_000
    kind = {"Content-Type": "application/json"}
    assert json.loads(ask(port, "POST", "/json", b'{"a": [1]}', kind)[1]) == {"a": [1]}
    answer, body = ask(port, "GET", "/file")
    assert body == (server.directory / "application.py").read_bytes()
    assert ask(port, "GET", "/file", headers={"Range": "bytes=1-6"})[1] == body[1:7]
    tag = {"If-None-Match": answer.headers["ETag"]}
    assert ask(port, "GET", "/file", headers=tag)[0].status == 304
    answer, body = ask(port, "GET", "/count")
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    assert ask(port, "GET", "/count", headers={"Cookie": cookie})[1] == b"2"
    answer, body = ask(port, "GET", "/nowhere")
    assert (answer.status, answer.reason) == (404, "NOT FOUND")
    assert ask(port, "HEAD", "/")[0].headers["Content-Length"] == "5"
    assert ask(port, "GET", "/fail")[0].status == 500
    assert "Exception on /fail [GET]" in server.log
    assert "ValueError: in a view" in server.log


DJANGO = """
import os
from pathlib import Path

import django
from django.conf import settings

BASE = Path(__file__).parent
settings.configure(
    SECRET_KEY="k", DEBUG=False, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE / "db.sqlite3"}},
    INSTALLED_APPS=["django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
                    "django.contrib.sessions", "django.contrib.messages"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware",
                "django.contrib.sessions.middleware.SessionMiddleware",
                "django.middleware.csrf.CsrfViewMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "django.contrib.messages.middleware.MessageMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
                "OPTIONS": {"context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages"]}}],
    STATIC_URL="/static/",
)
django.setup()

from django.contrib import admin
from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

def hello(request):
    return HttpResponse("hello")

def users(request):
    return JsonResponse({"users": [user.username for user in User.objects.all()]})

def stream(request):
    return StreamingHttpResponse(f"{n} " for n in range(3))

def file(request):
    return FileResponse(open(__file__, "rb"), content_type="text/plain")

@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    return JsonResponse({"name": file.name, "size": file.size, "more": request.POST["more"]})

async def asynchronous(request):
    return JsonResponse({"async": True})

urlpatterns = [path("", hello), path("users", users), path("stream", stream), path("file", file),
               path("upload", upload), path("async", asynchronous),
               path("admin/", admin.site.urls)]

call_command("migrate", verbosity=0)
if not User.objects.exists():
    User.objects.create_superuser("root", "", "secret")

app = StaticFilesHandler(get_wsgi_application())
"""


def test_django(hosted: Hosted) -> None:
    server = hosted(DJANGO)
    port = server.port
    answer, body = ask(port, "GET", "/")
    assert (answer.status, body, answer.headers["Content-Length"]) == (200, b"hello", "5")
    # The ORM refuses to work where it finds a running event loop.
    assert json.loads(ask(port, "GET", "/users")[1]) == {"users": ["root"]}
    assert json.loads(ask(port, "GET", "/async")[1]) == {"async": True}
    assert ask(port, "GET", "/stream")[1] == b"0 1 2 "
    answer, body = ask(port, "GET", "/file")
    assert body == (server.directory / "application.py").read_bytes()
    said = json.loads(ask(port, "POST", "/upload", FORM, MULTIPART)[1])
    assert said == {"name": "a.bin", "size": 200_000, "more": "yes"}
    answer, body = ask(port, "GET", "/static/admin/css/base.css")
    assert answer.status == 200
    assert len(body) == int(answer.headers["Content-Length"]) > 1000
    # The admin's log-in, as a browser does it.
    answer, body = ask(port, "GET", "/admin/login/")
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    token = re.search(rb'name="csrfmiddlewaretoken" value="(\w+)"', body)
    assert token is not None
    form = b"username=root&password=secret&next=/admin/&csrfmiddlewaretoken=" + token[1]
    head = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
    answer, body = ask(port, "POST", "/admin/login/", form, head)
    assert (answer.status, answer.headers["Location"]) == (302, "/admin/")
    cookies = [value.partition(";")[0] for value in answer.headers.get_all("Set-Cookie")]
    answer, body = ask(port, "GET", "/admin/", headers={"Cookie": "; ".join(cookies)})
    assert answer.status == 200
    assert b"Site administration" in body


FALCON = """
import falcon

class Hello:
    def on_get(self, req, resp):
        resp.text = "hello"

    def on_post(self, req, resp):
        resp.media = {"got": req.get_media(), "path": req.path, "query": req.query_string}

class Stream:
    def on_get(self, req, resp):
        resp.content_type = "text/plain"
        resp.stream = iter([b"one ", b"two"])

    def on_put(self, req, resp):
        resp.media = len(req.bounded_stream.read())

class Fail:
    def on_get(self, req, resp):
        raise falcon.HTTPConflict(title="no")

app = falcon.App()
app.add_route("/", Hello())
app.add_route("/stream", Stream())
app.add_route("/fail", Fail())
"""


def test_falcon(hosted: Hosted) -> None:
    server = hosted(FALCON)
    port = server.port
    assert ask(port, "GET", "/")[1] == b"hello"
    kind = {"Content-Type": "application/json"}
    said = json.loads(ask(port, "POST", "/?a=1", b'{"b": 2}', kind)[1])
    assert said == {"got": {"b": 2}, "path": "/", "query": "a=1"}
    assert ask(port, "GET", "/stream")[1] == b"one two"
    assert json.loads(ask(port, "PUT", "/stream", b"x" * 3_000_000)[1]) == 3_000_000
    assert ask(port, "GET", "/fail")[0].status == 409


SAMPLES = {"flask": ("main.py", FLASK), "falcon": ("main.py", FALCON), "django": ("", "")}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_sample_serves(daemon: Any, name: str) -> None:
    server = daemon(start=False)
    sample = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    file, source = SAMPLES[name]
    if file:
        (server.directory / file).write_text(source)
    else:
        subprocess.run(
            [sys.executable, "-m", "django", "startproject", "project", "."],
            cwd=server.directory,
            check=True,
            timeout=60,
        )
    (server.directory / "sample.yaml").write_text((CONF / f"{name}.yaml").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "check", "-c", "sample.yaml", "--app"],
        cwd=server.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "(imported: WSGI, from its two-argument callable)" in done.stdout
    listen, log = server.config["listen"], server.config["log"]
    server.write_config(**sample)
    server.write_config(listen=listen, log=log, workers=1)
    server.start()
    assert server.get("/").status == 200
    assert "[warn]" not in server.log
