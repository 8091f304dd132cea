"""BinaryWeightConv, BinaryWeightGemm: W1A4 (any int8 codes) products with an integer core. Channels last.

    BinaryWeightConv(codes int8[1, H, W, C], weight uint8[O, kh, kw, Cb], multiplier f32[O], addend f32[O],
                     residual f32 broadcastable to [1, OH, OW, O], residual_scale f32[1];
                     strides [2], pads [top, left, bottom, right]) -> f32[1, OH, OW, O]
    BinaryWeightGemm(codes int8[..., C], weight uint8[O, Cb], multiplier f32[O], addend f32[O],
                     residual f32 broadcastable to [..., O], residual_scale f32[1]) -> f32[..., O]
      = (acc * multiplier + addend) + residual_scale * residual

acc is the int32 sum of codes times +1 or -1; the padding is code 0. The multiplier holds weight scale times step.
Neutral operands mean "absent": multiplier 1, addend 0, residual 0 with scale 1.
"""
# ruff: noqa: N802, D103 - a script function's name is the name of its ONNX op; the module describes it
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from collections.abc import Sequence

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.functions.parts import AddResidual, UnpackRows
from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def BinaryWeightConv(
    codes, weight, multiplier, addend, residual, residual_scale, strides: Sequence[int], pads: Sequence[int]
):
    filters = op.Cast(UnpackRows(weight, op.Shape(codes, start=-1)), to=3)
    accumulator = op.ConvInteger(
        op.Transpose(codes, perm=[0, 3, 1, 2]),
        op.Transpose(filters, perm=[0, 3, 1, 2]),
        strides=strides,
        pads=pads,
    )
    y = op.Mul(op.Cast(op.Transpose(accumulator, perm=[0, 2, 3, 1]), to=1), multiplier)
    return AddResidual(y, addend, residual, residual_scale)


@script(EDGEDM, default_opset=op)
def BinaryWeightGemm(codes, weight, multiplier, addend, residual, residual_scale):
    columns = op.Cast(UnpackRows(weight, op.Shape(codes, start=-1)), to=3)
    accumulator = op.MatMulInteger(codes, op.Transpose(columns, perm=[1, 0]))
    y = op.Mul(op.Cast(accumulator, to=1), multiplier)
    return AddResidual(y, addend, residual, residual_scale)
