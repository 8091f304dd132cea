"""`edgedm inspect`: what is in a checkpoint, a graph or a bundle."""

import click

from edgedm.cli.common import verb
from edgedm.outcome import Outcome


def _show(outcome: Outcome) -> None:
    from edgedm.inspection import render

    render(outcome)


@click.command(name="inspect", short_help="layers, bits, bytes, MACs, tables, kernels, hashes")
@click.argument("path")
@verb(_show)
def command(path: str) -> Outcome:
    """Describe PATH: a checkpoint (folder or zoo:NAME), an ONNX graph, or a bundle."""
    from edgedm.inspection import inspect

    return inspect(path)
