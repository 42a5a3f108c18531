"""The error log's grammar and the promise that logging never stops the server."""

import errno
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.errors import OperatorError
from prefork.log import LEVELS, ErrorLog, LogFile, LoggingHandler, errno_text

HEAD = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(\w+)\] (\d+)#0: "


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "error.log"


@pytest.fixture
def log(path: Path) -> Iterator[ErrorLog]:
    file = LogFile(str(path))
    file.open()
    yield ErrorLog(file, "debug")
    file.close()


def test_the_grammar_is_nginxs(log: ErrorLog, path: Path) -> None:
    log.notice("start worker 0")
    log.info("client sent a bad request", connection=5)
    lines = path.read_text().splitlines()
    assert re.fullmatch(HEAD + "start worker 0", lines[0])
    assert re.fullmatch(HEAD + r"\*5 client sent a bad request", lines[1])
    match = re.match(HEAD, lines[0])
    assert match is not None
    assert match.groups() == ("notice", str(os.getpid()))


def test_every_level_has_its_method_and_its_threshold(path: Path) -> None:
    for threshold, level in enumerate(LEVELS):
        path.unlink(missing_ok=True)
        file = LogFile(str(path))
        file.open()
        log = ErrorLog(file, level)
        for name in LEVELS:
            getattr(log, name)("x")
            assert log.enabled(name) == (LEVELS.index(name) <= threshold)
        written = re.findall(r"\[(\w+)\]", path.read_text())
        assert written == list(LEVELS[: threshold + 1])
        file.close()


def test_a_forked_child_logs_its_own_pid(log: ErrorLog, path: Path) -> None:
    log.notice("parent")
    pid = os.fork()
    if pid == 0:
        log.notice("child")
        os._exit(0)
    os.waitpid(pid, 0)
    assert re.findall(r"\] (\d+)#0: (\w+)", path.read_text()) == [
        (str(os.getpid()), "parent"),
        (str(pid), "child"),
    ]


def test_a_traceback_follows_indented(log: ErrorLog, path: Path) -> None:
    try:
        raise ValueError("deep\n2026/11/23 22:47:42 [emerg] 1#0: forged")
    except ValueError as exc:
        log.error("handler failed", connection=3, exc=exc)
    lines = path.read_text().splitlines()
    assert re.fullmatch(HEAD + r"\*3 handler failed", lines[0])
    assert lines[1] == "    Traceback (most recent call last):"
    assert "    ValueError: deep" in lines
    assert sum(1 for line in lines if re.match(HEAD, line)) == 1, "a peer's text forged a record"


def test_an_exception_that_cannot_be_printed_is_still_logged(log: ErrorLog, path: Path) -> None:
    class RudeError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    log.error("failed", exc=RudeError())
    assert "RudeError" in path.read_text()


def test_control_characters_are_shown_not_sent(log: ErrorLog, path: Path) -> None:
    log.warn("\x1b[2Jcleared \x00 \x7f \x9b é \udcff")
    text = path.read_bytes()
    assert b"\\x1b[2Jcleared \\x00 \\x7f \\x9b \xc3\xa9 \\udcff\n" in text


def test_records_of_several_processes_never_mix(log: ErrorLog, path: Path) -> None:
    pids = []
    for n in range(4):
        pid = os.fork()
        if pid == 0:
            for _ in range(300):
                log.notice(str(n) * 1500)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    lines = path.read_text().splitlines()
    assert len(lines) == 1200
    for line in lines:
        assert re.fullmatch(HEAD + r"(\d)\3{1499}", line)


def test_a_full_disk_loses_records_and_nothing_else() -> None:
    file = LogFile("/dev/full")
    file.open()
    log = ErrorLog(file)
    for _ in range(3):
        log.error("x")
    file.write(b"y\n")
    assert file.dropped == 4
    file.close()


def test_a_full_disk_is_told_once_a_second() -> None:
    told: list[str] = []
    file = LogFile("/dev/full")
    file.on_lost = told.append
    file.open()
    file.write(b"x\n")
    file.write(b"y\n")
    assert told == ['write() to "/dev/full" failed (28: No space left on device), lines are lost']
    file.close()


