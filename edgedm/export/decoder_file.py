"""The decoder of a latent model as a file beside its graph: model.onnx -> model.decoder.onnx."""

import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgedm.errors import InvalidModelError
from edgedm.export.graph_io import graph_info, load_graph

DECODER_ROLES = {"latent": "latent"}


def decoder_path(graph: str | os.PathLike[str]) -> Path:
    """Return where the decoder of the latent model at `graph` stands."""
    return Path(graph).with_suffix(".decoder.onnx")


def load_decoder(graph: str | os.PathLike[str], config: dict[str, Any]) -> ir.Model | None:
    """Read the decoder that belongs to the graph at `graph`, whose own config is `config`; None where it has none.

    Raises `InvalidModelError` for a decoder that is missing, broken or of another model.
    """
    path = decoder_path(graph)
    if not config.get("decoder"):
        return None
    if not os.path.lexists(path):
        raise InvalidModelError(f"{path}: no such file; the model is a latent one, whose decoder stands there")
    model = load_graph(path)
    info, shapes = graph_info(model), [value.shape for value in (*model.graph.inputs, *model.graph.outputs)]
    if info.level != "decoder" or info.inputs != DECODER_ROLES or len(shapes) != 2 or len(model.graph.outputs) != 1:
        raise InvalidModelError(f"{path}: expected a decoder, one latent in and one image out; export the model again")
    if any(shape is None or shape.rank() != 4 or shape[0] != 1 for shape in shapes):
        raise InvalidModelError(f"{path}: expected a latent and an image [1, C, H, W], got {shapes}")
    if info.config != config:
        raise InvalidModelError(f"{path}: a decoder of another model than {graph}; export the model again")
    return model
