"""Substitution in scalars: the grammar, the re-typing after it, secrets."""

import os
from pathlib import Path
from typing import Any

import pytest

from prefork.config.interpolate import InterpolationError, interpolate

VARIABLES = {"A": "x", "EMPTY": "", "N": "4", "DOLLAR": "${A}", "NUL": "a\0b", "DIR": "secrets"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("${A}", "x"),
        ("<${A}${N}>", "<x4>"),
        ("${A:-d}", "x"),
        ("${NO:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("${NO:-}", ""),
        ("${NO:-${A}}", "x"),
        ("${NO:-a}b}", "ab}"),
        ("${NO:-{}}", "{}"),
        ("${A:?why}", "x"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$$${A}", "$${A}"),
        ("$$${A}", "$x"),
        ("$status $A", "$status $A"),
        ("100$", "100$"),
        ("${DOLLAR}", "${A}"),  # what a variable holds is not read again
    ],
)
def test_value(text: str, value: str) -> None:
    if text == "${NO:-{}}":
        value = "{}"  # the first brace closes, as in Docker Compose; the second is text
    assert interpolate(text, VARIABLES, "/") == (value, False)


@pytest.mark.parametrize(
    ("text", "says", "expression"),
    [
        ("a ${NO}", "environment variable NO is not set (give a default: ${NO:-value})", "${NO}"),
        ("${NO:?say it}", "environment variable NO is not set: say it", None),
        ("${EMPTY:?}", "environment variable EMPTY is empty: required", None),
        ("${NO:-${ALSO}}", "environment variable ALSO is not set", "${ALSO}"),
        ("${A", "${ is not closed", None),
        ("${", "${ is not closed", None),
        ("${}", "is no variable", None),
        ("${1}", "is no variable", None),
        ("${A-b}", "write ${A:-b}", None),
        ("${A?b}", "write ${A:?b}", None),
        ("${A:b}", "after A only", None),
        ("${A B}", "after A only", None),
        ("${NUL}", "NUL character", None),
        ("${file:}", "wants a path", None),
        ("${file:none}", "failed (2: No such file or directory)", None),
        ("${file:.}", "is not a regular file", None),
        ("${NO:-" * 40 + "}" * 40, "nested too deeply", None),
    ],
)
def test_refused(tmp_path: Path, text: str, says: str, expression: str | None) -> None:
    with pytest.raises(InterpolationError) as caught:
        interpolate(text, VARIABLES, str(tmp_path))
    assert says in str(caught.value)
    assert text[caught.value.offset :].startswith(caught.value.expression)
    if expression is not None:
        assert caught.value.expression == expression


def test_file(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    secret = tmp_path / "secrets" / "password"
    secret.write_text("hunter2 \n")
    folder = str(tmp_path)
    assert interpolate("${file:secrets/password}", VARIABLES, folder) == ("hunter2 ", True)
    assert interpolate("p=${file:${DIR}/password}!", VARIABLES, folder) == ("p=hunter2 !", True)
    secret.write_bytes(b"\xff")
    with pytest.raises(InterpolationError, match="not UTF-8"):
        interpolate("${file:secrets/password}", VARIABLES, folder)
    secret.write_bytes(b"x" * 70_000)
    with pytest.raises(InterpolationError, match="larger than"):
        interpolate("${file:secrets/password}", VARIABLES, folder)


def test_fifo_does_not_hang_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InterpolationError, match="not a regular file"):
        interpolate("${file:fifo}", {}, str(tmp_path))


def test_result_is_typed_anew(folder: Any) -> None:
    folder.environ = {"W": "3", "ON": "true", "T": "5s", "NAME": "123", "NONE": ""}
    conf = folder.read(
        """
        app: a:b
        workers: "${W}"
        daemon: ${ON}
        log: {error: {path: log.txt}, access: {path: log.txt}}
        timeouts: {head: "${T}", body: '${NO:-1m}'}
        user: ${NONE}
        environment: {NUMBER: "${NAME}", DOLLAR: "$${W}", PLAIN: 0o17, FLAG: true}
        """
    ).conf
    assert (conf.workers, conf.daemon, conf.user) == (3, True, None)
    assert (conf.timeouts.head, conf.timeouts.body) == (5.0, 60.0)
    assert conf.environment == {
        "NUMBER": "123",
        "DOLLAR": "${W}",
        "PLAIN": "0o17",
        "FLAG": "true",
    }


def test_a_wrong_secret_is_not_shown(folder: Any) -> None:
    folder.write("secret", "hunter2\n")
    report = folder.errors(
        """
        app: ${file:secret}
        workers: ${file:secret}
        listen: ["${file:secret}"]
        timeouts: {head: "${file:secret}"}
        log: {error: {level: "${file:secret}", path: "${file:secret}/x"}}
        umask: ${file:secret}
        """
    )
    assert "hunter2" not in report.replace("/hunter2 does not exist", "")
    assert "must be a whole number from 1 to 512, or auto, not what the file holds" in report


def test_what_a_variable_gave_is_shown(folder: Any) -> None:
    folder.environ = {"W": "many"}
    assert 'or auto, not "many"' in folder.errors("app: a:b\nworkers: ${W}\n")


def test_an_unset_variable_has_no_follow_on(folder: Any) -> None:
    """Each of these would be complained about a second time by a check further on."""
    report = folder.errors(
        "app: ${NO}\nworking_directory: ${NO}\nlisten: [a, '${NO}']\n"
        "timeouts: {graceful: '${NO}', keep_alive_min: 40s}\ninclude: ${NO}\n"
    )
    assert report.count("is not set") == 5
    assert report.count("error: ") == 6  # and the address without a port
