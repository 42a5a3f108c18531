"""Listening sockets: real ports, real files, real holders."""

import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from prefork.config.address import ListenAddress
from prefork.errors import OperatorError
from prefork.net import holder
from prefork.net.inherit import Inherited
from prefork.net.listener import Listener, apply_changes, open_listeners

Open = Callable[..., tuple[Listener, ...]]


def address(text: str, **changes: object) -> ListenAddress:
    return msgspec.structs.replace(ListenAddress.parse(text, "/"), **changes)


@pytest.fixture
def opened() -> Iterator[Open]:
    every: list[Listener] = []

    def open_them(
        *addresses: ListenAddress | str, previous: tuple[Listener, ...] = ()
    ) -> tuple[Listener, ...]:
        wanted = [address(one) if isinstance(one, str) else one for one in addresses]
        found = open_listeners(wanted, previous=previous, inherited=Inherited())
        every.extend(found)
        return found

    yield open_them
    for listener in every:
        listener.close(unlink=True)


def port_of(listener: Listener) -> int:
    return int(listener.sock.getsockname()[1])


def serves(listener: Listener) -> bool:
    """Whether a client's connection really arrives here."""
    with socket.socket(listener.sock.family, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(listener.sock.getsockname())
        listener.sock.settimeout(5)
        accepted, _ = listener.sock.accept()
        listener.sock.setblocking(False)
        with accepted:
            return accepted.getpeername() == client.getsockname()


def test_inet_listens_without_blocking_and_is_closed_by_exec(opened: Open) -> None:
    (one,) = opened("127.0.0.1:0")
    assert one.url == f"http://127.0.0.1:{port_of(one)}"
    assert one.origin == "bound"
    assert not one.sock.getblocking()
    assert not one.sock.get_inheritable()
    assert one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert serves(one)


def test_accepted_connections_inherit_nodelay(opened: Open) -> None:
    (one,) = opened("127.0.0.1:0")
    with socket.create_connection(one.sock.getsockname(), 5):
        one.sock.settimeout(5)
        accepted, _ = one.sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_host_name_is_resolved_and_an_unknown_one_is_the_operators(opened: Open) -> None:
    (one,) = opened("localhost:0")
    assert one.url.startswith("http://127.0.0.1:")
    with pytest.raises(OperatorError, match=r"no-such-host\.invalid:80: host not found"):
        opened("no-such-host.invalid:80")


def test_ipv6_is_its_own_unless_asked_otherwise(opened: Open) -> None:
    (six,) = opened("[::1]:0")
    assert six.url == f"http://[::1]:{port_of(six)}"
    assert serves(six)
    (only,) = opened("[::]:0")
    assert only.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    opened(f"0.0.0.0:{port_of(only)}")  # the same port for IPv4 is free
    (both,) = opened(address("[::]:0", v6only=False))
    with socket.create_connection(("127.0.0.1", port_of(both)), 5):
        pass


def test_a_unix_socket_gets_its_folder_its_mode_and_its_end(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "run" / "deep" / "app.sock"
    old = os.umask(0o077)
    try:
        (one,) = opened(address(f"unix:{path}", mode=0o620))
        assert os.umask(0o077) == 0o077, "the umask was not given back"
    finally:
        os.umask(old)
    assert one.url == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o620
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    one.close()
    assert path.exists(), "workers close without unlinking"
    one.close(unlink=True)
    assert not path.exists()


def test_a_dead_servers_socket_file_is_replaced(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    (one,) = opened(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert one.origin == "bound"


def test_a_living_servers_socket_file_is_not_touched(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        before = path.stat().st_ino
        with pytest.raises(OperatorError) as caught:
            opened(f"unix:{path}")
        assert path.stat().st_ino == before
    text = str(caught.value)
    assert text.startswith(f"bind() to unix:{path} failed (98: Address already in use): held by ")
    assert f"(pid {os.getpid()})" in text


def test_a_living_server_with_a_full_queue_is_alive(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as first:
        alive.bind(str(path))
        alive.listen(0)
        first.connect(str(path))
        with pytest.raises(OperatorError, match=r"98: Address already in use"):
            opened(f"unix:{path}")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_never_removed(opened: Open, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "app.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match="exists and is not a socket"):
        opened(f"unix:{path}")
    assert os.path.lexists(path)


def test_a_folder_that_cannot_be_made_is_the_operators_error(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match=r"bind\(\) to unix:.* failed \(\d+: "):
        opened(f"unix:{tmp_path}/file/app.sock")


def test_only_our_own_socket_file_is_unlinked(opened: Open, tmp_path: Path) -> None:
    """After an upgrade the old master must not take the new one's name away."""
    path = tmp_path / "app.sock"
    (old,) = opened(f"unix:{path}")
    path.unlink()
    (new,) = opened(f"unix:{path}")
    old.close(unlink=True)
    assert path.exists()
    new.close(unlink=True)
    assert not path.exists()


def test_a_port_in_use_names_its_holder(opened: Open) -> None:
    (one,) = opened("127.0.0.1:0")
    port = port_of(one)
    for text in (f"127.0.0.1:{port}", f"0.0.0.0:{port}", f"localhost:{port}"):
        with pytest.raises(OperatorError) as caught:
            opened(text)
        said = str(caught.value)
        assert said.startswith(f"bind() to {text} failed (98: Address already in use): held by ")
        assert said.endswith(f'(pid {os.getpid()}); stop it or change "listen"')


def test_the_holder_named_is_the_master_not_a_worker_of_it(opened: Open) -> None:
    code = """
import os, socket, sys, time
sock = socket.create_server(("127.0.0.1", 0))
ours, theirs = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
print(sock.getsockname()[1], flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with pytest.raises(OperatorError, match=rf"\(pid {process.pid}\)"):
            opened(f"127.0.0.1:{port}")
        process.communicate("leave\n")


def test_an_invisible_holder_still_gives_one_line(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(kind: str) -> None:
        raise psutil.AccessDenied(1, kind)

    monkeypatch.setattr(psutil, "net_connections", denied)
    (one,) = opened("127.0.0.1:0")
    with pytest.raises(OperatorError, match="held by a process that this user cannot see;"):
        opened(f"127.0.0.1:{port_of(one)}")
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert holder.holder_of(one.address) == "a process that this user cannot see"


def test_refusals_come_with_a_hint(opened: Open) -> None:
    with pytest.raises(OperatorError, match=r"203.0.113.7:\d+ failed \(99: .*no such address"):
        opened("203.0.113.7:8000")


@pytest.mark.skipif(os.geteuid() != 0, reason="tried as another user, which only root can be")
def test_a_low_port_without_privilege_says_what_it_needs() -> None:
    code = """
import os
from pathlib import Path
from prefork.config.address import ListenAddress
from prefork.errors import OperatorError
from prefork.net.inherit import Inherited
from prefork.net.listener import open_listeners
floor = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
os.setuid(65534)
try:
    open_listeners([ListenAddress.parse("127.0.0.1:81", "/")], inherited=Inherited())
except OperatorError as error:
    print(error)
else:
    print("allowed" if floor <= 81 else "?")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() in (
        "allowed",
        "bind() to 127.0.0.1:81 failed (13: Permission denied): "
        "ports below 1024 need root or CAP_NET_BIND_SERVICE",
    ), done.stderr


def test_a_duplicate_is_refused_but_two_free_ports_are_two(opened: Open) -> None:
    with pytest.raises(OperatorError, match=r'"127\.0\.0\.1:8000" stands there twice'):
        opened("127.0.0.1:8000", "127.0.0.1:8000")
    one, two = opened("127.0.0.1:0", "127.0.0.1:0")
    assert one.url != two.url


# Reload


def test_equal_addresses_come_back_as_the_same_listeners(opened: Open, tmp_path: Path) -> None:
    old = opened("127.0.0.1:0", f"unix:{tmp_path}/a.sock")
    with socket.create_connection(old[0].sock.getsockname(), 5):  # waits in the queue
        new = opened(f"unix:{tmp_path}/a.sock", "127.0.0.1:0", "[::1]:0", previous=old)
        assert new[0] is old[1]
        assert new[1] is old[0]
        assert new[2].origin == "bound"
        new[1].sock.settimeout(5)
        new[1].sock.accept()[0].close()


def test_a_changed_backlog_and_mode_need_no_new_socket(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    old = opened(address("127.0.0.1:0", backlog=7), address(f"unix:{path}", mode=0o600))
    wanted = [address("127.0.0.1:0", backlog=11), address(f"unix:{path}", mode=0o666)]
    new = opened(*wanted, previous=old)
    assert [one is two for one, two in zip(old, new, strict=True)] == [True, True]
    # Not before the commit: until then the old cycle serves with them.
    assert _backlog(new[0]) == 7
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    apply_changes(new, wanted)
    assert new[0].address.backlog == 11
    assert _backlog(new[0]) == 11
    assert stat.S_IMODE(path.stat().st_mode) == 0o666


def _backlog(listener: Listener) -> int:
    """The kernel's own word: of a listening socket, tcpi_sacked is the backlog (linux/tcp.h)."""
    info = listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
    return int(struct.unpack_from("=8x6I", info)[5])


def test_a_failed_reload_leaves_everything_as_it_was(opened: Open, tmp_path: Path) -> None:
    (taken,) = opened("127.0.0.1:0")
    old = opened(address("127.0.0.1:0", backlog=7))
    path = tmp_path / "new.sock"
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OperatorError, match="Address already in use"):
        opened(
            address("127.0.0.1:0", backlog=11),
            f"unix:{path}",
            f"127.0.0.1:{port_of(taken)}",
            previous=old,
        )
    assert set(os.listdir("/proc/self/fd")) == before
    assert not path.exists()
    assert old[0].address.backlog == 7
    assert serves(old[0])


def test_an_address_in_our_own_way_is_not_a_strangers(opened: Open) -> None:
    (probe,) = opened("127.0.0.1:0")
    port = port_of(probe)
    probe.close()
    old = opened(f"127.0.0.1:{port}")
    with pytest.raises(OperatorError, match=rf"this server's own 127.0.0.1:{port}; that takes"):
        opened(f"0.0.0.0:{port}", previous=old)
