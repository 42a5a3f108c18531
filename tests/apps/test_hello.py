"""The application that ships with prefork, behind the real server."""

import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import prefork.apps.hello

RINGS = ["timing", "headers", "errors", "routes"]


@pytest.fixture
def hello(daemon: Any) -> Iterator[Any]:
    """Asks the server: `hello("GET", "/", headers, body)`."""
    server = daemon(app="from prefork.apps.hello import app\n", workers=1)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)

    def ask(method: str, path: str, headers: Any = None, body: Any = None) -> Any:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        answer.content = answer.read()
        answer.text = answer.content.decode()
        return answer

    ask.server = server
    yield ask
    connection.close()


class Page(HTMLParser):
    """Checks that every element is closed, and keeps the links."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_first_page_is_text_for_curl_and_html_for_browsers(hello):
    text = hello("GET", "/", {"Accept": "*/*"})
    assert text.getheader("content-type") == "text/plain; charset=utf-8"
    assert text.text.startswith("Hello from prefork ")
    assert text.getheader("vary") == "Accept"
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    page = hello("GET", "/", {"Accept": browser})
    assert page.getheader("content-type") == "text/html; charset=utf-8"
    links = [link for link in Page(page.text).links if link.startswith("/")]
    for link in links:  # what is offered is there
        status = hello("GET", link).status
        assert status == {"/error": 500, "/throw?status=418": 418}.get(link, 200), link
    assert len(links) >= 7
    hello.server.expect("KeyError: 'pear'")


def test_json(hello):
    answer = hello("GET", "/json?name=%C3%A9", {"User-Agent": "test"})
    found = json.loads(answer.text)
    assert found["hello"] == "é"
    assert found["you"] == {"address": "127.0.0.1", "agent": "test"}
    assert re.fullmatch(r"onion;dur=\d+\.\d+", answer.getheader("server-timing"))


def test_a_streamed_body(hello):
    answer = hello("GET", "/stream?every=0")
    assert answer.getheader("transfer-encoding") == "chunked"
    assert len(answer.text.splitlines()) == 10
    assert hello("GET", "/stream?every=soon").status == 400


def test_an_upload(hello):
    body = bytes(range(256)) * 4000
    answer = hello("PUT", "/upload", {}, body)
    found = json.loads(answer.text)
    assert answer.status == 201
    assert found["bytes"] == len(body)
    assert found["sha256"] == hashlib.sha256(body).hexdigest()
    assert json.loads(hello("POST", "/upload", {}, b"").text)["bytes"] == 0


def test_errors(hello):
    assert hello("GET", "/throw?status=409&message=taken").text == "taken"
    assert hello("GET", "/throw?status=900").status == 400
    wrong = hello("GET", "/throw", {"Accept": "application/json"})
    assert (wrong.status, json.loads(wrong.text)["status"]) == (418, 418)
    assert hello("GET", "/nowhere").text == "Not Found"
    not_allowed = hello("DELETE", "/json")
    assert (not_allowed.status, not_allowed.getheader("allow")) == (405, "GET, HEAD")
    bug = hello("GET", "/error", {"Accept": "application/json"})
    assert (bug.status, bug.text) == (500, "Internal Server Error")
    hello.server.expect("KeyError: 'pear'")


def test_a_file(hello):
    source = Path(prefork.apps.hello.__file__).read_bytes()
    answer = hello("GET", "/file")
    assert answer.content == source
    assert answer.getheader("content-length") == str(len(source))
    assert answer.getheader("last-modified")
    assert hello("HEAD", "/file").getheader("content-length") == str(len(source))


def test_blocking_work_runs_beside_the_loop(hello):
    assert len(json.loads(hello("GET", "/blocking").text)["result"]) == 64


def test_the_onion_shows_its_order_with_times_really_taken(hello):
    answer = hello("GET", "/onion", {"Accept": "application/json"})
    steps = json.loads(answer.text)["steps"]
    assert [(step["ring"], step["way"]) for step in steps] == [
        *((ring, "in") for ring in RINGS),
        ("core", "core"),
        *((ring, "out") for ring in reversed(RINGS)),
    ]
    assert all(step["microseconds"] > 0 for step in steps)
    total = sum(step["microseconds"] for step in steps)
    inside = re.fullmatch(r"onion;dur=(.+)", answer.getheader("server-timing"))
    assert inside is not None
    # The outermost layer measured nearly the same span by its own clock.
    assert float(inside[1]) * 1000 <= total


def test_the_onion_page_stands_alone(hello):
    answer = hello("GET", "/onion", {"Accept": "text/html"})
    assert answer.getheader("content-type") == "text/html; charset=utf-8"
    page = Page(answer.text)
    assert {link for link in page.links if link not in ("", "/", "data:,", "#lane")} == set()
    for ring in [*RINGS, "core"]:
        assert f">{ring}</text>" in answer.text
        assert f"async def {ring}(ctx" in answer.text
    assert "$" not in re.sub(r"<style>.*?</style>", "", answer.text, flags=re.DOTALL)
