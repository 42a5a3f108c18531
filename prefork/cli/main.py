"""`prefork`: the table of commands, help, `--version`, and how errors become exit codes.

Imports click and nothing heavier: the whole of `prefork --help` is bounded by a test.
"""

import os
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from prefork.errors import OperatorError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Errand(NamedTuple):
    """One command: where its click object is (`module:attribute`), its section and its line.

    The line is the first sentence of the command's own help, copied so that `--help` imports
    no command; a test compares the two.
    """

    target: str
    section: str
    line: str


ERRANDS: Final = {
    "start": Errand("prefork.cli.start:start", "Serve", "Start the server, in the foreground."),
    "check": Errand("prefork.cli.check:check", "Serve", "Check a configuration."),
    "stop": Errand("prefork.cli.control:stop", "Control", "Stop the server gracefully."),
    "reload": Errand(
        "prefork.cli.control:reload", "Control", "Load the configuration and the application anew."
    ),
    "reopen": Errand("prefork.cli.control:reopen", "Control", "Reopen the log files."),
    "scale": Errand("prefork.cli.control:scale", "Control", "Change the number of workers."),
    "status": Errand("prefork.cli.status:status", "Control", "Show the master and its workers."),
    "config": Errand("prefork.cli.config:config", "Set up", "Show, explain or export settings."),
    "init": Errand("prefork.cli.init:init", "Set up", "Write a short commented configuration."),
    "completion": Errand(
        "prefork.cli.completion:completion", "Set up", "Print a completion script for a shell."
    ),
}

EXAMPLES: Final = (
    "prefork start myproject:app              serve on http://127.0.0.1:8000",
    "prefork start -c conf.yaml --daemon      serve from a file, in the background",
    "prefork reload -c conf.yaml              new code and settings, nothing lost",
)


class Errands(click.Group):
    """A group that imports a command when it is run, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(ERRANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        errand = ERRANDS.get(cmd_name)
        if errand is None:
            return None
        module, _, attribute = errand.target.partition(":")
        command = getattr(__import__(module, fromlist=[attribute]), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Unknown commands are answered with the nearest one (click < 8.4 has no such answer)."""
        name = args[0]
        if name in ERRANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        message = f"no such command {name!r}"
        if ":" in name:
            message += f"; did you mean `prefork start {name}`?"
        elif near := get_close_matches(name, ERRANDS, n=1):
            message += f"; did you mean {near[0]!r}?"
        raise click.UsageError(message, ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Names from the table, so that a <TAB> imports no command."""
        from click.shell_completion import CompletionItem

        items = [
            CompletionItem(name, help=errand.line)
            for name, errand in ERRANDS.items()
            if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Twenty-five lines: what it is, three examples, the commands by section."""
        del ctx
        write = formatter.write
        write("prefork runs a Python web application the way nginx runs.\n\n")
        write("".join(f"  {example}\n" for example in EXAMPLES))
        section = ""
        for name, errand in ERRANDS.items():
            if errand.section != section:
                section = errand.section
                write(f"\n{section}\n")
            write(f"  {name:<11} {errand.line}\n")
        write("\n  -h, --help after any command explains it; --version [-v] says what this is.\n")


def version_lines(verbose: bool) -> list[str]:
    """What a bug report needs: prefork, and with `verbose` all that it stands on."""
    from prefork import __version__

    lines = [f"prefork {__version__}"]
    if verbose:
        import platform
        import select
        from importlib.metadata import PackageNotFoundError, version

        def of(package: str) -> str:
            try:
                return f"{package} {version(package)}"
            except PackageNotFoundError:
                return f"{package} missing"

        poller = next((p for p in ("epoll", "kqueue", "poll") if hasattr(select, p)), "none")
        python = f"{platform.python_implementation()} {platform.python_version()}"
        lines += [
            f"python   {python} ({sys.executable})",
            f"parser   {of('httptools')}",
            f"loop     prefork reactor on {poller}, asyncio on top",
            "extras   "
            + ", ".join(of(p) for p in ("click", "msgspec", "psutil", "pyyaml", "setproctitle")),
            f"kernel   {platform.system()} {platform.release()} {platform.machine()}, "
            f"{' '.join(part for part in platform.libc_ver() if part) or 'libc unknown'}",
        ]
    return lines


@click.group(
    cls=Errands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--version", "show_version", is_flag=True, help="Print the version.")
@click.option("-v", "--verbose", is_flag=True, help="With --version: Python, parser, loop, kernel.")
@click.pass_context
def cli(ctx: click.Context, show_version: bool, verbose: bool) -> None:
    """Run a Python web application the way nginx runs."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False  # https://no-color.org; click itself asks only whether it is a terminal
    if show_version:
        click.echo("\n".join(version_lines(verbose)))
        ctx.exit()
    if verbose:
        raise click.UsageError("-v belongs to --version", ctx)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """The console script: an operator's mistake is its message and its code, no traceback."""
    try:
        cli.main(prog_name="prefork")
    except OperatorError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
