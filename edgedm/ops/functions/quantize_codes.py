"""QuantizeCodes: the integer codes of an activation.

    QuantizeCodes(x f32[...], step f32[]; low = -8, high = 7) -> int8[...]

clip(round_half_even(x / step), low, high). It divides, as ONNX's QuantizeLinear does; NaN becomes `low`.
"""
# ruff: noqa: N802, D103 - a script function's name is the name of its ONNX op; the module describes it
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.functions.parts import Codes
from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def QuantizeCodes(x, step, low: int = -8, high: int = 7):
    return Codes(x, step, op.Constant(value_int=low), op.Constant(value_int=high))
