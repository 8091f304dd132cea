"""Turn products of uniform weights and activations (W4A4, W8A8, ...) into integer ops on codes.

Given   y = Conv(DequantizeLinear(QuantizeLinear(x, s, z), s, z), DequantizeLinear(w, t, v; axis 0)) + bias
Result  y = ToFirst(QuantConv(QuantizeUniform(ToLast(x), 1, s, z), z, ToLast(w), v, multiplier = t, step = s,
                              addend = bias))
        and likewise QuantGemm for MatMul and Gemm.

s and z are one number each, constant or a row looked up for the timestep; t and v have one an output channel.
The codes are the same. Reassociating, since sum(s (q - z) t (w - v)) becomes (sum((q - z)(w - v)) t) s: the sum is then
an exact integer. Padding with 0 is padding with the code z.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Array, Editor, constant, describe, dims, integer
from edgedm.passes.grids import Grid, add_codes, match_grid, step_of, zero_of
from edgedm.passes.weights import Match, fused_product, match_uniform

LARGEST_SUM = 2**31 - 1
"""Accumulators are int32."""

_FOUR_BITS = np.dtype(ml_dtypes.uint4)
_SIX_BITS = 6


class FuseQuantConv(GraphPass):
    """Conv, MatMul or Gemm of quantised activations and dequantised constants -> QuantConv or QuantGemm."""

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            match = match_uniform(node)
            if match is None:
                continue
            grid = match_grid(match.activation)
            reason = match.refusal or _no_weight(match) or _no_activation(match, grid)
            if reason or not isinstance(grid, Grid):
                editor.refuse(node, str(reason))
                continue
            _fuse(editor, match, grid)


def _no_weight(match: Match) -> str | None:
    """Why the weight's grid has no kernel, or None."""
    codes, step, zero = _weight_grid(match)
    if codes is None or step is None or (zero is None and len(match.unpack.inputs) > 2):
        return "the step or zero point of its weight is not a constant"
    if codes.dtype not in (_FOUR_BITS, np.uint8):
        return f"its weight is {codes.dtype}; expected uint4 or uint8"
    if step.size != 1 and (step.shape != (match.outputs,) or integer(match.unpack, "axis", 1) % codes.ndim != 0):
        return f"the steps {step.shape} of its weight are not one an output channel"
    return None


def _no_activation(match: Match, grid: Grid | str | None) -> str | None:
    if grid is None:
        return "its activation is not quantised"
    if isinstance(grid, str):
        return grid
    if grid.axis is not None:
        return f"its activation has {grid.steps} steps along axis {grid.axis}; a product needs one"
    terms = match.channels * int(np.prod(dims(match.unpack.outputs[0])[2:], dtype=np.int64))
    largest = terms * (2**grid.bits - 1) * (2 ** _weight_bits(match) - 1)
    return f"its sums may reach {largest}, more than int32 holds" if largest > LARGEST_SUM else None


def _weight_grid(match: Match) -> tuple[Array | None, Array | None, Array | None]:
    """Codes, steps and zero points as constants; no zero points are zeros."""
    inputs = match.unpack.inputs
    zero = inputs[2] if len(inputs) > 2 else None
    return constant(inputs[0]), constant(inputs[1]), constant(zero)


def _weight_bits(match: Match) -> int:
    """4 for uint4, which holds narrower codes too; uint8 is what the export writes codes of 6 and 8 bits in."""
    codes, _, zero = _weight_grid(match)
    assert codes is not None
    if codes.dtype == _FOUR_BITS:
        return 4
    largest = max(int(array.max(initial=0)) for array in (codes, zero) if array is not None)
    return _SIX_BITS if largest < 2**_SIX_BITS else 8


def _fuse(editor: Editor, match: Match, grid: Grid) -> None:
    node, name = match.node, match.weight.name
    x = editor.to_last(grid.x, node) if match.is_conv else grid.x
    step, zero = step_of(editor, grid, (), node), zero_of(editor, grid, (), node)
    codes, steps, zeros = _weight_grid(match)
    assert codes is not None and steps is not None
    if match.is_conv:
        codes = np.ascontiguousarray(np.moveaxis(codes, 1, -1))
    zeros = np.zeros((), np.uint8) if zeros is None else zeros.astype(np.uint8)
    outputs = (match.outputs,)
    operands = {
        "activation": add_codes(editor, grid, x, step, zero, node),
        "zero": zero,
        "weight": editor.constant(codes, f"{name}.last"),
        "weight_zero": editor.constant(_spread(zeros, outputs), f"{name}.zero"),
        "multiplier": editor.constant(_spread(steps.astype(np.float32), outputs), f"{name}.multiplier"),
        "step": step,
    }
    y = fused_product(editor, match, "Quant", operands, {"bits": grid.bits, "weight_bits": _weight_bits(match)})
    editor.replace(node.outputs[0], y)
    editor.rewritten.append(describe(node))


def _spread(array: Array, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(array.reshape(-1), shape).copy()
