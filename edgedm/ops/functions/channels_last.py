"""FloatConv, UpsampleNearest, AveragePool2d: standard image ops on channels-last tensors.

FloatConv(x f32[1, H, W, C], weight f32[O, C, kh, kw], bias f32[O]; strides [2], pads [top, left, bottom, right])
    -> f32[1, OH, OW, O]
UpsampleNearest(x T[1, H, W, C]; factor) -> T[1, factor H, factor W, C], every pixel repeated;
    T is f32, int8 and uint8 (codes) or uint8 (packed bits)
AveragePool2d(x f32[1, H, W, C]; kernel [2]) -> f32[1, H / kernel[0], W / kernel[1], C], stride = kernel
"""
# ruff: noqa: N802, D103 - a script function's name is the name of its ONNX op; the module describes it
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from collections.abc import Sequence

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def FloatConv(x, weight, bias, strides: Sequence[int], pads: Sequence[int]):
    y = op.Conv(op.Transpose(x, perm=[0, 3, 1, 2]), weight, bias, strides=strides, pads=pads)
    return op.Transpose(y, perm=[0, 2, 3, 1])


@script(EDGEDM, default_opset=op)
def UpsampleNearest(x, factor: int):
    one = op.Constant(value_ints=[1])
    times = op.Reshape(op.Constant(value_int=factor), one)
    pixels = op.Unsqueeze(x, op.Constant(value_ints=[2, 4]))
    repeated = op.Expand(pixels, op.Concat(one, one, times, one, times, one, axis=0))
    return op.Reshape(repeated, op.Mul(op.Shape(x), op.Concat(one, times, times, one, axis=0)))


@script(EDGEDM, default_opset=op)
def AveragePool2d(x, kernel: Sequence[int]):
    y = op.AveragePool(op.Transpose(x, perm=[0, 3, 1, 2]), kernel_shape=kernel, strides=kernel)
    return op.Transpose(y, perm=[0, 2, 3, 1])
