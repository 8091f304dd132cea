"""Compute the mean of |x| over the channels where x is packed (BiDM).

Given   bits = PackBits(ToLast(x), t);  m = ReduceMean(Abs(x), axis 1, keepdims)     x [1, C, H, W]
Result  bits, a = PackBitsMeanAbs(ToLast(x), t);  m = ToFirst(a)

Reassociating: the same terms, summed along the last axis instead of along axis 1.
"""

import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import (
    TO_FIRST,
    TO_LAST,
    Editor,
    constant,
    describe,
    dims,
    integer,
    ints,
    is_edgedm,
    is_op,
    operand,
    transposed_by,
)


class FuseMeanAbs(GraphPass):
    """PackBits(x) and ReduceMean(Abs(x)) -> PackBitsMeanAbs(x)."""

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            if not is_op(node, "ReduceMean"):
                continue
            absolute = operand(node, 0).producer()
            if absolute is None or not is_op(absolute, "Abs"):
                continue
            pack = _pack_of(operand(absolute, 0))
            if pack is None:
                continue
            if not _over_channels(node):
                editor.refuse(node, "it does not reduce axis 1 alone, keeping it")
                continue
            _fuse(editor, node, pack)


def _pack_of(x: ir.Value) -> ir.Node | None:
    """The node that packs `x`, if there is one: the first, since others differ in their threshold only."""
    for last in [x, *(user.outputs[0] for user in x.consumers() if transposed_by(user) == TO_LAST[4])]:
        for node in last.consumers():
            if is_edgedm(node, "PackBits", "PackBitsMeanAbs") and operand(node, 0) is last:
                return node
    producer = x.producer()  # x itself may be a channels-last value turned round
    if producer is not None and transposed_by(producer) == TO_FIRST[4]:
        for node in operand(producer, 0).consumers():
            if is_edgedm(node, "PackBits", "PackBitsMeanAbs") and operand(node, 0) is operand(producer, 0):
                return node
    return None


def _over_channels(node: ir.Node) -> bool:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    found = tuple(axes.reshape(-1).tolist()) if axes is not None else ints(node, "axes", ())
    rank = len(dims(operand(node, 0)))
    return rank == 4 and found in ((1,), (1 - rank,)) and integer(node, "keepdims", 1) == 1


def _fuse(editor: Editor, node: ir.Node, pack: ir.Node) -> None:
    x = operand(pack, 0)
    if pack.op_type == "PackBits":
        bits = pack.outputs[0]
        fused_bits, mean = editor.add(
            "PackBitsMeanAbs",
            [x, operand(pack, 1)],
            pack,
            [
                (f"{bits.name}.fused", ir.DataType.UINT8, dims(bits)),
                (f"{x.name}.mean_abs", ir.DataType.FLOAT, (*dims(x)[:-1], 1)),
            ],
            domain=DOMAIN,
        )
        editor.replace(bits, fused_bits)
    else:
        mean = pack.outputs[1]
    editor.replace_by_last(node.outputs[0], mean, node)
    editor.rewritten.append(describe(node))
