"""`prefork check`, `config show | schema | explain` and `init`, as an operator runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prefork.cli.init import configuration, schema_for
from prefork.config.jsonschema import PATH
from prefork.config.loader import ConfigSource

UNITS = Path(__file__).parents[2] / "systemd"
GOOD = "app: application:app\nworkers: 2\npid_file: run/prefork.pid\n"


def run(
    folder: Path, *argv: str, code: int = 0, **environ: str
) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFORK_")}
    done = subprocess.run(
        [sys.executable, "-m", "prefork", *argv],
        cwd=folder,
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done
    assert "prefork/cli" not in done.stderr  # no traceback of ours
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf.yaml").write_text(GOOD)
    (tmp_path / "application.py").write_text(
        "from prefork import Application\napp = Application()\n"
    )
    return tmp_path


def test_check_says_what_would_be_served(folder: Path) -> None:
    done = run(folder, "check", "-c", "conf.yaml", "--set", "listen=unix:x.sock")
    assert done.stdout == (
        "conf.yaml is right: application:app (not imported: see --app)"
        f" on unix:{folder}/x.sock, 2 workers (as configured)\n"
    )
    assert done.stderr == ""


def test_check_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    run(folder, "check", "-c", "conf.yaml")
    assert sorted(folder.iterdir()) == before


def test_check_reports_all_and_exits_with_78(folder: Path) -> None:
    (folder / "conf.yaml").write_text("app: application:app\nwrokers: 4\numask: 0022\n")
    done = run(folder, "check", "-c", "conf.yaml", "--set", "on_term=slow", code=78)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        'conf.yaml:2:1: error: unknown key "wrokers" (did you mean "workers"?)',
        "     2 | wrokers: 4",
        "       | ^~~~~~~",
        'conf.yaml:3:8: error: "umask" is octal: write 0o022',
        "     3 | umask: 0022",
        "       |        ^~~~",
        '--set: error: "on_term" must be fast or graceful, not "slow"',
        "      --set on_term=slow",
    ]
    done = run(folder, "check", "-c", "conf.yaml", "--format", "json", code=78)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "ok": False,
        "file": "conf.yaml",
        "problems": [
            {
                "severity": "error",
                "file": "conf.yaml",
                "line": 2,
                "column": 1,
                "message": 'unknown key "wrokers" (did you mean "workers"?)',
                "suggestion": "workers",
            },
            {
                "severity": "error",
                "file": "conf.yaml",
                "line": 3,
                "column": 8,
                "message": '"umask" is octal: write 0o022',
                "suggestion": "0o022",
            },
        ],
    }


def test_check_warns_and_is_content(folder: Path) -> None:
    argv = ("check", "-c", "conf.yaml", "--set", "daemon=true")
    done = run(folder, *argv)
    assert done.stderr.startswith('--set: warning: "log.error.path" is stderr')
    assert "is right" in done.stdout
    report = json.loads(run(folder, *argv, "--format", "json").stdout)
    assert report["ok"] is True
    assert [problem["severity"] for problem in report["problems"]] == ["warning"]


def test_check_imports_the_application_when_asked(folder: Path) -> None:
    (folder / "conf.yaml").write_text("app: application:app\nenvironment: {MODE: test}\n")
    (folder / "application.py").write_text(
        "import os\nfrom prefork import Application\napp = os.environ['MODE'] and Application()\n"
    )
    run(folder, "check", "-c", "conf.yaml")
    said = run(folder, "check", "-c", "conf.yaml", "--app").stdout
    assert "(imported: onion, from its class prefork.Application)" in said
    (folder / "application.py").write_text("import nonsense_that_is_not_there\n")
    run(folder, "check", "-c", "conf.yaml")
    done = run(folder, "check", "-c", "conf.yaml", "--app", code=78)
    headline, quoted, caret, *frames = done.stderr.splitlines()
    assert headline.startswith("conf.yaml:1:6: error: ")
    assert quoted.endswith("app: application:app")
    assert caret.endswith("^~~~~~~~~~~~~~~")
    assert any("nonsense_that_is_not_there" in frame for frame in frames)
    done = run(folder, "check", "-c", "conf.yaml", "--app", "--format", "json", code=78)
    assert json.loads(done.stdout)["problems"][0]["line"] == 1


def test_check_compiles_the_log_format(folder: Path) -> None:
    (folder / "conf.yaml").write_text("app: a:b\nlog: {access: {format: $remote_adr}}\n")
    done = run(folder, "check", "-c", "conf.yaml", code=78)
    assert done.stderr.startswith("conf.yaml:2:24: error: ")
    assert "remote_adr" in done.stderr


def test_check_without_anything_to_check_is_wrong_usage(folder: Path) -> None:
    assert "name a file (-c FILE)" in run(folder, "check", code=2).stderr
    assert "is right" in run(folder, "check", "application:app").stdout
    assert "application:app" in run(folder, "check", "--set", "app=application:app").stdout


def test_a_missing_file_is_named_with_its_neighbour(folder: Path) -> None:
    done = run(folder, "check", "-c", "conf.yml", code=78)
    assert done.stderr == (
        'open() "conf.yml" failed (2: No such file or directory) (did you mean "conf.yaml"?)\n'
    )


def test_show_is_a_configuration_with_origins(folder: Path) -> None:
    (folder / "secret").write_text("hunter2\n")
    with (folder / "conf.yaml").open("a") as file:
        file.write("environment:\n  DB: 'pg://u:${file:secret}@h/'\n  API_TOKEN: plain\n  A: 1\n")
    argv = ("config", "show", "-c", "conf.yaml", "--set", "timeouts.head=5")
    done = run(folder, *argv, PREFORK_ON_TERM="graceful")
    assert done.stderr == ""
    assert "hunter2" not in done.stdout
    lines = done.stdout.splitlines()
    found = {line.split("  #")[0].strip(): line.rpartition("# ")[2] for line in lines}
    assert found["app: application:app"] == "conf.yaml:1"
    assert found["workers: 2"] == "conf.yaml:2"
    assert found[f"pid_file: {folder}/run/prefork.pid"] == "conf.yaml:3"
    assert found["on_term: graceful"] == "environment PREFORK_ON_TERM"
    assert found["head: 5s"] == "--set"
    assert found["body: 30s"] == "default"
    assert found['DB: "[redacted]"'] == "conf.yaml:5, a ${file:}"
    assert found['API_TOKEN: "[redacted]"'] == "conf.yaml:6"
    assert found['A: "1"'] == "conf.yaml:7"
    assert yaml.safe_load(done.stdout)["limits"]["body"] == "16MiB"

    table = json.loads(run(folder, *argv, "--json").stdout)
    assert table["timeouts.head"] == {"value": 5.0, "origin": "--set"}
    assert table["workers"] == {"value": 2, "origin": "conf.yaml:2"}
    assert table["environment.DB"]["value"] == "[redacted]"
    assert table["listen"]["value"][0]["port"] == 8000


def test_show_needs_neither_a_file_nor_an_application(folder: Path) -> None:
    assert run(folder, "config", "show").stdout.startswith("app: null ")
    done = run(folder, "config", "show", "--set", "wrokers=1", code=78)
    assert 'did you mean "workers"?' in done.stderr
    assert done.stdout == ""


def test_explain(folder: Path) -> None:
    page = run(folder, "config", "explain", "log.error.level").stdout
    assert page.splitlines()[0] == "log.error.level"
    for says in (
        "one of debug, info, notice",
        "PREFORK_LOG_ERROR_LEVEL",
        "default      notice",
        "a reload",
        "log:\n               error:\n                 level: info",
    ):
        assert says in page
    assert "a restart" in run(folder, "config", "explain", "daemon").stdout
    section = run(folder, "config", "explain", "timeouts").stdout
    assert section.startswith("timeouts: How long things may take.")
    assert "timeouts.graceful" in section
    assert "cpu_affinity" in run(folder, "config", "explain").stdout
    facts = json.loads(run(folder, "config", "explain", "workers", "--json").stdout)
    assert facts["default"] == "auto"
    assert facts["environment"] == "PREFORK_WORKERS"
    assert len(json.loads(run(folder, "config", "explain", "log", "--json").stdout)) == 6


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("wrokers", "workers"),
        ("graceful", "timeouts.graceful"),
        ("timouts.graceful", "timeouts.graceful"),
        ("timeouts.gracefull", "timeouts.graceful"),
        ("bind", "listen"),
    ],
)
def test_explain_knows_what_was_meant(folder: Path, key: str, meant: str) -> None:
    assert f'(did you mean "{meant}"?)' in run(folder, "config", "explain", key, code=2).stderr


def test_schema_is_the_installed_one(folder: Path) -> None:
    printed = run(folder, "config", "schema").stdout
    assert printed == Path(PATH).read_text()
    assert json.loads(printed)["additionalProperties"] is False


def test_init_writes_what_check_likes(folder: Path) -> None:
    (folder / "conf.yaml").unlink()
    done = run(folder, "init", "application:app")
    assert done.stdout == ""
    assert "prefork start -c conf.yaml" in done.stderr
    text = (folder / "conf.yaml").read_text()
    assert len(text.splitlines()) < 40
    modeline = text.splitlines()[0].partition("$schema=")[2]
    assert (folder / modeline).is_file()
    said = run(folder, "check", "-c", "conf.yaml", "--app").stdout
    assert "application:app (imported: onion, from its class prefork.Application) on http" in said
    done = run(folder, "init", code=1)
    assert done.stderr == "conf.yaml exists: remove it, or use --force\n"
    assert (folder / "conf.yaml").read_text() == text
    run(folder, "init", "--force")
    assert "prefork.apps.hello:app" in (folder / "conf.yaml").read_text()


def test_init_refuses_what_start_would_refuse(folder: Path) -> None:
    done = run(folder, "init", "application.py", "-o", "new.yaml", code=78)
    assert '(did you mean "application:app"?)' in done.stderr
    assert not (folder / "new.yaml").exists()
    done = run(folder, "init", "-o", "none/new.yaml", code=1)
    assert done.stderr == 'open() "none/new.yaml" failed (2: No such file or directory)\n'


def test_init_with_a_unit(folder: Path) -> None:
    (folder / "conf.yaml").write_text(GOOD + "user: root\n")
    done = run(folder, "init", "--systemd")
    assert "sudo systemctl enable --now prefork.service" in done.stderr
    assert (folder / "conf.yaml").read_text() == GOOD + "user: root\n"  # kept
    unit = (folder / "prefork.service").read_text()
    for says in (
        "Description=prefork serving application:app\n",
        "Type=notify\n",
        f" start -c {folder}/conf.yaml --set pid_file=%t/prefork/prefork.pid\n",
        "KillSignal=SIGQUIT\nKillMode=mixed\n",
        "RestartPreventExitStatus=78\n",
        "User=root\n",
        "RuntimeDirectory=prefork\n",
        "prefork stop --pid-file %t/prefork/prefork.pid\n",
        "prefork reload --pid-file %t/prefork/prefork.pid\n",
    ):
        assert says in unit
    # Nothing is hardened here that is not in the shipped unit, which is tried as a whole.
    shipped = (UNITS / "prefork.service").read_text().splitlines()
    tail = unit.partition("RuntimeDirectory=")[2].partition("[Install]")[0].splitlines()
    ours = [line for line in tail[1:] if line and line[0] != "#"]
    assert len(ours) > 10
    assert set(ours) - set(shipped) == {"ProtectSystem=full"}
    run(folder, "init", "--systemd", "-o", "100% my site.yaml")
    unit = (folder / "100-my-site.service").read_text()
    assert f'start -c "{folder}/100%% my site.yaml"' in unit
    assert "RuntimeDirectory=100-my-site\n" in unit


def test_the_schema_of_a_virtual_environment_is_named_relatively(tmp_path: Path) -> None:
    project = Path(PATH).parents[2]
    assert schema_for(str(project / "conf.yaml")) == "prefork/config/schema.json"
    assert schema_for(str(tmp_path / "conf.yaml")) == PATH
    (tmp_path / "conf.yaml").write_text(configuration("conf.yaml", "a:b"))
    ConfigSource("conf.yaml", (), None, str(tmp_path), {}).load()
