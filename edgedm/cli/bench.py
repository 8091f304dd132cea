"""`edgedm bench`: speed, side by side with peers in one run."""

import click

from edgedm.cli.common import verb
from edgedm.cli.signature import signed_bundles
from edgedm.cli.variant import variant_option
from edgedm.errors import InvalidModelError
from edgedm.outcome import Outcome


def _show(outcome: Outcome) -> None:
    from edgedm.bench import render

    render(outcome)


@click.command(name="bench", short_help="speed, side by side with peers in one run")
@click.argument("bundle", required=False, type=click.Path())
@click.option("--layer", "layers", multiple=True, metavar="KIND:INxOUTxHEIGHT", help="e.g. bconv:256x256x16")
@click.option("--against", show_default="onnxruntime", help="Engines, by commas; or all, or none.")
@click.option("--threads", show_default="1,2", help="Thread counts, separated by commas.")
@click.option("--calls", is_flag=True, help="Also each kernel call inside the step, against this machine's limits.")
@click.option("--machine", is_flag=True, help="Only this machine's limits: arithmetic, bandwidth of every cache.")
@click.option(
    "--setup-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Leave out an engine that takes longer to be set up.  [default: 120 for those of all]",
)
@variant_option
@verb(_show)
@signed_bundles
def command(
    bundle: str | None,
    layers: tuple[str, ...],
    against: str | None,
    threads: str | None,
    calls: bool,
    machine: bool,
    setup_seconds: float | None,
    variant: str | None,
) -> Outcome:
    """Time a denoising step of BUNDLE, or single layers, against peers: median and spread, interleaved runs.

    Packing and epilogue are inside the timer. Engines for BUNDLE: onnxruntime_fp32, onnxruntime_int8, openvino_fp32,
    openvino_int8, torch_eager, torch_compile, ncnn_fp32, tvm_default; for --layer: onnxruntime, torch.
    """
    if sum((bundle is not None, bool(layers), machine)) != 1:
        raise InvalidModelError("bench: give a bundle, or --layer KIND:INxOUTxHEIGHT, or --machine: one of the three")
    if (calls or variant is not None) and bundle is None:
        raise InvalidModelError(f"bench: --{'calls' if calls else 'variant'} needs a bundle")
    try:
        counts = None if threads is None else tuple(int(count) for count in threads.split(","))
    except ValueError:
        raise InvalidModelError(f"--threads: expected numbers like 1,2, got {threads!r}") from None
    from edgedm.bench import bench

    peers = None if against is None else tuple(against.split(","))
    return bench(
        bundle,
        layers=layers,
        against=peers,
        threads=counts,
        calls=calls,
        machine=machine,
        setup_seconds=setup_seconds,
        variant=variant,
    )
