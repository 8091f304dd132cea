"""`edgedm import`: a checkpoint in the layout of its authors' code -> a checkpoint of edgedm."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.errors import UnsupportedError, readable
from edgedm.outcome import Outcome

# Written out, because the layouts import torch and `--help` shall answer at once.
LAYOUTS = (
    "ldm",
    "ddim",
    "binarydm-ldm",
    "bidm-ldm",
    "bidm-cifar",
    "efficientdm-ldm",
    "dilatequant-ldm",
    "dilatequant-cifar",
)


@click.command(name="import", short_help="a checkpoint of the authors' code -> a checkpoint folder")
@click.argument("path", type=click.Path(), required=False)
@click.option("--layout", required=True, metavar="NAME", help=f"Whose file it is: {', '.join(LAYOUTS)}.")
@click.option("-o", "--output", type=click.Path(file_okay=False), help="The checkpoint to write.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the layout; repeatable. See --describe.",
)
@click.option("--describe", is_flag=True, help="Show the layout's options; read nothing.")
@verb(lambda outcome: _show(outcome))
def command(path: str | None, layout: str, output: str | None, options: tuple[str, ...], describe: bool) -> Outcome:
    """Read PATH, a file that a method's authors' code wrote, and write it as a checkpoint.

    Only tensors are read; a file that holds other objects is refused, with the way to convert it.
    """
    if not describe and (path is None or output is None):
        raise click.UsageError("Missing PATH or '-o' / '--output' (or --describe).")
    from edgedm.models.importers import describe_layout, import_checkpoint

    if describe:
        return describe_layout(layout)
    assert path is not None
    return import_checkpoint(path, layout, output, **_parse(options)).outcome


def _parse(options: tuple[str, ...]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise UnsupportedError(f"--option {name + equals + value}: expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _show(outcome: Outcome) -> None:
    if "tables" in outcome.details:
        from edgedm.inspection import render

        render(outcome)
        return
    show_figures(outcome)
    for note in outcome.details["notes"]:
        click.echo(readable(note))
