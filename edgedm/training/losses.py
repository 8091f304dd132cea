"""Losses of low-bit training beside the eps error."""

import torch
from torch import Tensor

GRID = 4
SMALLEST_NORM = 1e-12


def spd_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Return BiDM's space-patched distillation loss (arXiv 2412.05926, section 3.3; methods.md 2.2), a scalar.

    Each feature f32[N, C, H, W] is cut into a 4x4 grid of patches P; Q = P P^T over the rows of a patch, for each
    image and channel; both Q are divided by their norm over the whole patch tensor, and the norm of their
    difference is averaged over patches and features. Features smaller than the grid are refused.
    """
    terms = [
        (_patch_grams(ours) - _patch_grams(theirs)).square().sum((0, 1, 3, 4)).add(SMALLEST_NORM).sqrt().mean()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()


def _patch_grams(feature: Tensor) -> Tensor:
    """Return normalised Grams f32[N, C, 16, h, h] of the patches."""
    n, c, height, width = feature.shape
    if height % GRID or width % GRID:
        raise ValueError(f"feature of {height}x{width}: expected multiples of {GRID}")
    h, w = height // GRID, width // GRID
    patches = feature.float().reshape(n, c, GRID, h, GRID, w).transpose(3, 4).reshape(n, c, GRID * GRID, h, w)
    grams = (patches[..., :, None, :] * patches[..., None, :, :]).sum(-1)  # tiny matrices: faster than bmm
    norm = grams.square().sum((0, 1, 3, 4), keepdim=True).add(SMALLEST_NORM).sqrt()
    return grams / norm
