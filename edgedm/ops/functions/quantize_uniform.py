"""QuantizeUniform, QuantizeHeads: the codes of an activation on a grid with a zero point. Channels last.

    QuantizeUniform(x f32[..., C], divisor f32[C] or [1], step f32[], zero uint8[]; bits = 4) -> uint8[..., C]
      = clamp(round_half_even((x / divisor) / step) + zero, 0, 2^bits - 1)
    QuantizeHeads(x f32[1, H, T, D], step f32[H], zero uint8[H]; bits = 4) -> uint8[1, H, T, D]
      = the same without a divisor, on one grid a head

It divides twice, as the exported graph does: Div by the dilation, then QuantizeLinear. NaN becomes 0. A neutral
divisor, 1, means "absent". One code takes one byte; 2 <= bits <= 8, and zero <= 2^bits - 1. step and zero may be rows
looked up for the timestep.
"""
# ruff: noqa: N802, D103 - a script function's name is the name of its ONNX op; the module describes it
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.functions.parts import UniformCodes
from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def QuantizeUniform(x, divisor, step, zero, bits: int = 4):
    return UniformCodes(op.Div(x, divisor), step, zero, op.Constant(value_int=bits))


@script(EDGEDM, default_opset=op)
def QuantizeHeads(x, step, zero, bits: int = 4):
    heads = op.Constant(value_ints=[-1, 1, 1])
    return UniformCodes(x, op.Reshape(step, heads), op.Reshape(zero, heads), op.Constant(value_int=bits))
