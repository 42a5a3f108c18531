"""Reports of an application that cannot be imported."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.process.loading import AppLoadError, load_application


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A fresh directory; what was imported from it is forgotten."""
    modules, path = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if not name.startswith("prefork"):
            del sys.modules[name]
    sys.path[:] = path


def report(spec: str, project: Path) -> str:
    with pytest.raises(AppLoadError) as caught:
        load_application(spec, str(project))
    return str(caught.value)


def test_attribute_factory_and_default(project: Path) -> None:
    (project / "shop.py").write_text(
        "app = 'the app'\n"
        "class names:\n    inner = 'inner'\n"
        "def create(name='x', *, debug=True):\n    return (name, debug)\n"
    )
    assert load_application("shop:app", str(project)) == "the app"
    assert load_application("shop", str(project)) == "the app"
    assert load_application("shop:names.inner", str(project)) == "inner"
    assert load_application("shop:create()", str(project)) == ("x", True)
    assert load_application('shop:create("y", debug=False)', str(project)) == ("y", False)
    assert sys.path[0] == str(project)


def test_the_working_directory_comes_first(project: Path) -> None:
    (project / "json").mkdir()
    (project / "json" / "__init__.py").write_text("raise RuntimeError")
    (project / "colorsys.py").write_text("app = 'mine'\n")
    sys.modules.pop("colorsys", None)
    assert load_application("colorsys:app", str(project)) == "mine"


def test_a_module_that_does_not_exist(project: Path) -> None:
    (project / "shop.py").write_text("app = 1\n")
    text = report("shpo:app", project)
    assert text.startswith('app "shpo:app": no module named "shpo"; did you mean "shop"?')
    assert str(project) in text
    assert "Traceback" not in text


def test_a_submodule_that_does_not_exist(project: Path) -> None:
    (project / "shop").mkdir()
    (project / "shop" / "__init__.py").touch()
    (project / "shop" / "web.py").write_text("app = 1\n")
    text = report("shop.wbe:app", project)
    assert 'no module named "shop.wbe"; did you mean "shop.web"?' in text


def test_a_module_whose_own_import_fails(project: Path) -> None:
    (project / "shop.py").write_text("import datbase\n")
    text = report("shop:app", project)
    assert text.startswith('app "shop:app": importing shop failed\nTraceback')
    assert "ModuleNotFoundError: No module named 'datbase'" in text
    assert f'File "{project}/shop.py", line 1' in text
    assert "importlib" not in text
    assert "loading.py" not in text


def test_a_module_that_raises(project: Path) -> None:
    (project / "shop.py").write_text(
        "def a():\n    b()\n\ndef b():\n    try:\n        1 / 0\n    except ZeroDivisionError"
        " as error:\n        raise RuntimeError('no') from error\n\na()\n"
    )
    text = report("shop:app", project)
    assert text.count("File ") == 4
    assert "ZeroDivisionError" in text
    assert text.endswith("RuntimeError: no")
    assert "loading.py" not in text


def test_a_syntax_error_shows_the_place(project: Path) -> None:
    (project / "shop.py").write_text("app = = 1\n")
    text = report("shop:app", project)
    assert f'File "{project}/shop.py", line 1' in text
    assert "app = = 1" in text
    assert "SyntaxError" in text


def test_a_module_that_exits(project: Path) -> None:
    (project / "shop.py").write_text("import sys\nsys.exit(3)\n")
    assert "SystemExit: 3" in report("shop:app", project)


def test_a_mistyped_attribute(project: Path) -> None:
    (project / "shop.py").write_text("application = 1\n")
    text = report("shop:aplication", project)
    assert 'module "shop" has no attribute "aplication"; did you mean "application"?' in text
    assert str(project / "shop.py") in text


def test_a_module_alone_has_the_usual_name(project: Path) -> None:
    """`gunicorn project.wsgi` is what Django's manual says."""
    (project / "shop.py").write_text("application = 'theirs'\n")
    (project / "both.py").write_text("app, application = 'ours', 'theirs'\n")
    (project / "made.py").write_text("from queue import *\nheappop = 1\ndef create_app(): ...\n")
    assert load_application("shop", str(project)) == "theirs"
    assert load_application("both", str(project)) == "ours"
    assert 'has no attribute "app"; did you mean "application"?' in report("shop:app", project)
    assert 'has no attribute "app"; did you mean "create_app()"?' in report("made", project)
    assert 'did you mean "create_app()"?' in report("made:server", project)


def test_a_module_in_a_folder_below(project: Path) -> None:
    (project / "src" / "shop").mkdir(parents=True)
    text = report("shop.web:app", project)
    assert f"it is in {project}/src: write `working_directory: {project}/src`" in text


def test_a_module_that_is_hidden_by_another_of_its_name(project: Path) -> None:
    (project / "logging.py").write_text("app = 1\n")
    text = report("logging:app", project)
    assert 'module "logging" has no attribute "app"' in text
    assert f"the logging in {project} is hidden by it: give that another name" in text
    (project / "shop").mkdir()
    (project / "shop" / "web.py").touch()
    assert "is hidden by it" not in report("shop.web:app", project)


def test_factories_that_fail(project: Path) -> None:
    (project / "shop.py").write_text("app = 1\ndef create():\n    raise ValueError('no')\n")
    assert "the factory failed\nTraceback" in report("shop:create()", project)
    (project / "shop2.py").write_text("import sys\ndef create():\n    sys.exit(3)\n")
    assert "SystemExit: 3" in report("shop2:create()", project)
    assert "is a int and cannot be called" in report("shop:app()", project).replace(
        "an int", "a int"
    )


@pytest.mark.parametrize("spec", ["shop:create(open('x'))", "shop:a b", "shop:f()()", "shop:1"])
def test_no_code_in_the_name(spec: str, project: Path) -> None:
    (project / "shop.py").touch()
    assert "write module:attribute" in report(spec, project)


def test_a_file_name(project: Path) -> None:
    assert 'write the module\'s name: "shop.web:app"' in report("shop/web.py:app", project)
