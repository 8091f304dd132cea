"""`edgedm verify`: parity of a bundle or a graph with PyTorch."""

import click

from edgedm.cli.common import verb
from edgedm.cli.preset import preset_options
from edgedm.cli.signature import signed_bundles
from edgedm.cli.variant import variant_option
from edgedm.outcome import Outcome

LEVELS = ("weights", "op", "pass", "layer", "step", "trajectory", "distribution")


def _show(outcome: Outcome) -> None:
    from edgedm.verify import render

    render(outcome)
    for path in outcome.details.get("written", []):
        click.echo(f"wrote {path}")


def _complain(outcome: Outcome) -> str:
    failure = outcome.details.get("first_failure")
    if failure is None:
        return f"{outcome.details['artefact']}: parity does not hold: no level ran"
    said = f"{failure['where']}: {failure['what']}".removesuffix(": ")
    return (
        f"{outcome.details['artefact']}: first off at level {failure['level']}: {' '.join(said.split())}\n"
        f"edgedm: introduced by: {' '.join(failure['introduced_by'].split())}"
    )


@click.command(name="verify", short_help="parity with PyTorch; exit code 0 or 1")
@click.argument("artefact", metavar="BUNDLE|GRAPH", type=click.Path())
@click.option("--against", required=True, help="The checkpoint that it was made from.")
@click.option("--gate", type=click.Path(), help="A gate file (TOML): thresholds, levels, schedule.")
@click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS), help="Only these levels.")
@click.option("--steps", type=click.IntRange(1), help="Of the schedule; 50 unless the gate says.")
@click.option("--sampler", type=click.Choice(("ddim", "ddpm", "dpm-solver++")), help="ddim unless the gate says.")
@click.option("--images", type=click.IntRange(1), help="Trajectories; 10 unless the gate says.")
@click.option(
    "--timesteps",
    type=click.IntRange(1),
    help="Of level layer, with all layers at each; all of the schedule by turns unless given.",
)
@click.option("--sample", type=click.IntRange(1), help="Of a big model: N kernels, and N layers a timestep.")
@click.option("--features", type=click.Path(), help="Of level distribution: a network (ONNX) that judges images.")
@click.option("--chain", type=click.Path(), help="Graphs of `optimize --dump`, to find the pass that broke parity.")
@click.option("--bisect/--no-bisect", default=True, show_default=True, help="Look for the pass that broke parity.")
@click.option("--html", type=click.Path(), help="Write a page with images, plots and tables.")
@click.option("--markdown", type=click.Path(), help="Write the same as Markdown.")
@click.option("--junit", type=click.Path(), help="Write JUnit XML.")
@variant_option
@preset_options
@verb(_show, _complain)
@signed_bundles
def command(
    artefact: str,
    against: str,
    gate: str | None,
    levels: tuple[str, ...],
    steps: int | None,
    sampler: str | None,
    images: int | None,
    timesteps: int | None,
    sample: int | None,
    features: str | None,
    chain: str | None,
    bisect: bool,
    html: str | None,
    markdown: str | None,
    junit: str | None,
    variant: str | None,
    method: str | None,
    policy: str | None,
    options: tuple[str, ...],
) -> Outcome:
    """Hold a bundle, or an ONNX graph under ONNX Runtime, against the torch checkpoint it was made from.

    Exit code 1 if a level or a threshold of the gate fails. Levels op and pass are those of a bundle, weights that of
    a graph; level distribution runs where it is named, here or in the gate file.
    """
    from edgedm.models.preset_reference import with_method
    from edgedm.verify import verify

    checkpoint = with_method(against, method, policy, options)
    return verify(
        artefact,
        checkpoint,
        levels=levels or None,
        steps=steps,
        sampler=sampler,
        images=images,
        timesteps=timesteps,
        sample=sample,
        gate=gate,
        features=features,
        chain=chain,
        bisect=bisect,
        html=html,
        markdown=markdown,
        junit=junit,
        variant=variant,
    )
