"""`edgedm targets`: what can be compiled for here, and what is missing for the rest."""

import click

from edgedm.cli.common import verb
from edgedm.outcome import Outcome


def _show(outcome: Outcome) -> None:
    for row in outcome.details["targets"]:
        click.echo(f"{'yes' if row['available'] else 'no':<4} {row['name']:<34} {row['needs']}")


@click.command(name="targets", short_help="what can be compiled for here, and what is missing")
@verb(_show)
def command() -> Outcome:
    """List the targets, whether each can be compiled for on this machine, and what the others need."""
    from edgedm.targets import targets

    return targets()
