"""Turn group norms, with the SiLU behind them, into channels-last ops.

Given   h = GroupNormalization(x, gamma, beta);  y = h * Sigmoid(h)        x [1, C, ...]
Result  y = ToFirst(GroupNormSilu(ToLast(x), gamma, beta))                 GroupNorm where h is read elsewhere too

Reassociating: the same sums over a group, in another order.
"""

import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import (
    TO_LAST,
    Editor,
    constant,
    describe,
    dims,
    integer,
    is_op,
    number,
    operand,
    sole_consumer,
)

FIRST_OPSET_WITH_CHANNEL_AFFINE = 21
"""GroupNormalization took one scale a group, not a channel, before this opset."""


class FuseGroupNorm(GraphPass):
    """GroupNormalization, Sigmoid, Mul -> GroupNormSilu; GroupNormalization alone -> GroupNorm."""

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        opset = model.graph.opset_imports.get("", 0)
        for node in editor.nodes():
            if not is_op(node, "GroupNormalization"):
                continue
            reason = _refusal(node, opset)
            if reason:
                editor.refuse(node, reason)
                continue
            _fuse(editor, node)


def _refusal(node: ir.Node, opset: int) -> str | None:
    if opset < FIRST_OPSET_WITH_CHANNEL_AFFINE:
        return f"opset {opset} scales by group; export with opset {FIRST_OPSET_WITH_CHANNEL_AFFINE} or later"
    if constant(operand(node, 1)) is None or constant(operand(node, 2)) is None:
        return "its scale or bias is not a constant"
    shape = dims(operand(node, 0))
    if len(shape) not in TO_LAST or shape[0] != 1:
        return f"expected one image [1, C, H, W] or [1, C, L], got {shape}"
    return None


def _fuse(editor: Editor, node: ir.Node) -> None:
    silu = _silu_behind(node)
    replaced = node if silu is None else silu
    x = editor.to_last(operand(node, 0), node)
    (y,) = editor.add(
        "GroupNorm" if silu is None else "GroupNormSilu",
        [x, operand(node, 1), operand(node, 2)],
        node,
        [(f"{replaced.outputs[0].name}.last", ir.DataType.FLOAT, dims(x))],
        {"groups": integer(node, "num_groups", 1), "epsilon": number(node, "epsilon", 1e-5)},
        domain=DOMAIN,
    )
    editor.replace_by_last(replaced.outputs[0], y, node)
    editor.rewritten.append(describe(node))


def _silu_behind(node: ir.Node) -> ir.Node | None:
    """The Mul of h * Sigmoid(h), where h, the output of `node`, is read by nothing else."""
    h = node.outputs[0]
    readers = [user for user, _ in h.uses()]
    if h.is_graph_output() or len(readers) != 2:
        return None
    for sigmoid, product in (readers, readers[::-1]):
        gate = sigmoid.outputs[0]
        if is_op(sigmoid, "Sigmoid") and is_op(product, "Mul") and sole_consumer(gate) is product:
            return product
    return None
