"""Lines of the access log: what they say, when they leave, what a hostile peer can do to them."""

import base64
import calendar
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefork.errors import OperatorError
from prefork.http.accesslog import AccessLog, check_format
from prefork.http.logformat import COMBINED, VARIABLES
from prefork.log import LogFile

STAMP = r"\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}"
BROWSER = (
    b"GET /a?b=c HTTP/1.1\r\nHost: example.org\r\nUSER-Agent:Mozilla/5.0 (X11) \r\n"
    b"Referer: \thttps://example.com/\r\n\r\n"
)


@dataclass
class Request:
    head: bytes = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"
    status: int = 200
    bytes_sent: int = 13
    started: float = field(default_factory=time.monotonic)
    connection: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            peer="192.0.2.7", realip="192.0.2.7", number=5, remembered=None
        )
    )

    @property
    def lower(self) -> bytes:
        return self.head.lower()

    @property
    def request_line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]


@pytest.fixture
def file(tmp_path):
    log_file = LogFile(str(tmp_path / "access.log"))
    log_file.open()
    yield log_file
    log_file.close()


def lines(file):
    return Path(file.path).read_text().splitlines()


def one_line(file, format_text, request=None):
    log = AccessLog(file, format_text)
    log.record(request or Request())
    log.close()
    return lines(file)[-1]


def with_fields(*fields):
    return Request(b"GET / HTTP/1.1\r\n" + b"".join(one + b"\r\n" for one in fields) + b"\r\n")


class TestCombined:
    def test_is_nginx_s(self, file):
        line = one_line(file, "combined", Request(BROWSER))
        assert re.fullmatch(
            rf'192\.0\.2\.7 - - \[{STAMP}\] "GET /a\?b=c HTTP/1\.1" 200 13'
            r' "https://example\.com/" "Mozilla/5\.0 \(X11\)"',
            line,
        )

    def test_what_is_missing_is_a_hyphen(self, file):
        line = one_line(file, "combined")
        assert line.endswith('"GET / HTTP/1.1" 200 13 "-" "-"')

    def test_a_request_that_never_came_whole(self, file):
        assert one_line(file, "combined", Request(b"")).endswith('"-" 200 13 "-" "-"')
        assert one_line(file, "combined", Request(b"GET / HT")).endswith(
            '"GET / HT" 200 13 "-" "-"'
        )
        cut = Request(b"GET / HTTP/1.1\r\nUser-Agent: cu")
        assert one_line(file, "combined", cut).endswith('"-" "cu"')

    def test_the_time_is_the_local_one(self, file, monkeypatch):
        monkeypatch.setenv("TZ", "XXX-05:30")
        time.tzset()
        try:
            before = time.time()
            line = one_line(file, "$time_local|$time_iso8601|$msec")
            after = time.time()
        finally:
            monkeypatch.undo()
            time.tzset()
        local, iso, msec = line.split("|")
        logged = calendar.timegm(time.strptime(local[:20], "%d/%b/%Y:%H:%M:%S"))
        assert local.endswith(" +0530")
        assert iso.endswith("+05:30")
        assert int(before) <= logged - 19800 <= after
        assert before - 0.01 <= float(msec) <= after + 0.01

    def test_the_time_moves_on(self, file):
        log = AccessLog(file, "$time_iso8601")
        log.record(Request())
        first = log.time_iso8601
        deadline = time.monotonic() + 10
        while log.time_iso8601 == first and time.monotonic() < deadline:
            time.sleep(0.05)
            log.record(Request())
        log.close()
        assert lines(file)[0] == first
        assert lines(file)[-1] > first


class TestEscaping:
    @pytest.mark.parametrize(
        ("sent", "logged"),
        [
            (b'a"b', r"a\x22b"),
            (b"a\\b", r"a\x5Cb"),
            (b"a\tb\x1b[2J\x7f", r"a\x09b\x1B[2J\x7F"),
            ("é".encode(), r"\xC3\xA9"),
            (b"\xff{x}$status", r"\xFF{x}$status"),
            (b"\n127.0.0.1 - -", r"\x0A127.0.0.1 - -"),
        ],
    )
    def test_default(self, file, sent, logged):
        request = with_fields(b"User-Agent: " + sent)
        assert one_line(file, "$http_user_agent", request) == logged
        assert one_line(file, "$request", Request(sent + b"\r\n\r\n")) == logged

    @pytest.mark.parametrize(
        ("sent", "read"),
        [
            (b'a"b\\c', 'a"b\\c'),
            (b"a\tb\x01", "a\tb\x01"),
            ("é漢".encode(), "é漢"),
            (b"\xff\x80", "\xff\x80"),
            (b"\\x41\xff", "\\x41\xff"),
            (b"\n{}", "\n{}"),
        ],
    )
    def test_json_is_always_json(self, file, sent, read):
        record = json.loads(one_line(file, "json", with_fields(b"Referer: " + sent)))
        assert record["http_referer"] == read
        assert json.loads(one_line(file, "json", Request(sent + b"\r\n\r\n")))["request"] == read


