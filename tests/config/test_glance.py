"""A glance and the loader never differ: the glance may pass, and must not be wrong."""

from pathlib import Path

import pytest

from prefork.config.glance import pid_file
from prefork.config.loader import ConfigError, ConfigSource


@pytest.mark.parametrize(
    "text",
    [
        "app: a:b\npid_file: run/prefork.pid\nworkers: 2\n",
        "pid_file: /run/prefork.pid   # where systemd looks\n",
        "# pid_file: elsewhere.pid\npid_file: ../x.pid\n",
        "pid_file:  run/it\r\napp: a:b\r\n",
    ],
)
def test_seen(tmp_path: Path, text: str) -> None:
    (tmp_path / "conf.yaml").write_text(text, newline="")
    seen = pid_file("conf.yaml", str(tmp_path), {})
    assert seen is not None
    assert (
        seen
        == ConfigSource("conf.yaml", base=str(tmp_path), environ={}).load(lenient=True).pid_file
    )


@pytest.mark.parametrize(
    "text",
    [
        "app: a:b\n",
        "pid_file: null\n",
        "pid_file: ~\n",
        "pid_file: ~/x.pid\n",
        "pid_file: 'run/x.pid'\n",
        "pid_file: ${HOME}/x.pid\n",
        "pid_file: run/x.pid\npid_file: run/y.pid\n",
        'pid_file: run/x.pid\n"pid_file": run/y.pid\n',
        "include: [more.yaml]\npid_file: run/x.pid\n",
        "pid_file: run/x.pid\n  more\n",
        "{pid_file: run/x.pid}\n",
        "log:\n  pid_file: run/x.pid\n",
        "pid_file: [run/x.pid]\n",
        "pid_file: run/x.pid\nworkers: 0\n",
        "pid_file: run/x.pid\n - broken\n",
        "pid_file: run/x.pid\n\n# a remark\n  more\n",
        "pid_file: run/x.pid\n\n  more\n",
        "pid_file: run/x.pid\n\tmore\n",
        "pid_file: run/x.pid# more\n",
        "pidfile: run/x.pid\n",
        "pid_file: 12\n",
        "pid_file: &a run/x.pid\n",
        "pid_file: !!str run/x.pid\n",
        "pid_file: >\n  run/x.pid\n",
        "pid_file: run/x: y.pid\n",
    ],
)
def test_never_otherwise_than_the_loader(tmp_path: Path, text: str) -> None:
    (tmp_path / "conf.yaml").write_text(text)
    (tmp_path / "more.yaml").write_text("pid_file: run/other.pid\n")
    seen = pid_file("conf.yaml", str(tmp_path), {})
    if seen is None:
        return
    source = ConfigSource("conf.yaml", base=str(tmp_path), environ={})
    try:
        loaded = source.load(lenient=True).pid_file
    except ConfigError:
        return  # what is wrong elsewhere in the file does not hide a running server
    assert seen == loaded


def test_the_environment_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text("pid_file: run/x.pid\n")
    assert pid_file("conf.yaml", str(tmp_path), {"PREFORK_PID_FILE": "y.pid"}) is None
    assert pid_file("missing.yaml", str(tmp_path), {}) is None
