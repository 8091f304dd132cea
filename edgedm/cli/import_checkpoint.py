"""`edgedm import`: a checkpoint in the layout of its authors' code -> a checkpoint of edgedm."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.errors import UnsupportedError
from edgedm.outcome import Outcome


@click.command(name="import", short_help="a checkpoint of the authors' code -> a checkpoint folder")
@click.argument("path", type=click.Path())
@click.option("--layout", required=True, help="Whose file it is; an unknown name lists them.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="The checkpoint to write.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the layout; repeatable.")
@verb(lambda outcome: _show(outcome))
def command(path: str, layout: str, output: str, options: tuple[str, ...]) -> Outcome:
    """Read PATH, a file that a method's authors' code wrote, and write it as a checkpoint.

    Only tensors are read; a file that holds other objects is refused, with the way to convert it.
    """
    from edgedm.models.importers import import_checkpoint

    return import_checkpoint(path, layout, output, **_parse(options)).outcome


def _parse(options: tuple[str, ...]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise UnsupportedError(f"--option {name + equals + value}: expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _show(outcome: Outcome) -> None:
    show_figures(outcome)
    for note in outcome.details["notes"]:
        click.echo(note)
