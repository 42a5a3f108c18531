"""`root_path`: what is a prefix, and what was meant by what is none."""

from typing import Any

import pytest

from prefork.config.loader import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("/api", "/api"),
        ("/api/v1.0/~a+b:c;d=@!$&'()*,", "/api/v1.0/~a+b:c;d=@!$&'()*,"),
        ('"/caf\\u00e9"', "/caf\u00e9"),
        ('""', ""),
        ("", ""),
        ("${PREFIX:-}", ""),
        ("${PREFIX:-/api}", "/api"),
    ],
)
def test_a_prefix(folder: Any, text: str, value: str) -> None:
    assert folder.read(f"app: a:b\nroot_path: {text}\n").conf.root_path == value


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("api", "/api"),
        ("/", ""),
        ("/api/", "/api"),
        ("//api//v1", "/api/v1"),
        ("./api", "/api"),
        ("12", "/12"),
        ('" /api "', "/api"),
        ("/api?x=1", "/api"),
        ('"/api#x"', "/api"),
        ("https://example.org/api/?x", "/api"),
        ("https://example.org", ""),
        ("/caf%C3%A9", "/caf\u00e9"),
        ("/100%", None),
        ("/a%20b", None),
        ("/a b", None),
        ("/a/../b", None),
        ("/a\\b", None),
        ('"/a\\u200bb"', None),
        ('"/a\\0b"', None),
        ("http://[::1/x", None),
        ("[/api]", None),
    ],
)
def test_what_is_none(folder: Any, text: str, meant: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        folder.read(f"app: a:b\nroot_path: {text}\n")
    (problem,) = caught.value.problems
    assert problem.suggestion == meant
    assert (problem.file, problem.line, problem.column) == ("conf.yaml", 2, 12)
    hint = "" if meant is None else f' (did you mean "{meant}"?)'
    assert problem.message.endswith(hint)


def test_the_content_of_a_file_is_not_repeated(folder: Any) -> None:
    folder.write("secret", "hidden/")
    report = folder.errors("app: a:b\nroot_path: ${file:secret}\n")
    assert "hidden" not in report
