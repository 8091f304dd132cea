"""QuantConv, QuantGemm: products of uniform 2- to 8-bit weights and activations. Channels last.

    QuantConv(codes uint8[1, H, W, C], zero uint8[], weight uint4 or uint8[O, kh, kw, C], weight_zero uint8[O],
              multiplier f32[O], step f32[], addend f32[O], residual f32 broadcastable to [1, OH, OW, O],
              residual_scale f32[1]; bits = 4, weight_bits = 4, strides [2], pads [top, left, bottom, right])
        -> f32[1, OH, OW, O]
    QuantGemm(codes uint8[..., C], zero uint8[], weight uint4 or uint8[O, C], weight_zero uint8[O], multiplier f32[O],
              step f32[], addend f32[O], residual f32 broadcastable to [..., O], residual_scale f32[1];
              bits = 4, weight_bits = 4) -> f32[..., O]
      = ((acc * multiplier) * step + addend) + residual_scale * residual

acc is the int32 sum of (code - zero) * (weight - weight_zero[o]) over channels and taps, exact where it fits. A padded
tap contributes 0: the padding is the code `zero`. The multiplier holds the weight's steps, `step` is the activation's;
`zero` and `step` may be rows looked up for the timestep, weight and weight_zero are constants. `bits` and
`weight_bits` tell kernels how large a code may be; uint4 is stored two codes to a byte.
Neutral operands mean "absent": multiplier 1, step 1, addend 0, residual 0 with scale 1.
"""
# ruff: noqa: N802, D103, ARG001 - a script function's name is the name of its ONNX op, which the module describes;
# its bit widths are for kernels, not for the body
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from collections.abc import Sequence

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.functions.parts import AddResidual
from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def QuantConv(
    codes,
    zero,
    weight,
    weight_zero,
    multiplier,
    step,
    addend,
    residual,
    residual_scale,
    strides: Sequence[int],
    pads: Sequence[int],
    bits: int = 4,
    weight_bits: int = 4,
):
    # ConvInteger pads with the zero point of x, and takes one zero point for all of the weight, so sum(code - zero)
    # over every window is a convolution of its own.
    image = op.Transpose(codes, perm=[0, 3, 1, 2])
    filters = op.Transpose(op.Cast(weight, to=2), perm=[0, 3, 1, 2])
    one = op.Constant(value_ints=[1])
    box = op.Expand(op.Cast(one, to=2), op.Concat(one, op.Shape(filters, start=1), axis=0))
    products = op.Transpose(op.ConvInteger(image, filters, zero, strides=strides, pads=pads), perm=[0, 2, 3, 1])
    sums = op.Transpose(op.ConvInteger(image, box, zero, strides=strides, pads=pads), perm=[0, 2, 3, 1])
    accumulator = op.Sub(products, op.Mul(sums, op.Cast(weight_zero, to=6)))
    y = op.Mul(op.Mul(op.Cast(accumulator, to=1), multiplier), step)
    return AddResidual(y, addend, residual, residual_scale)


@script(EDGEDM, default_opset=op)
def QuantGemm(
    codes,
    zero,
    weight,
    weight_zero,
    multiplier,
    step,
    addend,
    residual,
    residual_scale,
    bits: int = 4,
    weight_bits: int = 4,
):
    columns = op.Transpose(op.Cast(weight, to=2), perm=[1, 0])
    accumulator = op.MatMulInteger(codes, columns, zero, weight_zero)
    y = op.Mul(op.Mul(op.Cast(accumulator, to=1), multiplier), step)
    return AddResidual(y, addend, residual, residual_scale)
