"""Quantise or pack an image before nearest upsampling makes each of its pixels many, not after.

Given   q = Quantize(ToLast(Resize(x)))            Resize repeats every pixel; x, and perhaps other readers of Resize
Result  q = UpsampleNearest(Quantize(ToLast(x)))   Resize stays where something else reads it

Quantize is QuantizeCodes, QuantizeUniform, PackBits or PackBitsMeanAbs: each acts on every pixel alone, and the
repetition on whole pixels, so f(x)[i // n, j // n] is f(x[i // n, j // n]): the same codes and bits. Reassociating
only for PackBitsMeanAbs, since ONNX Runtime adds the magnitudes of different pixels in different orders.
"""

import numpy as np
import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import TO_LAST, Editor, constant, describe, dims, is_edgedm, is_op, operand, transposed_by

_SCALES = 2  # Resize's input
_BY_PIXEL = ("QuantizeCodes", "QuantizeUniform", "PackBits", "PackBitsMeanAbs")
# Resize repeats every pixel `factor` times under these (coordinate_transformation_mode, nearest_mode)
_REPEATING = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}


class QuantizeBeforeUpsample(GraphPass):
    """Nearest upsampling, then a quantiser -> the quantiser, then UpsampleNearest of its codes or bits."""

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        del model
        for node in editor.nodes():
            if not is_edgedm(node, *_BY_PIXEL):
                continue
            resize = _resize_before(operand(node, 0))
            if resize is None:
                continue
            factor = repeats(resize)
            if factor is None:
                editor.refuse(node, "what it reads is resized otherwise than by repeating every pixel")
                continue
            _swap(editor, node, resize, factor)


def repeats(resize: ir.Node) -> int | None:
    """How often this Resize repeats every pixel of [1, C, H, W] along both axes; None if it does anything else."""
    before, after = dims(operand(resize, 0)), dims(resize.outputs[0])
    text = {name: attribute.value for name, attribute in resize.attributes.items()}
    how = text.get("coordinate_transformation_mode", "half_pixel"), text.get("nearest_mode", "round_prefer_floor")
    if text.get("mode", "nearest") != "nearest" or how not in _REPEATING or len(before) != len(TO_LAST[4]):
        return None
    factor = after[2] // before[2]
    scales = resize.inputs[_SCALES] if len(resize.inputs) > _SCALES else None
    if scales is not None and scales.name and not _are(scales, (1, 1, factor, factor)):
        return None  # coordinates follow the scales, not the shapes: 2.2 makes 8 pixels of 4, but not by repeating each
    return factor if after == (*before[:2], before[2] * factor, before[3] * factor) else None


def _are(value: ir.Value, expected: tuple[int, ...]) -> bool:
    """Whether `value` is a constant of these numbers, or empty, as where sizes are given instead."""
    array = constant(value)
    return array is not None and (array.size == 0 or np.array_equal(array, expected))


def _resize_before(value: ir.Value) -> ir.Node | None:
    """The Resize that makes `value`, turned channels last."""
    turn = value.producer()
    if turn is None or transposed_by(turn) != TO_LAST[4]:
        return None
    resize = operand(turn, 0).producer()
    return resize if resize is not None and is_op(resize, "Resize") else None


def _swap(editor: Editor, node: ir.Node, resize: ir.Node, factor: int) -> None:
    x = editor.to_last(operand(resize, 0), node)
    small = editor.add(
        node.op_type,
        [x, *(operand(node, index) for index in range(1, len(node.inputs)))],
        node,
        [
            (f"{value.name}.small", value.dtype or ir.DataType.UNDEFINED, (*dims(x)[:-1], dims(value)[-1]))
            for value in node.outputs
        ],
        {name: attribute.as_int() for name, attribute in node.attributes.items()},
        domain=DOMAIN,
    )
    for old, each in zip(list(node.outputs), small, strict=True):
        made = [(f"{old.name}.large", each.dtype or ir.DataType.UNDEFINED, dims(old))]
        (large,) = editor.add("UpsampleNearest", [each], node, made, {"factor": factor}, domain=DOMAIN)
        editor.replace(old, large)
    editor.rewritten.append(describe(node))
