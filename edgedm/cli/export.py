"""`edgedm export`: torch checkpoint -> ONNX with custom binary ops."""

import click

from edgedm.cli.common import show_figures, verb
from edgedm.cli.preset import preset_options
from edgedm.outcome import Outcome


@click.command(name="export", short_help="torch checkpoint -> ONNX with custom binary ops")
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The ONNX file to write.")
@click.option("--layer-golden", is_flag=True, help="Also write one step's inputs and outputs of every layer.")
@preset_options
@verb(show_figures)
def command(
    checkpoint: str, output: str, layer_golden: bool, method: str | None, policy: str | None, options: tuple[str, ...]
) -> Outcome:
    """Export CHECKPOINT (a folder, zoo:NAME or preset:NAME) to one ONNX file that runs on stock ONNX Runtime.

    Golden data (noise, x_t, state, eps from PyTorch) is written beside it.
    """
    from edgedm.export import export
    from edgedm.models.preset_reference import with_method

    checkpoint = with_method(checkpoint, method, policy, options)
    return export(checkpoint, output, layer_golden=layer_golden)
