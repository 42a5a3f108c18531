"""Importing the application, and saying well why that did not work.

It happens in a worker only. Two mistakes look alike in a traceback and are told apart here: the
module we were asked for does not exist, or it does and its own code failed. The report holds the
operator's frames and none of ours or of `importlib`.
"""

import ast
import difflib
import importlib
import inspect
import os
import sys
import traceback

from prefork.errors import OperatorError


class AppLoadError(OperatorError):
    """The application cannot be had; `str()` is the whole report, several lines where needed."""


def load_application(spec: str, working_directory: str) -> object:
    """The object that `spec` names: `module:attribute`, `module:a.b`, or `module:factory()`.

    `working_directory` comes first on `sys.path`. `module` alone means `module:app`, or
    `module:application` (gunicorn's way, and Django's) where there is no `app`. A factory may be
    given literals: `module:create("production", debug=False)`. Raises AppLoadError.
    """
    if working_directory not in sys.path[:1]:
        sys.path.insert(0, working_directory)
    module_name, _, expression = spec.partition(":")
    module_name, named = module_name.strip(), expression.strip()
    expression = named or "app"
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise AppLoadError(
            f'app "{spec}": a file name; write the module\'s name: "{dotted}:{expression}"'
        )
    names, call = _parse(spec, expression)
    value: object = _import(spec, module_name, working_directory)
    if not named and not hasattr(value, "app") and hasattr(value, "application"):
        names = ["application"]
    where = f'module "{module_name}"'
    for name in names:
        try:
            value = getattr(value, name)
        except AttributeError:
            hidden = _hidden(module_name, working_directory)
            raise AppLoadError(_no_attribute(spec, where, value, name) + hidden) from None
        where = f'"{module_name}:{name}"'
    if call is None:
        return value
    if not callable(value):
        raise AppLoadError(f'app "{spec}": {where} is {_kind(value)} and cannot be called')
    args, kwargs = call
    try:
        return value(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise AppLoadError(f'app "{spec}": the factory failed\n{user_traceback(error)}') from None


_Call = tuple[list[object], dict[str, object]]


def _parse(spec: str, expression: str) -> tuple[list[str], _Call | None]:
    """`a.b` and `a.b("x", y=1)` to the names and the arguments. Raises AppLoadError."""
    wrong = AppLoadError(
        f'app "{spec}": write module:attribute, or module:factory() with literal arguments'
    )
    try:
        node = ast.parse(expression, mode="eval").body
        call: _Call | None = None
        if isinstance(node, ast.Call):
            if any(keyword.arg is None for keyword in node.keywords):
                raise wrong
            args = [ast.literal_eval(arg) for arg in node.args]
            call = (args, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords})
            node = node.func
    except (SyntaxError, ValueError):
        raise wrong from None
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise wrong
    return [node.id, *names], call


def _import(spec: str, name: str, working_directory: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        # `a.b` may be missing because `a` is; any other name was asked for by somebody's code.
        if missing and (name == missing or name.startswith(missing + ".")):
            raise AppLoadError(_no_module(spec, missing, working_directory)) from None
        raise AppLoadError(_import_failed(spec, name, error)) from None
    except Exception as error:
        raise AppLoadError(_import_failed(spec, name, error)) from None
    except SystemExit as error:
        # A module that calls sys.exit() on import would end the worker without a word.
        raise AppLoadError(_import_failed(spec, name, error)) from None


def _no_module(spec: str, missing: str, working_directory: str) -> str:
    parent, _, last = missing.rpartition(".")
    folder = os.path.join(working_directory, *parent.split(".")) if parent else working_directory
    near = difflib.get_close_matches(last, _modules_in(folder), n=1)
    hint = f'; did you mean "{parent + "." if parent else ""}{near[0]}"?' if near else ""
    return (
        f'app "{spec}": no module named "{missing}"{hint}\n'
        f"  looked in {working_directory} (working_directory) and then on sys.path"
    ) + ("" if parent else _deeper(missing, working_directory))


def _deeper(name: str, working_directory: str) -> str:
    """Is it one folder further down, as in projects with a src/?"""
    for folder in sorted(_modules_in(working_directory)):
        below = os.path.join(working_directory, folder)
        if name in _modules_in(below):
            return f"; it is in {below}: write `working_directory: {below}`"
    return ""


def _hidden(name: str, working_directory: str) -> str:
    """Has another module of the same name, say Python's own, taken the place of the operator's?"""
    first = name.partition(".")[0]
    if first not in _modules_in(working_directory):
        return ""
    top = sys.modules.get(first)
    places = [getattr(top, "__file__", None) or "", *getattr(top, "__path__", ())]
    if any(os.path.realpath(one).startswith(os.path.realpath(working_directory)) for one in places):
        return ""
    return f"\n  the {first} in {working_directory} is hidden by it: give that another name"


def _modules_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry.name.removesuffix(".py")
                for entry in entries
                if (entry.name.endswith(".py") or entry.is_dir())
                and entry.name.removesuffix(".py").isidentifier()
            ]
    except OSError:
        return []


def _import_failed(spec: str, name: str, error: BaseException) -> str:
    return f'app "{spec}": importing {name} failed\n{user_traceback(error)}'


def _no_attribute(spec: str, where: str, owner: object, name: str) -> str:
    names = [one for one in dir(owner) if not one.startswith("__")]
    usual = [call for one, call in _USUAL.items() if one in names and inspect.ismodule(owner)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.65)
    near = usual or near if name in _USUAL else near or usual
    file = getattr(owner, "__file__", None)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return f'app "{spec}": {where} has no attribute "{name}"{hint}' + (
        f"\n  it was imported from {file}" if file else ""
    )


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


# What applications are called, and how they are written.
_USUAL = {
    "app": "app",
    "application": "application",
    "create_app": "create_app()",
    "make_app": "make_app()",
    "api": "api",
}
_ASYNCIO = os.path.join(os.path.dirname(os.__file__), "asyncio") + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` without the frames of prefork and of the import machinery.

    Frames of prefork's own applications stay: there the operator is us.
    """
    report = traceback.TracebackException.from_exception(error)
    _strip(report, set())
    return "".join(report.format()).rstrip()


def _strip(report: traceback.TracebackException, seen: set[int]) -> None:
    if id(report) in seen:
        return
    seen.add(id(report))
    kept = [frame for frame in report.stack if not foreign(frame.filename)]
    while kept and kept[0].filename.startswith(_ASYNCIO):
        del kept[0]  # it stands between a frame of ours and the operator's
    if kept:
        report.stack[:] = kept
    else:
        report.stack.clear()
    for other in (report.__cause__, report.__context__):
        if other is not None:
            _strip(other, seen)
    for other in getattr(report, "exceptions", None) or ():
        _strip(other, seen)


def foreign(filename: str) -> bool:
    """Is it a file of prefork's, or of the import machinery?"""
    if filename.startswith("<frozen importlib"):
        return True
    if filename == importlib.__file__:
        return True
    return filename.startswith(_OURS) and not filename.startswith(_OURS + "apps" + os.sep)
