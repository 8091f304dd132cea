"""Seeded weights that are not degenerate: what a model is given where tests or benchmarks need one that is untrained.

A fresh network has thresholds of 0, equal rows in every table and steps of 1, so a kernel or an export that mixed
them up would still be right. Here they differ, and every quantiser meets inputs that use most of its codes.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgedm.models.denoiser import Denoiser
from edgedm.quant.inference import (
    ActivationQuantizer,
    BinaryConv2d,
    BinaryLinear,
    BinaryWeightConv2d,
    BinaryWeightLinear,
)
from edgedm.quant.integer import QuantLayer, UniformQuantizer
from edgedm.quant.uniform import SMALLEST_STEP

ROW_SPREAD = 0.2
"""Steps of a table's rows reach this far around the calibrated one: 12 of 16 codes are in use at the far end."""


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
    _calibrate(module, generator)
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
    if isinstance(layer, BinaryWeightConv2d | BinaryWeightLinear | ActivationQuantizer) and layer.step is not None:
        layer.step.copy_(draw(layer.step, 0.2, 0.4))
    if isinstance(layer, BinaryConv2d | BinaryLinear | BinaryWeightConv2d | BinaryWeightLinear):
        layer.scale[::5].neg_()
    if isinstance(layer, QuantLayer):
        layer.step.mul_(draw(layer.step, 0.8, 1.2))
        layer.zero[::4] -= (layer.zero[::4] > 1).to(torch.uint8)
        layer.zero[1::4] += (layer.zero[1::4] + 2 < 2**layer.weight_bits).to(torch.uint8)
        if layer.dilation is not None:
            layer.dilation[::3] *= draw(layer.dilation[::3], 1.1, 2.0)
    if isinstance(layer, nn.GroupNorm):
        layer.weight.data.copy_(draw(layer.weight, 0.5, 1.5))
        layer.weight.data[::7].neg_()
        layer.bias.data.copy_(draw(layer.bias, -0.3, 0.3))


def _draw(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator) * (high - low) + low


def _calibrate(module: Denoiser, generator: torch.Generator) -> None:
    """Set every `UniformQuantizer` to the range of its input in one pass over noise, row by row a bit off."""
    quantizers = [each for each in module.modules() if isinstance(each, UniformQuantizer)]
    if not quantizers:
        return

    def fit(quantizer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(quantizer, UniformQuantizer)
        (x,) = arguments
        dims = tuple(axis for axis in range(x.ndim) if quantizer.heads == 1 or axis != 1)
        low, high = x.amin(dims).clamp(max=0).reshape(1, -1), x.amax(dims).clamp(min=0).reshape(1, -1)
        rows, top = len(quantizer.table), 2**quantizer.bits - 1
        ramp = torch.linspace(1 - ROW_SPREAD, 1 + ROW_SPREAD, rows) if rows > 1 else torch.ones(1)
        own = _draw(low, 0.95, 1.05, generator)  # equal tables of one input would be merged
        step = (own * (high - low) / top).clamp(min=SMALLEST_STEP)
        step = step * ramp[torch.randperm(rows, generator=generator)][:, None]
        zero = (-low / step).round().clamp(0, top)
        quantizer.table.copy_(torch.cat([step, zero], 1))

    handles = [each.register_forward_pre_hook(fit) for each in quantizers]
    config: Any = module.unet.config  # diffusers is untyped
    size = config.sample_size
    noise = torch.randn(1, config.in_channels, size, size, generator=generator)
    zero = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        module.record(noise, zero, zero)
    for handle in handles:
        handle.remove()
