"""TimestepLookup: the row of a per-timestep table.

    TimestepLookup(table f32[bins, n], edges int64[bins], timestep int64[1]) -> f32[n]

Row r holds for edges[r] <= timestep < edges[r + 1]; `edges` ascend. A timestep below edges[0] takes row 0.
Emitted by `edgedm.ops.timestep_lookup`.
"""
# ruff: noqa: N802, D103 - a script function's name is the name of its ONNX op; the module describes it
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# (onnxscript compiles these bodies; Python never runs them)

from onnxscript import opset21 as op
from onnxscript import script

from edgedm.ops.opset import EDGEDM


@script(EDGEDM, default_opset=op)
def TimestepLookup(table, edges, timestep):
    reached = op.ReduceSum(op.Cast(op.LessOrEqual(edges, timestep), to=7), keepdims=0)
    row = op.Max(op.Sub(reached, op.Constant(value_int=1)), op.Constant(value_int=0))
    return op.Gather(table, row, axis=0)
