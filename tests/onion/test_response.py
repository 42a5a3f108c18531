"""Koa's rules for status, body, type and header fields, as they reach the wire."""

import datetime
from typing import Any

import pytest

from prefork import Application

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"


def answer_of(serve: Any, act: Any, method: str = "GET") -> Any:
    app = Application()

    @app.use
    async def handler(ctx):
        act(ctx)

    return serve(app).ask(method)


def setting(**members: Any) -> Any:
    """A handler that sets these members of the context, in order."""

    def act(ctx):
        for name, value in members.items():
            setattr(ctx, name, value)

    return act


# Status and body


@pytest.mark.parametrize(
    ("members", "status", "body", "content_type", "length"),
    [
        ({}, 404, b"Not Found", TEXT, "9"),
        ({"status": 200}, 200, b"OK", TEXT, "2"),
        ({"status": 299}, 299, b"299", TEXT, "3"),
        ({"status": 503}, 503, b"Service Unavailable", TEXT, "19"),
        ({"status": 202, "message": "wait a bit"}, 202, b"wait a bit", TEXT, "10"),
        ({"body": "hi"}, 200, b"hi", TEXT, "2"),
        ({"body": ""}, 200, b"", TEXT, "0"),
        ({"body": "é"}, 200, "é".encode(), TEXT, "2"),
        ({"status": 201, "body": "hi"}, 201, b"hi", TEXT, "2"),
        ({"body": "hi", "status": 201}, 201, b"hi", TEXT, "2"),
        ({"body": "<p>hi"}, 200, b"<p>hi", HTML, "5"),
        ({"body": "\n  <p>hi"}, 200, b"\n  <p>hi", HTML, "8"),
        ({"body": "1 < 2"}, 200, b"1 < 2", TEXT, "5"),
        ({"body": b"\0\1"}, 200, b"\0\1", "application/octet-stream", "2"),
        ({"body": bytearray(b"ab")}, 200, b"ab", "application/octet-stream", "2"),
        ({"body": memoryview(b"ab")}, 200, b"ab", "application/octet-stream", "2"),
        ({"body": {"a": [1, None]}}, 200, b'{"a":[1,null]}', "application/json", "14"),
        ({"body": [1, 2]}, 200, b"[1,2]", "application/json", "5"),
        ({"body": 5}, 200, b"5", "application/json", "1"),
        ({"body": False}, 200, b"false", "application/json", "5"),
        ({"body": {}}, 200, b"{}", "application/json", "2"),
        ({"body": None}, 204, b"", None, None),
        ({"body": "hi", "status": 204}, 204, b"", None, None),
        ({"status": 204, "body": "hi"}, 204, b"", None, None),
        ({"status": 304, "body": "hi"}, 304, b"", None, None),
        ({"status": 205, "body": "hi"}, 205, b"", None, "0"),
        ({"status": 200, "body": None}, 204, b"", None, None),
        ({"status": 304, "body": None}, 304, b"", None, None),
        ({"body": None, "status": 200}, 200, b"", None, "0"),
        ({"body": "hi", "status": 204, "message": "x"}, 204, b"", None, None),
    ],
)
def test_status_and_body(serve, members, status, body, content_type, length):
    answer = answer_of(serve, setting(**members))
    assert answer.whole
    assert (answer.status, answer.body) == (status, body)
    assert answer.get("content-type") == content_type
    assert answer.get("content-length") == length


def test_a_body_after_none_is_sent_again(serve):
    def act(ctx):
        ctx.body = None
        assert ctx.status == 204
        ctx.body = "back"

    answer = answer_of(serve, act)
    assert (answer.status, answer.text) == (200, "back")


@pytest.mark.parametrize("status", [100, 99, 1000, 0, -1, "200", 200.0, None])
def test_a_status_that_is_none_is_the_handlers_bug(serve, status):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.status = status

    site = serve(app)
    assert site.get().status == 500
    assert "status" in site.errors()


def test_what_cannot_be_json_is_the_handlers_bug(serve):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.body = {"a": object()}

    site = serve(app)
    assert site.get().text == "Internal Server Error"
    assert "TypeError" in site.errors()


