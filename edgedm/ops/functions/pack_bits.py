"""PackBits, PackBitsMeanAbs: the signs of an activation, packed.

    PackBits(x f32[..., C], threshold f32[C]) -> uint8[..., Cb]
    PackBitsMeanAbs(x f32[..., C], threshold f32[C]) -> (uint8[..., Cb], mean_abs f32[..., 1])

A bit is 1 where x + threshold >= 0 (NaN: 0); the padding bits are 0. mean_abs is the sum of |x| over the channels,
divided by C.
"""
# ruff: noqa: N802, D103 - a script function's name is the name of its ONNX op; the module describes it
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.functions.parts import MeanAbs, PackRows, Positive
from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def PackBits(x, threshold):
    return PackRows(Positive(x, threshold))


@script(EDGEDM, default_opset=op)
def PackBitsMeanAbs(x, threshold):
    bits = PackRows(Positive(x, threshold))
    mean_abs = MeanAbs(x)
    return bits, mean_abs
