"""QuantMatMul: the product of two quantised activations, one grid a head (attention).

    QuantMatMul(a uint8[1, H, M, K], a_zero uint8[H], a_step f32[H], b uint8, b_zero uint8[H], b_step f32[H];
                transposed = 1, bits = 4, other_bits = 4) -> f32[1, H, M, N]
      = acc * (a_step[h] * b_step[h])

b is [1, H, N, K] where `transposed` is 1 (queries by keys) and [1, H, K, N] where it is 0 (weights by values). acc is
the int32 sum of (a - a_zero[h]) * (b - b_zero[h]) over K, exact where it fits. `bits` is the width of the codes of a,
`other_bits` of those of b, which kernels need. Zero points and steps may be rows looked up for the timestep.
"""
# ruff: noqa: N802, D103, ARG001 - a script function's name is the name of its ONNX op, which the module describes;
# its bit widths are for kernels, not for the body
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def QuantMatMul(a, a_zero, a_step, b, b_zero, b_step, transposed: int = 1, bits: int = 4, other_bits: int = 4):
    heads = op.Constant(value_ints=[-1, 1, 1])
    left = op.Sub(op.Cast(a, to=6), op.Cast(op.Reshape(a_zero, heads), to=6))
    right = op.Sub(op.Cast(b, to=6), op.Cast(op.Reshape(b_zero, heads), to=6))
    # No attribute makes an operator turn b round or not, so its element (k, n) is picked from the flat matrix: there
    # it stands at n * K + k if b is transposed and at k * N + n if not.
    nought, one = op.Constant(value_int=0), op.Constant(value_int=1)
    flat = op.Reshape(right, op.Constant(value_ints=[0, 0, -1]))
    depth = op.Gather(op.Shape(a), op.Constant(value_int=3))
    columns = op.Div(op.Gather(op.Shape(flat), op.Constant(value_int=2)), depth)
    turned = op.Constant(value_int=transposed)
    straight = op.Sub(one, turned)
    row_stride = op.Add(turned, op.Mul(straight, columns))
    column_stride = op.Add(straight, op.Mul(turned, depth))
    rows = op.Unsqueeze(op.Mul(op.Range(nought, depth, one), row_stride), op.Constant(value_ints=[1]))
    places = op.Add(rows, op.Mul(op.Range(nought, columns, one), column_stride))
    accumulator = op.MatMul(left, op.Gather(flat, places, axis=2))
    return op.Mul(op.Cast(accumulator, to=1), op.Reshape(op.Mul(a_step, b_step), heads))
