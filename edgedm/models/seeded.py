"""Seeded weights that are not degenerate: what a model is given where tests or benchmarks need one that is untrained.

A fresh network has thresholds of 0, equal rows in every table and steps of 1, so a kernel or an export that mixed
them up would still be right. Here they differ, and one forward pass sets steps and thresholds by the inputs that
they meet (`calibrated`).
"""

from functools import partial

import torch
from torch import Tensor, nn

from edgedm.models.attention import attention_blocks
from edgedm.models.calibrated import calibrate
from edgedm.models.denoiser import Denoiser
from edgedm.quant.inference import BinaryConv2d, BinaryLinear, BinaryWeightConv2d, BinaryWeightLinear
from edgedm.quant.integer import QuantLayer


def seed_weights(module: Denoiser, seed: int) -> None:
    """Fill `module` in place.

    Thresholds, filters, gains and every table row are distinct and non-zero, some scales are negative, some zero
    points off the middle, a third of the channels is dilated where there is a dilation, and activation steps are
    such that the inputs use most of the codes. All floats are float16 values, as in a saved checkpoint.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        _seed_layer(layer, generator)
    if module.taps:
        module.cache_coefficients.data.copy_(_draw(module.cache_coefficients, 0.1, 0.5, generator))
    _share_dilations(module.unet)
    calibrate(module, generator)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())


def _seed_layer(layer: nn.Module, generator: torch.Generator) -> None:
    draw = partial(_draw, generator=generator)
    if isinstance(layer, BinaryConv2d | BinaryLinear):
        layer.threshold.copy_(draw(layer.threshold, -0.3, 0.3))
    if isinstance(layer, BinaryConv2d | BinaryLinear) and layer.mean_filter is not None:
        layer.mean_filter.mul_(draw(layer.mean_filter, 0.5, 1.5))
        assert layer.mean_bias is not None
        layer.mean_bias.copy_(draw(layer.mean_bias, 0.05, 0.2))
    if isinstance(layer, BinaryConv2d | BinaryLinear) and layer.shortcut_gain is not None:
        layer.shortcut_gain.copy_(draw(layer.shortcut_gain, 0.2, 0.5))
    if isinstance(layer, BinaryConv2d | BinaryLinear | BinaryWeightConv2d | BinaryWeightLinear):
        layer.scale[::5].neg_()
    if isinstance(layer, QuantLayer):
        layer.step.mul_(draw(layer.step, 0.8, 1.2))
        layer.zero[::4] -= (layer.zero[::4] > 1).to(torch.uint8)
        layer.zero[1::4] += (layer.zero[1::4] + 2 < 2**layer.weight_bits).to(torch.uint8)
        if layer.dilation is not None:
            layer.dilation[::3] *= draw(layer.dilation[::3], 1.1, 2.0)
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        layer.weight.data.copy_(draw(layer.weight, 0.5, 1.5))
        layer.weight.data[::7].neg_()
        layer.bias.data.copy_(draw(layer.bias, -0.3, 0.3))


def _share_dilations(unet: nn.Module) -> None:
    """Query, key and value divide one tensor, the norm's output, and have one dilation for it."""
    for block in attention_blocks(unet).values():
        layers = [getattr(block, name, None) for name in ("to_q", "to_k", "to_v")]
        shared = [each.dilation for each in layers if isinstance(each, QuantLayer) and each.dilation is not None]
        for other in shared[1:]:
            if other.shape == shared[0].shape:
                other.copy_(shared[0])


def _draw(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator) * (high - low) + low
