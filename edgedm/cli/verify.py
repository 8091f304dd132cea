"""`edgedm verify`: parity of a bundle with PyTorch."""

import click

from edgedm.cli.common import verb
from edgedm.outcome import Outcome

LEVELS = ("op", "pass", "layer", "step", "trajectory")


def _show(outcome: Outcome) -> None:
    from edgedm.verify import render

    render(outcome)


@click.command(name="verify", short_help="parity with PyTorch; exit code 0 or 1")
@click.argument("bundle", type=click.Path())
@click.option("--against", required=True, help="The checkpoint that the bundle was made from.")
@click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS), help="Only these levels.")
@verb(_show)
def command(bundle: str, against: str, levels: tuple[str, ...]) -> Outcome:
    """Hold BUNDLE against the torch checkpoint it was made from, at every level; exit code 1 if one fails."""
    from edgedm.verify import verify

    return verify(bundle, against, levels=levels or LEVELS)
