"""What an import leaves behind that no fork carries along, and that somebody should be told of."""

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING

from prefork.process.forkguard import ForkGuard, warning

if TYPE_CHECKING:
    from tests.conftest import Daemons


def test_a_thread_is_named_with_where_it_waits() -> None:
    guard = ForkGuard()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="poller")
    thread.start()
    try:
        hazard = guard.hazards()[0]
    finally:
        end.set()
        thread.join()
    assert hazard.startswith('thread "poller" (')
    assert not any("poller" in one for one in guard.hazards())


def test_a_connection_is_named_by_its_peer() -> None:
    guard = ForkGuard()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert guard.hazards() == [f"a connection to 127.0.0.1:{port} (fd {client.fileno()})"]
            assert ForkGuard().hazards() == []  # it was there before
    assert guard.hazards() == []


def test_datagrams_pairs_and_listeners_are_no_hazard() -> None:
    guard = ForkGuard()
    one, other = socket.socketpair()
    server = socket.create_server(("127.0.0.1", 0))
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    with one, other, server, datagrams:
        datagrams.connect(server.getsockname())
        # Of the sockets alone: who runs the tests may have started a thread of its own meanwhile.
        assert not any("connection" in one for one in guard.hazards())


def test_a_loop_that_is_not_closed() -> None:
    guard = ForkGuard()
    loop = asyncio.new_event_loop()
    try:
        assert guard.hazards() == ["an event loop that is not closed (asyncio.unix_events)"]
    finally:
        loop.close()
    assert guard.hazards() == []


def test_descriptors_are_left_as_they_were() -> None:
    guard = ForkGuard()
    before = sorted(os.listdir("/dev/fd"))
    guard.hazards()
    assert sorted(os.listdir("/dev/fd")) == before


def test_the_warning_says_what_to_do_instead() -> None:
    said = warning(['thread "poller" (/srv/app.py:12)', "a connection to 127.0.0.1:5432 (fd 9)"])
    assert said == (
        'preload: not safe to fork: thread "poller" (/srv/app.py:12); a connection to'
        " 127.0.0.1:5432 (fd 9). Workers do not get threads, and must not share connections or"
        " loops: make them in an on_startup hook, which runs in each worker"
    )


APPLICATION = """
import asyncio
import socket
import threading

from prefork import Application

app = Application()


def poll():
    threading.Event().wait()


threading.Thread(target=poll, name="poller", daemon=True).start()
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, name="loop", daemon=True).start()


@app.use
async def serve(ctx, next):
    ctx.body = str(server.getsockname()[1])
"""


def test_one_warning_names_all_of_it(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True)
    port = server.get("/").text
    (line,) = (line for line in server.log.splitlines() if "[warn]" in line)
    assert "preload: not safe to fork: " in line
    assert 'thread "poller" (' in line
    assert f"{server.directory}/application.py:12)" in line
    assert f"a connection to 127.0.0.1:{port} (fd " in line
    assert "an event loop that runs (asyncio.unix_events)" in line
    assert "DeprecationWarning" not in server.stderr
