"""Text conditions as files: a .npy array of float32, [T, D] or [1, T, D], as a text encoder's output is saved."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgedm.errors import UnsupportedError

Floats = NDArray[np.float32]


def read_condition(path: str | os.PathLike[str], shape: tuple[int, int]) -> Floats:
    """Read a text condition f32[T, D] of this `shape` from a .npy file.

    Raises `UnsupportedError` for a file that is none, of another dtype or shape, or holds values that are not finite.
    """
    try:
        array = np.load(Path(path), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UnsupportedError(f"condition {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UnsupportedError(f"condition {path}: expected a whole .npy array of numbers") from error
    if not isinstance(array, np.ndarray):
        raise UnsupportedError(f"condition {path}: expected one array (.npy), got an archive of several")
    if array.dtype != np.dtype("<f4") or array.shape not in (shape, (1, *shape)):
        raise UnsupportedError(
            f"condition {path}: expected float32 of shape {list(shape)}, got {array.dtype} {list(array.shape)}"
        )
    condition = np.array(array, np.float32).reshape(shape)
    if not np.isfinite(condition).all():
        raise UnsupportedError(f"condition {path}: holds NaN or infinity")
    return condition


def read_conditions(
    model: str,
    shape: tuple[int, int] | None,
    condition: str | os.PathLike[str] | None,
    negative: str | os.PathLike[str] | None,
) -> tuple[Floats | None, Floats | None]:
    """Read the condition and the negative one of `model`, which has text conditions of `shape` or None.

    Both are None for a model without; the negative one is zeros where no file is given. Raises `UnsupportedError`
    where a condition is missing or there is no use for it.
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
