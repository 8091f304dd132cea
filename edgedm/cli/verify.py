"""`edgedm verify`: parity of a bundle or a graph with PyTorch."""

import click

from edgedm.cli.common import verb
from edgedm.cli.preset import preset_options
from edgedm.cli.signature import signed_bundles
from edgedm.outcome import Outcome

LEVELS = ("weights", "op", "pass", "layer", "step", "trajectory")


def _show(outcome: Outcome) -> None:
    from edgedm.verify import render

    render(outcome)


@click.command(name="verify", short_help="parity with PyTorch; exit code 0 or 1")
@click.argument("artefact", metavar="BUNDLE|GRAPH", type=click.Path())
@click.option("--against", required=True, help="The checkpoint that it was made from.")
@click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS), help="Only these levels.")
@click.option("--timesteps", type=click.IntRange(1), default=4, show_default=True, help="Of level layer.")
@click.option("--sample", type=click.IntRange(1), help="Of a big model: N kernels, and N layers a timestep.")
@preset_options
@verb(_show)
@signed_bundles
def command(
    artefact: str,
    against: str,
    levels: tuple[str, ...],
    timesteps: int,
    sample: int | None,
    method: str | None,
    policy: str | None,
    options: tuple[str, ...],
) -> Outcome:
    """Hold a bundle, or an ONNX graph under ONNX Runtime, against the torch checkpoint it was made from.

    Exit code 1 if a level fails. Levels op and pass are those of a bundle, weights that of a graph.
    """
    from edgedm.models.preset_reference import with_method
    from edgedm.verify import verify

    checkpoint = with_method(against, method, policy, options)
    return verify(artefact, checkpoint, levels=levels or None, timesteps=timesteps, sample=sample)
