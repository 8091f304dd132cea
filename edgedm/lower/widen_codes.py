"""4-bit codes become int8 codes in the range of four bits: kernels hold no narrower integers.

Given   q = QuantizeLinear(x, s, 0 int4);          y = DequantizeLinear(q, s, 0 int4)
Result  q = QuantizeCodes(x, s; low -8, high 7);   y = Cast(q) * s

Exact: both quantise by division, rounding half to even, and saturate at the same codes. Only per-tensor steps and
zero points of 0, which is what the exporter writes for W1A4.
"""

import numpy as np
import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.ops.domain import INT4_MAX, INT4_MIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Editor, constant, dims, is_op, operand

_F32 = ir.DataType.FLOAT


class WidenCodes(GraphPass):
    """See the module; other quantisers are refused, and the importer then names them."""

    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float] | None:
        """See the module."""
        del model
        for node in editor.nodes():
            if not is_op(node, "QuantizeLinear") or node.outputs[0].dtype != ir.DataType.INT4:
                continue
            output, step = node.outputs[0], _plain_step(node)
            readers = list(output.consumers())
            if step is None or not all(is_op(each, "DequantizeLinear") and _plain_step(each) for each in readers):
                editor.refuse(node, "expected a per-tensor step, zero point 0 and readers that dequantise")
                continue
            x = operand(node, 0)
            scalar = editor.constant(np.array(step, np.float32), f"{output.name}.step")
            made = [(f"{output.name}.codes", ir.DataType.INT8, dims(x))]
            codes = editor.add("QuantizeCodes", [x, scalar], node, made, {"low": INT4_MIN, "high": INT4_MAX}, DOMAIN)[0]
            for reader in readers:
                again = editor.constant(np.array(_plain_step(reader), np.float32), f"{output.name}.step")
                real = editor.add("Cast", [codes], reader, [(f"{output.name}.real", _F32, dims(x))], {"to": int(_F32)})
                value = reader.outputs[0]
                scaled = editor.add("Mul", [real[0], again], reader, [(f"{value.name}.scaled", _F32, dims(x))])[0]
                editor.replace(value, scaled)
            editor.rewritten.append(node.name or "QuantizeLinear")
        return None


def _plain_step(node: ir.Node) -> float | None:
    """The step of a per-tensor (de)quantiser with zero point 0, else None."""
    step = constant(operand(node, 1))
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1)
    if step is None or zero is None or step.size != 1 or np.any(np.asarray(zero, np.int64)):
        return None
    return float(step.reshape(()))
