"""The shipped units, unchanged, under a real systemd: started, reloaded, stopped, killed."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.systemd.conftest import Machine

REPOSITORY = Path(__file__).parents[2]
UNITS = REPOSITORY / "systemd"
UNIT = "prefork.service"
PREFORK = "/opt/prefork/bin/prefork"
PID_FILE = "/run/prefork/prefork.pid"

APPLICATION = """
import asyncio

from prefork import Application

app = Application()


@app.use
async def answer(ctx, next):
    if ctx.path == "/slow":
        await asyncio.sleep(1)
    ctx.body = "version 1"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def port() -> int:
    return free_port()


def configuration(listen: str) -> str:
    return (
        "app: application:app\n"
        "working_directory: /srv/application\n"
        f'listen: ["{listen}"]\n'
        "workers: 2\n"
    )


def get(port: int, path: str = "/") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    body = connection.getresponse().read().decode()
    connection.close()
    return body


@pytest.fixture
def service(machine: Machine, port: int) -> Machine:
    """The service as an administrator would install it, not yet started."""
    machine.write("/srv/application/application.py", APPLICATION)
    machine.write("/etc/prefork/prefork.yaml", configuration(f"127.0.0.1:{port}"))
    machine.install(UNITS / UNIT)
    return machine


def change_application(machine: Machine, old: str, new: str) -> None:
    """Edit the application so that no worker can take a stale .pyc for it."""
    machine.run("sed", "-i", f"s/{old}/{new}/", "/srv/application/application.py")
    machine.run("rm", "-rf", "/srv/application/__pycache__")


def test_start_returns_when_the_workers_are_ready(service: Machine, port: int) -> None:
    service.systemctl("start", UNIT)
    assert get(port) == "version 1"
    assert service.show(UNIT, "ActiveState") == "active"
    assert service.show(UNIT, "StatusText").startswith("2 workers")
    pid = service.show(UNIT, "MainPID")
    assert service.run("cat", PID_FILE).stdout.strip() == pid
    assert f" pid {pid}, up " in service.run(PREFORK, "status", "--pid-file", PID_FILE).stdout
    owner = service.run("stat", "-c", "%u", f"/proc/{pid}").stdout.strip()
    assert int(owner) >= 61184  # systemd's range for dynamic users: root it is not


def test_log_lines_carry_their_level_to_the_journal(service: Machine) -> None:
    service.systemctl("start", UNIT)
    assert "ready on" in service.journal("-u", UNIT, "-p", "5..5")  # 5 is notice
    assert not service.journal("-u", UNIT, "-p", "0..4")
    assert not re.search(r"^<\d>", service.journal("-u", UNIT), re.MULTILINE)


def test_bad_configuration_is_78_and_not_tried_again(service: Machine) -> None:
    service.write("/etc/prefork/prefork.yaml", "app: application:app\nwrkers: 2\n")
    started = service.systemctl("start", UNIT, check=False)
    assert started.returncode != 0
    # Restart=on-failure would show "activating (auto-restart)" here.
    assert service.show(UNIT, "ActiveState") == "failed"
    assert service.show(UNIT, "ExecMainStatus") == "78"
    assert service.show(UNIT, "NRestarts") == "0"
    assert "wrkers" in service.journal("-u", UNIT)


def test_application_that_cannot_be_imported_fails_the_start(service: Machine) -> None:
    change_application(service, "import asyncio", "import asyncioo")
    assert service.systemctl("start", UNIT, check=False).returncode != 0
    assert "asyncioo" in service.journal("-u", UNIT)


def test_reload_returns_when_the_new_code_serves(service: Machine, port: int) -> None:
    """systemd 252 waits by luck when ExecReload is a bare signal: several rounds show it."""
    service.systemctl("start", UNIT)
    pid = service.show(UNIT, "MainPID")
    for version in range(2, 7):
        change_application(service, f"version {version - 1}", f"version {version}")
        service.systemctl("reload", UNIT)
        assert get(port) == f"version {version}"
        assert service.show(UNIT, "ActiveState") == "active"
    assert service.show(UNIT, "MainPID") == pid
    assert "generation 6" in service.show(UNIT, "StatusText")


