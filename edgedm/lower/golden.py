"""Golden data for the native self-test: the same tensors in the kernels' layout, in one flat file.

The format is described in `runtime/templates/self_test.c`, which reads it.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgedm.bundle.manifest import Port
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
    labels: int | None = None,
    condition_shape: tuple[int, int] | None = None,
    decoded_shape: tuple[int, int, int] | None = None,
) -> bytes:
    """Return the flat form of `<stem>.golden.safetensors`; InvalidModelError if it does not fit the model.

    `labels` is how many the model embeds, the one that means none included; None where it takes none.
    """
    golden = read_golden(path)
    steps, noise = golden.steps, max(golden.rounding_noise, default=0.0)
    allowed = min(max(ALLOWED_ERROR, NOISE_FACTOR * noise), MOST_ALLOWED)
    data = [struct.pack("<8sIIfI", MAGIC, len(steps), len(states), allowed, int(decoded_shape is not None))]
    numbers = {"timestep": [1], **({"class_labels": [1]} if labels else {}), **({"has_state": [1]} if states else {})}
    floats: dict[str, Sequence[int]] = {
        "x": (1, *image_shape),
        **({"encoder_hidden_states": (1, *condition_shape)} if condition_shape else {}),
        **{port.name: (1, port.shape[-1], *port.shape[1:-1]) for port in states},
        "eps": (1, *image_shape),
    }
    for step in steps:
        found = golden.inputs(step, {**numbers, **floats}, labels)
        label, has_state = found.get("class_labels", [-1])[0], found.get("has_state", [0])[0]
        data.append(struct.pack("<qqII", int(found["timestep"][0]), int(label), int(has_state), 0))
        for name in floats:
            moved = np.moveaxis(found[name], 1, -1) if name.startswith("state.") else found[name]
            data.append(np.ascontiguousarray(moved, dtype="<f4").tobytes())
    if decoded_shape is not None:
        data += [
            golden.tensor(name, shape).astype("<f4").tobytes()
            for name, shape in (("image", image_shape), ("decoded", decoded_shape))
        ]
    return b"".join(data)
