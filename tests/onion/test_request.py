"""The request's side of a context, as it comes over the wire."""

import json
from typing import Any

import msgspec
import pytest

from prefork import Application


def ask(serve: Any, look: Any, *args: Any, app: Application | None = None, **kwargs: Any) -> Any:
    """What `look(ctx)` finds in a request, by JSON."""
    app = app or Application()

    @app.use
    async def handler(ctx):
        ctx.body = {"found": look(ctx)}

    answer = serve(app).ask(*args, **kwargs)
    assert answer.status == 200, answer
    return json.loads(answer.body)["found"]


@pytest.mark.parametrize(
    ("target", "path", "querystring"),
    [
        ("/", "/", ""),
        ("/a/b?c=d&e", "/a/b", "c=d&e"),
        ("/caf%C3%A9%20bar", "/café bar", ""),
        ("/x?", "/x", ""),
        ("http://example.org:8000/abs?q=1", "/abs", "q=1"),
    ],
)
def test_the_target_and_its_parts(serve, target, path, querystring):
    def look(ctx):
        assert ctx.url == ctx.original_url == ctx.request.url == target
        assert ctx.request.path == ctx.path
        return [ctx.path, ctx.querystring, ctx.href]

    absolute = target if "://" in target else f"http://example.org:8000{target}"
    assert ask(serve, look, "GET", target) == [path, querystring, absolute]


def test_method_host_and_where_it_came_from(serve):
    def look(ctx):
        assert ctx.method == ctx.request.method == "POST"
        return [ctx.host, ctx.hostname, ctx.protocol, ctx.secure, ctx.origin, ctx.ip, ctx.ips]

    assert ask(serve, look, "POST") == [
        *("example.org:8000", "example.org", "http", False),
        *("http://example.org:8000", "unix:", []),
    ]


def test_an_ipv6_host_name_loses_its_brackets(serve):
    def look(ctx):
        return ctx.hostname

    assert ask(serve, look, "GET", "/", {"Host": "[::1]:80"}) == "::1"


FORWARDED = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "public.example",
    "X-Forwarded-For": "192.0.2.1, 10.0.0.1",
}


def look_forwarded(ctx):
    return [ctx.protocol, ctx.secure, ctx.host, ctx.ip, ctx.ips]


def test_forwarded_headers_count_only_behind_a_proxy(serve):
    found = ask(serve, look_forwarded, "GET", "/", FORWARDED)
    assert found == ["http", False, "example.org:8000", "unix:", []]
    found = ask(serve, look_forwarded, "GET", "/", FORWARDED, app=Application(proxy=True))
    assert found == [
        *("https", True, "public.example", "192.0.2.1"),
        ["192.0.2.1", "10.0.0.1"],
    ]


def test_the_query_is_a_mapping_of_first_values(serve):
    def look(ctx):
        assert ctx.query is ctx.request.query
        assert "b" in ctx.query
        assert ctx.query.get("none") is None
        assert ctx.query.get_all("none") == []
        return [dict(ctx.query), ctx.query.get_all("a")]

    found = ask(serve, look, "GET", "/?a=1&b=%C3%A9+x&a=2&empty=")
    assert found == [{"a": "1", "b": "é x", "empty": ""}, ["1", "2"]]


def test_a_query_of_a_thousand_fields_is_enough(serve):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.body = str(len(ctx.query))

    site = serve(app)
    assert site.get("/?" + "&".join(f"a{n}" for n in range(1000))).text == "1000"
    assert site.get("/?" + "&".join(f"a{n}" for n in range(1001))).status == 400


def test_rewriting_the_path_keeps_the_query_and_the_original(serve):
    app = Application()

    @app.use
    async def mount(ctx, next):
        assert ctx.query.get("q") == "1"
        ctx.path = ctx.path.removeprefix("/blög")
        await next()

    def look(ctx):
        return [ctx.path, ctx.url, ctx.original_url, ctx.query["q"]]

    found = ask(serve, look, "GET", "/bl%C3%B6g/a%20b?q=1", app=app)
    assert found == ["/a b", "/a%20b?q=1", "/bl%C3%B6g/a%20b?q=1", "1"]