@pytest.mark.parametrize("broken", ["application", "configuration"])
def test_failed_reload_says_so_and_serves_on(service: Machine, port: int, broken: str) -> None:
    service.systemctl("start", UNIT)
    if broken == "application":
        change_application(service, "import asyncio", "import asyncioo")
    else:
        service.run("sed", "-i", "s/workers/wrkers/", "/etc/prefork/prefork.yaml")
    assert service.systemctl("reload", UNIT, check=False).returncode != 0
    assert get(port) == "version 1"
    assert service.show(UNIT, "ActiveState") == "active"
    assert {"application": "asyncioo", "configuration": "wrkers"}[broken] in service.journal()


def test_stop_finishes_what_runs(service: Machine, port: int) -> None:
    service.systemctl("start", UNIT)
    answers: list[str] = []
    client = threading.Thread(target=lambda: answers.append(get(port, "/slow")))
    client.start()
    wait_for_request(service)
    service.systemctl("stop", UNIT)
    client.join(30)
    assert answers == ["version 1"]
    assert service.show(UNIT, "Result") == "success"
    assert service.show(UNIT, "ExecMainStatus") == "0"
    assert service.run("test", "-e", PID_FILE, check=False).returncode == 1


def wait_for_request(machine: Machine, pid_file: str = PID_FILE) -> None:
    """Until a worker has a connection."""
    deadline = time.monotonic() + 30
    while '"connections": 1' not in (
        seen := machine.run(PREFORK, "status", "--json", "--pid-file", pid_file).stdout
    ):
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


def test_killed_worker_is_the_masters_business(service: Machine, port: int) -> None:
    service.systemctl("start", UNIT)
    pid = service.show(UNIT, "MainPID")
    worker = service.run("pgrep", "-P", pid).stdout.split()[0]
    service.run("kill", "-KILL", worker)
    deadline = time.monotonic() + 30
    while len(set(service.run("pgrep", "-P", pid).stdout.split()) - {worker}) < 2:
        assert time.monotonic() < deadline, service.journal("-u", UNIT)
        time.sleep(0.05)
    assert get(port) == "version 1"
    assert service.show(UNIT, "MainPID") == pid
    assert service.show(UNIT, "NRestarts") == "0"


def test_killed_master_is_restarted(service: Machine, port: int) -> None:
    service.systemctl("start", UNIT)
    service.run("kill", "-KILL", service.show(UNIT, "MainPID"))
    service.wait_until(UNIT, "NRestarts", "1")
    service.wait_until(UNIT, "ActiveState", "active")
    assert get(port) == "version 1"


def test_watchdog_restarts_a_master_that_hangs(service: Machine, port: int) -> None:
    service.write("/etc/systemd/system/prefork.service.d/test.conf", "[Service]\nWatchdogSec=2\n")
    service.systemctl("daemon-reload")
    service.systemctl("start", UNIT)
    pid = service.show(UNIT, "MainPID")
    time.sleep(3)  # more than the watchdog's patience: what is healthy outlives it
    assert service.show(UNIT, "MainPID") == pid
    service.run("kill", "-STOP", pid)
    service.wait_until(UNIT, "NRestarts", "1")
    service.wait_until(UNIT, "ActiveState", "active")
    assert "atchdog" in service.journal()
    assert get(port) == "version 1"


def upgrade(machine: Machine, unit: str) -> str:
    """USR2, then QUIT to the old master. The new one's pid, which systemd did not start."""
    old = machine.show(unit, "MainPID")
    machine.run("kill", "-USR2", old)
    deadline = time.monotonic() + 30
    while (new := machine.show(unit, "MainPID")) == old:
        assert time.monotonic() < deadline, machine.journal("-u", unit)
        time.sleep(0.05)
    machine.run("kill", "-QUIT", old)
    while machine.run("kill", "-0", old, check=False).returncode == 0:
        assert time.monotonic() < deadline, machine.journal("-u", unit)
        time.sleep(0.05)
    assert machine.show(unit, "MainPID") == new
    assert machine.show(unit, "ActiveState") == "active"
    return new


