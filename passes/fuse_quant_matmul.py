"""Turn products of two quantised activations (attention) into integer ops on codes.

Given   y = MatMul(DequantizeLinear(QuantizeLinear(a, s, z), s, z), DequantizeLinear(QuantizeLinear(b, t, v), t, v))
        a [1, H, M, K], b [1, H, K, N]
Result  y = QuantMatMul(QuantizeHeads(a, s, z), z, s, QuantizeHeads(b, t, v), v, t; transposed = 0)
        and transposed = 1 where the second operand is turned round (keys): b [1, H, N, K].

A grid has one step for each head or one for all, constant or looked up for the timestep. The codes are the same.
Reassociating, since sum(s (a - z) t (b - v)) becomes sum((a - z)(b - v)) (s t): the sum is then an exact integer.
"""

import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Editor, describe, dims, is_op, operand, transposed_by
from edgedm.passes.fuse_quant_conv import LARGEST_SUM
from edgedm.passes.grids import Grid, add_codes, match_grid, step_of, zero_of

_TURNED = (0, 1, 3, 2)


class FuseQuantMatMul(GraphPass):
    """MatMul of two quantised activations -> QuantMatMul."""

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            if not is_op(node, "MatMul"):
                continue
            turned = transposed_by(operand(node, 1).producer()) == _TURNED
            second = operand(node, 1)
            if turned:
                second = operand(second.producer(), 0)  # type: ignore[arg-type]  # a Transpose made it
            grids = match_grid(operand(node, 0)), match_grid(second)
            if any(grid is None for grid in grids):
                continue  # a float product, or one with a weight
            first, other = grids
            if not isinstance(first, Grid) or not isinstance(other, Grid):
                editor.refuse(node, next(grid for grid in grids if isinstance(grid, str)))
                continue
            reason = _refusal(node, first, other)
            if reason:
                editor.refuse(node, reason)
                continue
            _fuse(editor, node, first, other, turned)


def _refusal(node: ir.Node, first: Grid, second: Grid) -> str | None:
    shapes = [dims(grid.x) for grid in (first, second)]
    if any(len(shape) != 4 or shape[0] != 1 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        return f"expected two operands [1, heads, ...], got {shapes[0]} and {shapes[1]}"
    if any(grid.axis not in (None, 1) for grid in (first, second)):
        return f"its steps stand along axes {first.axis} and {second.axis}; expected one for each head, axis 1"
    depth = dims(operand(node, 0))[3]
    largest = depth * (2**first.bits - 1) * (2**second.bits - 1)
    return f"its sums may reach {largest}, more than int32 holds" if largest > LARGEST_SUM else None


def _fuse(editor: Editor, node: ir.Node, first: Grid, second: Grid, turned: bool) -> None:
    heads = (dims(first.x)[1],)
    inputs = []
    for grid in (first, second):
        step, zero = step_of(editor, grid, heads, node), zero_of(editor, grid, heads, node)
        # a quantiser of its own module: it is no part of the product's
        inputs += [add_codes(editor, grid, grid.x, step, zero, grid.quantise), zero, step]
    y = node.outputs[0]
    (result,) = editor.add(
        "QuantMatMul",
        inputs,
        node,
        [(f"{y.name}.fused", ir.DataType.FLOAT, dims(y))],
        {"transposed": int(turned), "bits": first.bits, "other_bits": second.bits},
        domain=DOMAIN,
    )
    editor.replace(y, result)
    editor.rewritten.append(describe(node))
