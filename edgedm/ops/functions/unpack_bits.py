"""UnpackBits, UnpackBitsLinear: a packed weight as float, in the layout of the standard `Conv` and of a Linear.

    UnpackBits(bits uint8[O, kh, kw, Cb]; channels) -> f32[O, C, kh, kw]
    UnpackBitsLinear(bits uint8[O, Cb]; channels) -> f32[O, C]

Bit b of byte j is channel 8 j + b; 1 is +1, 0 is -1; C = channels, Cb = 8 * ceil(C / 64), the padding bits are 0.
Emitted by `edgedm.ops.unpack_bits`.
"""
# ruff: noqa: N802, D103 - a script function's name is the name of its ONNX op; the module describes it
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.functions.parts import UnpackRows
from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def UnpackBits(bits, channels: int):
    count = op.Reshape(op.Constant(value_int=channels), op.Constant(value_ints=[1]))
    return op.Transpose(UnpackRows(bits, count), perm=[0, 3, 1, 2])


@script(EDGEDM, default_opset=op)
def UnpackBitsLinear(bits, channels: int):
    count = op.Reshape(op.Constant(value_int=channels), op.Constant(value_ints=[1]))
    return UnpackRows(bits, count)
