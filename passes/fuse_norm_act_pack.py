"""Let the norm write packed bits or codes itself: the tensor is read once.

Given   y = GroupNormSilu(x, gamma, beta);  bits, m = PackBitsMeanAbs(y, t)
Result  y, bits, m = GroupNormSiluPack(x, gamma, beta, t)
Given   y = GroupNormSilu(x, gamma, beta);  codes = QuantizeCodes(y, s)        y read by nothing else
Result  codes = GroupNormSiluQuantize(x, gamma, beta, s)
        and likewise QuantizeUniform(y, divisor, s, z) to GroupNormSiluQuantizeUniform(x, gamma, beta, divisor, s, z)

Exact: the fused ops are defined as these very compositions.
"""

import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Editor, describe, dims, is_edgedm, operand, sole_consumer

_FUSED = {"QuantizeCodes": "GroupNormSiluQuantize", "QuantizeUniform": "GroupNormSiluQuantizeUniform"}


class FuseNormActPack(GraphPass):
    """GroupNormSilu and the packing or quantising of its result -> GroupNormSiluPack, GroupNormSiluQuantize, ..."""

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            if not is_edgedm(node, "GroupNormSilu"):
                continue
            y = node.outputs[0]
            packs = [user for user in y.consumers() if is_edgedm(user, "PackBitsMeanAbs")]
            codes = [user for user in y.consumers() if is_edgedm(user, *_FUSED)]
            if len(packs) == 1:
                _fuse_pack(editor, node, packs[0])
            elif packs:
                editor.refuse(node, f"its result is packed {len(packs)} times, with different thresholds")
            elif codes and sole_consumer(y) is codes[0]:
                _fuse_quantize(editor, node, codes[0])
            elif codes:
                editor.refuse(node, _readers(y, len(codes)))


def _readers(y: ir.Value, quantisers: int) -> str:
    """Why the float result is needed, or not one quantiser alone reads it."""
    if y.is_graph_output():
        return "its float result is an output of the graph"
    if len(y.uses()) > quantisers:
        return "its float result is read by other nodes than the quantiser"
    return f"its result is quantised {quantisers} times, on different grids"


def _fuse_pack(editor: Editor, norm: ir.Node, pack: ir.Node) -> None:
    old = [norm.outputs[0], *pack.outputs]
    new = editor.add(
        "GroupNormSiluPack",
        [operand(norm, 0), operand(norm, 1), operand(norm, 2), operand(pack, 1)],
        norm,
        [(f"{value.name}.fused", value.dtype or ir.DataType.FLOAT, dims(value)) for value in old],
        norm_attributes(norm),
        domain=DOMAIN,
    )
    for before, after in zip(old, new, strict=True):
        editor.replace(before, after)
    editor.rewritten.append(describe(norm))


def _fuse_quantize(editor: Editor, norm: ir.Node, quantize: ir.Node) -> None:
    widths = {name: attribute.as_int() for name, attribute in quantize.attributes.items()}
    codes, grid = quantize.outputs[0], [operand(quantize, index) for index in range(1, len(quantize.inputs))]
    (fused,) = editor.add(
        _FUSED[quantize.op_type],
        [operand(norm, 0), operand(norm, 1), operand(norm, 2), *grid],
        norm,
        [(f"{codes.name}.fused", codes.dtype or ir.DataType.UINT8, dims(codes))],
        norm_attributes(norm) | widths,
        domain=DOMAIN,
    )
    editor.replace(codes, fused)
    editor.rewritten.append(describe(norm))


def norm_attributes(norm: ir.Node) -> dict[str, int | float]:
    """Groups and epsilon of a norm."""
    return {"groups": norm.attributes["groups"].as_int(), "epsilon": norm.attributes["epsilon"].as_float()}
