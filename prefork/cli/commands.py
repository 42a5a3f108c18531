"""The commands as click sees them: imported on first use, and errors that become exit codes."""

import os
import sys
from typing import TYPE_CHECKING

import click

from prefork.cli.main import ERRANDS, page
from prefork.errors import OperatorError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


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

    def get_help(self, ctx: click.Context) -> str:
        del ctx
        return page().rstrip()


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


def run() -> None:
    """An operator's mistake is its message and its code, no traceback."""
    try:
        cli.main(prog_name="prefork")
    except OperatorError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
