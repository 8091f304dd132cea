"""Golden data for the native self-test: the same tensors in the kernels' layout, in one flat file.

The format is described in `runtime/templates/self_test.c`, which reads it.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.bundle.manifest import Port
from edgedm.errors import InvalidModelError
from edgedm.golden_file import read_golden

MAGIC = b"EDMGOLD1"
# A low-bit network amplifies one flipped sign to a relative error of about 0.005, a dozen to 0.05; a wrong kernel,
# table or state gives 0.5 and more.
ALLOWED_ERROR = 0.1
# Untrained networks amplify more: twice what a rounding of the input does to the output is let through, and never as
# much as unrelated outputs differ by (the root of 2).
NOISE_FACTOR, MOST_ALLOWED = 2.0, 0.9


def flat_golden(
    path: Path,
    image_shape: tuple[int, int, int],
    states: list[Port],
    condition_shape: tuple[int, int] | None = None,
    decoded_shape: tuple[int, int, int] | None = None,
) -> bytes:
    """Return the flat form of `<stem>.golden.safetensors`; InvalidModelError if it does not fit the model."""
    golden = read_golden(path)
    steps, tensors, noise = golden.steps, golden.tensors, max(golden.rounding_noise, default=0.0)
    allowed = min(max(ALLOWED_ERROR, NOISE_FACTOR * noise), MOST_ALLOWED)
    data = [struct.pack("<8sIIfI", MAGIC, len(steps), len(states), allowed, int(decoded_shape is not None))]
    try:
        for step in steps:
            prefix = f"step.{step}."
            label = int(tensors.get(f"{prefix}class_labels", np.array([-1]))[0])
            has_state = bool(tensors.get(f"{prefix}has_state", np.zeros(1))[0])
            data.append(struct.pack("<qqII", int(tensors[f"{prefix}timestep"][0]), label, has_state, 0))
            wanted = [
                ("x", (1, *image_shape)),
                *([("encoder_hidden_states", (1, *condition_shape))] if condition_shape else []),
                *((port.name, port.shape) for port in states),
                ("eps", (1, *image_shape)),
            ]
            for name, shape in wanted:
                tensor = tensors[prefix + name]
                moved = np.moveaxis(tensor, 1, -1) if name.startswith("state.") else tensor
                data.append(_floats(path, prefix + name, moved, shape))
        if decoded_shape is not None:
            data += [_floats(path, "image", tensors["image"], image_shape)]
            data += [_floats(path, "decoded", tensors["decoded"], decoded_shape)]
    except KeyError as error:
        raise InvalidModelError(f"{path}: tensor {error} is missing; export the checkpoint again") from error
    return b"".join(data)


def _floats(path: Path, name: str, tensor: NDArray[Any], shape: tuple[int, ...]) -> bytes:
    if tensor.shape != shape:
        raise InvalidModelError(f"{path}: {name} is {tensor.shape}, expected {shape}")
    return np.ascontiguousarray(tensor, dtype="<f4").tobytes()
