"""`prefork migrate`: from gunicorn, uvicorn, granian or hypercorn to a conf.yaml."""

import os
import shlex

import click


class _Migrate(click.Command):
    """Lets the other server's options stand behind its name, with or without the `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from prefork.cli.migration.collect import SERVERS

        for number, word in enumerate(args):
            if word == "--":
                break
            value = number > 0 and args[number - 1] in ("-o", "--output")
            if os.path.basename(word) in SERVERS and not value:
                args = [*args[:number], "--", *args[number:]]
                break
        return super().parse_args(ctx, args)


@click.command(cls=_Migrate)
@click.argument("source", nargs=-1, metavar="FILE [APP] | -- SERVER OPTIONS…")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default="-",
    show_default=True,
    type=click.Path(dir_okay=False),
    help="The configuration to write; - is stdout.",
)
@click.option("--systemd", is_flag=True, help="Write a unit for systemd too, beside the file.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def migrate(source: tuple[str, ...], output: str, systemd: bool, force: bool) -> None:
    """Write a configuration from gunicorn's or uvicorn's.

    FILE is a gunicorn.conf.py, which is executed in a process of its own; APP is what gunicorn's
    command line names beside it. SERVER is gunicorn, uvicorn, granian or hypercorn with the options
    it is started with. What differs is listed on stderr and in the file.

    \b
    Examples:
      prefork migrate gunicorn.conf.py shop.wsgi -o conf.yaml
      prefork migrate -- gunicorn -w 4 -b :8000 -k gthread --threads 8 shop.wsgi
      prefork migrate -o conf.yaml --systemd -- uvicorn app:app --workers 4 --port 80
    """
    if not source:
        raise click.UsageError(
            "nothing to migrate: name a gunicorn.conf.py, or a server's command line after --"
        )
    if systemd and output == "-":
        raise click.UsageError("--systemd needs -o FILE: the unit names the configuration")

    from prefork.cli.init import unit_name, write
    from prefork.cli.migration import confpy
    from prefork.cli.migration.collect import collect
    from prefork.cli.migration.table import Job
    from prefork.cli.migration.write import configuration, report
    from prefork.errors import OperatorError

    unit = os.path.join(os.path.dirname(output), unit_name(output)) if systemd else None
    for path in (output, unit):
        if path not in ("-", None) and os.path.exists(path) and not force:
            raise OperatorError(f"{path} exists: remove it, or use --force")
    cwd = os.getcwd()
    found = collect(source, cwd, os.environ, confpy.TIMEOUT)
    job = Job(
        found.server,
        found.found,
        cwd=cwd,
        output=None if output == "-" else output,
        environ=found.environ,
    )
    job.run()
    job.notes.extend(found.notes)
    if "working_directory" not in job.values:
        job.put("working_directory", job.path("."), "where the command was run")
    text = configuration(job, output, found.source, found.executed)
    if output == "-":
        click.echo(text, nl=False)
    else:
        write(output, text, force)
    click.echo(report(job, found.executed), err=True)
    if unit is not None:
        _write_unit(job.unit, output, unit, force)
    if output != "-":
        click.echo(f"wrote {output}: try `prefork check --app -c {shlex.quote(output)}`", err=True)


def _write_unit(more: list[str], output: str, unit: str, force: bool) -> None:
    from prefork.cli.init import systemd_unit, write

    text = systemd_unit(output, os.path.basename(unit))
    extra = "".join(f"{line}\n" for line in more)
    write(unit, text.replace("Type=notify\n", f"Type=notify\n{extra}", 1), force)
    click.echo(f"wrote {unit}", err=True)