def test_the_context_reads_back_what_it_was_given(serve):
    def act(ctx):
        assert (ctx.status, ctx.body, ctx.type, ctx.length) == (404, None, "", None)
        assert ctx.message == "Not Found"
        ctx.body = "hé"
        assert (ctx.status, ctx.body, ctx.type, ctx.length) == (200, "hé", "text/plain", 3)
        assert ctx.response.body == "hé"
        assert ctx.response.status == 200
        assert ctx.writable
        assert not ctx.header_sent
        ctx.response.message = "fine"
        assert ctx.message == ctx.response.message == "fine"
        assert ctx.state == {}
        ctx.state["a"] = 1
        assert ctx.state == {"a": 1}
        assert ctx.app.layers

    assert answer_of(serve, act).text == "hé"


# HEAD


@pytest.mark.parametrize(
    ("members", "status", "length"),
    [
        ({"body": "hello"}, 200, "5"),
        ({"body": {"a": 1}}, 200, "7"),
        ({}, 404, "9"),
        ({"status": 200, "length": 1234}, 200, "1234"),
        ({"body": None}, 204, None),
    ],
)
def test_head_has_the_head_of_get(serve, members, status, length):
    answer = answer_of(serve, setting(**members), "HEAD")
    assert (answer.status, answer.body) == (status, b"")
    assert answer.get("content-length") == length


# Type


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("html", HTML),
        ("text", TEXT),
        ("json", "application/json"),
        (".png", "image/png"),
        ("png", "image/png"),
        ("js", "text/javascript; charset=utf-8"),
        ("image/avif", "image/avif"),
        ("text/x-own", "text/x-own; charset=utf-8"),
        ("text/html; charset=latin-1", "text/html; charset=latin-1"),
        ("events", "text/event-stream; charset=utf-8"),
        ("application/problem+json", "application/problem+json"),
    ],
)
def test_types_by_name(serve, kind, sent):
    assert answer_of(serve, setting(type=kind, body="x")).get("content-type") == sent
    assert answer_of(serve, setting(body="x", type=kind)).get("content-type") == sent


def test_json_replaces_a_type_that_is_not_json(serve):
    answer = answer_of(serve, setting(type="html", body={"a": 1}))
    assert answer.get("content-type") == "application/json"
    answer = answer_of(serve, setting(type="application/problem+json", body={"a": 1}))
    assert answer.get("content-type") == "application/problem+json"
    answer = answer_of(serve, setting(body={"a": 1}, type="text"))
    assert answer.get("content-type") == TEXT


def test_a_replaced_body_keeps_its_type_but_not_its_length(serve):
    def compress(ctx):
        ctx.body = "<p>"
        ctx.length = 3
        ctx.body = b"compressed"

    answer = answer_of(serve, compress)
    assert answer.get("content-type") == HTML
    assert answer.body == b"compressed"
    assert answer.get("content-length") == "10"


def test_a_type_that_was_removed_is_not_sent(serve):
    def act(ctx):
        ctx.body = "x"
        ctx.remove("Content-Type")
        assert ctx.type == ""
        assert not ctx.has("Content-Type")

    assert answer_of(serve, act).get("content-type") is None

    def again(ctx):
        act(ctx)
        ctx.body = "<p>"

    assert answer_of(serve, again).get("content-type") == HTML


# Header fields


def test_fields_are_set_appended_and_removed(serve):
    def act(ctx):
        ctx.set("X-One", "1")
        ctx.set("x-one", "2")
        ctx.set({"X-Two": "2", "X-Number": 3})
        ctx.response.set("X-Many", ["a", "b"])
        ctx.append("X-Many", "c")
        ctx.append("X-New", "n")
        ctx.set("X-Gone", "g")
        ctx.remove("X-GONE")
        ctx.remove("X-Never")
        ctx.set("X-Latin", "café\tx")
        assert ctx.has("x-TWO")
        assert not ctx.has("X-Gone")
        assert ctx.response.get("X-Many") == "a, b, c"
        assert ctx.response.headers["x-many"] == ["a", "b", "c"]
        assert ctx.response.headers["x-one"] == "2"
        assert ctx.response.get("X-None") == ""
        ctx.body = "x"

    answer = answer_of(serve, act)
    found = {name: answer.get_all(name) for name, _ in answer.headers if name.startswith("x-")}
    assert found == {
        "x-one": ["2"],
        "x-two": ["2"],
        "x-number": ["3"],
        "x-many": ["a", "b", "c"],
        "x-new": ["n"],
        "x-latin": ["café\tx"],
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\nb"),
        ("X", "a\rb"),
        ("X", "a\0b"),
        ("X", "a\x7fb"),
        ("X", "\N{SNOWMAN}"),
        ("X\r\nY", "a"),
        ("X Y", "a"),
        ("X:", "a"),
        ("", "a"),
        ("Ünicode", "a"),
        ("X", None),
        ("X", 1.5),
        ("X", ["a", "b\r\nc"]),
        ("Connection", "close"),
        ("Transfer-Encoding", "chunked"),
        ("date", "today"),
        ("Content-Length", "-1"),
        ("Content-Length", "1, 2"),
    ],
)
def test_a_field_that_cannot_be_sent_fails_where_it_is_set(serve, name, value):
    app = Application()
    raised = []

    @app.use
    async def handler(ctx):
        ctx.body = "never seen"
        try:
            ctx.set(name, value)
        except (ValueError, TypeError) as error:
            raised.append(error)
            raise

    site = serve(app)
    answer = site.get()
    assert raised
    assert (answer.status, answer.text) == (500, "Internal Server Error")
    assert type(raised[0]).__name__ in site.errors()


