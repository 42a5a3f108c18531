"""`prefork start`: from a command line to the master, which is the rest of the process's life."""

import os
import time

import click


@click.command()
@click.argument("app", required=False)
@click.option(
    "-c",
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(),
    help="The configuration; `prefork init` writes a first one.",
)
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override one setting, e.g. --set workers=4; may be repeated.",
)
@click.option(
    "--daemon", is_flag=True, help="Go to the background; return when the workers are ready."
)
def start(
    app: str | None, config_path: str | None, overrides: tuple[str, ...], daemon: bool
) -> None:
    """Start the server, in the foreground.

    APP is module:attribute, or module:factory() for a function that makes the application;
    it takes the place of the file's `app`. Ends with 0 after TERM, INT or QUIT.

    \b
    Examples:
      prefork start myproject.app:app
      prefork start -c conf.yaml
      prefork start -c conf.yaml --set workers=4 --daemon
    """
    started = process_started()
    if daemon:
        overrides = (*overrides, "daemon=true")
    if app is None and config_path is None and not any(o.startswith("app=") for o in overrides):
        hint = "`prefork start module:app`, or `prefork start -c FILE`"
        if os.path.isfile("conf.yaml"):
            hint = "`prefork start -c conf.yaml`, or `prefork start module:app`"
        raise click.UsageError(f"nothing to serve: say {hint}")

    from prefork.config.loader import ConfigSource

    source = ConfigSource(config_path, overrides, app, os.getcwd())
    loaded = source.read()
    for warning in loaded.warnings:
        click.echo(str(warning), err=True)

    from prefork.process.master import run

    raise SystemExit(run(source, loaded, started=started))


def process_started() -> float:
    """When this process began, in seconds of `time.monotonic()`.

    The ready line counts the interpreter's own start, which is over before any line of ours
    runs: Linux tells it in field 22 of /proc/self/stat, in ticks since boot (proc_pid_stat(5)).
    Elsewhere the first moment we see has to do.
    """
    try:
        # The second field is the command in parentheses and may itself hold spaces.
        with open("/proc/self/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        age = 0.0
    return time.monotonic() - max(age, 0.0)
