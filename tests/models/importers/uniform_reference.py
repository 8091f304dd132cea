"""Uniform quantisers in numpy's terms and seeded parameters for them."""

import torch


def fake(x, step, zero, bits):
    """(clip(round(x / step) + zero, 0, 2^bits - 1) - zero) step."""
    return (torch.clamp(torch.round(x / step) + zero, 0, 2**bits - 1) - zero) * step


class Draw:
    """Seeded numbers in a range."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape, low, high):
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def whole(self, *shape, low, high):
        return torch.randint(low, high + 1, shape, generator=self.generator).float()


def minmax(weight, bits):
    """Per output channel (step, zero) with 0 in range, shaped [O, 1, ...]."""
    axes = tuple(range(1, weight.ndim))
    low, high = weight.amin(axes, keepdim=True).clamp(max=0), weight.amax(axes, keepdim=True).clamp(min=0)
    step = (high - low) / (2**bits - 1)
    return step, torch.round(-low / step)