def test_upgrade_moves_the_main_process(service: Machine, port: int) -> None:
    """The unit follows the new master and can stop it."""
    service.systemctl("start", UNIT)
    new = upgrade(service, UNIT)
    assert get(port) == "version 1"
    service.systemctl("reload", UNIT)
    service.systemctl("stop", UNIT)
    assert service.show(UNIT, "Result") == "success", service.journal()
    assert service.run("kill", "-0", new, check=False).returncode == 1


@pytest.fixture
def sockets(service: Machine, port: int) -> Machine:
    """prefork.socket enabled: with the test's port, and a second socket of the same name."""
    service.write("/etc/prefork/prefork.yaml", configuration("systemd:http"))
    service.install(UNITS / "prefork.socket")
    service.write(
        "/etc/systemd/system/prefork.socket.d/test.conf",
        f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\nListenStream=/run/app.sock\n",
    )
    service.systemctl("daemon-reload")
    service.systemctl("enable", "--now", "prefork.socket")
    return service


def test_first_connection_starts_the_service(sockets: Machine, port: int) -> None:
    assert sockets.show(UNIT, "ActiveState") == "inactive"
    assert get(port) == "version 1"
    # The first worker answers before the last one is ready.
    sockets.wait_until(UNIT, "ActiveState", "active")
    assert (
        "200"
        in sockets.run(
            "/opt/prefork/bin/python3",
            "-c",
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/app.sock');"
            " s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n');"
            " print(s.recv(100).split()[1].decode())",
        ).stdout
    )


def test_service_started_alone_has_its_sockets(sockets: Machine, port: int) -> None:
    sockets.systemctl("stop", "prefork.socket")
    sockets.systemctl("start", UNIT)
    assert sockets.show("prefork.socket", "ActiveState") == "active"
    assert get(port) == "version 1"


def test_connections_wait_in_the_queue_through_a_restart(sockets: Machine, port: int) -> None:
    assert get(port) == "version 1"
    answers: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(get(port))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        sockets.systemctl("restart", UNIT)
        seen = len(answers)
        deadline = time.monotonic() + 30
        while len(answers) < seen + 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        over.set()
        for client in clients:
            client.join(30)
    assert len(answers) >= seen + 20
    assert set(answers) == {"version 1"}  # get() raises on a refused or a reset connection
    assert sockets.show(UNIT, "NRestarts") == "0"


def test_instances_live_side_by_side(service: Machine) -> None:
    service.install(UNITS / "prefork@.service")
    ports = {"shop": free_port(), "blog": free_port()}
    for name, number in ports.items():
        service.write(f"/etc/prefork/{name}.yaml", configuration(f"127.0.0.1:{number}"))
    service.systemctl("start", "prefork@shop", "prefork@blog")
    assert [get(number) for number in ports.values()] == ["version 1", "version 1"]
    service.systemctl("reload", "prefork@shop")
    service.systemctl("stop", "prefork@shop")
    assert get(ports["blog"]) == "version 1"
    assert service.show("prefork@shop", "Result") == "success"


def test_logs_are_rotated_as_in_the_sample(service: Machine, port: int) -> None:
    log = "/var/log/prefork/access.log"
    service.write(
        "/etc/prefork/prefork.yaml",
        configuration(f"127.0.0.1:{port}") + f"log: {{access: {{path: {log}}}}}\n",
    )
    service.systemctl("start", UNIT)
    get(port, "/before")
    service.run("mv", log, f"{log}.1")
    sample = (UNITS / "prefork.logrotate").read_text()
    script = re.search(r"postrotate\n(.*?)endscript", sample, re.DOTALL)
    assert script is not None
    service.run("bash", "-euc", script[1])
    deadline = time.monotonic() + 30
    while service.run("test", "-e", log, check=False).returncode:
        assert time.monotonic() < deadline, service.journal("-u", UNIT)
        time.sleep(0.05)
    get(port, "/after")
    service.systemctl("stop", UNIT)
    assert "/after" in service.run("cat", log).stdout
    assert "/before" in service.run("cat", f"{log}.1").stdout


