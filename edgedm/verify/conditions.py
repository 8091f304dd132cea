"""Text conditions for verification: a number stands for one, so that runs of all kinds of models are told by labels.

Label i means seeded normal vectors, another draw for each i; the null label means zeros, which is no condition.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.diffusion import normals

Array = NDArray[Any]

TEXTS = 9
"""How many conditions the runs go round through; the number itself is the null label of a model without classes."""

_SEED, _DRAW = 1, 1 << 20


def text_condition(label: int, null: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The condition f32[T, D] that `label` stands for, where `null` means none."""
    if label == null:
        return np.zeros(shape, np.float32)
    return normals(_SEED, label, _DRAW, int(np.prod(shape))).reshape(shape)


def text_conditions(labels: Any, null: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The conditions f32[N, T, D] of N labels."""
    return np.stack([text_condition(int(label), null, shape) for label in labels])
