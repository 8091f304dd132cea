"""Benchmarks: one denoising step of a bundle, or single layers, side by side with peers in one run."""

from collections.abc import Sequence

import click

from edgedm.callable_module import make_callable
from edgedm.outcome import Outcome

make_callable(__name__)


def bench(
    bundle: str | None = None,
    *,
    layers: Sequence[str] = (),
    against: Sequence[str] = ("onnxruntime",),
    threads: Sequence[int] = (1, 2),
) -> Outcome:
    """Time a denoising step of `bundle`, or each of `layers` (e.g. `bconv:256x256x16`), against peers.

    Figures are flat: `ms.<engine>.t<threads>` (median) and `ratio.<peer>.t<threads>` (peer's time over ours);
    with several layers each name starts with the layer. Raises `UnsupportedError` for an unknown peer or layer.
    """
    if bundle is not None:
        from edgedm.bench.models import bench_model

        return bench_model(bundle, against=tuple(against), threads=tuple(threads))
    from edgedm.bench.layers import bench_layer

    outcomes = {layer: bench_layer(layer, against=tuple(against), threads=tuple(threads)) for layer in layers}
    if len(outcomes) == 1:
        return next(iter(outcomes.values()))
    figures = {f"{layer}.{name}": v for layer, outcome in outcomes.items() for name, v in outcome.figures.items()}
    return Outcome(
        ok=all(outcome.ok for outcome in outcomes.values()),
        figures=figures,
        details={layer: outcome.details for layer, outcome in outcomes.items()},
    )


def render(outcome: Outcome) -> None:
    """Print the figures, those of one engine or ratio together."""
    for name, value in outcome.figures.items():
        click.echo(f"{name:<44} {value:>14,.2f}")
