"""`prefork check`: is this configuration right? The code that start and reload run says."""

import os
from typing import TYPE_CHECKING

import click

from prefork.cli.config import source_options
from prefork.errors import EXIT_CONFIG, OperatorError

if TYPE_CHECKING:
    from prefork.config.loader import ConfigSource, Loaded
    from prefork.config.problems import Problem


@click.command()
@click.argument("app", required=False)
@source_options
@click.option(
    "--app", "import_app", is_flag=True, help="Import the application too, as a worker would."
)
@click.option(
    "--format",
    "style",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="How to report.",
)
def check(
    app: str | None,
    config_path: str | None,
    overrides: tuple[str, ...],
    import_app: bool,
    style: str,
) -> None:
    """Check a configuration.

    Reports every problem with its file, line and column. Ends with 0 when `prefork start` would
    take the configuration, with 78 when it would not. Opens no port and writes nothing.

    \b
    Examples:
      prefork check -c conf.yaml
      prefork check -c conf.yaml --app
      prefork check -c conf.yaml --format json
    """
    from prefork.config.loader import ConfigError, ConfigSource

    if app is None and config_path is None and not overrides:
        raise click.UsageError("nothing to check: name a file (-c FILE)")
    source = ConfigSource(config_path, overrides, app, os.getcwd())
    try:
        loaded = source.read()
        problems = loaded.warnings
        problem, interface = _deeper(loaded, import_app)
    except ConfigError as error:
        if style == "text":
            raise
        loaded, problems, problem, interface = None, error.problems, None, ""
    if problem is not None:
        problems = (*problems, problem)
    ok = all(one.severity == "warning" for one in problems)
    if style == "json":
        click.echo(_json(source, problems, ok))
    else:
        for one in problems:
            click.echo(str(one), err=True)
        if ok and loaded is not None:
            click.echo(_summary(source, loaded, interface))
    if not ok:
        raise SystemExit(EXIT_CONFIG)


def _deeper(loaded: "Loaded", import_app: bool) -> "tuple[Problem | None, str]":
    """What only a layer above the configuration can judge: the log format and the application.

    Also the interface of the application, when it is imported.
    """
    from prefork.config.problems import problem_at
    from prefork.http.accesslog import check_format

    conf = loaded.conf
    interface = ""
    key = "log.access.format"
    try:
        if conf.log.access.format != "off":
            check_format(conf.log.access.format)
        key = "app"
        if import_app and conf.app is not None:
            from prefork.process.hosting import host
            from prefork.process.loading import load_application

            os.environ.update(conf.environment)
            os.chdir(conf.working_directory)
            interface = host(load_application(conf.app, conf.working_directory), conf).interface
    except OperatorError as error:
        setting = loaded.origins.get(key)
        return problem_at(setting.node.place if setting else None, str(error)), ""
    return None, interface


def _summary(source: "ConfigSource", loaded: "Loaded", interface: str) -> str:
    from prefork.config.checks import worker_count

    conf = loaded.conf
    count, why = worker_count(conf)
    reason = why.partition(": ")[2]
    workers = f"{count} worker{'s'[: count != 1]} ({reason})"
    name = source.path or "the configuration"
    app = f"{conf.app} ({f'imported: {interface}' if interface else 'not imported: see --app'})"
    where = ", ".join(address.url for address in conf.listen)
    return f"{name} is right: {app} on {where}, {workers}"


def _json(source: "ConfigSource", problems: "tuple[Problem, ...]", ok: bool) -> str:
    import msgspec

    fields = ("severity", "file", "line", "column", "message", "suggestion")
    report = {
        "ok": ok,
        "file": source.path,
        "problems": [{name: getattr(one, name) for name in fields} for one in problems],
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
