"""What images look like to a network that judges them: features for distances between sets of images."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.graph_io import load_graph
from edgedm.ops import ONNX_OPSET
from edgedm.verify.graphs import Graph

Floats = NDArray[np.float32]
Features = Callable[[Floats], NDArray[np.float64]]
"""Images f32[N, C, H, W] in -1..1 -> f64[N, F]."""

DIGITS = (1, 16, 16)


def features_for(shape: tuple[int, ...], path: str | os.PathLike[str] | None) -> Features:
    """The features of images of this shape: those of the network at `path`, else the digit classifier's.

    Raises `UnsupportedError` for images that the classifier does not know, `InvalidModelError` for a file that is no
    network from images f32[B, C, H, W] of this shape to one row of floats an image.
    """
    if path is not None:
        return _of_file(Path(path), shape)
    if shape != DIGITS:
        raise UnsupportedError(
            f"level distribution: no features for images of shape {list(shape)}; name a network that judges them "
            "(--features FILE.onnx, images f32[B, C, H, W] in -1..1 to features f32[B, F])"
        )
    return _of_digits()


def _of_digits() -> Features:
    import torch

    from edgedm.training.classifier import load_classifier

    classifier = load_classifier()

    def features(images: Floats) -> NDArray[np.float64]:
        with torch.inference_mode():
            found: NDArray[np.float64] = classifier.features(torch.from_numpy(images)).double().numpy()
        return found

    return features


def _of_file(path: Path, shape: tuple[int, ...]) -> Features:
    try:
        graph = Graph(load_graph(path))
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{error} (a network that judges images is read as graphs are: opset {ONNX_OPSET}, static shapes)"
        ) from error
    names = [item.name for item in graph.proto.graph.output]
    if len(graph.inputs) != 1 or not names:
        raise InvalidModelError(f"{path}: expected one input (images) and an output, got {graph.inputs} and {names}")
    given, made = graph.shape(graph.inputs[0]), graph.shape(names[0])
    if len(given) != 4 or given[1:] != shape or graph.dtype(graph.inputs[0]) != "float":
        raise InvalidModelError(f"{path}: expected images f32[B, {', '.join(map(str, shape))}], got {list(given)}")
    if not made or made[0] != given[0] or graph.dtype(names[0]) != "float":
        raise InvalidModelError(f"{path}: expected features f32[{given[0]}, F], got {names[0]} of shape {list(made)}")
    part, batch = graph.part(graph.inputs, names[:1]), given[0]

    def features(images: Floats) -> NDArray[np.float64]:
        rows = []
        for first in range(0, len(images), batch):
            block = images[first : first + batch]
            filled = np.concatenate([block, np.zeros((batch - len(block), *shape), np.float32)])
            rows.append(part.run({graph.inputs[0]: filled})[names[0]].reshape(batch, -1)[: len(block)])
        return np.concatenate(rows).astype(np.float64)

    return features
