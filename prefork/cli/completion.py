"""`prefork completion`: what the shell evaluates to complete our commands and options."""

import click


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    \b
    bash: eval "$(prefork completion bash)"  in ~/.bashrc
    zsh:  eval "$(prefork completion zsh)"  in ~/.zshrc
    fish: prefork completion fish > ~/.config/fish/completions/prefork.fish
    """
    from click.shell_completion import get_completion_class

    from prefork.cli.commands import cli

    made = get_completion_class(shell)
    assert made is not None  # one of click's three, by the choice above
    click.echo(made(cli, {}, "prefork", "_PREFORK_COMPLETE").source())
