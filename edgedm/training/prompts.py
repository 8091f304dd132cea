"""Text conditions in training: prompts take the place of classes, so that trajectories are drawn by them."""

import hashlib
import os

import numpy as np
import torch
from torch import Tensor

from edgedm.arrays import read_array
from edgedm.conditions import read_condition


def read_prompts(
    conditions: str | os.PathLike[str], negative: str | os.PathLike[str] | None, shape: tuple[int, int]
) -> Tensor:
    """Read N prompts and, as the last one, what means "none" (zeros where there is no file): f32[N + 1, T, D].

    Both are .npy files, [N, T, D] and [T, D] of `shape` (T, D). Raises `InvalidModelError` as `read_array` does.
    """
    wanted = read_array(conditions, "conditions", (None, *shape))
    none = np.zeros(shape, np.float32) if negative is None else read_condition(negative, shape)
    return torch.from_numpy(np.concatenate([wanted, none[None]]))


def prompts_identity(prompts: Tensor) -> str:
    """Return how many prompts there are and a hash of their values."""
    return f"{len(prompts) - 1} prompts {hashlib.sha256(prompts.numpy().data).hexdigest()[:16]}"
