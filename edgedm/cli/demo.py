"""`edgedm demo`: the whole way on a built-in model."""

import click

from edgedm.cli.common import verb
from edgedm.outcome import Outcome


def _show(outcome: Outcome) -> None:
    from edgedm.demo import render

    render(outcome)


@click.command(name="demo", short_help="the whole way on a built-in model: images, parity, sizes, speed")
@click.option("-o", "--output", default="demo-out", show_default=True, type=click.Path(file_okay=False))
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=("bidm",),
    show_default=True,
    type=click.Choice(["bidm", "binarydm", "efficientdm", "dilatequant"]),
    help="Whose built-in model; repeat for several.",
)
@verb(_show)
def command(output: str, methods: tuple[str, ...]) -> Outcome:
    """Export, optimise, compile, verify, sample and time a built-in low-bit digits model.

    Ends with one self-contained page: images (fp32 torch, low-bit torch, native), parity, sizes, speed.
    """
    from edgedm.demo import demo

    return demo(output, methods)