def test_rewriting_url_and_querystring(serve):
    def look(ctx):
        ctx.url = "/other?x=1"
        first = [ctx.path, ctx.query["x"]]
        ctx.request.querystring = "x=2"
        second = [ctx.url, ctx.query["x"]]
        ctx.request.querystring = ""
        return [*first, *second, ctx.url]

    assert ask(serve, look, "GET", "/") == ["/other", "1", "/other?x=2", "2", "/other"]


def test_header_fields(serve):
    def look(ctx):
        assert ctx.headers.get("x-one") == "1"
        return [ctx.get("X-One"), ctx.get("x-one"), ctx.get("X-None"), ctx.get("Referrer")]

    fields = {"X-One": "1", "Referer": "http://a/"}
    assert ask(serve, look, "GET", "/", fields) == ["1", "1", "", "http://a/"]


def test_what_the_body_is(serve):
    def look(ctx):
        request = ctx.request
        return [
            *(request.type, request.charset, request.length),
            *(ctx.is_("json"), ctx.is_("html", "json"), ctx.is_("application/*"), ctx.is_("html")),
        ]

    fields = {"Content-Type": 'Application/JSON; charset="UTF-8"'}
    assert ask(serve, look, "POST", "/", fields, b"{}") == [
        *("application/json", "utf-8", 2),
        *("json", "json", "application/json", None),
    ]


def test_a_suffix_matches_and_no_body_matches_nothing(serve):
    def look(ctx):
        return [ctx.is_("+json"), ctx.is_(), ctx.is_("json")]

    fields = {"Content-Type": "application/problem+json"}
    full = "application/problem+json"
    assert ask(serve, look, "POST", "/", fields, b"{}") == [full, full, None]
    assert ask(serve, look, "POST", "/", fields) == [None, None, None]


@pytest.mark.parametrize(
    ("accept", "offered", "best"),
    [
        ("", ("html", "json"), "html"),
        ("*/*", ("json", "html"), "json"),
        ("text/html, */*;q=0.1", ("json", "html"), "html"),
        ("text/*;q=0.5, text/html;q=0.1, text/plain", ("html", "text"), "text"),
        ("application/json;q=0", ("json",), None),
        ("image/png", ("html", "json"), None),
        ("application/json, text/html", ("html", "json"), "html"),
        ("text/html;level=1;q=0.4, application/json;q=0.5", ("html", "json"), "json"),
        ("*/*;q=0.8, text/html;q=0", ("html", "json"), "json"),
        ("nonsense", ("html",), "html"),
        ("text/html;q=nonsense", ("html",), None),
    ],
)
def test_what_a_client_accepts(serve, accept, offered, best):
    fields = {"Accept": accept} if accept else {}
    assert ask(serve, lambda ctx: ctx.accepts(*offered), "GET", "/", fields) == best


# Bodies


def test_the_body_is_read_once_and_kept(serve):
    app = Application()

    @app.use
    async def outer(ctx, next):
        assert await ctx.request.body() == b'{"a": [1]}'
        await next()

    @app.use
    async def inner(ctx):
        assert await ctx.request.text() == '{"a": [1]}'
        ctx.body = await ctx.request.json()

    answer = serve(app).ask("POST", "/", {}, b'{"a": [1]}')
    assert json.loads(answer.body) == {"a": [1]}


def test_the_body_is_a_stream(serve):
    app = Application()

    @app.use
    async def count(ctx):
        size = 0
        async for chunk in ctx.request:
            assert isinstance(chunk, bytes)
            size += len(chunk)
        assert ctx.request.stream.at_end
        ctx.body = str(size)

    site = serve(app)
    assert site.ask("PUT", "/", {}, bytes(1_000_000)).text == "1000000"
    assert site.get().text == "0"


