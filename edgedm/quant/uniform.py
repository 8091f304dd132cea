"""Uniform quantisers on the unsigned grid 0 .. 2^bits - 1: fake quantisation with its gradients, calibration, and
the per-timestep activation quantiser that EfficientDM (TALSQ) and DilateQuant (TPQ) train.

    q = clip(round(v / step) + zero, 0, 2^bits - 1);  v^ = (q - zero) step

Rounding is half to even. A signed symmetric grid is the same with zero = 2^(bits - 1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgedm.quant import integer
from edgedm.quant.clock import Clock

SMALLEST_STEP = 1e-4  # keeps steps positive and representable in float16
ERROR_NORM = 2.4  # of the mean-squared search, BRECQ's L_2.4
CANDIDATES = 80  # shrink factors 1.00, 0.99, ... 0.21


def round_ste(v: Tensor) -> Tensor:
    """Return v rounded half to even; the gradient passes."""
    return v + (v.round() - v).detach()


def fake_quantize(v: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return `v` on the grid; `step` and `zero` broadcast to `v`, `step` > 0.

    Gradients: to v 1 inside the range, 0 outside; to step round(v / step) - v / step inside, bound - zero outside;
    to zero 0 inside, -step outside. `zero` need not be an integer while training.
    """
    codes = (round_ste(v / step) + zero).clamp(0, 2**bits - 1)
    return (codes - zero) * step


def minmax_grid(v: Tensor, bits: int, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return (step, zero) of the grid from min(v, 0) to max(v, 0) over `dims` (kept as 1); zero is an integer."""
    low, high = v.amin(dims, keepdim=True).clamp(max=0), v.amax(dims, keepdim=True).clamp(min=0)
    return _grid(low, high, bits)


def mse_grid(v: Tensor, bits: int, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the (step, zero) whose range, shrunk from min-max by 1.00 to 0.21, has the least mean |v^ - v|^2.4."""
    low, high = v.amin(dims, keepdim=True).clamp(max=0), v.amax(dims, keepdim=True).clamp(min=0)
    step, zero = _grid(low, high, bits)
    least = torch.full_like(step, torch.inf)
    for index in range(CANDIDATES):
        factor = 1 - 0.01 * index
        trial_step, trial_zero = _grid(low * factor, high * factor, bits)
        error = (fake_quantize(v, trial_step, trial_zero, bits) - v).abs().pow(ERROR_NORM).mean(dims, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        step, zero = torch.where(better, trial_step, step), torch.where(better, trial_zero, zero)
    return step, zero


def _grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    top = 2**bits - 1
    step = ((high - low) / top).clamp(min=SMALLEST_STEP)
    return step, (-low / step).round().clamp(0, top)


class ActivationTable(nn.Module):
    """A trainable activation quantiser with one row (step, zero) a timestep bin, and one column a head.

    `step` and `zero` are f32[bins, heads]; row r holds for edges[r] <= timestep < edges[r + 1]. A batch of mixed
    timesteps takes each image's own row. With heads > 1 the activation is [N, heads, L, d]. One bin: no table.
    Before `calibrate` it passes its input through.
    """

    def __init__(self, bits: int, edges: Sequence[int], clock: Clock, heads: int = 1) -> None:
        super().__init__()
        self.bits, self.clock, self.heads = bits, clock, heads
        self.step = nn.Parameter(torch.ones(len(edges), heads))
        self.zero = nn.Parameter(torch.zeros(len(edges), heads))
        self.register_buffer("edges", torch.tensor(list(edges), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.edges: Tensor
        self.started: Tensor

    @torch.no_grad()
    def calibrate(self, x: Tensor, row: int | None = None) -> None:
        """Set one row, or all rows, to the least-error grid of the activations `x`."""
        dims = tuple(axis for axis in range(x.ndim) if self.heads == 1 or axis != 1)
        step, zero = mse_grid(x.float(), self.bits, dims)
        rows = slice(None) if row is None else slice(row, row + 1)
        self.step[rows], self.zero[rows] = step.reshape(1, -1), zero.reshape(1, -1)
        self.started.fill_(True)

    def row(self) -> Tensor:
        """Return the table row int64[N] (or [1]) of the current timestep."""
        timestep = self.clock.now().to(self.edges.device)
        return (torch.bucketize(timestep, self.edges, right=True) - 1).clamp(min=0)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid of the current timestep, same shape."""
        if not self.started:
            return x
        step, zero = self._now(x)
        return fake_quantize(x, step.clamp(min=SMALLEST_STEP), zero, self.bits)

    def _now(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.edges) == 1:
            shape = (1, self.heads, *(1,) * (x.ndim - 2))
            return self.step.reshape(shape), self.zero.reshape(shape)
        row = self.row()
        shape = (len(row), self.heads, *(1,) * (x.ndim - 2))
        return self.step[row].reshape(shape), self.zero[row].reshape(shape)

    def to_inference(self) -> "integer.UniformQuantizer":
        """Return the quantiser that runs: zero points rounded to integers and clamped to the grid."""
        zero = self.zero.detach().round().clamp(0, 2**self.bits - 1)
        step = self.step.detach().clamp(min=SMALLEST_STEP)
        return integer.UniformQuantizer(torch.cat([step, zero], 1), self.edges.clone(), self.bits, self.clock)
