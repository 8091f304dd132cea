"""`edgedm inspect`: what is in a checkpoint, a graph or a bundle."""

import click

from edgedm.cli.common import verb
from edgedm.cli.preset import preset_options
from edgedm.cli.signature import signed_bundles
from edgedm.cli.variant import variant_option
from edgedm.outcome import Outcome


def _show(outcome: Outcome) -> None:
    from edgedm.inspection import render

    render(outcome)


@click.command(name="inspect", short_help="layers, bits, bytes, MACs, tables, kernels, hashes")
@click.argument("path")
@preset_options
@variant_option
@verb(_show)
@signed_bundles
def command(
    path: str, method: str | None, policy: str | None, options: tuple[str, ...], variant: str | None
) -> Outcome:
    """Describe PATH: a checkpoint (folder, zoo:NAME or preset:NAME), an ONNX graph, or a bundle."""
    from edgedm.inspection import inspect
    from edgedm.models.preset_reference import with_method

    return inspect(with_method(path, method, policy, options), variant)
