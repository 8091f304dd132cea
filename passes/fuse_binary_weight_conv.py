"""Turn W1A4 products (binary weights, 4-bit activations) into integer ops on codes.

Given   y = Conv(DequantizeLinear(QuantizeLinear(x, s, 0), s, 0), UnpackBits(w)) + bias     int4, one step s
Result  y = ToFirst(BinaryWeightConv(QuantizeCodes(ToLast(x), s), w, multiplier = s, addend = bias))
        and likewise BinaryWeightGemm for MatMul and Gemm.

The codes are the same. Reassociating, since sum(s c b) becomes s sum(c b): the sum is then an exact integer and
one rounding is left where there were as many as products. Padding with code 0 is padding with 0.
"""

import numpy as np
import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.ops.domain import INT4_MAX, INT4_MIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Array, Editor, constant, describe, dims, is_op, operand
from edgedm.passes.fuse_binary_conv import check_packing
from edgedm.passes.weights import Match, fused_product, match_binary


class FuseBinaryWeightConv(GraphPass):
    """Conv, MatMul or Gemm of int4 fake-quantised activations and unpacked signs -> integer product of codes."""

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            match = match_binary(node)
            if match is None or not is_op(match.activation.producer(), "DequantizeLinear"):
                continue
            quantize = operand(match.activation.producer(), 0).producer()  # type: ignore[arg-type]
            if quantize is None or not is_op(quantize, "QuantizeLinear"):
                continue
            step = _step(match, quantize)
            if match.refusal or isinstance(step, str):
                editor.refuse(node, match.refusal or str(step))
                continue
            _fuse(editor, match, quantize, step)


def _step(match: Match, quantize: ir.Node) -> Array | str:
    """The one step of the quantiser as f32[], or why this is no symmetric per-tensor int4 quantiser."""
    dequantize = match.activation.producer()
    assert dequantize is not None
    steps = [constant(operand(each, 1)) for each in (quantize, dequantize)]
    first, second = steps
    if first is None or second is None:
        return "its activation step is not a constant"
    if first.size != 1 or second.size != 1:
        return f"its activation step {first.shape} is per channel; a binary weight needs one per tensor"
    if first.reshape(()) != second.reshape(()):
        return f"it is quantised by {first.reshape(())} but dequantised by {second.reshape(())}"
    for each in (quantize, dequantize):
        zero = each.inputs[2] if len(each.inputs) > 2 else None
        value = constant(zero)
        if zero is None or zero.dtype != ir.DataType.INT4 or value is None or np.any(value.astype(np.int8) != 0):
            return f"{each.op_type} has no constant int4 zero point of 0"
    return first.reshape(()).astype(np.float32)


def _fuse(editor: Editor, match: Match, quantize: ir.Node, step: Array) -> None:
    node = match.node
    check_packing(match)
    x = operand(quantize, 0)
    x = editor.to_last(x, node) if match.is_conv else x
    (codes,) = editor.add(
        "QuantizeCodes",
        [x, editor.constant(step, f"{match.weight.name}.step")],
        node,
        [(f"{x.name}.codes", ir.DataType.INT8, dims(x))],
        {"low": INT4_MIN, "high": INT4_MAX},
        domain=DOMAIN,
    )
    multiplier = editor.constant(np.full(match.outputs, step, np.float32), f"{match.weight.name}.multiplier")
    operands = {"activation": codes, "weight": match.weight, "multiplier": multiplier}
    y = fused_product(editor, match, "BinaryWeight", operands, {})
    editor.replace(node.outputs[0], y)
    editor.rewritten.append(describe(node))
