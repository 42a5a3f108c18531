"""A worker that hangs: the log says where and on what, it is replaced, and the others go on."""

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.faults.conftest import Faulty, OpenLoop

# What hangs, and a word that its stack has.
HANGS = {
    "sleep": ("import time; time.sleep(1000)", "hang_in_sleep"),
    "loop": ("while True: pass", "hang_in_loop"),
    # C code that waits for a lock with the GIL held: no Python code of this process can run.
    "lock": (
        "import ctypes; mutex = ctypes.create_string_buffer(64);"
        " lock = ctypes.PyDLL(None).pthread_mutex_lock; lock(mutex); lock(mutex)",
        "hang_in_lock",
    ),
}


def hanging(source: str) -> str:
    functions = "".join(
        f"\n\ndef hang_in_{name}():\n    {code}\n" for name, (code, _) in HANGS.items()
    )
    return (
        source.replace(
            '    elif name == "post":',
            '    elif name == "hang":\n        globals()["hang_in_" + rest[0]]()\n'
            '    elif name == "never":\n        await hang_in_await()\n    elif name == "post":',
        )
        + functions
        + "\n\nasync def hang_in_await():\n    await asyncio.Event().wait()\n"
    )


def hang(server: "Server", path: str) -> int:
    """Ask for `path` and wait until it has begun; the pid of the worker that has it."""
    with server.connect() as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Id: 990000\r\n\r\n".encode())
        server.wait_for(lambda: "+ 990000 " in journal(server))
        found = re.search(r"\+ 990000 (\d+)", journal(server))
        assert found is not None
        hung = int(found[1])
        server.wait_for(lambda: hung not in server.pids(), timeout=90)
    return hung


def journal(server: "Server") -> str:
    return (server.directory / "journal").read_text()


@pytest.mark.parametrize("how", list(HANGS))
def test_the_log_says_where_and_the_others_go_on(
    faulty: "Faulty", open_loop: "type[OpenLoop]", how: str
) -> None:
    # Who uses the processor is given ten times as long.
    hang_time = "400ms" if how == "loop" else "1s"
    server = faulty(start=False, workers=2, timeouts={"hang": hang_time})
    server.write_app(hanging((server.directory / "application.py").read_text()))
    server.start()
    server.expect("hung|hang|Traceback|exited on signal|SIGABRT|SIGKILL|File")
    with open_loop(server, fresh=1.0) as client:
        hung = hang(server, f"/hang/{how}?with=query")
        server.wait_for(lambda: len(server.pids()) == 2)
        client.wait_more(50)
    assert f"GET /hang/{how}?with=query" in server.log
    assert HANGS[how][1] in server.log
    # What the hung one had already taken is lost with it: it answers nobody.
    begun = dict(re.findall(r"\+ (\d+) (\d+)", journal(server)))
    taken = [one for one in client.failures if begun.get(str(one["id"]), str(hung)) == str(hung)]
    assert taken == client.failures, client.account()
    assert len(taken) < 10, client.account()


def test_an_await_that_never_returns(faulty: "Faulty", open_loop: "type[OpenLoop]") -> None:
    server = faulty(start=False, workers=2, timeouts={"request": "1s"})
    server.write_app(hanging((server.directory / "application.py").read_text()))
    server.start()
    before = server.pids()
    server.expect("/never|timeouts.request|Traceback|File")
    with open_loop(server) as client:
        assert server.get("/never").status == 504
        client.wait_more(20)
    client.assert_none_failed()
    assert "GET /never" in server.log
    assert "hang_in_await" in server.log
    assert server.pids() == before


def test_a_stopped_worker(faulty: "Faulty", open_loop: "type[OpenLoop]") -> None:
    """SIGSTOP: it is waited for as long as a hung one, and replaced."""
    server = faulty(workers=2, timeouts={"hang": "1s"})
    server.expect("stopped|hung|exited on signal|Traceback|File")
    with open_loop(server, fresh=1.0) as client:
        victim = server.pids()[0]
        server.send(signal.SIGSTOP, victim)
        server.wait_for(lambda: victim not in server.pids(), timeout=60)
        server.wait_for(lambda: len(server.pids()) == 2)
        client.wait_more(50)
        time.sleep(0.2)
    assert len(client.failures) < 10, client.account()
