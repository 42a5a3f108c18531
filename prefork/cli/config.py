"""`prefork config`: what is in effect and why, what a key does, and the schema for editors."""

import os
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from prefork.config.options import Branch, Leaf

Command = TypeVar("Command", bound=Callable[..., Any])


def source_options(command: Command) -> Command:
    """`-c FILE` and `--set KEY=VALUE`, for every command that reads a configuration."""
    command = click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override one setting, e.g. --set workers=4; may be repeated.",
    )(command)
    return click.option(
        "-c", "--config", "config_path", metavar="FILE", type=click.Path(), help="The file to read."
    )(command)


@click.group()
def config() -> None:
    """Show, explain or export settings."""


@config.command()
@click.argument("app", required=False)
@source_options
@click.option("--json", "as_json", is_flag=True, help="Dotted keys with value and origin.")
def show(
    app: str | None, config_path: str | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Print every effective setting with its origin.

    The output is YAML that prefork reads. Values that come from a ${file:…}, and variables whose
    name speaks of a secret, are redacted. Without -c: the defaults, the environment and --set.

    \b
    Examples:
      prefork config show -c conf.yaml
      prefork config show -c conf.yaml --set workers=2 --json
    """
    from prefork.config import dump
    from prefork.config.loader import ConfigSource

    loaded = ConfigSource(config_path, overrides, app, os.getcwd()).read(need_app=False)
    for warning in loaded.warnings:
        click.echo(str(warning), err=True)
    click.echo(dump.show_json(loaded) if as_json else dump.show(loaded), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema for editors.

    yaml-language-server completes and checks a file that begins with
    `# yaml-language-server: $schema=FILE`; `prefork init` writes that line.
    """
    from prefork.config import jsonschema

    click.echo(jsonschema.text(), nl=False)


@config.command()
@click.argument("key", required=False)
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
def explain(key: str | None, as_json: bool) -> None:
    """Explain one setting, a section, or list them all.

    \b
    Examples:
      prefork config explain timeouts.graceful
      prefork config explain log
    """
    from prefork.config.options import Branch, Leaf, find, tree

    found = tree() if key is None else find(key)
    if found is None:
        raise click.UsageError(_unknown(key or ""))
    chosen = [found] if isinstance(found, Leaf) else list(_leaves(found))
    if as_json:
        import msgspec

        facts = [_facts(leaf) for leaf in chosen]
        encoded = msgspec.json.encode(facts[0] if isinstance(found, Leaf) else facts)
        click.echo(msgspec.json.format(encoded, indent=2))
    elif isinstance(found, Branch):
        if key is not None:
            click.echo(f"{found.path}: {found.about.meaning}\n")
        width = max(len(leaf.path) for leaf in chosen)
        for leaf in chosen:
            sentence = leaf.about.meaning.partition(". ")[0].removesuffix(".")
            click.echo(_short(f"{leaf.path:<{width}}  {sentence}"))
        click.echo("\n`prefork config explain KEY` says more about one.", err=True)
    else:
        click.echo(_page(found))


def _unknown(key: str) -> str:
    from prefork.config.gather import meant
    from prefork.config.options import Branch, find, tree
    from prefork.config.reader import did_you_mean

    parent, _, name = key.rpartition(".")
    branch = find(parent) if parent else tree()
    near = meant(name, branch if isinstance(branch, Branch) else tree())
    if near is not None and parent and "." not in near and isinstance(branch, Branch):
        near = f"{parent}.{near}"
    return f'there is no setting "{key}"{did_you_mean(near)}'


def _leaves(branch: "Branch") -> "list[Leaf]":
    from prefork.config.options import leaves

    return list(leaves(branch))


def _facts(leaf: "Leaf") -> dict[str, Any]:
    from prefork.config.option import Option, environment_name
    from prefork.config.options import default_text

    about = leaf.about
    option = isinstance(about, Option)
    return {
        "key": leaf.path,
        "meaning": about.meaning,
        "value": about.kind.syntax if isinstance(about, Option) else "a mapping of names to text",
        "default": default_text(leaf),
        "example": about.example,
        "environment": environment_name(leaf.path) if option else None,
        "applied_by": about.applies if isinstance(about, Option) else "reload",
        "since": about.since if isinstance(about, Option) else "0.1",
    }


def _page(leaf: "Leaf") -> str:
    facts = _facts(leaf)
    *sections, name = leaf.path.split(".")
    example = f"{name}: {facts['example']}"
    for section in reversed(sections):
        example = f"{section}:\n{textwrap.indent(example, '  ')}"
    lines = [leaf.path, "", *textwrap.wrap(facts["meaning"], 88), ""]
    table = (
        ("value", facts["value"]),
        ("default", facts["default"]),
        ("environment", facts["environment"]),
        ("--set", f"--set {leaf.path}=…"),
        ("applied by", f"a {facts['applied_by']}"),
        ("since", f"prefork {facts['since']}"),
        ("example", textwrap.indent(example, " " * 13).lstrip()),
    )
    lines += [f"{label:<12} {value}" for label, value in table if value]
    return "\n".join(lines)


def _short(line: str) -> str:
    return line if len(line) <= 100 else line[:99] + "…"
