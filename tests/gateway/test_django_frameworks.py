"""A Django project in the real server, by its wsgi.py and by its asgi.py, as a browser sees it."""

import contextlib
import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

from tests.gateway.asking import FORM, MULTIPART, ask

Hosted = Callable[..., Any]

PROJECT = """
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
from django.core.management import call_command
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

def fail(request):
    raise ValueError("in a view")

urlpatterns = [path("", hello), path("users", users), path("stream", stream), path("file", file),
               path("upload", upload), path("async", asynchronous), path("fail", fail),
               path("admin/", admin.site.urls)]

call_command("migrate", verbosity=0)
if not User.objects.exists():
    User.objects.create_superuser("root", "", "secret")
"""

WSGI = """
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

app = StaticFilesHandler(get_wsgi_application())
"""

ASGI = """
import asyncio
from asgiref.sync import sync_to_async
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

async def async_users(request):
    made, _ = await User.objects.aget_or_create(username="made")
    return JsonResponse({
        "users": [user.username async for user in User.objects.order_by("pk")],
        "count": await User.objects.acount(),
        "in a thread": await sync_to_async(lambda: User.objects.get(pk=made.pk).username)(),
    })

async def async_stream(request):
    async def pieces():
        for number in range(3):
            yield f"{number} "
            await asyncio.sleep(0)
    return StreamingHttpResponse(pieces())

async def events(request):
    async def pieces():
        try:
            while True:
                yield "data: tick\\n\\n"
                await asyncio.sleep(0.01)
        finally:
            open("events-over", "w").close()
    return StreamingHttpResponse(pieces(), content_type="text/event-stream")

async def hang(request):
    open("hangs", "w").close()
    try:
        await asyncio.Event().wait()
    finally:
        open("hang-over", "w").close()

@csrf_exempt
async def async_upload(request):
    file = request.FILES["file"]
    return JsonResponse({"name": file.name, "size": file.size, "more": request.POST["more"]})

@csrf_exempt
async def echo(request):
    return HttpResponse(request.body)

async def session(request):
    count = await request.session.aget("count", 0) + 1
    await request.session.aset("count", count)
    return HttpResponse(str(count))

urlpatterns += [path("async/users", async_users), path("async/stream", async_stream),
                path("async/upload", async_upload), path("async/session", session),
                path("async/echo", echo),
                path("events", events), path("hang", hang)]

app = ASGIStaticFilesHandler(get_asgi_application())
"""


def browse(server: Any) -> None:
    """What must look the same by either interface."""
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
    since = {"If-Modified-Since": answer.headers["Last-Modified"]}
    assert ask(port, "GET", "/static/admin/css/base.css", headers=since)[0].status == 304
    assert ask(port, "HEAD", "/")[0].headers["Content-Length"] == "5"
    log_in(port)
    server.expect("ValueError|Internal Server Error: /fail")
    assert ask(port, "GET", "/fail")[0].status == 500
    assert ask(port, "GET", "/nowhere")[0].status == 404


def log_in(port: int) -> None:
    """The admin's log-in, as a browser does it."""
    answer, body = ask(port, "GET", "/admin/")
    assert (answer.status, answer.headers["Location"]) == (302, "/admin/login/?next=/admin/")
    answer, body = ask(port, "GET", "/admin/login/")
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    token = re.search(rb'name="csrfmiddlewaretoken" value="(\w+)"', body)
    assert token is not None
    form = b"username=root&password=secret&next=/admin/&csrfmiddlewaretoken="
    head = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
    assert ask(port, "POST", "/admin/login/", form + b"x" * 64, head)[0].status == 403
    answer, body = ask(port, "POST", "/admin/login/", form + token[1], head)
    assert (answer.status, answer.headers["Location"]) == (302, "/admin/")
    cookies = [value.partition(";")[0] for value in answer.headers.get_all("Set-Cookie")]
    answer, body = ask(port, "GET", "/admin/", headers={"Cookie": "; ".join(cookies)})
    assert answer.status == 200
    assert b"Site administration" in body


@contextlib.contextmanager
def events(server: Any) -> Iterator[socket.socket]:
    """A client that has heard the first of them."""
    with server.connect() as sock:
        sock.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while b"tick" not in data:
            data += sock.recv(65536)
        yield sock


def test_django_by_wsgi(hosted: Hosted) -> None:
    browse(hosted(PROJECT + WSGI))


def test_django_by_asgi(daemon: Hosted) -> None:
    server = daemon(app=PROJECT + ASGI)
    port = server.port
    assert "ASGI 3" in server.log
    assert "[warn]" not in server.log  # that it has no lifespan is nobody's concern
    browse(server)
    said = json.loads(ask(port, "GET", "/async/users")[1])
    assert said == {"users": ["root", "made"], "count": 2, "in a thread": "made"}
    assert ask(port, "GET", "/async/stream")[1] == b"0 1 2 "
    said = json.loads(ask(port, "POST", "/async/upload", FORM, MULTIPART)[1])
    assert said == {"name": "a.bin", "size": 200_000, "more": "yes"}
    # Django parses no form without a Content-Length; other bodies it takes in chunks, too.
    pieces = iter([b"in ", b"chunks"])
    assert ask(port, "POST", "/async/echo", pieces, encode_chunked=True)[1] == b"in chunks"
    answer, text = ask(port, "GET", "/async/session")
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    assert (text, ask(port, "GET", "/async/session", headers={"Cookie": cookie})[1]) == (b"1", b"2")
    # A client that leaves: Django hears of it and ends the view, or the stream.
    with server.connect() as sock:
        sock.sendall(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for((server.directory / "hangs").exists)
    server.wait_for((server.directory / "hang-over").exists)
    with events(server):
        pass
    server.wait_for((server.directory / "events-over").exists)
    (server.directory / "events-over").unlink()
    # And a server that leaves.
    with events(server) as sock:
        server.send(signal.SIGQUIT)
        data = b""
        while more := sock.recv(65536):
            data += more
        assert data.endswith(b"0\r\n\r\n")
    assert server.wait() == 0
    assert (server.directory / "events-over").exists()
