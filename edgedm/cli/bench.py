"""`edgedm bench`: speed, side by side with peers in one run."""

import click

from edgedm.cli.common import verb
from edgedm.errors import InvalidModelError
from edgedm.outcome import Outcome


def _show(outcome: Outcome) -> None:
    from edgedm.bench import render

    render(outcome)


@click.command(name="bench", short_help="speed, side by side with peers in one run")
@click.argument("bundle", required=False, type=click.Path())
@click.option("--layer", "layers", multiple=True, metavar="KIND:INxOUTxHEIGHT", help="e.g. bconv:256x256x16")
@click.option("--against", default="onnxruntime", show_default=True, help="Peers, separated by commas.")
@click.option("--threads", default="1,2", show_default=True, help="Thread counts, separated by commas.")
@verb(_show)
def command(bundle: str | None, layers: tuple[str, ...], against: str, threads: str) -> Outcome:
    """Time a denoising step of BUNDLE, or single layers, against peers: median and spread, interleaved runs.

    Packing and epilogue are inside the timer.
    """
    if (bundle is None) == (not layers):
        raise InvalidModelError("bench: give a bundle or --layer KIND:INxOUTxHEIGHT, one of the two")
    try:
        counts = tuple(int(count) for count in threads.split(","))
    except ValueError:
        raise InvalidModelError(f"--threads: expected numbers like 1,2, got {threads!r}") from None
    from edgedm.bench import bench

    return bench(bundle, layers=layers, against=tuple(against.split(",")), threads=counts)
