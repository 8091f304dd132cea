"""Golden data for the native self-test: the same tensors in the kernels' layout, in one flat file.

The format is described in `runtime/templates/self_test.c`, which reads it.
"""

import json
import struct
from pathlib import Path

import numpy as np

from edgedm.bundle.manifest import Port
from edgedm.errors import InvalidModelError

MAGIC = b"EDMGOLD1"
# A low-bit network amplifies one flipped sign to a relative error of about 0.005, a dozen to 0.05; a wrong kernel,
# table or state gives 0.5 and more.
ALLOWED_ERROR = 0.1
# Untrained networks amplify more: twice what a rounding of the input does to the output is let through, and never as
# much as unrelated outputs differ by (the root of 2).
NOISE_FACTOR, MOST_ALLOWED = 2.0, 0.9


def flat_golden(path: Path, image_shape: tuple[int, int, int], states: list[Port]) -> bytes:
    """Return the flat form of `<stem>.golden.safetensors`; InvalidModelError if it does not fit the model."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            steps = json.loads(metadata.get("golden_steps", "[]"))
            noise = max(map(float, json.loads(metadata.get("rounding_noise", "[]"))), default=0.0)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InvalidModelError(f"{path}: {error}; export the checkpoint again") from error
    allowed = min(max(ALLOWED_ERROR, NOISE_FACTOR * noise), MOST_ALLOWED)
    data = [struct.pack("<8sIIfI", MAGIC, len(steps), len(states), allowed, 0)]
    try:
        for step in steps:
            prefix = f"step.{step}."
            label = int(tensors.get(f"{prefix}class_labels", np.array([-1]))[0])
            has_state = bool(tensors.get(f"{prefix}has_state", np.zeros(1))[0])
            data.append(struct.pack("<qqII", int(tensors[f"{prefix}timestep"][0]), label, has_state, 0))
            wanted = [
                ("x", (1, *image_shape)),
                *((port.name, port.shape) for port in states),
                ("eps", (1, *image_shape)),
            ]
            for name, shape in wanted:
                tensor = tensors[prefix + name]
                tensor = np.moveaxis(tensor, 1, -1) if name.startswith("state.") else tensor
                if tensor.shape != shape:
                    raise InvalidModelError(f"{path}: {prefix}{name} is {tensor.shape}, expected {shape}")
                data.append(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    except KeyError as error:
        raise InvalidModelError(f"{path}: tensor {error} is missing; export the checkpoint again") from error
    return b"".join(data)
