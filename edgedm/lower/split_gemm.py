"""Gemm becomes a product and a sum, because products have a kernel of ours and sums fuse with what follows.

Given   y = Gemm(a, B, c; transB), B and c constant
Result  y = Add(MatMul(a, B'), c), B' = B transposed where transB asks for it

Exact up to the order of the sum: ONNX leaves it open in both.
"""

import numpy as np
import onnx_ir as ir

from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Editor, constant, dims, integer, is_op, number, operand


class SplitGemm(GraphPass):
    """See the module; a Gemm with other scales or without a constant B is left to TVM."""

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float] | None:
        """See the module."""
        del model
        for node in editor.nodes():
            if not is_op(node, "Gemm") or integer(node, "transA", 0):
                continue
            factor = constant(operand(node, 1))
            plain = number(node, "alpha", 1.0) == 1.0 and number(node, "beta", 1.0) == 1.0
            if factor is None or not plain:
                editor.refuse(node, "scales other than 1, or a second factor that is no constant")
                continue
            if integer(node, "transB", 0):
                factor = np.ascontiguousarray(factor.T)
            output = node.outputs[0]
            dtype = output.dtype or ir.DataType.FLOAT
            right = editor.constant(factor, f"{operand(node, 1).name}.right")
            made = [(f"{output.name}.product", dtype, dims(output))]
            new = editor.add("MatMul", [operand(node, 0), right], node, made)[0]
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                new = editor.add("Add", [new, operand(node, 2)], node, [(f"{output.name}.sum", dtype, dims(output))])[0]
            editor.replace(output, new)
            editor.rewritten.append(node.name or "Gemm")
        return None
