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


def flat_golden(path: Path, states: list[Port]) -> bytes:
    """Return the flat form of `<stem>.golden.safetensors`; InvalidModelError if it does not fit the model."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            steps = json.loads((file.metadata() or {}).get("golden_steps", "[]"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidModelError(f"{path}: {error}; export the checkpoint again") from error
    data = [struct.pack("<8sIIfI", MAGIC, len(steps), len(states), ALLOWED_ERROR, 0)]
    try:
        for step in steps:
            prefix = f"step.{step}."
            label = int(tensors.get(f"{prefix}class_labels", np.array([-1]))[0])
            has_state = bool(tensors.get(f"{prefix}has_state", np.zeros(1))[0])
            data.append(struct.pack("<qqII", int(tensors[f"{prefix}timestep"][0]), label, has_state, 0))
            data.append(_floats(tensors[f"{prefix}x"]))
            for port in states:
                state = np.moveaxis(tensors[prefix + port.name], 1, -1)
                if state.shape != port.shape:
                    raise InvalidModelError(f"{path}: {prefix}{port.name} is {state.shape}, expected {port.shape}")
                data.append(_floats(state))
            data.append(_floats(tensors[f"{prefix}eps"]))
    except KeyError as error:
        raise InvalidModelError(f"{path}: tensor {error} is missing; export the checkpoint again") from error
    return b"".join(data)


def _floats(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    return np.ascontiguousarray(array, dtype="<f4").tobytes()
