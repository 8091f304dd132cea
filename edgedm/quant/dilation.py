"""Weight dilation (DilateQuant, arXiv 2409.14307, eq. 10-12): small weights grow, activations shrink.

    A    = { i : some weight of input channel i is the extremum W_max[o] or W_min[o] of an output channel o }
    s_i  = 1 for i in A, else min over o of W_max[o] / max(W[i, o], 0) and of W_min[o] / min(W[i, o], 0)
    y    = (X / s) (s W)

No weight passes the extrema of its output channel, so the weight steps stay what they were, to the bit, while the
activations of the channels outside A have a smaller range. With taps, W_max and W_min run over all of them.

Guards that the paper doesn't spell out: a denominator of zero sets no limit, so a channel without weights has s = 1;
an extremum that is zero saturates nothing, since s 0 = 0; s is capped; and s is rounded towards 1 to a float16
value, so that no s W passes an extremum by a rounding and a checkpoint holds s exactly.

The layer divides its own input by s, everywhere. The division is exact in front of GroupNorm's affine too (norm to
query, key and value, which share one s for it; across, key and value read the context and share one without the
query), and a graph pass folds it there; through a SiLU it cannot move, and
becomes the quantiser's multiplier. The value's rows never take the s of the attention's output layer: the value has
a quantiser of its own, which was calibrated and trained without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgedm.quant.uniform_layer import UniformLayer

LARGEST_DILATION = 65504.0  # of float16
# layers of an attention block that read the same tensor: in self-attention, and the context in cross-attention
_SHARED, _SHARED_ACROSS = ("to_q", "to_k", "to_v"), ("to_k", "to_v")
_DROPPED_BITS = 52 - 10  # mantissa bits of float64 that float16 lacks


@dataclass(frozen=True)
class Dilated:
    """What dilation did to a layer.

    `share` is |not A| / I and `mean` the mean of s over all input channels; `range_ratio` is the range of x / s
    over that of x, where it was measured and x is not constant (1: the widest channel of x is saturated).
    """

    share: float
    mean: float
    range_ratio: float | None = None


def saturated(weight: Tensor, groups: int = 1) -> Tensor:
    """Return the set A as bool[I], for a weight [O, I / groups, ...]."""
    grouped = _grouped(weight, groups)
    high, low = _extrema(grouped)
    at_extremum = ((grouped == high) & (high != 0)) | ((grouped == low) & (low != 0))
    return at_extremum.any(3).any(1).reshape(-1)


def dilation(weight: Tensor, groups: int = 1, cap: float = LARGEST_DILATION) -> Tensor:
    """Return s f32[I], 1 <= s <= `cap`, for a float32 weight [O, I / groups, ...]; every s is a float16 value.

    Raises `ValueError` for a cap outside 1 .. 65504.
    """
    if not 1 <= cap <= LARGEST_DILATION:
        raise ValueError(f"cap of the dilation: expected 1 to {LARGEST_DILATION:.0f}, got {cap}")
    grouped = _grouped(weight.detach(), groups).double()
    high, low = _extrema(grouped)
    limit = torch.where(grouped > 0, high / grouped, torch.inf)
    limit = torch.where(grouped < 0, low / grouped, limit)
    s = limit.amin((1, 3)).reshape(-1)
    free = ~saturated(weight.detach(), groups) & s.isfinite()  # infinite: a channel without weights
    return torch.where(free, _towards_one(s.clamp(1, cap)), 1.0).float()


def dilate(model: nn.Module, cap: float = LARGEST_DILATION) -> dict[str, Dilated]:
    """Dilate, in place, every `UniformLayer` of `model` that has a `dilation`; return {path: what was done}.

    To be called on float weights, before calibration. Query, key and value of an attention block share one s; in
    cross-attention key and value do.
    """
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, UniformLayer) and module.dilation is not None
    }
    together: dict[str, list[str]] = {}
    for path in layers:
        parent, _, name = path.rpartition(".")
        shared = name in _sharing(model.get_submodule(parent))
        together.setdefault(f"{parent}:shared" if shared else path, []).append(path)
    done = {}
    for paths in together.values():
        weight = torch.cat([layers[path].weight.detach() for path in paths])
        groups = layers[paths[0]].geometry.groups
        s = dilation(weight, groups, cap)
        share = float((~saturated(weight, groups)).double().mean())
        for path in paths:
            _apply(layers[path], s)
            done[path] = Dilated(share, float(s.mean()))
    return done


@torch.no_grad()
def measure_ranges(model: nn.Module, done: Mapping[str, Dilated], forward: Callable[[], object]) -> dict[str, Dilated]:
    """Return `done` with the range ratio of each layer's input, measured while `forward()` calls the model once."""
    measured = dict(done)

    def hook(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(layer, UniformLayer) and layer.dilation is not None
            x = inputs[0]
            before, after = _range(x), _range(x / layer.geometry.along_in(layer.dilation))
            measured[path] = replace(done[path], range_ratio=after / before if before else None)

        return note

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in done]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return measured


def _sharing(parent: nn.Module) -> tuple[str, ...]:
    """Return which children of `parent` read one tensor: none unless it is an attention block of diffusers."""
    across = getattr(parent, "is_cross_attention", None)
    if across is None:
        return ()
    return _SHARED_ACROSS if across else _SHARED


def _apply(layer: UniformLayer, s: Tensor) -> None:
    assert layer.dilation is not None
    layer.dilation.copy_(s)
    weight = layer.weight.data
    per_group = s.reshape(layer.geometry.groups, 1, -1, *(1,) * (weight.ndim - 2))
    grouped = weight.reshape(layer.geometry.groups, -1, *weight.shape[1:])
    weight.copy_((grouped * per_group).reshape(weight.shape))


def _grouped(weight: Tensor, groups: int) -> Tensor:
    """Return [O, I / groups, ...] as [groups, O / groups, I / groups, taps]."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _extrema(grouped: Tensor) -> tuple[Tensor, Tensor]:
    return grouped.amax((2, 3), keepdim=True), grouped.amin((2, 3), keepdim=True)


def _towards_one(s: Tensor) -> Tensor:
    """Round f64 values in 1 .. 65504 down to float16 ones by dropping mantissa bits."""
    return ((s.view(torch.int64) >> _DROPPED_BITS) << _DROPPED_BITS).view(torch.float64)


def _range(x: Tensor) -> float:
    return float(x.max() - x.min())
