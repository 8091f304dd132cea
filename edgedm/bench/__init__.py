"""Benchmarks: a denoising step whole and call by call, single layers and the machine, beside peers in one run."""

import os
from collections.abc import Sequence

from edgedm.callable_module import make_callable
from edgedm.errors import InvalidModelError
from edgedm.outcome import Outcome

make_callable(__name__)


def bench(
    bundle: str | os.PathLike[str] | None = None,
    *,
    layers: Sequence[str] = (),
    against: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    calls: bool = False,
    machine: bool = False,
    setup_seconds: float | None = None,
    variant: str | None = None,
) -> Outcome:
    """Time a denoising step of `bundle`, or each of `layers` (e.g. `bconv:256x256x16`), against peers.

    `against` (by default ONNX Runtime) names engines: those of `edgedm.bench.peers` for a bundle, onnxruntime and torch
    for layers; or it is `all` that are installed, or `none`. `threads` are 1 and 2 by default. `setup_seconds` is how
    long a bundle's peer may take to be set up; those of `all` have two minutes by default. For a bundle, figures
    are those of `bench_model`; with `calls` also those of `bench_calls`, each under `calls.`. For layers they are those
    of `bench_layer`; with several layers each name starts with the layer. With `machine` and nothing else they are
    the limits of this machine (`bench_machine`). `variant` names the kernels to run of a bundle that has several.
    Raises `UnsupportedError` for an unknown engine, layer or variant, `ToolchainError` for an engine asked for by name
    that is missing or fails.
    """
    if sum((bundle is not None, bool(layers), machine)) != 1 or ((calls or variant is not None) and bundle is None):
        raise InvalidModelError(
            "bench: give one of a bundle, layers (KIND:INxOUTxHEIGHT) and the machine; calls and variant need a bundle"
        )
    if machine:
        if against is not None or threads is not None:
            raise InvalidModelError(
                "bench: the machine's limits are of one thread and beside no engine: leave out "
                "--against and --threads, or give a bundle or --layer"
            )
        from edgedm.bench.machine import bench_machine

        return bench_machine()
    peers = ("onnxruntime",) if against is None else tuple(against)
    counts = (1, 2) if threads is None else tuple(threads)
    if bundle is not None:
        return _bundle(bundle, peers, counts, calls, setup_seconds, variant)
    from edgedm.bench.layers import bench_layer

    outcomes = {layer: bench_layer(layer, against=peers, threads=counts) for layer in layers}
    if len(outcomes) == 1:
        return next(iter(outcomes.values()))
    figures = {f"{layer}.{name}": v for layer, outcome in outcomes.items() for name, v in outcome.figures.items()}
    return Outcome(
        ok=all(outcome.ok for outcome in outcomes.values()),
        figures=figures,
        details={layer: outcome.details for layer, outcome in outcomes.items()},
    )


def _bundle(
    bundle: str | os.PathLike[str],
    against: tuple[str, ...],
    threads: tuple[int, ...],
    calls: bool,
    setup_seconds: float | None,
    variant: str | None,
) -> Outcome:
    from edgedm.bench.models import bench_model

    whole = bench_model(bundle, against=against, threads=threads, setup_seconds=setup_seconds, variant=variant)
    if not calls:
        return whole
    from edgedm.bench.breakdown import bench_calls

    inside = bench_calls(bundle, variant=variant)
    figures = {**whole.figures, **{f"calls.{name}": value for name, value in inside.figures.items()}}
    return Outcome(whole.ok, figures, {**whole.details, "inside": inside.details})


def render(outcome: Outcome) -> None:
    """Print what was measured for people."""
    from edgedm.bench.tables import show

    show(outcome)
