"""`preload`: one process imports the application, and the workers are its copies."""

import json
import os
import pwd
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemons, Load, Server

# Says who imported it and who serves.
APPLICATION = """
import os
import random

from prefork import Application

app = Application()
MADE_BY = os.getpid()
STATE = {}
GREETING = "hello"


@app.on_mold
def warm():
    STATE["warmed by"] = os.getpid()


@app.use
async def serve(ctx, next):
    if ctx.path == "/affinity":
        ctx.body = str(sorted(os.sched_getaffinity(0)))
    elif ctx.path == "/identity":
        ctx.body = f"{os.geteuid()} {os.getegid()} {os.getcwd()} {os.environ.get('COLOUR')}"
    elif ctx.path == "/random":
        ctx.body = str(random.random())
    else:
        ctx.body = f"{os.getpid()} {os.getppid()} {MADE_BY} {STATE['warmed by']} {GREETING}"
"""


def mold(server: "Server") -> int:
    """The pid of the mold that was ready last."""
    found = [line for line in server.log.splitlines() if "mold of generation" in line]
    ready = [line.split()[-3] for line in found if line.endswith("is ready")]
    return int(ready[-1])


def workers(server: "Server") -> list[int]:
    return [pid for pid in server.pids() if pid != mold(server)]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    except OSError:
        return ""  # it has left


def who(server: "Server") -> tuple[int, int, int, int]:
    pid, parent, made_by, warmed_by = server.get("/").text.split()[:4]
    return int(pid), int(parent), int(made_by), int(warmed_by)


def test_workers_are_children_of_the_master_made_by_the_mold(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=3, preload=True)
    pid, parent, made_by, warmed_by = who(server)
    assert parent == server.pid
    assert made_by == warmed_by == mold(server)
    assert pid in workers(server)
    assert len(workers(server)) == 3
    assert title(mold(server)).startswith("prefork: mold gen 1 (")
    assert sorted(map(title, workers(server))) == [f"prefork: worker {n}" for n in (1, 2, 3)]


def test_the_master_imports_no_application(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, preload=True)
    maps = Path(f"/proc/{server.pid}/environ").stat()  # ours to read
    assert maps.st_uid == os.geteuid()
    assert who(server)[2] != server.pid
    assert server.log.count("start mold of generation 1") == 1


def test_without_preload_the_mold_hooks_run_in_each_worker(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION)
    pid, parent, made_by, warmed_by = who(server)
    assert parent == server.pid
    assert made_by == warmed_by == pid
    assert "mold" not in server.log


def test_a_hook_of_the_mold_may_be_a_coroutine_and_may_fail(daemon: "Daemons") -> None:
    source = APPLICATION.replace("def warm():", "async def warm():")
    server = daemon(app=source, preload=True)
    assert who(server)[3] == mold(server)

    broken = source.replace('STATE["', """raise RuntimeError('no coffee')\n    STATE[""" + '"')
    server.write_app(broken)
    server.expect("failed to start|reload failed")
    done = server.cli("reload")
    assert done.returncode == 1
    assert "on_mold failed" in done.stdout + done.stderr
    assert "no coffee" in done.stdout + done.stderr


def test_each_worker_has_random_numbers_of_its_own(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=1, preload=True)
    drawn = set()
    for _ in range(3):
        (worker,) = workers(server)
        drawn.add(server.get("/random").text)
        server.send(signal.SIGKILL, worker)
        server.expect("exited on signal 9")
        server.wait_for(lambda old=worker: old not in server.pids() and workers(server))
    assert len(drawn) == 3


SEEDED = """
import sys
import types

SEEDS = []
generators = types.ModuleType("numpy.random")  # its global generator, as far as we know of it
generators.seed = lambda: SEEDS.append(os.getpid())
sys.modules["numpy.random"] = generators
app.layers.clear()


@app.use
async def seeds(ctx, next):
    ctx.body = f"{os.getpid()} {SEEDS}"
"""


def test_the_global_generator_of_numpy_is_seeded_in_each_worker(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION + SEEDED, preload=True)
    pid, seeds = server.get("/").text.split(maxsplit=1)
    assert seeds == f"[{pid}]"


