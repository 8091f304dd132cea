"""What EfficientDM's and DilateQuant's files share: uniform quantisers and integer weights."""

import torch
from torch import Tensor

from edgedm.errors import UnsupportedError
from edgedm.models.importers.assemble import State
from edgedm.models.importers.layout import Report
from edgedm.models.importers.naming import Layer
from edgedm.models.importers.tensors import Tensors
from edgedm.ops import pack_codes
from edgedm.quant.integer import QuantLayer, UniformQuantizer

_WHOLE = 1e-3  # a stored zero point may be this far from an integer


def weight_grid(tensors: Tensors, name: str, step: Tensor, zero: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return (step, zero) f32[O] of a weight after checking them: positive steps, whole zero points of the grid."""
    check_steps(tensors, f"{name}.delta", step)
    whole = zero.round()
    if bool((zero - whole).abs().max() > _WHOLE) or bool((whole < 0).any()) or bool((whole > 2**bits - 1).any()):
        found = f"{float(zero.min()):g}..{float(zero.max()):g}"
        raise tensors.error(f"{name}.zero_point", f"expected whole numbers of 0..{2**bits - 1}, got {found}")
    return step, whole


def weight_codes(weight: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return clip(round(weight / step) + zero, 0, 2^bits - 1), one step and zero point an output channel."""
    along = (-1, *(1,) * (weight.ndim - 1))
    return (weight / step.reshape(along)).round().add(zero.reshape(along)).clamp(0, 2**bits - 1)


def layer_state(
    module: QuantLayer, layer: Layer, codes: Tensor, step: Tensor, zero: Tensor, activation: State
) -> dict[str, Tensor]:
    """Return the state of a `QuantLayer`; `activation` is that of its quantiser."""
    state = {"codes": pack_codes(codes, module.weight_bits), "step": step, "zero": zero.to(torch.uint8)}
    if module.bias is not None:
        state["bias"] = layer.vector("bias")
    return state | {f"activation.{name}": value for name, value in activation.items()}


def activation_state(
    module: UniformQuantizer, tensors: Tensors, name: str, step: Tensor, zero: Tensor, clamp: bool, report: Report
) -> dict[str, Tensor]:
    """Return the table of an activation quantiser from steps and zero points f32[rows, heads].

    Zero points are rounded, as integer inference needs them (the authors' runtime does so); the report says by how
    much. One row in the file serves all bins; several equal rows may become one. Raises `InvalidModelError` where
    the rows don't fit, `UnsupportedError` for a zero point outside the grid unless `clamp`.
    """
    check_steps(tensors, name, step)
    rows, heads = len(module.edges), module.heads
    if rows == 1 and len(step) > 1 and bool((step == step[:1]).all()) and bool((zero == zero[:1]).all()):
        step, zero = step[:1], zero[:1]
    if len(step) == 1:
        step, zero = step.expand(rows, -1), zero.expand(rows, -1)
    if tuple(step.shape) != (rows, heads) or step.shape != zero.shape:
        raise tensors.error(
            name,
            f"{list(step.shape)} steps and {list(zero.shape)} zero points [rows, heads]; expected {[rows, heads]}: the "
            "table's rows are those of the whole file, but the first and the last layer have one",
        )
    whole, top = zero.round(), 2**module.bits - 1
    if not clamp and bool(((whole < 0) | (whole > top)).any()):
        raise UnsupportedError(
            f"{tensors.file}: '{name}': zero points {float(zero.min()):g}..{float(zero.max()):g} leave the grid "
            f"0..{top}; an integer runtime has none there; clamp_zero_points=true moves them to the grid's ends, which "
            "is another function"
        )
    whole = whole.clamp(0, top)
    report.largest("zero_points.largest_rounding", float((whole - zero).abs().max()))
    return {"table": torch.cat([step, whole], 1), "edges": module.edges.clone()}


def check_steps(tensors: Tensors, name: str, step: Tensor) -> None:
    """Raise `InvalidModelError` that names the tensor unless all steps are positive and finite, also in float16."""
    half = step.half()
    if not bool((half.isfinite() & (half > 0)).all()):
        found = f"{float(step.min()):g}..{float(step.max()):g}"
        raise tensors.error(name, f"expected positive steps that float16 holds, got {found}")
