"""Sockets from systemd and from the old master, adopted in real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork.config.address import ListenAddress
from prefork.errors import OperatorError
from prefork.net.inherit import Inherited, InheritedSocket, hand_over, own_numbers
from prefork.net.listener import open_listeners, release

# Plays systemd: exec a program whose LISTEN_PID is its own and whose descriptors start at 3.
AS_SYSTEMD = """
import os, sys
fds = [int(n) for n in sys.argv[1].split(",")]
high = [os.dup(fd) for fd in fds]          # out of the way of 3, 4, ...
saved = [os.dup2(fd, 100 + n) for n, fd in enumerate(high)]
for n, fd in enumerate(saved):
    os.dup2(fd, 3 + n)                     # inheritable
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-W", "error", "-c", sys.argv[3]])
"""

# Opens argv addresses and reports what came of it.
PROGRAM = """
import json, os, sys
from prefork.config.address import ListenAddress
from prefork.errors import OperatorError
from prefork.net.inherit import Inherited
from prefork.net.listener import open_listeners
inherited = Inherited.from_environment()
addresses = [ListenAddress.parse(one, "/") for one in json.loads(%r)]
out = {"problems": inherited.problems}
try:
    listeners = open_listeners(addresses, inherited=inherited)
except OperatorError as error:
    out["error"] = str(error)
    out["left"] = len(inherited.sockets)
else:
    out["listeners"] = [
        [l.fileno(), l.address.text, l.origin, l.url, os.get_inheritable(l.fileno()),
         l.sock.getblocking()] for l in listeners
    ]
    out["unclaimed"] = inherited.close_unclaimed()
    for l in listeners:
        l.close(unlink=True)
