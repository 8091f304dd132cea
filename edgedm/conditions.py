"""Text conditions as files: a .npy array of float32, [T, D] or [1, T, D], as a text encoder's output is saved."""

import os

import numpy as np
from numpy.typing import NDArray

from edgedm.arrays import read_array
from edgedm.errors import UnsupportedError

Floats = NDArray[np.float32]


def read_condition(path: str | os.PathLike[str], shape: tuple[int, int]) -> Floats:
    """Read a text condition f32[T, D] of this `shape` from a .npy file.

    Raises `InvalidModelError` for a file that is none, of another dtype or shape, or holds values that are not finite.
    """
    return read_array(path, "condition", shape, (1, *shape)).reshape(shape)


def read_conditions(
    model: str,
    shape: tuple[int, int] | None,
    condition: str | os.PathLike[str] | None,
    negative: str | os.PathLike[str] | None,
) -> tuple[Floats | None, Floats | None]:
    """Read the condition and the negative one of `model`, which has text conditions of `shape` or None.

    Both are None for a model without; the negative one is zeros where no file is given. Raises `UnsupportedError`
    where a condition is missing or there is no use for it, and as `read_condition` does.
    """
    if shape is None:
        if condition is not None or negative is not None:
            raise UnsupportedError(f"condition, negative: {model} has no text condition")
        return None, None
    if condition is None:
        raise UnsupportedError(
            f"condition: {model} draws by a text condition; give a .npy array of float32 {list(shape)}, "
            "the output of its text encoder"
        )
    wanted = read_condition(condition, shape)
    return wanted, np.zeros(shape, np.float32) if negative is None else read_condition(negative, shape)