def test_vary_collects(serve):
    def act(ctx):
        for name in ("Accept", "accept", "Origin"):
            ctx.vary(name)
        ctx.body = "x"

    assert answer_of(serve, act).get("vary") == "Accept, Origin"

    def star(ctx):
        ctx.vary("Accept")
        ctx.vary("*")
        ctx.vary("Origin")

    assert answer_of(serve, star).get("vary") == "*"


def test_last_modified_and_etag(serve):
    moment = datetime.datetime(2026, 11, 23, 22, 47, 42, tzinfo=datetime.UTC)

    def act(ctx):
        assert ctx.last_modified is None
        assert ctx.etag == ""
        ctx.last_modified = moment
        assert ctx.last_modified == moment
        ctx.etag = "abc"
        assert ctx.etag == '"abc"'
        ctx.body = "x"

    answer = answer_of(serve, act)
    assert answer.get("last-modified") == "Mon, 23 Nov 2026 22:47:42 GMT"
    assert answer.get("etag") == '"abc"'
    weak = answer_of(serve, setting(etag='W/"a"', last_modified=0.5, body="x"))
    assert weak.get("etag") == 'W/"a"'
    assert weak.get("last-modified") == "Thu, 01 Jan 1970 00:00:00 GMT"


# Redirects and attachments


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("/login", "/login"),
        ("https://example.org/a?b=c#d", "https://example.org/a?b=c#d"),
        ("/caf%C3%A9", "/caf%C3%A9"),
        ("/café", "/caf%C3%A9"),
        ("/a\r\nSet-Cookie: b=c", "/a%0D%0ASet-Cookie:%20b=c"),
        ('/"><script>', "/%22%3E%3Cscript%3E"),
    ],
)
def test_redirects(serve, url, location):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.redirect(url)

    site = serve(app)
    answer = site.get("/", {"Accept": "text/plain"})
    assert (answer.status, answer.get("location")) == (302, location)
    assert answer.text == f"Redirecting to {location}.\n"
    page = site.get("/", {"Accept": "text/html"})
    assert page.get("content-type") == HTML
    assert "<script>" not in page.text


def test_a_redirecting_status_stays(serve):
    def act(ctx):
        ctx.status = 301
        ctx.redirect("/")

    assert answer_of(serve, act).status == 301


@pytest.mark.parametrize(
    ("name", "disposition", "content_type"),
    [
        (None, "attachment", TEXT),
        ("a.csv", 'attachment; filename="a.csv"', "text/csv; charset=utf-8"),
        ("/etc/a.png", 'attachment; filename="a.png"', "image/png"),
        (
            'né"w.zip',
            "attachment; filename=\"n??w.zip\"; filename*=UTF-8''n%C3%A9%22w.zip",
            "application/zip",
        ),
        ("what.ever", 'attachment; filename="what.ever"', "application/octet-stream"),
    ],
)
def test_attachments(serve, name, disposition, content_type):
    def act(ctx):
        ctx.attachment(name)
        ctx.body = "x"

    answer = answer_of(serve, act)
    assert answer.get("content-disposition") == disposition
    assert answer.get("content-type") == content_type


def test_a_handler_may_write_the_exchange_itself(serve):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.exchange.start(200, b"X-Own: 1\r\n", 2)
        ctx.exchange.write(b"hi")
        assert ctx.header_sent
        # What the context is told now can no longer be said.
        ctx.status = 500
        ctx.set("X-Late", "1")
        ctx.type = "html"
        ctx.append("X-Late", "1")
        ctx.remove("X-Own")

    answer = serve(app).get()
    assert (answer.status, answer.body, answer.whole) == (200, b"hi", True)
    assert answer.get("x-own") == "1"
    assert answer.get("x-late") is None
