"""Fragments that several ops share; `library` inlines them, so every published function stands alone.

Rank-generic: `...` is any number of leading axes. C is the number of channels, Cb = 8 * ceil(C / 64).
"""
# ruff: noqa: N802 - a script function's name is the name of its ONNX op
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.opset import PARTS


@script(PARTS, default_opset=op)
def UnpackRows(bits, channels):
    """uint8[..., Cb], int64[1] -> f32[..., C] of +1 and -1."""
    shifts = op.Cast(op.Constant(value_ints=[0, 1, 2, 3, 4, 5, 6, 7]), to=2)
    last = op.Constant(value_ints=[-1])
    planes = op.BitShift(op.Unsqueeze(bits, last), shifts, direction="RIGHT")
    planes = op.BitwiseAnd(planes, op.Cast(op.Constant(value_int=1), to=2))
    rows = op.Reshape(planes, op.Concat(op.Shape(bits, start=0, end=-1), last, axis=0))
    rows = op.Cast(op.Slice(rows, op.Constant(value_ints=[0]), channels, last), to=1)
    return op.Sub(op.Mul(rows, op.Constant(value_float=2.0)), op.Constant(value_float=1.0))


@script(PARTS, default_opset=op)
def PackRows(positive):
    """bool[..., C] -> uint8[..., Cb]."""
    last = op.Constant(value_ints=[-1])
    missing = op.Mod(op.Neg(op.Shape(positive, start=-1)), op.Constant(value_ints=[64]))
    pads = op.Concat(op.Constant(value_ints=[0]), missing, axis=0)
    rows = op.Pad(op.Cast(positive, to=6), pads, op.Cast(op.Constant(value_int=0), to=6), last)
    leading = op.Shape(positive, start=0, end=-1)
    rows = op.Reshape(rows, op.Concat(leading, op.Constant(value_ints=[-1, 8]), axis=0))
    weights = op.Cast(op.Constant(value_ints=[1, 2, 4, 8, 16, 32, 64, 128]), to=6)
    return op.Cast(op.ReduceSum(op.Mul(rows, weights), last, keepdims=0), to=2)


@script(PARTS, default_opset=op)
def Positive(x, threshold):
    """The rule of every sign: true where x + threshold >= 0; false below and for NaN."""
    return op.GreaterOrEqual(op.Add(x, threshold), op.Constant(value_float=0.0))


@script(PARTS, default_opset=op)
def MeanAbs(x):
    """f32[..., C] -> f32[..., 1]: the sum of |x| over the channels, divided by their number."""
    return op.ReduceMean(op.Abs(x), op.Constant(value_ints=[-1]), keepdims=1)


@script(PARTS, default_opset=op)
def Codes(x, step, low, high):
    """int8 codes clip(round_half_even(x / step), low, high); NaN becomes low; low, high int64 scalars."""
    lowest = op.Cast(low, to=1)
    rounded = op.Round(op.Div(x, step))
    clipped = op.Clip(rounded, lowest, op.Cast(high, to=1))
    return op.Cast(op.Where(op.IsNaN(rounded), lowest, clipped), to=3)


@script(PARTS, default_opset=op)
def UniformCodes(x, step, zero, bits):
    """uint8 codes clamp(round_half_even(x / step) + zero, 0, 2^bits - 1); NaN becomes 0; bits an int64 scalar."""
    nought = op.Constant(value_float=0.0)
    top = op.Sub(op.Pow(op.Constant(value_float=2.0), bits), op.Constant(value_float=1.0))
    rounded = op.Round(op.Div(x, step))
    clipped = op.Clip(op.Add(rounded, op.Cast(zero, to=1)), nought, top)
    return op.Cast(op.Where(op.IsNaN(rounded), nought, clipped), to=2)


@script(PARTS, default_opset=op)
def Normalize(x, gamma, beta, groups, epsilon):
    """Group norm of f32[1, ..., C] over all axes but the last, C in `groups` int64[1] groups, biased variance."""
    grouped = op.Concat(op.Constant(value_ints=[1, -1]), groups, op.Div(op.Shape(gamma), groups), axis=0)
    axes = op.Constant(value_ints=[1, 3])
    rows = op.Reshape(x, grouped)
    centred = op.Sub(rows, op.ReduceMean(rows, axes, keepdims=1))
    variance = op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1)
    normal = op.Div(centred, op.Sqrt(op.Add(variance, epsilon)))
    return op.Add(op.Mul(op.Reshape(normal, op.Shape(x)), gamma), beta)


@script(PARTS, default_opset=op)
def Silu(x):
    """v * sigmoid(v)."""
    return op.Mul(x, op.Sigmoid(x))


@script(PARTS, default_opset=op)
def AddResidual(y, addend, residual, residual_scale):
    """(y + addend) + residual_scale * residual, in this order."""
    return op.Add(op.Add(y, addend), op.Mul(residual_scale, residual))
