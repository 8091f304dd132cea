"""`edgedm quantize`: train or fine-tune a low-bit checkpoint."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.outcome import Outcome


@click.command(name="quantize", short_help="train / fine-tune a low-bit checkpoint")
@click.option("--method", required=True, type=click.Choice(["binarydm", "bidm", "xnor"]), help="The method.")
@click.option("--base", default="zoo:digits-fp32", show_default=True, help="The full-precision checkpoint.")
@click.option("--data", default="digits", show_default=True, type=click.Choice(["digits"]), help="Training data.")
@click.option("--iterations", type=click.IntRange(1), help="Training iterations (the method's own by default).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="The checkpoint to write.")
@verb(show_figures)
def command(
    method: str, base: str, data: str, iterations: int | None, seed: int, output: str
) -> Outcome:
    """Train a low-bit checkpoint from a full-precision one by METHOD."""
    from edgedm.training import quantize

    outcome: Outcome = quantize(base, method, data=data, output=output, iterations=iterations, seed=seed)
    return outcome
