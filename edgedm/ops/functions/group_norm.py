"""GroupNorm and what may follow it in one pass over the tensor. Channels last.

    GroupNorm(x f32[1, ..., C], gamma f32[C], beta f32[C]; groups, epsilon) -> f32[1, ..., C]
    GroupNormSilu(same) -> f32[1, ..., C]
    GroupNormSiluPack(x, gamma, beta, threshold f32[C]; groups, epsilon)
        -> (y f32[1, ..., C], bits uint8[1, ..., Cb], mean_abs f32[1, ..., 1])
    GroupNormSiluQuantize(x, gamma, beta, step f32[]; groups, epsilon, low = -8, high = 7) -> int8[1, ..., C]
    GroupNormSiluQuantizeUniform(x, gamma, beta, divisor f32[C] or [1], step f32[], zero uint8[];
                                 groups, epsilon, bits = 4) -> uint8[1, ..., C]

Normalised over all axes but the last within each of `groups` runs of C / groups channels, biased variance, epsilon
inside the root; silu(v) = v * sigmoid(v). Packing is `PackBitsMeanAbs` of y, quantising is `QuantizeCodes`
or `QuantizeUniform` of it.
"""
# ruff: noqa: N802, D103 - a script function's name is the name of its ONNX op; the module describes it
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.functions.parts import Codes, MeanAbs, Normalize, PackRows, Positive, Silu, UniformCodes
from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def GroupNorm(x, gamma, beta, groups: int, epsilon: float):
    runs = op.Reshape(op.Constant(value_int=groups), op.Constant(value_ints=[1]))
    return Normalize(x, gamma, beta, runs, op.Constant(value_float=epsilon))


@script(EDGEDM, default_opset=op)
def GroupNormSilu(x, gamma, beta, groups: int, epsilon: float):
    runs = op.Reshape(op.Constant(value_int=groups), op.Constant(value_ints=[1]))
    return Silu(Normalize(x, gamma, beta, runs, op.Constant(value_float=epsilon)))


@script(EDGEDM, default_opset=op)
def GroupNormSiluPack(x, gamma, beta, threshold, groups: int, epsilon: float):
    runs = op.Reshape(op.Constant(value_int=groups), op.Constant(value_ints=[1]))
    y = Silu(Normalize(x, gamma, beta, runs, op.Constant(value_float=epsilon)))
    bits = PackRows(Positive(y, threshold))
    mean_abs = MeanAbs(y)
    return y, bits, mean_abs


@script(EDGEDM, default_opset=op)
def GroupNormSiluQuantize(x, gamma, beta, step, groups: int, epsilon: float, low: int = -8, high: int = 7):
    runs = op.Reshape(op.Constant(value_int=groups), op.Constant(value_ints=[1]))
    y = Silu(Normalize(x, gamma, beta, runs, op.Constant(value_float=epsilon)))
    return Codes(y, step, op.Constant(value_int=low), op.Constant(value_int=high))


@script(EDGEDM, default_opset=op)
def GroupNormSiluQuantizeUniform(x, gamma, beta, divisor, step, zero, groups: int, epsilon: float, bits: int = 4):
    runs = op.Reshape(op.Constant(value_int=groups), op.Constant(value_ints=[1]))
    y = Silu(Normalize(x, gamma, beta, runs, op.Constant(value_float=epsilon)))
    return UniformCodes(op.Div(y, divisor), step, zero, op.Constant(value_int=bits))
