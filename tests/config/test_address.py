"""Addresses: what is taken, its canonical text and URL, and what is refused with which hint."""

import pytest

from prefork.config.address import AddressError, ListenAddress


@pytest.mark.parametrize(
    ("written", "kind", "text", "url"),
    [
        ("127.0.0.1:8000", "inet", "127.0.0.1:8000", "http://127.0.0.1:8000"),
        (":8000", "inet", "0.0.0.0:8000", "http://0.0.0.0:8000"),
        ("*:8000", "inet", "0.0.0.0:8000", "http://0.0.0.0:8000"),
        ("8000", "inet", "0.0.0.0:8000", "http://0.0.0.0:8000"),
        ("localhost:0", "inet", "localhost:0", "http://localhost:0"),
        ("my-host.example.org:80", "inet", "my-host.example.org:80", None),
        ("[::1]:8000", "inet6", "[::1]:8000", "http://[::1]:8000"),
        ("[0:0:0:0:0:0:0:1]:80", "inet6", "[::1]:80", "http://[::1]:80"),
        ("[::]:80", "inet6", "[::]:80", "http://[::]:80"),
        ("[fe80::1%eth0]:80", "inet6", "[fe80::1%eth0]:80", None),
        ("unix:run/app.sock", "unix", "unix:/srv/site/run/app.sock", None),
        ("unix:/run/app.sock", "unix", "unix:/run/app.sock", "unix:/run/app.sock"),
        ("unix:../app.sock", "unix", "unix:/srv/app.sock", None),
        ("fd:3", "fd", "fd:3", "fd:3"),
        ("systemd:web", "systemd", "systemd:web", "systemd:web"),
    ],
)
def test_taken(written: str, kind: str, text: str, url: str | None) -> None:
    address = ListenAddress.parse(written, "/srv/site")
    assert address.kind == kind
    assert address.text == text
    if url is not None:
        assert address.url == url
    assert ListenAddress.parse(address.text, "/elsewhere") == address


@pytest.mark.parametrize(
    ("written", "says", "hint"),
    [
        ("127.0.0.1", "needs a port", "127.0.0.1:8000"),
        ("localhost", "needs a port", "localhost:8000"),
        ("127.0.0.1:", "no port", None),
        ("127.0.0.1:http", "no port", None),
        ("127.0.0.1:70000", "no port", None),
        ("127.0.0.1:-1", "no port", None),
        ("70000", "no port", None),
        ("256.0.0.1:80", "no IPv4 address", None),
        ("1.2.3:80", "no IPv4 address", None),
        ("127.0.0.01:80", "leading zero", None),
        ("::1:8000", "in brackets", "[::1]:8000"),
        ("[::1]", "[address]:port", "[::1]:8000"),
        ("[::1:8000", "[address]:port", None),
        ("[::g]:80", "no IPv6 address", None),
        ("[127.0.0.1]:80", "no IPv6 address", None),
        ("http://127.0.0.1:8000/", "no scheme", "127.0.0.1:8000"),
        ("tcp://0.0.0.0:80", "no scheme", "0.0.0.0:80"),
        ("/run/app.sock", "with its prefix", "unix:/run/app.sock"),
        ("unix:///run/app.sock", "no slashes", "unix:/run/app.sock"),
        ("unix:", "wants a path", None),
        ("unix:@abstract", "abstract", None),
        ("unix:" + "x" * 108, "the kernel takes 107", None),
        ("fd:2", "standard streams", None),
        ("fd:x", "no file descriptor", None),
        ("systemd:", "FileDescriptorName", None),
        ("systemd:a:b", "FileDescriptorName", None),
        ("a b:80", "no host name", None),
        ("", "needs a port", None),
        ("x" * 5000 + ":80", "that long", None),
        ("\uff11.0.0.1:80", "no host name", None),
    ],
)
def test_refused(written: str, says: str, hint: str | None) -> None:
    with pytest.raises(AddressError, match=r".") as caught:
        ListenAddress.parse(written, "/")
    assert says in str(caught.value)
    assert caught.value.suggestion == hint
    if hint is not None:
        ListenAddress.parse(hint, "/")