def test_folders_of_the_tmpfiles_sample(machine: Machine) -> None:
    machine.run("bash", "-c", "echo prefork:x:61000:61000::/:/bin/false >>/etc/passwd")
    machine.run("bash", "-c", "echo prefork:x:61000: >>/etc/group")
    machine.write("/etc/tmpfiles.d/prefork.conf", (UNITS / "prefork.tmpfiles.conf").read_text())
    machine.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/prefork.conf")
    for folder in ("/run/prefork", "/var/log/prefork", "/var/lib/prefork"):
        assert machine.run("stat", "-c", "%u", folder).stdout == "61000\n"


def test_unit_that_init_writes(machine: Machine, port: int) -> None:
    machine.write("/srv/application/application.py", APPLICATION)
    folder, unit = "/srv/application", "my-shop.service"
    output = f"{folder}/my shop.yaml"
    machine.run(PREFORK, "init", "application:app", "-o", output, "--systemd")
    machine.run("sed", "-i", f"s/8000/{port}/", output)
    machine.run("cp", f"{folder}/{unit}", "/etc/systemd/system/")
    machine.systemctl("daemon-reload")
    done = machine.run("systemd-analyze", "verify", unit)
    assert done.stdout + done.stderr == ""
    machine.systemctl("start", unit)
    assert get(port) == "version 1"
    change_application(machine, "version 1", "version 2")
    machine.systemctl("reload", unit)
    assert get(port) == "version 2"
    # systemd does not wait for a main process that it did not start: only ExecStop does.
    upgrade(machine, unit)
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_for_request(machine, "/run/my-shop/prefork.pid")
        machine.systemctl("stop", unit)
        assert b"version 2" in client.recv(4096)
    assert machine.show(unit, "Result") == "success", machine.journal("-u", unit)
    done = machine.run("systemd-analyze", "security", "--no-pager", unit, check=False)
    exposure = re.search(r"exposure level for \S+ ([\d.]+)", done.stdout)
    assert exposure is not None, done.stdout + done.stderr
    assert float(exposure[1]) <= 5.0


def test_units_are_sound_and_hardened(machine: Machine) -> None:
    machine.install(*(path for path in UNITS.iterdir() if path.suffix in (".service", ".socket")))
    for unit in (UNIT, "prefork@shop.service", "prefork.socket"):
        done = machine.run("systemd-analyze", "verify", unit)
        assert done.stdout + done.stderr == ""
    for unit in (UNIT, "prefork@shop.service"):
        done = machine.run("systemd-analyze", "security", "--no-pager", unit, check=False)
        exposure = re.search(r"exposure level for \S+ ([\d.]+)", done.stdout)
        assert exposure is not None, done.stdout + done.stderr
        assert float(exposure[1]) <= 1.5


def test_both_services_say_the_same() -> None:
    """systemd has no include: the template repeats the service, but for the names."""

    def settings(name: str) -> list[str]:
        lines = (UNITS / name).read_text().splitlines()
        return [line for line in lines if line and line[0] not in "#"]

    one = [
        re.sub(r"^(User|\w+Directory)=prefork$", r"\1=prefork-%i", line)
        .replace("%t/prefork/", "%t/prefork-%i/")
        .replace("/etc/prefork/prefork.yaml", "/etc/prefork/%i.yaml")
        for line in settings(UNIT)
        if not line.startswith("Description=")
    ]
    assert one == [
        line for line in settings("prefork@.service") if not line.startswith("Description=")
    ]


@pytest.mark.timeout(300)
def test_following_the_page(machine: Machine, port: int) -> None:
    """The README's commands for systemd, as root on a machine that has only Python."""
    readme = (REPOSITORY / "README.md").read_text()
    blocks = re.findall(r"^```sh test=systemd\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    machine.run("umount", "/opt/prefork/lib/python3.11/site-packages/prefork", check=False)
    machine.run("bash", "-c", "mount -t tmpfs tmpfs /opt && mount -t tmpfs tmpfs /srv")
    machine.run("bash", "-c", f"cd {REPOSITORY} && cp -r --parents {' '.join(COPIED)} /srv")
    machine.run("sed", "-i", f"s/8000/{port}/g", "/srv/conf/prefork.yaml")
    for block in blocks:
        machine.run("bash", "-euo", "pipefail", "-c", block, cwd="/srv", timeout=200)
    assert machine.show(UNIT, "Result") == "success"


COPIED = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "prefork", "conf", "systemd")
