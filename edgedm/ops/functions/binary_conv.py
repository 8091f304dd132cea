"""BinaryConv, BinaryGemm: W1A1 products with an exact integer core and a float epilogue. Channels last.

    BinaryConv(bits uint8[1, H, W, Cb], weight uint8[O, kh, kw, Cb], multiplier f32[O],
               pixel_scale f32[1, OH, OW, 1] or [1, 1, 1, 1], addend f32[O],
               residual f32 broadcastable to [1, OH, OW, O], residual_scale f32[1];
               channels, strides [2], pads [top, left, bottom, right]) -> f32[1, OH, OW, O]
      = ((acc * multiplier) * pixel_scale + addend) + residual_scale * residual
    BinaryGemm(bits uint8[..., Cb], weight uint8[O, Cb], multiplier f32[O], addend f32[O],
               residual f32 broadcastable to [..., O], residual_scale f32[1]; channels) -> f32[..., O]
      = (acc * multiplier + addend) + residual_scale * residual

acc is the int32 sum of products of +1 and -1 over `channels` and taps. Padding follows the sign: a padded tap
contributes 0. Neutral operands mean "absent": multiplier 1, pixel_scale 1, addend 0, residual 0 with scale 1.
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
def BinaryConv(
    bits,
    weight,
    multiplier,
    pixel_scale,
    addend,
    residual,
    residual_scale,
    channels: int,
    strides: Sequence[int],
    pads: Sequence[int],
):
    count = op.Reshape(op.Constant(value_int=channels), op.Constant(value_ints=[1]))
    signs = op.Transpose(op.Cast(UnpackRows(bits, count), to=3), perm=[0, 3, 1, 2])
    filters = op.Transpose(op.Cast(UnpackRows(weight, count), to=3), perm=[0, 3, 1, 2])
    accumulator = op.ConvInteger(signs, filters, strides=strides, pads=pads)
    y = op.Cast(op.Transpose(accumulator, perm=[0, 2, 3, 1]), to=1)
    y = op.Mul(op.Mul(y, multiplier), pixel_scale)
    return AddResidual(y, addend, residual, residual_scale)


@script(EDGEDM, default_opset=op)
def BinaryGemm(bits, weight, multiplier, addend, residual, residual_scale, channels: int):
    count = op.Reshape(op.Constant(value_int=channels), op.Constant(value_ints=[1]))
    signs = op.Cast(UnpackRows(bits, count), to=3)
    columns = op.Transpose(op.Cast(UnpackRows(weight, count), to=3), perm=[1, 0])
    y = op.Mul(op.Cast(op.MatMulInteger(signs, columns), to=1), multiplier)
    return AddResidual(y, addend, residual, residual_scale)
