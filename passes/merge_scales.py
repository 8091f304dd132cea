"""Merge scales and bias behind a low-bit product into its epilogue.

Given   p = Product(..., multiplier m, pixel_scale 1, addend 0);  y = p * c[o] * K[h, w] + b[o]    in any subset
Result  y = Product(..., multiplier m c, pixel_scale K, addend b)

The epilogue is (acc * multiplier) * pixel_scale + addend, so where m is 1 (W1A1) the order of operations stays and
no bit changes. Where m is an activation step (W1A4) the constants m and c are multiplied first: reassociating.
K is data (BiDM's filtered mean of |x|), so it stays a factor per pixel.
"""

import numpy as np
import onnx_ir as ir

from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Array, Editor, constant, dims, is_op, operand, sole_consumer
from edgedm.passes.low_bit import (
    Tail,
    Vector,
    absorb,
    channel_vector,
    index_of,
    is_neutral,
    is_product,
    set_operand,
    tail_of,
)


class MergeScales(GraphPass):
    """Mul by a constant per channel, Mul by a factor per pixel, Add of a constant per channel -> epilogue."""

    exact = False

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            if is_product(node):
                while _merge_next(editor, node):
                    pass


def _merge_next(editor: Editor, product: ir.Node) -> bool:
    """Merge the one Mul or Add behind `product`; False if there is none or it does not fit."""
    tail = tail_of(product)
    after = sole_consumer(tail.value)
    if after is None or not (is_op(after, "Mul") or is_op(after, "Add")):
        return False
    if dims(after.outputs[0]) != dims(tail.value):
        return False
    other = operand(after, 1) if operand(after, 0) is tail.value else operand(after, 0)
    array = constant(other)
    vector = None if array is None else channel_vector(array, dims(product.outputs[0])[-1], tail.axis, tail.rank)
    if is_op(after, "Add"):
        merged = vector is not None and _merge_addend(editor, product, after, vector)
    elif vector is not None:
        merged = _merge_multiplier(editor, product, after, vector)
    else:
        merged = _merge_pixel_scale(editor, product, tail, after, other)
    if merged:
        absorb(editor, product, tail, after)
    return merged


def _merge_multiplier(editor: Editor, product: ir.Node, after: ir.Node, scale: Vector) -> bool:
    if not is_neutral(product, "addend", "residual"):
        editor.refuse(after, "it scales a sum, not the product alone")
        return False
    before = constant(_operand(product, "multiplier"))
    if before is None:
        editor.refuse(after, "the multiplier before it is not a constant")
        return False
    with np.errstate(over="ignore", under="ignore"):
        merged = before * scale
    if not _keeps_precision(merged, before, scale):
        editor.refuse(after, "the merged multiplier leaves float32's normal range")
        return False
    set_operand(product, "multiplier", editor.constant(merged, f"{_operand(product, 'weight').name}.multiplier"))
    return True


def _keeps_precision(merged: Array, before: Array, scale: Array) -> bool:
    zero = (before == 0) | (scale == 0)
    return bool(np.all(np.isfinite(merged) & ((np.abs(merged) >= np.finfo(np.float32).tiny) | zero)))


def _merge_pixel_scale(editor: Editor, product: ir.Node, tail: Tail, after: ir.Node, scale: ir.Value) -> bool:
    if index_of(product, "pixel_scale") is None or tail.axis != 1 or len(dims(scale)) != 4:
        return False
    _, channels, height, width = dims(scale)
    image = dims(tail.value)[2:]
    if channels != 1 or (height, width) not in (image, (1, 1)):
        return False
    if not is_neutral(product, "pixel_scale", "addend", "residual"):
        editor.refuse(after, "the product has a factor per pixel, an addend or a residual already")
        return False
    set_operand(product, "pixel_scale", editor.to_last(scale, after))
    return True


def _merge_addend(editor: Editor, product: ir.Node, after: ir.Node, bias: Vector) -> bool:
    if not is_neutral(product, "addend", "residual"):
        editor.refuse(after, "the product has an addend or a residual already")
        return False
    set_operand(product, "addend", editor.constant(bias, f"{_operand(product, 'weight').name}.addend"))
    return True


def _operand(product: ir.Node, name: str) -> ir.Value:
    index = index_of(product, name)
    assert index is not None
    return operand(product, index)