# Dying and coming back


def test_a_worker_that_dies_comes_back_from_the_mold(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True)
    server.expect("exited on signal 9")
    before = workers(server)
    for pid in before:
        server.send(signal.SIGKILL, pid)
    server.wait_for(lambda: len(set(workers(server)) - set(before)) == 2)
    pid, parent, made_by, _ = who(server)
    assert pid not in before
    assert parent == server.pid
    assert made_by == mold(server)


def test_a_dead_mold_costs_no_worker_and_is_brought_back(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(
        app=APPLICATION, workers=2, preload=True, backoff={"first": "1s", "longest": "2s"}
    )
    server.expect("exited on signal 9")
    first, before = mold(server), workers(server)
    with load(server) as client:
        server.send(signal.SIGKILL, first)
        server.wait_for(lambda: mold(server) != first)
        assert set(before) <= set(server.pids())
        client.wait_more(20)
    assert not client.failures
    # The new one makes what comes from now on.
    server.send(signal.SIGKILL, before[0])
    server.wait_for(rf"start worker \d \d+ from mold {mold(server)}")


def test_without_a_mold_workers_import_for_themselves(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, preload=True, backoff={"first": "600s", "longest": "600s"})
    server.expect("exited on signal 9")
    first = mold(server)
    server.send(signal.SIGKILL, first)
    server.wait_for("exited on signal 9 .*: another one is made")
    # Its second death: the first one is taken for an accident, and it comes back at once.
    server.wait_for(lambda: mold(server) != first)
    second = mold(server)
    (worker,) = workers(server)
    server.send(signal.SIGKILL, second)
    server.wait_for(r"another one is made in [1-9]\d\d.* import the application for themselves")
    server.send(signal.SIGKILL, worker)
    server.wait_for(lambda: server.pids() and worker not in server.pids())
    pid, parent, made_by, warmed_by = who(server)
    assert parent == server.pid
    assert made_by == warmed_by == pid


# A hook that does as the file `trouble` says, in the process that forks.
TROUBLE = """
import signal
import time


def before():
    trouble = os.path.join(os.getcwd(), "trouble")
    if os.path.exists(trouble) and "mold" in open("/proc/self/cmdline").read():
        what = open(trouble).read()
        if what == "hang":
            time.sleep(600)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)


def after():
    trouble = os.path.join(os.getcwd(), "trouble")
    if os.path.exists(trouble) and "mold" in open("/proc/self/cmdline").read():
        what = open(trouble).read()
        if what == "hang in the child":
            time.sleep(600)
        if what == "die in the child":
            os.kill(os.getpid(), signal.SIGKILL)


os.register_at_fork(before=before, after_in_child=after)
"""


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("hang", r"has not made worker 1 within \d s: kill"),
        ("die", "worker 1 is forked by the master, and imports for itself"),
        ("hang in the child", r"exited on signal 14 \(SIGALRM\)"),
        ("die in the child", "process between it and the worker exited on signal 9"),
    ],
)
def test_a_fork_that_hangs_or_dies_costs_no_worker(
    daemon: "Daemons", load: "type[Load]", trouble: str, said: str
) -> None:
    server = daemon(
        app=APPLICATION + TROUBLE,
        workers=2,
        preload=True,
        timeouts={"boot": 5},
        backoff={"first": "1s", "longest": "1s"},
    )
    server.expect("exited on signal|has not made worker")
    first, second = workers(server)
    (server.directory / "trouble").write_text(trouble)
    with load(server) as client:
        server.send(signal.SIGQUIT, first)
        server.wait_for(said)
        server.wait_for(lambda: len(workers_serving(server)) == 2)
        client.wait_more(20)
    assert not client.failures
    assert second in server.pids()
    (server.directory / "trouble").unlink()
    server.wait_for(lambda: mold(server) in server.pids())


def workers_serving(server: "Server") -> list[int]:
    return [pid for pid in server.pids() if title(pid).startswith("prefork: worker")]


# Booting


