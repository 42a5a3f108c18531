"""The schema, and all that is written from it."""

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from prefork.config import jsonschema, reference, schema
from prefork.config.loader import ConfigSource
from prefork.config.option import Option, environment_name
from prefork.config.options import Leaf, default_text, find, leaves, tree
from prefork.config.schema import Config

ROOT = Path(__file__).parents[2]
LEAVES = list(leaves())


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.path)
def test_option(leaf: Leaf, tmp_path: Path) -> None:
    """Each has a meaning of whole sentences, and an example and a default that can be loaded."""
    about = leaf.about
    assert about.meaning.endswith((".", ".)"))
    assert len(about.meaning.partition(". ")[0]) < 130
    assert find(leaf.path) is leaf
    keys = leaf.path.split(".")
    for value in (about.example, default_text(leaf)):
        text = value
        for key in reversed(keys):
            text = f"{key}: {text}" if key == keys[-1] else f"{key}:\n" + indent(text)
        (tmp_path / "log").mkdir(exist_ok=True)
        text = text.replace("/srv/myproject", str(tmp_path)).replace("www-data", "root")
        text = text.replace('["0-3", "4-7"]', '["0-3", "0"]')
        (tmp_path / "conf.yaml").write_text(text)
        source = ConfigSource("conf.yaml", (), None, str(tmp_path), {})
        loaded = source.read(need_app=False)
        assert any(path.startswith(leaf.path) for path in loaded.origins) or value == "{}"


def indent(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def test_names_are_one_per_option_everywhere() -> None:
    assert len({environment_name(leaf.path) for leaf in LEAVES}) == len(LEAVES)
    aliases = [name for leaf in LEAVES if isinstance(leaf.about, Option) for name in alias(leaf)]
    assert len(set(aliases)) == len(aliases)


def alias(leaf: Leaf) -> tuple[str, ...]:
    assert isinstance(leaf.about, Option)
    return leaf.about.known_as


def test_what_kinds_read_is_what_the_types_say(tmp_path: Path) -> None:
    """The kinds build the values; msgspec says whether the annotations agree."""
    (tmp_path / "conf.yaml").write_text(reference.sample())
    overrides = (
        'listen=[":80", "[::1]:80", "unix:x", fd:3, "systemd:w"]',
        "workers=3",
        "umask=0o22",
        "rlimits={nofile: 20000, core: unlimited}",
        "niceness=1",
        "cpu_affinity=[0, 0-1]",
        "environment={A: 1}",
        "user=root",
    )
    for chosen in ((), overrides):
        conf = ConfigSource("conf.yaml", chosen, None, str(tmp_path), {}).load()
        builtins = msgspec.to_builtins(conf)
        assert msgspec.convert(builtins, Config, strict=True) == conf
        assert msgspec.json.decode(msgspec.json.encode(conf), type=Config) == conf


def test_values_are_frozen() -> None:
    conf = Config()
    for value in (conf, conf.timeouts, conf.log.error, conf.listen[0]):
        with pytest.raises(AttributeError):
            value.app = "x"  # type: ignore[union-attr]


def test_written_values_are_read_back(folder: Any) -> None:
    """`config show` is a configuration."""
    from prefork.config.dump import show

    first = folder.read(
        'app: a:b\nlisten: [":80", {address: "unix:x y", mode: 0o600, backlog: 5},'
        ' {address: "[::]:81", v6only: false}]\n'
        "environment: {A: 'yes', B: '0o17', 'C D': \"a'\\\"\\n#\", D: '', E: 12:30, F: 'null'}\n"
        "umask: 0o7\ncpu_affinity: ['0-1', 0]\nrlimits: {nofile: 20000, core: unlimited}\n"
        "log: {access: {format: '$status # \"x\"', buffer: 1000}}\n"
        "timeouts: {keep_alive: 0, head: 1500ms}\nuser: 0\n"
    )
    text = show(first)
    folder.write("conf.yaml", text)
    again = folder.source().read()
    assert again.conf == first.conf
    # and to a reader of YAML 1.1 it is no surprise either
    assert yaml.safe_load(text)["environment"]["E"] == "12:30"
    assert yaml.safe_load(text)["environment"]["A"] == "yes"


def test_json_schema_knows_what_the_loader_knows() -> None:
    document = jsonschema.schema()
    properties = document["properties"]
    assert set(properties) == {*tree().children, "include"}
    for leaf in LEAVES:
        found: Any = document
        for name in leaf.path.split("."):
            assert found["additionalProperties"] is False
            found = found["properties"][name]
        assert leaf.about.meaning in found["description"]
        if isinstance(leaf.about, Option):
            json.dumps(found["anyOf"])


def test_generated_files_are_up_to_date() -> None:
    """`python -m prefork.config.reference --write README.md conf/prefork.yaml
    prefork/config/schema.json` brings them there."""
    for name in ("conf/prefork.yaml", "prefork/config/schema.json", "README.md"):
        text = (ROOT / name).read_text()
        assert reference.rewritten(name, text) == text, name


def test_writing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n")
    sample = tmp_path / "conf.yaml"
    assert reference.main(["--write", str(page), str(sample)]) == 0
    assert capsys.readouterr().err.count("wrote ") == 2
    assert reference.main(["--write", str(page), str(sample)]) == 0
    assert capsys.readouterr().err == ""
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    for leaf in LEAVES:
        assert f"**`{leaf.path}`**" in text
        assert leaf.path.rpartition(".")[2] + ":" in sample.read_text()
    with pytest.raises(ValueError, match="has no"):
        reference.rewritten("other.md", "no markers")


def test_each_option_is_written_once() -> None:
    """No default is repeated in the module that declares it: what is not in an Option is not
    known to the reference either."""
    source = ast.parse(inspect.getsource(schema))
    for item in source.body:
        if isinstance(item, ast.ClassDef):
            for line in item.body:
                assert isinstance(line, ast.AnnAssign)
                assert isinstance(line.annotation, ast.Subscript)
