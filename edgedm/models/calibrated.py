"""One forward pass over noise that sets every quantiser by the input it meets.

Layers are set in the order in which they run, so each meets what the calibrated layers before it make. The pass runs
on one thread: sums in PyTorch depend on the number of threads, and the same seed must give the same model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgedm.models.denoiser import Denoiser
from edgedm.models.threads import one_thread
from edgedm.quant.inference import (
    UNQUANTIZED,
    ActivationQuantizer,
    BinaryConv2d,
    BinaryLinear,
    BinaryWeightConv2d,
    BinaryWeightLinear,
)
from edgedm.quant.integer import UniformQuantizer
from edgedm.quant.uniform import SMALLEST_STEP

ROW_SPREAD = 0.2
"""Steps of a table's rows reach this far around the calibrated one: 12 of 16 codes are in use at the far end."""

_TIMESTEP = 0
_NEGATIVE_CODES = 0.57
"""Share of a signed grid's negative codes that the least input reaches: SiLU's -0.28 then uses 5 of 8."""

_Signed = ActivationQuantizer | BinaryWeightConv2d | BinaryWeightLinear


def calibrate(module: Denoiser, generator: torch.Generator) -> None:
    """Set steps, table rows and thresholds of `module` in place by one pass over noise from `generator`.

    A table covers the range of its input, row by row a bit off. A signed step is LSQ's 2 mean|x| / sqrt(2^(b-1) - 1),
    or less where the negative codes would lie idle. A threshold, a factor until now, becomes one of mean|x|.
    """
    handles = []
    steps: set[float] = set()
    for each in module.modules():
        fit = _fit_of(each, generator, steps)
        if fit is not None:
            handles.append(each.register_forward_pre_hook(fit))
    if not handles:
        return
    config: Any = module.unet.config  # diffusers is untyped
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    timestep = torch.full((1,), _TIMESTEP, dtype=torch.int64)
    with torch.no_grad(), one_thread():
        x = torch.randn(shape, generator=generator)
        condition = torch.randn(1, *module.condition, generator=generator) if module.condition else None
        module.record(x, timestep, torch.zeros(1, dtype=torch.int64), condition)
    for handle in handles:
        handle.remove()


def _fit_of(
    layer: nn.Module, generator: torch.Generator, steps: set[float]
) -> Callable[[Any, tuple[Tensor, ...]], None] | None:
    """Return the hook that sets `layer` before it runs, None for a layer without a quantiser of its own.

    `steps` are the signed steps that are taken.
    """
    if isinstance(layer, UniformQuantizer):
        return lambda each, inputs: _fit_table(each, inputs[0], generator)
    if isinstance(layer, BinaryConv2d | BinaryLinear):
        return _fit_threshold
    if isinstance(layer, _Signed) and layer.step is not None:
        return lambda each, inputs: _fit_signed(each, inputs[0], generator, steps)
    return None


def _fit_threshold(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, BinaryConv2d | BinaryLinear)
    layer.threshold.mul_(inputs[0].abs().mean().clamp(min=SMALLEST_STEP))


def _fit_table(quantizer: UniformQuantizer, x: Tensor, generator: torch.Generator) -> None:
    dims = tuple(axis for axis in range(x.ndim) if quantizer.heads == 1 or axis != 1)
    low, high = x.amin(dims).clamp(max=0).reshape(1, -1), x.amax(dims).clamp(min=0).reshape(1, -1)
    rows, top = len(quantizer.table), 2**quantizer.bits - 1
    ramp = torch.linspace(1 - ROW_SPREAD, 1 + ROW_SPREAD, rows) if rows > 1 else torch.ones(1)
    step = (_about_one(low, generator) * (high - low) / top).clamp(min=SMALLEST_STEP)
    step = step * ramp[torch.randperm(rows, generator=generator)][:, None]
    zero = (-low / step).round().clamp(0, top)
    quantizer.table.copy_(torch.cat([step, zero], 1))


def _fit_signed(quantizer: _Signed, x: Tensor, generator: torch.Generator, steps: set[float]) -> None:
    bits = quantizer.bits if isinstance(quantizer, ActivationQuantizer) else quantizer.activation_bits
    if bits == UNQUANTIZED:
        return
    half = 2 ** (bits - 1)
    step, low = 2 * x.abs().mean() / (half - 1) ** 0.5, x.amin()
    if low < 0:
        step = torch.minimum(step, -low / (_NEGATIVE_CODES * half))
    step = (step * _about_one(step, generator)).clamp(min=SMALLEST_STEP).half()
    while float(step) in steps:  # 22 projections of one time embedding would be merged where two are equal
        step = torch.nextafter(step, torch.full_like(step, torch.inf))
    steps.add(float(step))
    assert quantizer.step is not None
    quantizer.step.copy_(step)


def _about_one(like: Tensor, generator: torch.Generator) -> Tensor:
    """Factors that tell two quantisers of one input apart: equal tables would be merged."""
    return torch.rand(like.shape, generator=generator) * 0.1 + 0.95