def test_a_mold_that_cannot_import_is_a_failed_start_with_one_traceback(
    daemon: "Daemons",
) -> None:
    server = daemon(app="import nothing_of_that_name", workers=3, preload=True, ready=False)
    server.expect("failed to start|no worker could start|Traceback")
    server.exit_code = 1
    assert server.wait() == 1
    assert server.log.count("Traceback") == 1
    assert "No module named 'nothing_of_that_name'" in server.stderr
    assert "start worker" not in server.log


def test_a_mold_that_imports_for_ever_is_ended_by_the_time_to_boot(daemon: "Daemons") -> None:
    server = daemon(
        app="import time\ntime.sleep(600)", preload=True, ready=False, timeouts={"boot": 1}
    )
    server.expect("was not ready|no worker could start|exited on signal 9")
    server.exit_code = 1
    assert server.wait() == 1
    assert "was not ready within 1 s (timeouts.boot)" in server.stderr
    assert "application.py" in server.log  # where it was


def test_a_stop_while_the_mold_imports(daemon: "Daemons") -> None:
    server = daemon(app="import time\ntime.sleep(600)", preload=True, ready=False)
    server.wait_for("start mold")
    assert server.stop() == 0


# Reloading


def test_a_reload_makes_a_new_mold_with_the_new_code(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True)
    first = mold(server)
    with load(server) as client:
        server.write_app(APPLICATION.replace("hello", "goodbye"))
        assert server.cli("reload").returncode == 0
        server.wait_for(lambda: first not in server.pids())
        client.wait_more(50)
    assert not client.failures
    assert client.answers[-1].endswith("goodbye")
    assert who(server)[2] == mold(server) != first
    server.wait_for(lambda: len(server.pids()) == 3)
    assert title(mold(server)).startswith("prefork: mold gen 2 (")


def test_a_reload_of_broken_code_leaves_everything_as_it_was(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True)
    server.expect("failed to start|reload failed")
    before = server.pids()
    with load(server) as client:
        server.write_app(APPLICATION + "\nraise RuntimeError('out of coffee')\n")
        done = server.cli("reload")
        client.wait_more(20)
    assert done.returncode == 1
    assert "out of coffee" in done.stdout + done.stderr
    assert server.pids() == before
    assert not client.failures
    assert server.log.count("Traceback") == 1


def test_a_reload_whose_workers_cannot_start_drops_the_new_mold(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True)
    server.expect("failed to start|reload failed")
    before = server.pids()
    server.write_app(APPLICATION + "\n@app.on_startup\ndef fail():\n    raise OSError('no')\n")
    assert server.cli("reload").returncode == 1
    server.wait_for(lambda: server.pids() == before)


def test_preload_is_switched_on_and_off_by_a_reload(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION)
    server.write_config(preload=True)
    assert server.cli("reload").returncode == 0
    assert who(server)[2] == mold(server)
    server.write_config(preload=False)
    assert server.cli("reload").returncode == 0
    server.wait_for(lambda: len(server.pids()) == 1)
    assert who(server)[2] == who(server)[0]


# With everything else


def test_scaling_with_a_mold(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=1, preload=True)
    assert server.cli("scale", "3").returncode == 0
    assert len(workers(server)) == 3
    assert {who(server)[2] for _ in range(5)} == {mold(server)}
    assert server.cli("scale", "1").returncode == 0
    server.wait_for(lambda: len(workers(server)) == 1)
    assert mold(server) in server.pids()


def test_status_does_not_count_the_mold_as_a_worker(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True)
    facts = json.loads(server.cli("status", "--json").stdout)
    assert sorted(one["pid"] for one in facts["workers"]) == sorted(workers(server))


def test_rotated_logs_are_left_by_the_workers_to_come(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, preload=True)
    log = server.directory / "access.log"
    log.rename(server.directory / "access.log.1")
    assert server.cli("reopen").returncode == 0
    server.expect("exited on signal 9")
    (worker,) = workers(server)
    server.send(signal.SIGKILL, worker)
    server.wait_for(lambda: workers(server) and worker not in server.pids())
    server.get("/")
    server.wait_for(lambda: log.exists() and '"GET / HTTP/1.1" 200' in log.read_text())


