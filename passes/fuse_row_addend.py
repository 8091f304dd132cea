"""Add a row per channel (the time embedding) inside a product whose residual is taken by a shortcut (BiDM).

Given   y = Product(..., addend 0, residual r, residual_scale g) + e        e [1, O, 1, 1], made at run time
Result  y = Product(..., addend = Reshape(e, [O]), residual r, residual_scale g)

Reassociating: (p + g r) + e becomes (p + e) + g r. It saves reading and writing the whole tensor once more.
"""

import numpy as np
import onnx_ir as ir

from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Editor, dims, is_op, operand, sole_consumer
from edgedm.passes.low_bit import absorb, is_neutral, is_product, set_operand, tail_of


class FuseRowAddend(GraphPass):
    """Add of a value per channel behind a product with a residual -> addend of the product."""

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            if not is_product(node) or is_neutral(node, "residual") or not is_neutral(node, "addend"):
                continue
            tail = tail_of(node)
            add = sole_consumer(tail.value)
            if add is None or not is_op(add, "Add") or dims(add.outputs[0]) != dims(tail.value):
                continue
            row = operand(add, 1) if operand(add, 0) is tail.value else operand(add, 0)
            channels = dims(node.outputs[0])[-1]
            if not _is_row(dims(row), channels, tail.rank - 1 - tail.axis):
                continue
            shape = editor.constant(np.array([channels], np.int64), "shape")
            dtype = row.dtype or ir.DataType.FLOAT
            (addend,) = editor.add("Reshape", [row, shape], node, [(f"{row.name}.row", dtype, (channels,))])
            set_operand(node, "addend", addend)
            absorb(editor, node, tail, add)


def _is_row(shape: tuple[int, ...], channels: int, behind: int) -> bool:
    """Whether `shape` holds one value a channel, with the channel axis `behind` axes before the end."""
    position = len(shape) - 1 - behind
    return position >= 0 and all(size == (channels if axis == position else 1) for axis, size in enumerate(shape))
