"""Torch checkpoint -> one ONNX file with packed weights, and golden data beside it."""

import os
from typing import TYPE_CHECKING

from edgedm.callable_module import make_callable
from edgedm.outcome import Outcome

if TYPE_CHECKING:
    from edgedm.models import Checkpoint

__all__ = ["export"]


def export(
    checkpoint: "Checkpoint | str | os.PathLike[str]",
    output: str | os.PathLike[str],
    layer_golden: bool = False,
) -> Outcome:
    """Export a checkpoint (an object, a folder or `zoo:NAME`) to the ONNX file `output`.

    Writes `<stem>.golden.safetensors` beside it (8 steps of one trajectory and its image, from PyTorch on one
    thread) and, with `layer_golden`, `<stem>.layers.safetensors` (inputs and outputs of every low-bit layer at one
    step). Figures: bytes.file, bytes.weights, bytes.weights.packed, nodes, functions, golden.steps, seconds.

    Raises UnsupportedError naming the layer that edgedm can't run and InvalidModelError for a broken checkpoint.
    """
    from edgedm.export.exporter import run

    return run(checkpoint, output, layer_golden)


make_callable(__name__)