inherited.close()
out["environ"] = [n for n in os.environ if n.startswith(("LISTEN_", "PREFORK"))]
print(json.dumps(out))
"""


def as_systemd(fds: list[int], names: str, *addresses: str) -> dict[str, Any]:
    program = PROGRAM % json.dumps(addresses)
    done = subprocess.run(
        [sys.executable, "-c", AS_SYSTEMD, ",".join(map(str, fds)), names, program],
        capture_output=True,
        text=True,
        timeout=30,
        pass_fds=fds,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def as_new_binary(value: str, fds: list[int], *addresses: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM % json.dumps(addresses)],
        capture_output=True,
        text=True,
        timeout=30,
        pass_fds=fds,
        env={**os.environ, "PREFORK": value},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def url(sock: socket.socket) -> str:
    return f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_a_systemd_name_gives_all_its_sockets() -> None:
    """Two ListenStream lines of one unit share the name; a dict would lose the first."""
    with listening() as one, listening() as two, listening() as three:
        fds = [one.fileno(), two.fileno(), three.fileno()]
        urls = [url(one), url(two), url(three)]
        found = as_systemd(fds, "http:admin:http", "systemd:http", "systemd:admin")
    assert found["listeners"] == [
        [3, "systemd:http", "systemd", urls[0], False, False],
        [5, "systemd:http", "systemd", urls[2], False, False],
        [4, "systemd:admin", "systemd", urls[1], False, False],
    ]
    assert found["environ"] == []
    assert found["problems"] == []


def test_a_systemd_socket_serves_the_equal_configured_address() -> None:
    """Deduplicated by getsockname: binding it again would fail."""
    with listening() as one:
        text = url(one).removeprefix("http://")
        found = as_systemd([one.fileno()], "whatever", text)
    assert found["listeners"] == [[3, text, "systemd", f"http://{text}", False, False]]


def test_a_systemd_unix_socket_is_never_unlinked(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen()
        found = as_systemd([one.fileno()], "a", f"unix:{path}")
        assert found["listeners"][0][2] == "systemd"
        assert path.exists()


def test_a_missing_name_says_what_the_unit_needs() -> None:
    with listening() as one:
        found = as_systemd([one.fileno()], "http", "systemd:htp")
    assert 'systemd passed no socket named "htp"' in found["error"]
    assert "FileDescriptorName=htp" in found["error"]
    assert found["left"] == 1


def test_a_failure_gives_the_claimed_sockets_back() -> None:
    with listening() as one, listening() as taken:
        text = url(taken).removeprefix("http://")
        found = as_systemd([one.fileno()], "http", "systemd:http", text)
    assert "Address already in use" in found["error"]
    assert found["left"] == 1


def test_what_no_address_wants_is_told() -> None:
    with listening() as one:
        text = url(one).removeprefix("http://")
        found = as_systemd([one.fileno()], "spare", "127.0.0.1:0")
    assert found["unclaimed"] == [
        f"systemd:spare ({text}) was passed by systemd and is not listened on"
    ]


def test_descriptors_meant_for_another_process_are_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c", "HOME": "/"}
    inherited = Inherited.from_environment(environ)
    assert not inherited
    assert inherited.problems == ("LISTEN_FDS is meant for process 1, ignored",)
    assert environ == {"HOME": "/"}


def test_what_is_no_socket_is_a_problem_and_nothing_worse() -> None:
    ours, theirs = os.pipe()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        value = f"{ours};{datagram.fileno()};nonsense;987654;"
        inherited = Inherited.from_environment({"PREFORK": value})
        assert not inherited
        assert len(inherited.problems) == 4
        datagram.getsockname()
    os.fstat(ours)
    os.close(ours)
    os.close(theirs)


def test_who_has_bound_a_socket_survives_the_upgrade() -> None:
    """Only what a master before us has bound is ours; a later upgrade says so again."""
    with listening() as first, listening() as second:
        fds = [os.dup(one.fileno()) for one in (first, second)]
        environ = {"PREFORK": "".join(f"{fd};" for fd in fds), "PREFORK_BOUND": f"{fds[0]};"}
        inherited = Inherited.from_environment(environ)
        addresses = [ListenAddress.parse(one.bound, "/") for one in inherited.sockets]
        listeners = open_listeners(addresses, inherited=inherited)
        assert [one.own for one in listeners] == [True, False]
        assert not any(one.ours_alone for one in listeners)  # the giver, our parent, lives
        assert own_numbers(listeners) == f"{fds[0]};"
        assert environ == {}
        for one in listeners:
            one.close()


def test_an_empty_environment_inherits_nothing() -> None:
    inherited = Inherited.from_environment({})
    assert not inherited
    assert inherited.problems == ()
    assert inherited.close_unclaimed() == []


def test_a_new_binary_finds_each_socket_by_what_it_was_asked_for(tmp_path: Path) -> None:
    """Host names and port 0 are not what getsockname says; the order may have changed."""
    path = tmp_path / "a.sock"
    texts = ["127.0.0.1:0", "localhost:0", f"unix:{path}"]
    old = open_listeners([ListenAddress.parse(text, "/") for text in texts], inherited=Inherited())
    value = hand_over(old)
    assert (
        value == f"{old[0].fileno()}=127.0.0.1:0;{old[1].fileno()}=localhost:0;{old[2].fileno()};"
    )
    assert all(os.get_inheritable(one.fileno()) for one in old)
    found = as_new_binary(value, [one.fileno() for one in old], *reversed(texts))
    assert [row[:4] for row in found["listeners"]] == [
        [one.fileno(), one.address.text, "inherited", one.url] for one in reversed(old)
    ]
    assert not any(row[4] for row in found["listeners"])
    assert found["environ"] == []
    # It closed them all with unlink=True while we, who gave them, live:
    assert path.exists()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    for one in old:
        one.close(unlink=True)
    assert not path.exists()


def test_a_systemd_name_survives_the_upgrade() -> None:
    with listening() as one:
        fd = one.fileno()
        found = as_new_binary(f"{fd}=systemd:a%3Bb%25;", [fd], "systemd:a;b%")
        expected = [fd, "systemd:a;b%", "inherited", url(one), False, False]
    assert found["listeners"] == [expected]


def test_a_new_binary_closes_what_its_configuration_has_dropped() -> None:
    with listening() as one, listening() as two:
        fds = [one.fileno(), two.fileno()]
        text = url(two).removeprefix("http://")
        found = as_new_binary("".join(f"{fd};" for fd in fds), fds, text)
    assert [row[3] for row in found["listeners"]] == [f"http://{text}"]
    assert found["unclaimed"] == []


def test_after_its_giver_is_gone_the_new_master_owns_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    code = """
import os, sys
from prefork.config.address import ListenAddress
from prefork.net.inherit import Inherited
from prefork.net.listener import open_listeners
address = ListenAddress.parse(sys.argv[1], "/")
old = open_listeners([address], inherited=Inherited())
ready, say_ready = os.pipe()
gone, holds = os.pipe()
giver = os.getpid()
if os.fork() == 0:
    # The new master, without the exec: what it knows comes by the variable alone.
    os.close(holds)
    found = Inherited.from_environment({"PREFORK": f"{os.dup(old[0].fileno())};"})
    (new,) = open_listeners([address], inherited=found)
    os.write(say_ready, b".")
    os.read(gone, 1)  # until the old master is gone
    while os.getppid() == giver:
        os.sched_yield()
    new.close(unlink=True)
    print("closed", flush=True)
    os._exit(0)
