"""Binarize: the sign of an activation, as float.

    Binarize(x f32[...], threshold f32 broadcastable to x) -> f32[...]

+1 where x + threshold >= 0, else -1: sign(+0) = sign(-0) = +1, and NaN gives -1.
Emitted by `edgedm.ops.binarize`.
"""
# ruff: noqa: N802, D103 - a script function's name is the name of its ONNX op; the module describes it
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.functions.parts import Positive
from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def Binarize(x, threshold):
    return op.Where(Positive(x, threshold), op.Constant(value_float=1.0), op.Constant(value_float=-1.0))