def test_json_fields(file):
    request = Request(BROWSER, status=404, bytes_sent=0, started=time.monotonic() - 1.5)
    record = json.loads(one_line(file, "json", request))
    assert 1.4 < record.pop("request_time") < 30
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}[+-]\d\d:\d\d", record.pop("time"))
    assert record == {
        "remote_addr": "192.0.2.7",
        "remote_user": "",
        "request": "GET /a?b=c HTTP/1.1",
        "status": 404,
        "body_bytes_sent": 0,
        "http_referer": "https://example.com/",
        "http_user_agent": "Mozilla/5.0 (X11)",
        "connection": 5,
        "pid": os.getpid(),
    }


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "line"),
        [
            ("$request_method|$request_uri|$args|$server_protocol", "GET|/a?b=c|b=c|HTTP/1.1"),
            ("${status}x $http_host", "200x example.org"),
            ("{$status} {{}} '\\n' \"%s\" é", "{200} {{}} '\\n' \"%s\" é"),
            ("$http_x_none$http_host-$http_host $status", "-example.org-example.org 200"),
            ("escape=json $http_x_none.$http_host", ".example.org"),
            ("$connection", "5"),
        ],
    )
    def test_variables_and_literals(self, file, template, line):
        assert one_line(file, template, Request(BROWSER)) == line

    def test_the_pid_is_the_writer_s(self, file):
        assert one_line(file, "$pid", Request(BROWSER)) == str(os.getpid())

    def test_every_variable_compiles(self, file):
        one_line(file, " ".join(f"${name}" for name in VARIABLES))

    @pytest.mark.parametrize("line", [b"", b"X", b"X y", b"  "])
    def test_parts_of_a_line_that_is_none(self, file, line):
        template = "$request_method|$request_uri|$args|$server_protocol"
        assert one_line(file, template, Request(line + b"\r\n\r\n")).count("|") == 3

    @pytest.mark.parametrize(
        ("credentials", "user"),
        [
            (b"Basic " + base64.b64encode(b"ann:secret:x"), "ann"),
            (b"basic " + base64.b64encode(b'a"nn:'), r"a\x22nn"),
            (b"Basic " + base64.b64encode(b"no colon"), "-"),
            (b"Basic !!", "-"),
            (b"Bearer abc", "-"),
        ],
    )
    def test_remote_user(self, file, credentials, user):
        request = with_fields(b"Authorization: " + credentials)
        assert one_line(file, "$remote_user", request) == user

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("$remote_adr", 'unknown variable "$remote_adr" .* (did you mean "$remote_addr"?)'),
            ("$http_", 'unknown variable "$http_"'),
            ("$status $", '"$" without a name'),
            ("combine", 'format "combine" names no variable (did you mean "combined"?)'),
            ("escape=jsn $status", 'unknown escape "jsn"'),
        ],
    )
    def test_mistakes_are_the_operator_s(self, template, message):
        pattern = re.escape(message).replace(r"\.\*", ".*")
        with pytest.raises(OperatorError, match=pattern):
            check_format(template)


class TestBuffer:
    def test_a_full_buffer_is_written(self, file):
        log = AccessLog(file, "$status", buffer_size=40)
        for _ in range(9):
            log.record(Request())
        assert lines(file) == []
        log.record(Request())
        assert lines(file) == ["200"] * 10
        log.close()
        assert lines(file) == ["200"] * 10

    def test_no_buffer(self, file):
        log = AccessLog(file, "$status", buffer_size=0)
        log.record(Request())
        assert lines(file) == ["200"]

    def test_an_old_line_leaves_by_one_time_event(self, file):
        asked = []
        log = AccessLog(file, "$status", flush_after=0.05, on_first=asked.append)
        assert log.tick() is None  # nothing buffered: no timer
        log.record(Request())
        log.record(Request())
        assert asked == [0.05]
        deadline = time.monotonic() + 10
        while (left := log.tick()) is not None and time.monotonic() < deadline:
            assert 0 < left <= 0.05
            assert lines(file) == []
            time.sleep(left)
        assert lines(file) == ["200"] * 2
        log.record(Request())
        assert asked == [0.05, 0.05]
        log.close()

    def test_a_time_event_that_finds_younger_lines_waits_for_them(self, file):
        asked = []
        log = AccessLog(file, "$status", flush_after=60, on_first=asked.append)
        log.record(Request())
        log.flush()
        log.record(Request())
        assert asked == [60]  # the first one still stands
        left = log.tick()
        assert left is not None
        assert 50 < left <= 60
        log.flush()
        assert log.tick() is None

    def test_reopening_writes_into_the_old_file_first(self, file, tmp_path):
        log = AccessLog(file, "$status")
        log.record(Request(status=201))
        moved = tmp_path / "access.log.1"
        Path(file.path).rename(moved)
        log.flush()
        assert file.reopen() is None
        log.record(Request(status=202))
        log.close()
        assert moved.read_text() == "201\n"
        assert lines(file) == ["202"]


class TestMemo:
    """Fields of the head are remembered by the bytes of the head: never somebody else's."""

    def test_many_clients_in_turn(self, file):
        log = AccessLog(file, "$request $http_user_agent", buffer_size=3000)
        expected = []
        for n in range(3000):
            agent = f"agent{n % 7 if n < 1000 else n}"
            head = f"GET /{n} HTTP/1.1\r\nUser-Agent: {agent}\r\n\r\n".encode()
            log.record(Request(head))
            expected.append(f"GET /{n} HTTP/1.1 {agent}")
        log.close()
        assert lines(file) == expected

    def test_one_client_that_changes_its_mind(self, file):
        log = AccessLog(file, "$request_uri $http_user_agent")
        client = SimpleNamespace(peer="192.0.2.7", number=5, remembered=None)
        for agent in ("a", "a", "b", "a", "a"):
            head = f"GET /{agent} HTTP/1.1\r\nUser-Agent: {agent}\r\n\r\n".encode()
            log.record(Request(head, connection=client))
        log.close()
        assert lines(file) == ["/a a", "/a a", "/b b", "/a a", "/a a"]

    def test_a_huge_head_is_not_kept(self, file):
        log = AccessLog(file, COMBINED)
        request = with_fields(b"X: " + b"y" * 5000)
        log.record(request)
        assert request.connection.remembered is None
        log.record(small := Request())
        assert small.connection.remembered is not None
        log.close()
