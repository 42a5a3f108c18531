"""Files, includes, the environment and --set: who wins, and where each value came from."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork.config.address import ListenAddress
from prefork.config.loader import ConfigError, ConfigSource
from prefork.config.schema import Config


def test_no_file_is_all_defaults(tmp_path: Path) -> None:
    conf = ConfigSource(None, (), "a:b", str(tmp_path), {}).load()
    assert conf == Config(app="a:b", working_directory=str(tmp_path))
    assert conf.listen == (ListenAddress(kind="inet", host="127.0.0.1", port=8000),)
    assert conf.pid_file is None


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "---\n", "null\n", "timeouts:\nlog:\n  error:\n"]
)
def test_nothing_said_is_all_defaults(folder: Any, text: str) -> None:
    assert folder.read(text, app="a:b").conf == Config(
        app="a:b", working_directory=str(folder.path)
    )


def test_everything_said(folder: Any) -> None:
    conf = folder.read(
        """
        app: my.project:make("x")
        preload: false
        working_directory: src/..
        listen:
          - 127.0.0.1:8000
          - {address: "[::]:8001", v6only: false, backlog: 17}
          - {address: "unix:run/app.sock", mode: 0o660}
          - fd:3
        workers: 0x10
        master_process: false
        pid_file: run/prefork.pid
        user: root
        group: 0
        log: {error: {path: stderr, level: debug}, access: {path: a.log, format: "$status $$x"}}
        timeouts: {boot: 1m30s, head: 250ms, keep_alive: off, graceful: 1d}
        limits: {request_line: 4k, head: 1MiB, header_count: 7, body: 0, connections: 0o20}
        on_term: graceful
        umask: 0o027
        rlimits: {nofile: unlimited, core: 1GiB}
        niceness: -20
        cpu_affinity: ["0-1", 0b1, 0x3]
        environment: {A: "", B: 1}
        """.replace("src/..", ".")
    ).conf
    base = str(folder.path)
    assert conf.app == 'my.project:make("x")'
    assert conf.working_directory == base
    assert [a.text for a in conf.listen] == [
        "127.0.0.1:8000",
        "[::]:8001",
        f"unix:{base}/run/app.sock",
        "fd:3",
    ]
    assert (conf.listen[1].backlog, conf.listen[1].v6only) == (17, False)
    assert (conf.listen[2].backlog, conf.listen[2].mode) == (2048, 0o660)
    assert conf.workers == 16
    assert conf.master_process is False
    assert conf.pid_file == f"{base}/run/prefork.pid"
    assert (conf.user, conf.group) == ("root", "0")
    assert (conf.log.error.path, conf.log.error.level) == ("stderr", "debug")
    assert (conf.log.access.path, conf.log.access.format) == (f"{base}/a.log", "$status $x")
    assert conf.timeouts.boot == 90.0
    assert (conf.timeouts.head, conf.timeouts.keep_alive) == (0.25, 0.0)
    assert (conf.limits.request_line, conf.limits.head) == (4096, 1 << 20)
    assert (conf.limits.header_count, conf.limits.body, conf.limits.connections) == (7, 0, 16)
    assert (conf.on_term, conf.umask, conf.niceness) == ("graceful", 0o027, -20)
    assert (conf.rlimits.nofile, conf.rlimits.core) == (-1, 1 << 30)
    assert conf.cpu_affinity == ((0, 1), (0,), (0, 1))
    assert conf.environment == {"A": "", "B": "1"}


def test_nginx_masks_are_told_by_a_leading_zero(folder: Any) -> None:
    assert folder.read("app: a:b\ncpu_affinity: [01, 10, 11]\n").conf.cpu_affinity == (
        (0,),
        (1,),
        (0, 1),
    )
    assert folder.read("app: a:b\ncpu_affinity: [0, 1]\n").conf.cpu_affinity == ((0,), (1,))


def test_precedence_and_origins(folder: Any) -> None:
    folder.environ = {
        "PREFORK_WORKERS": "3",
        "PREFORK_TIMEOUTS_HEAD": "4s",
        "PREFORK_LISTEN": "[::1]:8000",
        "PREFORK_PORT": "tcp://10.0.0.1:80",  # Kubernetes, and none of ours
        "PREFORK": "5;6;",
    }
    loaded = folder.read(
        "app: a:b\nworkers: 2\ntimeouts:\n  head: 1s\n  body: 2s\n",
        "workers=4",
        "timeouts={send: 9}",
        "workers=5",
        app="c:d",
    )
    conf, origins = loaded.conf, {path: s.text for path, s in loaded.origins.items()}
    assert (conf.workers, conf.app) == (5, "c:d")
    assert (conf.timeouts.head, conf.timeouts.body, conf.timeouts.send) == (4.0, 2.0, 9.0)
    assert conf.listen[0].text == "[::1]:8000"
    assert origins == {
        "app": "argument",
        "workers": "--set",
        "timeouts.head": "environment PREFORK_TIMEOUTS_HEAD",
        "timeouts.body": "conf.yaml:5",
        "timeouts.send": "--set",
        "listen": "environment PREFORK_LISTEN",
    }


def test_what_is_overridden_need_not_be_right(folder: Any) -> None:
    """`--set workers=2` is how one gets past a variable that this shell does not have."""
    assert folder.read("app: a:b\nworkers: ${NPROC}\n", "workers=2").conf.workers == 2


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("workers=4", "workers", 4),
        (" workers = 4 ", "workers", 4),
        ("listen=*:8000", "listen", "0.0.0.0:8000"),
        ("listen=[::1]:8000", "listen", "[::1]:8000"),
        ('listen=[":8000", ":8001"]', "listen", "0.0.0.0:8000 0.0.0.0:8001"),
        ('listen={address: ":8000", backlog: 1}', "listen", "0.0.0.0:8000"),
        ("log.access.format=$status: $request # x", "log.access.format", "$status: $request # x"),
        ("log.access.format='off'", "log.access.format", "off"),
        ("environment.A.B=x", "environment", {"A.B": "x"}),
        ("environment.DEBUG=", "environment", {"DEBUG": ""}),
        ("environment={A: 1, B: x}", "environment", {"A": "1", "B": "x"}),
        ("pid_file=null", "pid_file", None),
        ("pid_file=", "pid_file", None),
        ("user=${WHO:-root}", "user", "root"),
    ],
)
def test_set(folder: Any, override: str, path: str, value: object) -> None:
    found: Any = folder.read("app: a:b\n", override).conf
    for name in path.split("."):
        found = getattr(found, name)
    if path == "listen":
        found = " ".join(address.text for address in found)
    assert found == value


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("workers", "--set wants key=value, such as workers=4"),
        ("=4", "--set wants key=value, such as workers=4"),
        ("wrokers=4", 'unknown key "wrokers" (did you mean "workers"?)'),
        ("log.level=info", 'unknown key "level" in "log" (did you mean "log.error.level"?)'),
        ("workers.x=4", '"workers" is one value and has no "x" in it'),
        ("workers=four", '"workers" must be a whole number from 1 to 512, or auto, not "four"'),
        ("timeouts=4", '"timeouts" must be a mapping with keys such as boot, head, body, not "4"'),
        ('listen=[":80"', 'this "[" is not closed: a "," or a "]" is missing'),
        ("include=x.yaml", '"include" belongs at the top level of a file'),
        ("environment.=x", "a variable's name is not empty and has no ="),
        ("user=\udcff", "is not UTF-8 text"),
    ],
)
def test_set_refused(folder: Any, override: str, says: str) -> None:
    report = folder.errors("app: a:b\n", override)
    assert report.splitlines()[0] == f"--set: error: {says}"
    assert report.splitlines()[1].strip().startswith("--set ")


def test_environment_refused(folder: Any) -> None:
    folder.environ = {"PREFORK_WORKERS": "many", "PREFORK_LOG_ERROR_LEVEL": "warning"}
    report = folder.errors("app: a:b\nworkers: 2\n")
    assert "PREFORK_WORKERS: error: " in report
    assert "PREFORK_WORKERS=many" in report
    assert '(did you mean "warn"?)' in report


def test_paths_start_in_the_folder_of_the_file(tmp_path: Path) -> None:
    site = tmp_path / "etc" / "site"
    (site / "conf.d").mkdir(parents=True)
    (site / "conf.yaml").write_text("app: a:b\npid_file: x.pid\ninclude: conf.d/log.yaml\n")
    (site / "conf.d" / "log.yaml").write_text("log: {error: {path: e.log}}\n")
    conf = ConfigSource("etc/site/conf.yaml", (), None, str(tmp_path), {}).load()
    assert conf.working_directory == str(site)
    assert conf.pid_file == str(site / "x.pid")
    assert conf.log.error.path == str(site / "e.log")  # not below conf.d: as nginx's prefix
    conf = ConfigSource(None, ("pid_file=x.pid",), "a:b", str(tmp_path), {}).load()
    assert conf.pid_file == str(tmp_path / "x.pid")


def test_include(folder: Any) -> None:
    folder.write("conf.d/10-log.yaml", "log: {error: {level: info}}\n")
    folder.write("conf.d/20-more.yaml", "timeouts: {head: 1s}\ninclude: ${MORE:-third.yaml}\n")
    folder.write("conf.d/ignored.txt", "nonsense: [")
    folder.write("third.yaml", "timeouts: {body: 2s}\nenvironment: {B: 2}\n")
    loaded = folder.read(
        "app: a:b\ninclude: [conf.d/*.yaml, none.d/*.yaml]\nenvironment: {A: 1}\n"
        "timeouts: {send: 3s}\n"
    )
    conf = loaded.conf
    assert conf.log.error.level == "info"
    assert (conf.timeouts.head, conf.timeouts.body, conf.timeouts.send) == (1.0, 2.0, 3.0)
    assert conf.environment == {"A": "1", "B": "2"}
    assert [os.path.relpath(f, folder.path) for f in loaded.files] == [
        "conf.yaml",
        "conf.d/10-log.yaml",
        "conf.d/20-more.yaml",
        "third.yaml",
    ]
    assert loaded.origins["timeouts.body"].text == "third.yaml:1"


def test_include_refused(folder: Any) -> None:
    folder.write("a.yaml", "workers: 3\nlog:\n  eror: x\n")
    folder.write("loop.yaml", "include: conf.yaml\n")
    folder.write("broken.yaml", "log: [\n")
    report = folder.errors(
        "app: a:b\nworkers: 2\ninclude: [a.yaml, none.yaml, loop.yaml, broken.yaml, '']\n"
        "timeouts: {include: a.yaml}\n"
    )
    headlines = [line for line in report.splitlines() if ": error: " in line]
    assert headlines == [
        'conf.yaml:3:19: error: open() "none.yaml" failed (2: No such file or directory)',
        'conf.yaml:3:54: error: "include" must be a path, a glob or a list of them, not ""',
        'conf.yaml:4:12: error: "include" belongs at the top level of a file',
        'a.yaml:1:1: error: duplicate key "workers" (first set at conf.yaml:2:1)',
        'a.yaml:3:3: error: unknown key "eror" in "log" (did you mean "error"?)',
        "loop.yaml:1:10: error: conf.yaml includes itself",
        "broken.yaml:2:1: error: the file ends inside a list or a mapping: "
        'a "]" or a "}" is missing',
    ]


def test_no_such_file(folder: Any) -> None:
    folder.write("conf.yml", "app: a:b\n")
    with pytest.raises(ConfigError) as caught:
        folder.source().load()
    assert str(caught.value) == (
        'open() "conf.yaml" failed (2: No such file or directory) (did you mean "conf.yml"?)'
    )
    for name, reason in ((".", "21: Is a directory"), ("a\0b", "NUL character")):
        with pytest.raises(ConfigError, match=reason):
            folder.source(name=name).load()
    folder.write("conf.yaml", b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        folder.source().load()


def test_a_broken_file_does_not_hide_a_broken_command_line(folder: Any) -> None:
    report = folder.errors("app: [\n", "wrokers=4")
    assert "conf.yaml:2:1: error: " in report
    assert "--set: error: unknown key" in report
    assert "no application" not in report


def test_lenient_is_enough_to_find_a_server(folder: Any) -> None:
    """`prefork stop` runs in a shell without the server's secrets."""
    folder.write("conf.yaml", "app: ${APP}\nworkers: ${N}\npid_file: x.pid\nwrokers: 1\n")
    conf = folder.source().load(lenient=True)
    assert conf.pid_file == str(folder.path / "x.pid")
    assert conf.workers == "auto"
    folder.write("conf.yaml", "app: a:b\npid_file: ${WHERE}\n")
    with pytest.raises(ConfigError, match="WHERE is not set"):
        folder.source().load(lenient=True)
    folder.write("conf.yaml", "app: [\n")
    with pytest.raises(ConfigError, match="the file ends inside"):
        folder.source().load(lenient=True)


def test_loading_imports_nothing_heavy(folder: Any) -> None:
    folder.write("conf.yaml", "app: a:b\ntimeouts: {head: 5s}\nlisten: [':80', 'unix:x']\n")
    program = (
        "import sys\n"
        "from prefork.config.loader import ConfigSource\n"
        "ConfigSource(None, ('workers=4',), 'a:b', '/').load()\n"
        "assert 'yaml' not in sys.modules, 'no file needs no YAML'\n"
        "ConfigSource('conf.yaml').load()\n"
        "heavy = {'asyncio', 'httptools', 'psutil', 'socket', 'logging', 'difflib', 'click',"
        " 'subprocess', 'glob', 'pwd', 'unicodedata'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        cwd=folder.path,
        check=True,
        timeout=60,
    )


def test_pure_python_yaml_tells_the_same(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pyyaml was built without libyaml."""
    import yaml

    text = 'app: a:b\nworkers: ${N}\nlisten: ["x", &a 5, *a]\numask: 0022\nlog: {x: [1]}\n'
    with_libyaml = folder.errors(text)
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert folder.errors(text) == with_libyaml
    assert "nested too deeply" in folder.errors("app: " + "[" * 2000)
