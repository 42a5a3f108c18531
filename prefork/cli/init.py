"""`prefork init`: a first configuration that serves at once, and a unit for systemd."""

import math
import os
import re
import shlex
import sys
from typing import Final

import click

from prefork.errors import OperatorError

_CONFIGURATION: Final = """\
# yaml-language-server: $schema={schema}
# The settings that most servers need; `prefork config explain` lists all of them.
# prefork check -c {name}      prefork start -c {name}      prefork stop -c {name}

# The application: module:attribute, or module:factory() for a function that makes it.
app: {app}

# The folder it is imported from. All paths here start in the folder of this file.
working_directory: .

# host:port, [v6]:port, unix:path, fd:3 or systemd:name; ":8000" is every interface.
listen: ["127.0.0.1:8000"]

# One for each CPU that we may use, or a number.
workers: auto

# How `prefork reload -c {name}` and its like find the server.
pid_file: run/prefork.pid

log:
  error: {{path: stderr, level: notice}}
  access: {{path: stdout, format: combined}} # off, combined, json or a template

timeouts:
  graceful: 30s # for running requests after a reload or QUIT; then they are cut

# Variables for the application. ${{VAR:-default}} is taken from the environment of prefork,
# ${{file:path}} from a file.
environment: {{}}
"""

_UNIT: Final = """\
# /etc/systemd/system/{unit}
[Unit]
Description=prefork serving {app}
After=network.target

[Service]
Type=notify
ExecStart={program} start -c {configuration} --set pid_file={pid_file}
# Waits for the verdict and reports it, where a bare `kill -HUP $MAINPID` does not.
ExecReload={program} reload --pid-file {pid_file}
# QUIT to the master alone: it lets the workers finish, and what is left when it exits is killed.
# The command waits for a master that came by an upgrade (USR2) too, which systemd does not.
ExecStop=-{program} stop --pid-file {pid_file}
KillSignal=SIGQUIT
KillMode=mixed
# Longer than timeouts.boot and timeouts.graceful.
TimeoutStartSec={start}
TimeoutStopSec={stop}
WatchdogSec=30
Restart=on-failure
RestartSec=1
# 78 (EX_CONFIG): the same file would be refused again.
RestartPreventExitStatus=78
# The kernel killed one worker: the master starts another, the service goes on.
OOMPolicy=continue
LimitNOFILE=65536

User={user}
RuntimeDirectory={runtime}
# What an application with files of its own does not miss; prefork.service goes further.
LockPersonality=yes
NoNewPrivileges=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=full
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
"""


@click.command()
@click.argument("app", default="prefork.apps.hello:app")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default="conf.yaml",
    show_default=True,
    type=click.Path(dir_okay=False),
    help="The configuration to write, or to name in the unit.",
)
@click.option(
    "--systemd",
    is_flag=True,
    help="Write a unit for systemd too; an existing configuration is kept.",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
def init(app: str, output: str, systemd: bool, force: bool) -> None:
    """Write a short commented configuration.

    APP is module:attribute, or module:factory(); without one it is the example that comes with
    prefork, so that the file can be served at once.

    \b
    Examples:
      prefork init myproject.app:app
      prefork init -o /etc/myproject/prefork.yaml --systemd
    """
    _known_good(app)
    if not (systemd and os.path.exists(output) and not force):
        write(output, configuration(output, app), force)
        click.echo(f"wrote {output}: try `prefork start -c {shlex.quote(output)}`", err=True)
    if systemd:
        unit = unit_name(output)
        path = os.path.join(os.path.dirname(output), unit)
        write(path, systemd_unit(output, unit), force)
        click.echo(
            f"wrote {path}; install it with\n"
            f"  sudo install -m 644 {shlex.quote(path)} /etc/systemd/system/\n"
            f"  sudo systemctl daemon-reload\n"
            f"  sudo systemctl enable --now {unit}",
            err=True,
        )


def _known_good(app: str) -> None:
    from prefork.config.loader import ConfigSource

    ConfigSource(None, (), app, os.getcwd()).load()


def configuration(path: str, app: str) -> str:
    """The text of a new configuration at `path`."""
    from prefork.config.reader import quote

    return _CONFIGURATION.format(schema=schema_for(path), name=path, app=quote(app))


def schema_for(path: str) -> str:
    """The installed schema as the modeline of `path` names it.

    Relative where it lies below the configuration's folder (a .venv in the project): the line
    then survives a move. A language server takes an absolute path as well.
    """
    from prefork.config.jsonschema import PATH

    folder = os.path.dirname(os.path.abspath(path))
    inside = os.path.commonpath((folder, PATH)) == folder and folder != "/"
    return os.path.relpath(PATH, folder) if inside else PATH


def unit_name(path: str) -> str:
    """`shop.service` for `shop.yaml`, in the letters that systemd.unit(5) allows in a name."""
    stem = os.path.splitext(os.path.basename(path))[0]
    name = re.sub(r"[^A-Za-z0-9:_.-]+", "-", stem).strip("-")
    return ("prefork" if name in ("", "conf", "config") else name) + ".service"


def systemd_unit(path: str, unit: str) -> str:
    """The text of a unit that serves the configuration at `path`."""
    import getpass

    from prefork.config.loader import ConfigSource

    conf = ConfigSource(path, (), None, os.getcwd()).load(lenient=True)
    runtime = unit.removesuffix(".service")
    return _UNIT.format(
        app=conf.app or "an application",
        unit=unit,
        program=_program(),
        configuration=_escaped(os.path.abspath(path)),
        # Not the configuration's own: its folder need not be writable, and %t is swept at boot.
        pid_file=f"%t/{runtime}/prefork.pid",
        start=math.ceil(conf.timeouts.boot + 30),
        stop=math.ceil(conf.drain_delay + conf.timeouts.graceful + 15),
        user=conf.user or getpass.getuser(),
        runtime=runtime,
    )


def _program() -> str:
    """How systemd is to run this very installation: absolute, without a PATH."""
    script = os.path.join(os.path.dirname(sys.executable), "prefork")
    if os.access(script, os.X_OK):
        return _escaped(script)
    return f"{_escaped(sys.executable)} -m prefork"


def _escaped(path: str) -> str:
    """A path for a unit file: specifiers doubled, quoted when it holds a space."""
    path = path.replace("%", "%%").replace("$", "$$")
    return f'"{path}"' if " " in path else path


def write(path: str, text: str, force: bool) -> None:
    """Create the file, or replace it with `force`. Raises OperatorError."""
    try:
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OperatorError(f"{path} exists: remove it, or use --force") from None
    except OSError as error:
        raise OperatorError(f'open() "{path}" failed ({error.errno}: {error.strerror})') from None