os.read(ready, 1)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, f"unix:{path}"], stdout=subprocess.PIPE, timeout=30
    )
    assert done.stdout == b"closed\n"
    assert not path.exists()


def test_what_was_given_may_be_wanted_again() -> None:
    """A reload that fails, or does without: nobody gives the socket a second time."""
    address = ListenAddress.parse("systemd:http", "/")
    with listening() as one:
        label, bound = "systemd:http", url(one).removeprefix("http://")
        given = InheritedSocket(one, "systemd", label, bound)
        inherited = Inherited([given])
        (first,) = open_listeners([address], inherited=inherited)
        assert not inherited
        release(first, inherited)
        (again,) = open_listeners([address], inherited=inherited)
        assert again.sock is one
        assert again.origin == "systemd"
        (ours,) = open_listeners([ListenAddress.parse("127.0.0.1:0", "/")], inherited=inherited)
        release(ours, inherited)
        assert ours.sock.fileno() == -1
        assert not inherited


def test_a_plain_descriptor_is_adopted() -> None:
    with listening() as one:
        fd = os.dup(one.fileno())
        (found,) = open_listeners([ListenAddress.parse(f"fd:{fd}", "/")], inherited=Inherited())
        assert found.fileno() == fd
        assert (found.url, found.origin) == (url(one), "inherited")
        assert not os.get_inheritable(fd)
        found.close()


def test_a_bound_descriptor_that_does_not_listen_yet_is_made_to() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        fd = os.dup(one.fileno())
        (found,) = open_listeners([ListenAddress.parse(f"fd:{fd}", "/")], inherited=Inherited())
        with socket.create_connection(one.getsockname(), 5):
            pass
        found.close()


def test_a_descriptor_that_is_not_open_or_no_socket_is_the_operators_error() -> None:
    with pytest.raises(OperatorError, match=r"fd:98765 is no open socket \(9: Bad file"):
        open_listeners([ListenAddress.parse("fd:98765", "/")], inherited=Inherited())
    ours, theirs = os.pipe()
    with pytest.raises(OperatorError, match=rf"fd:{ours} is no open socket \(88: "):
        open_listeners([ListenAddress.parse(f"fd:{ours}", "/")], inherited=Inherited())
    os.close(ours)
    os.close(theirs)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        fd = datagram.fileno()
        with pytest.raises(OperatorError, match=f"fd:{fd} is no stream socket"):
            open_listeners([ListenAddress.parse(f"fd:{fd}", "/")], inherited=Inherited())
        datagram.getsockname()