def test_losses_are_told_when_there_is_room_again(path: Path) -> None:
    """A pipe nobody reads is a disk that can be emptied: full, then not."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    file = LogFile(str(path))
    file.open()
    os.dup2(theirs, file.fd)
    log = ErrorLog(file)
    while not file.dropped:
        log.notice("z" * 5000)
    log.notice("lost")
    assert file.dropped == 2
    received = b""
    os.set_blocking(ours, False)
    while True:
        try:
            received += os.read(ours, 65536)
        except BlockingIOError:
            break
    log.notice("here again")
    lines = os.read(ours, 65536).decode().splitlines()
    if lines[0] == "":  # the one that did not fit had left a part of itself
        assert not received.endswith(b"\n")
        del lines[0]
    assert re.fullmatch(HEAD + "here again", lines[0])
    assert re.fullmatch(HEAD + f'2 records of "{re.escape(str(path))}" were lost', lines[1])
    log.notice("and on")
    assert len(os.read(ours, 65536).splitlines()) == 1
    file.close()
    os.close(ours)
    os.close(theirs)


def test_writing_to_a_closed_file_raises_nothing(path: Path) -> None:
    file = LogFile(str(path))
    file.write(b"before open\n")
    file.open()
    file.close()
    file.write(b"after close\n")
    assert file.dropped == 2


def test_opening_fails_in_the_operators_words(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        LogFile(str(tmp_path / "no" / "x.log")).open()
    assert str(caught.value) == (
        f'open() "{tmp_path}/no/x.log" failed (2: No such file or directory)'
    )
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OperatorError, match=r"failed \(6: "):
        LogFile(str(tmp_path / "fifo")).open()  # nobody reads it: an error, not a hang


def test_reopening_follows_a_rotation_under_the_same_number(log: ErrorLog, path: Path) -> None:
    log.notice("one")
    number = log.fd
    rotated = path.with_suffix(".1")
    path.rename(rotated)
    log.notice("two")
    assert log.reopen()
    log.notice("three")
    assert log.fd == number
    assert not os.get_inheritable(number)
    assert [line.rpartition(" ")[2] for line in rotated.read_text().splitlines()] == ["one", "two"]
    assert path.read_text().endswith("three\n")


def test_a_failed_reopening_keeps_the_old_file_and_says_so_there(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = LogFile(str(folder / "x.log"))
    file.open()
    log = ErrorLog(file)
    folder.rename(tmp_path / "moved")
    assert not log.reopen()
    log.notice("still here")
    text = (tmp_path / "moved" / "x.log").read_text()
    assert f'[emerg] {os.getpid()}#0: open() "{folder}/x.log" failed (2: No such' in text
    assert text.endswith("still here\n")
    assert file.reopen() == f'open() "{folder}/x.log" failed (2: No such file or directory)'
    file.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_the_new_file_to_the_workers_user(path: Path) -> None:
    file = LogFile(str(path), mode=0o400)
    file.open()
    assert file.reopen((65534, 65534)) is None
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (65534, 65534)
    assert found.st_mode & 0o777 == 0o600
    file.close()
    null = LogFile("/dev/null")
    null.open()
    before = os.stat("/dev/null")
    assert null.reopen((65534, 65534)) is None
    assert os.stat("/dev/null").st_uid == before.st_uid
    null.close()


def test_standard_streams_are_neither_reopened_nor_closed() -> None:
    for name, fd in (("stdout", 1), ("stderr", 2)):
        file = LogFile(name)
        file.open()
        assert file.fd == fd
        assert file.reopen() is None
        file.close()
        os.fstat(fd)


def test_a_redirected_stderr_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    code = """
import os, sys
from prefork.log import ErrorLog, LogFile
file = LogFile(sys.argv[1])
file.open()
log = ErrorLog(file)
log.redirect_stderr()
print("a library", file=sys.stderr, flush=True)
os.rename(sys.argv[1], sys.argv[1] + ".1")
log.reopen()
print("after rotation", file=sys.stderr, flush=True)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)
    assert path.with_name("x.log.1").read_text() == "a library\n"
    assert path.read_text() == "after rotation\n"


def test_the_journal_gets_priorities_instead_of_times(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    code = """
import os
found = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
from prefork.log import ErrorLog, LogFile
file = LogFile("stderr"); file.open()
log = ErrorLog(file)
log.warn("two\\nlines", connection=4)
os.environ["JOURNAL_STREAM"] = "1:2"
ErrorLog(file).crit("not the journal")
"""
    with path.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=stream)
        assert process.wait(30) == 0
    lines = path.read_text().splitlines()
    assert lines[0] == f"<4>[warn] {process.pid}#0: *4 two"
    assert lines[1] == "<4>    lines"
    assert re.fullmatch(HEAD + "not the journal", lines[2])


def test_standard_logging_lands_in_the_error_log(log: ErrorLog, path: Path) -> None:
    logger = logging.Logger("shop.cart")  # not of the tree: no other test sees its handler
    logger.addHandler(LoggingHandler(log))
    logger.debug("a")
    logger.info("b %d", 1)
    logger.warning("c")
    logger.critical("e")
    try:
        raise KeyError("k")
    except KeyError:
        logger.exception("d")
    logger.info("%d apples", "three")
    text = path.read_text()
    assert re.findall(r"\[(\w+)\] \d+#0: (?:\*\d+ )?shop.cart: (.*)", text) == [
        ("debug", "a"),
        ("info", "b 1"),
        ("warn", "c"),
        ("crit", "e"),
        ("error", "d"),
    ]
    assert "    KeyError: 'k'" in text
    assert "logging: cannot format '%d apples' at " in text


def test_logging_below_the_threshold_is_not_even_formatted(path: Path) -> None:
    file = LogFile(str(path))
    file.open()
    logger = logging.Logger("quiet")
    logger.addHandler(LoggingHandler(ErrorLog(file, "error")))
    logger.warning("%d", "would fail")
    logger.error("seen")
    assert [line.rpartition("]")[2] for line in path.read_text().splitlines()] == [
        f" {os.getpid()}#0: quiet: seen"
    ]
    file.close()


def test_errno_text() -> None:
    assert errno_text(OSError(errno.EACCES, "whatever")) == "(13: Permission denied)"