class Point(msgspec.Struct):
    x: int
    y: int = 0


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b'{"x": 1}', 200, "1 0"),
        (b'{"x": "1"}', 400, "invalid value in the JSON body: Expected `int`, got `str`"),
        (b"{", 400, "invalid JSON"),
        (b"", 400, "invalid JSON"),
        (b'{"x": 1, "z": ' + b"[" * 100_000, 400, "invalid JSON"),
    ],
)
def test_json_is_checked_against_a_type(serve, body, status, text):
    app = Application()

    @app.use
    async def handler(ctx):
        point = await ctx.request.json(Point)
        ctx.body = f"{point.x} {point.y}"

    answer = serve(app).ask("POST", "/", {}, body)
    assert answer.status == status
    assert text in answer.text


@pytest.mark.parametrize("body", [b'"\xff"', b"[" * 100_000, b"nope", b"1 2"])
def test_json_of_any_type_is_still_json(serve, body):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.body = await ctx.request.json()

    answer = serve(app).ask("POST", "/", {}, body)
    assert (answer.status, answer.text[:12]) == (400, "invalid JSON")


@pytest.mark.parametrize(
    ("charset", "body", "status", "text"),
    [
        ("latin-1", b"caf\xe9", 200, "café"),
        ("utf-8", b"caf\xe9", 400, "the body is not utf-8"),
        ("klingon", b"x", 415, "unknown charset 'klingon'"),
        ("hex", b"xyz", 415, "unknown charset"),
    ],
)
def test_text_has_a_charset(serve, charset, body, status, text):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.body = await ctx.request.text()

    fields = {"Content-Type": f"text/plain; charset={charset}"}
    answer = serve(app).ask("POST", "/", fields, body)
    assert answer.status == status
    assert text in answer.text


def test_a_body_beyond_the_limit_is_413_and_no_error_of_ours(serve):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.body = await ctx.request.json()

    site = serve(app, limits={"body": 10})
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n%b\r\n"
    answer = site.ask_raw(chunked % (b"x" * 20))
    assert answer.status == 413
    assert answer.get("connection") == "close"


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(serve):
    app = Application()
    ended = []

    @app.use
    async def handler(ctx):
        try:
            await ctx.request.body()
        finally:
            ended.append(True)

    site = serve(app)
    client = site.connect()
    client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    site.until(lambda: site.server.requests_running)
    client.close()
    site.until(lambda: ended)
    assert "[error]" not in site.log


# Cookies


def test_cookies_that_came(serve):
    def look(ctx):
        return [ctx.cookies.get("a"), ctx.cookies.get("q"), ctx.cookies.get("x"), ctx.cookies.all()]

    found = ask(serve, look, "GET", "/", {"Cookie": 'a=1; q="two"; a=3; junk'})
    assert found == ["1", "two", None, {"a": "1", "q": "two"}]


def test_cookies_that_go(serve):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.cookies.set("a", "1")
        ctx.cookies.set(
            *("b", "2"), max_age=60, expires=0, path="/x", domain="example.org", secure=True,
            http_only=False, same_site="lax",
        )  # fmt: skip
        ctx.cookies.set("old", None)
        ctx.body = "ok"

    assert serve(app).get().get_all("Set-Cookie") == [
        "a=1; Path=/; HttpOnly",
        "b=2; Path=/x; Domain=example.org; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60; "
        "Secure; SameSite=Lax",
        "old=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; HttpOnly",
    ]


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("a b", "1", {}),
        ("a", "1; HttpOnly", {}),
        ("a", "é", {}),
        ("a", "1\r\nX: y", {}),
        ("a", "1", {"path": "/; Domain=evil"}),
    ],
)
def test_a_cookie_that_would_break_the_header_is_the_handlers_bug(serve, name, value, options):
    app = Application()

    @app.use
    async def handler(ctx):
        ctx.cookies.set(name, value, **options)

    site = serve(app)
    assert site.get().status == 500
    assert "invalid" in site.errors()
