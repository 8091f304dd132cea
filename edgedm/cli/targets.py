"""`edgedm targets`: what can be compiled for here, and what is missing for the rest."""

import click

from edgedm.cli.common import verb
from edgedm.outcome import Outcome


def _show(outcome: Outcome) -> None:
    rows = outcome.details["targets"]
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        word = _WORDS[row["compiles"], bool(row["runs"])]
        click.echo(f"{word:<12}  {row['name']:<{width}}  {row['needs']}")


_WORDS = {(True, True): "yes", (True, False): "compile only", (False, True): "run only", (False, False): "no"}


@click.command(name="targets", short_help="what can be compiled for here, and what is missing")
@verb(_show)
def command() -> Outcome:
    """List the targets, whether each can be compiled for and run on this machine, and what is missing for that."""
    from edgedm.targets import targets

    return targets()
