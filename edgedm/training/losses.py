"""Losses of low-bit training beside the eps error."""

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedm.errors import UnsupportedError

GRID = 4
SMALLEST_NORM = 1e-12


def spd_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Return BiDM's space-patched distillation loss (arXiv 2412.05926, section 3.3), a scalar.

    Each feature f32[N, C, H, W] is cut into a 4x4 grid of patches P; Q = P P^T over the rows of a patch, for each
    image and channel; both Q are divided by their norm over the whole patch tensor, and the norm of their
    difference is averaged over patches and features. Raises `UnsupportedError` for features that have no 4x4 grid.
    """
    terms = [
        (_patch_grams(ours) - _patch_grams(theirs)).square().sum((0, 1, 3, 4)).add(SMALLEST_NORM).sqrt().mean()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()


def l2_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Return the mean over features of their mean squared error: the plain distillation that BiDM compares with."""
    return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]).mean()


def _patch_grams(feature: Tensor) -> Tensor:
    """Return normalised Grams f32[N, C, 16, h, h] of the patches."""
    n, c, height, width = feature.shape
    if height % GRID or width % GRID:
        raise UnsupportedError(
            f"block output of {height}x{width}: patch distillation cuts it into {GRID}x{GRID} patches and expects "
            f"multiples of {GRID}; use distillation='l2' or 'none'"
        )
    h, w = height // GRID, width // GRID
    patches = feature.float().reshape(n, c, GRID, h, GRID, w).transpose(3, 4).reshape(n, c, GRID * GRID, h, w)
    grams = (patches[..., :, None, :] * patches[..., None, :, :]).sum(-1)  # tiny matrices: faster than bmm
    norm = grams.square().sum((0, 1, 3, 4), keepdim=True).add(SMALLEST_NORM).sqrt()
    return grams / norm
