"""A configuration in a folder of its own, and what loading it says."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from prefork.config.loader import ConfigError, ConfigSource, Loaded

HEADLINE = re.compile(r"\S+: error: ")


class Folder:
    """Files, variables and a load; paths in messages are as relative as an operator's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ: dict[str, str] = {}

    def write(self, name: str, text: str | bytes) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def source(
        self, *overrides: str, app: str | None = None, name: str | None = "conf.yaml"
    ) -> ConfigSource:
        return ConfigSource(name, overrides, app, str(self.path), self.environ)

    def read(self, text: str | bytes, *overrides: str, app: str | None = None) -> Loaded:
        self.write("conf.yaml", text)
        return self.source(*overrides, app=app).read()

    def errors(self, text: str | bytes, *overrides: str) -> str:
        """The whole report; the test fails when there is none."""
        with pytest.raises(ConfigError) as caught:
            self.read(text, *overrides)
        assert caught.value.exit_code == 78
        headlines = [line for line in str(caught.value).splitlines() if HEADLINE.match(line)]
        assert len(caught.value.problems) == len(headlines)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def lines(folder: Folder) -> Callable[..., list[str]]:
    """The first line of each problem of a text."""

    def read(text: str, *overrides: str) -> list[str]:
        report = folder.errors(text, *overrides)
        return [line for line in report.splitlines() if HEADLINE.match(line)]

    return read
