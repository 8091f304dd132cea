"""`edgedm sample`: draw images, natively from a bundle or with PyTorch from a checkpoint."""

from typing import Any

import click

from edgedm.cli.common import show_figures, verb
from edgedm.cli.schedule import MOST, SAMPLERS
from edgedm.cli.signature import signed_bundles
from edgedm.cli.variant import variant_option
from edgedm.errors import UnsupportedError
from edgedm.outcome import Outcome


@click.command(name="sample", short_help="draw images with the generated runtime, no torch")
@click.argument("model", default="zoo:digits-fp32")
@click.option("-n", "number", type=click.IntRange(1, MOST), default=16, show_default=True, help="How many images.")
@click.option("--steps", type=click.IntRange(1, MOST), help="Sampler steps.  [default: the bundle's; 50]")
@click.option("--sampler", type=click.Choice(SAMPLERS), help="Sampler.  [default: the bundle's; ddim]")
@click.option("--eta", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="DDIM's noise share.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of the noise.")
@click.option("--label", type=click.IntRange(0, MOST), help="Class to draw; unconditional without it.")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Classifier-free guidance scale.")
@click.option("--condition", type=click.Path(dir_okay=False), help="A .npy array: the text condition to draw by.")
@click.option("--negative", type=click.Path(dir_okay=False), help="What guidance leads away from; zeros without it.")
@click.option("--latent", is_flag=True, help="Write a latent model's latents (.npy), not images.")
@click.option("--start", type=click.Path(dir_okay=False), help="A .npy array of -n images to start from.")
@click.option("--strength", type=float, help="With --start: share of the steps that run.  [default: 0.5]")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of the runtime.")
@click.option(
    "-o", "--output", default="images.png", show_default=True, type=click.Path(), help="A .png grid or a .npy array."
)
@variant_option
@verb(show_figures)
@signed_bundles
def command(model: str, number: int, strength: float | None, **options: Any) -> Outcome:
    """Draw images with MODEL: a bundle (generated runtime) or a checkpoint (folder or zoo:NAME, by PyTorch).

    The same seed gives the same image here and from the bundle's own `bin/edgedm-sample`, bit for bit.
    """
    from edgedm.sampling import sample

    if strength is not None:
        if options["start"] is None:
            raise UnsupportedError("--strength: it is that of --start, which is missing")
        options["strength"] = strength
    return sample(model, n=number, **options)
