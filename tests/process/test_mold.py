"""`preload`: one process imports the application, and the workers are its copies."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Daemons, Server

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
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


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