def test_an_upgrade_with_preload(daemon: "Daemons", load: "type[Load]") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True)
    old = server.pid
    with load(server) as client:
        server.send(signal.SIGUSR2)
        server.wait_for("the new master .* is ready")
        server.wait_for(lambda: server.written_pid != old)
        new = server.written_pid
        server.send(signal.SIGQUIT, old)
        assert server.wait() == 0
        client.wait_more(50)
    assert not client.failures
    server.pid = new
    assert who(server)[1] == new
    assert len(server.pids()) == 3


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_master_leaves_nothing_behind(daemon: "Daemons", busy: bool) -> None:
    source = APPLICATION + (TROUBLE if busy else "")
    server = daemon(app=source, workers=2, preload=True)
    server.exit_code = -signal.SIGKILL
    server.expect("the master process is gone|exited on signal 9")
    if busy:
        (server.directory / "trouble").write_text("hang in the child")
        server.send(signal.SIGKILL, workers(server)[0])
        server.wait_for(r"worker 1 \d+ exited")
        time.sleep(0.2)  # the mold waits for its fork by now
    server.send(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    server.pid_path.unlink()
    # `close` asserts that nobody is left and that the port is free.


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")
def test_workers_of_a_mold_have_the_right_identity_and_limits(daemon: "Daemons") -> None:
    nobody = pwd.getpwnam("nobody")
    server = daemon(
        app=APPLICATION,
        workers=2,
        preload=True,
        user="nobody",
        cpu_affinity="auto",
        niceness=5,
        rlimits={"nofile": 512},
        environment={"COLOUR": "blue"},
        start=False,
    )
    for name in ("error.log", "access.log"):
        (server.directory / name).touch()
    server.directory.chmod(0o777)
    server.start()
    expected = f"{nobody.pw_uid} {nobody.pw_gid} {server.directory} blue"
    assert server.get("/identity").text == expected
    usable = sorted(os.sched_getaffinity(0))
    for n, pid in enumerate(workers(server)):
        assert os.sched_getaffinity(pid) == {usable[n % len(usable)]}
        assert os.getpriority(os.PRIO_PROCESS, pid) == 5
        assert "Max open files            512" in Path(f"/proc/{pid}/limits").read_text()
    assert os.stat(f"/proc/{mold(server)}").st_uid in (0, nobody.pw_uid)
    assert f"Uid:\t{nobody.pw_uid}" in Path(f"/proc/{mold(server)}/status").read_text()
    assert os.sched_getaffinity(mold(server)) == set(usable)


def test_a_daemon_with_preload_lets_its_terminal_go(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True, daemon=True)
    assert server.wait() == 0
    server.pid = server.written_pid
    for pid in server.pids():
        assert os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"


def test_where_workers_cannot_be_adopted_each_imports_for_itself(daemon: "Daemons") -> None:
    server = daemon(app=APPLICATION, workers=2, preload=True, start=False)
    # What a system without PR_SET_CHILD_SUBREAPER answers.
    (server.directory / "sitecustomize.py").write_text(
        "from prefork.unix import subreaper\nsubreaper.become = lambda: False\n"
    )
    server.start(environ={"PYTHONPATH": str(server.directory)})
    pid, parent, made_by, _ = who(server)
    assert parent == server.pid
    assert made_by == pid
    assert "each worker imports the application for itself" in server.log


ASGI = """
import os

MADE_BY = os.getpid()
EVENTS = []


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            EVENTS.append(message["type"].split(".")[1])
            await send({"type": message["type"] + ".complete"})
            if EVENTS[-1] == "shutdown":
                return
    text = f"{os.getpid()} {os.getppid()} {MADE_BY} {' '.join(EVENTS)}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text.encode()})
"""


def test_an_asgi_application_is_preloaded_and_forked_again(
    daemon: "Daemons", load: "type[Load]"
) -> None:
    server = daemon(app=ASGI, workers=2, preload=True, refork_after=[50, 100000])
    assert server.get("/").text.split()[2:] == [str(mold(server)), "startup"]
    with load(server) as client:
        server.wait_for("all workers come from mold")
        client.wait_more(20)
    assert not client.failures
    assert server.get("/").text.split()[3:] == ["startup", "shutdown", "startup"]
