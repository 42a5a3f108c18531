"""Whatever is in the file, on the command line or in the environment: a Config or a ConfigError."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefork.config.loader import ConfigError, ConfigSource
from prefork.config.option import environment_name
from prefork.config.options import leaves
from prefork.config.reference import sample
from prefork.config.schema import Config

PATHS = [leaf.path for leaf in leaves()]
NAMES = [*{part for path in PATHS for part in path.split(".")}, "include", "<<", "address", "mode"]
WORDS = (
    *(": ", "\n", "\n  ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "!!str ", "|\n", ">", "%"),
    *("'", '"', "#", "---\n", "\t", "0o", "0660", "30s", "8KiB", "auto", "${", "}", ":-", "?"),
    *("$$", "${A}", "${file:x}", "null", "true", "yes", "1e3", ".inf", "127.0.0.1:80", "? "),
    *("[::1]:80", "unix:", "fd:3", "\\x00", "\0", "\x85", "\u2028", "\ufeff"),
)
PIECES = st.one_of(st.sampled_from(NAMES), st.sampled_from(WORDS), st.text(max_size=8))
TEXTS = st.one_of(
    st.text(),
    st.lists(PIECES, max_size=40).map("".join),
    # a good file with a bad place
    st.builds(
        lambda at, cut, put: sample()[:at] + put + sample()[at + cut :],
        st.integers(0, len(sample())),
        st.integers(0, 20),
        st.lists(PIECES, max_size=3).map("".join),
    ),
)
SETTINGS = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def load(source: ConfigSource) -> None:
    for lenient in (False, True):
        try:
            conf = source.load(lenient=lenient)
        except ConfigError as refused:
            error = refused
        else:
            assert isinstance(conf, Config)
            continue
        assert error.problems
        assert all(line.isprintable() for line in str(error).split("\n"))


@SETTINGS
@given(TEXTS)
def test_any_file(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "conf.yaml").write_bytes(data)
        load(ConfigSource("conf.yaml", (), None, folder, {"A": "x: [y"}))


@SETTINGS
@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "conf.yaml").write_bytes(data)
        load(ConfigSource("conf.yaml", (), None, folder, {}))


@SETTINGS
@given(
    st.one_of(st.text(), st.lists(PIECES, max_size=8).map("".join)),
    st.sampled_from(PATHS),
    st.one_of(st.none(), st.text()),
)
def test_any_override_variable_and_app(text: str, path: str, app: str | None) -> None:
    environ = {environment_name(path): text, "A": text}
    load(ConfigSource(None, (text, f"{path}={text}"), app, "/", environ))
    load(ConfigSource(None, (f"{path}=${{A}}", f"environment={text}"), app, "/", environ))
