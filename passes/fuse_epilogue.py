"""Fuse the add behind a low-bit product (shortcut, residual, time embedding) into its epilogue.

Given   y = Product(...) + g * r        g a constant scalar or absent; r may broadcast, as [1, O, 1, 1] does
Result  y = Product(..., residual = ToLast(r), residual_scale = g)
Given   y = Reshape(Transpose(BinaryGemm(...)), [1, O, H, W]) + r               the end of an attention block
Result  y = Reshape(Transpose(BinaryGemm(..., residual = Reshape(ToLast(r), [1, H W, O]))), [1, O, H, W])

Exact: the epilogue computes (...) + residual_scale * residual, in the same order, and float addition commutes.
No cycle can arise: the product's result has one reader, the add, so nothing that r is made of can depend on it.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgedm.passes.base import GraphPass
from edgedm.passes.editing import (
    TO_FIRST,
    Editor,
    constant,
    describe,
    dims,
    is_op,
    operand,
    sole_consumer,
    transposed_by,
)
from edgedm.passes.low_bit import is_neutral, is_product, set_operand, tail_of


@dataclass(frozen=True)
class _Path:
    """The moves between a product and the add: the value that is added to, and the nodes that moved it there."""

    value: ir.Value
    moves: tuple[ir.Node, ...]
    tokens: bool = False  # whether the moves turn [1, H W, O] into [1, O, H, W]


class FuseEpilogue(GraphPass):
    """Add behind a product -> residual and residual_scale of the product."""

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            if is_product(node):
                while _fuse_next(editor, node):
                    pass


def _fuse_next(editor: Editor, product: ir.Node) -> bool:
    """Fuse the add behind `product`; False if there is none or it does not fit."""
    path = _path(product)
    add = sole_consumer(path.value)
    if add is None or not is_op(add, "Add") or dims(add.outputs[0]) != dims(path.value):
        return False
    if not is_neutral(product, "residual"):
        editor.refuse(add, f"{describe(product)} has a residual already")
        return False
    _fuse(editor, product, path, add)
    return True


def _path(product: ir.Node) -> _Path:
    tail = tail_of(product)
    if tail.value is not product.outputs[0]:
        return _Path(tail.value, (_producer(tail.value),))
    transpose = sole_consumer(product.outputs[0])
    if transposed_by(transpose) == TO_FIRST[3] and transpose is not None:
        reshape = sole_consumer(transpose.outputs[0])
        if reshape is not None and is_op(reshape, "Reshape"):
            before, after = dims(transpose.outputs[0]), dims(reshape.outputs[0])
            if len(after) == 4 and before[:2] == after[:2] and after[0] == 1:
                return _Path(reshape.outputs[0], (transpose, reshape), tokens=True)
    return _Path(product.outputs[0], ())


def _fuse(editor: Editor, product: ir.Node, path: _Path, add: ir.Node) -> None:
    other = operand(add, 1) if operand(add, 0) is path.value else operand(add, 0)
    residual, scale = _split_gain(other)
    if scale is not None:
        set_operand(product, "residual_scale", editor.constant(scale, "residual_scale"))
    set_operand(product, "residual", _in_layout_of(editor, product, path, residual))
    name = add.outputs[0].name
    editor.replace(add.outputs[0], path.value)
    if path.moves:  # values that now hold the sum too must not keep the name of what they held before
        for node in (product, *path.moves[:-1]):
            node.outputs[0].name = editor.unique(f"{name}.last")
    editor.rewritten.append(describe(add))


def _split_gain(value: ir.Value) -> tuple[ir.Value, np.ndarray | None]:
    """(r, g) of value = g * r with a constant scalar g; (value, None) if it is no such product."""
    node = value.producer()
    if node is None or not is_op(node, "Mul"):
        return value, None
    for gain, residual in ((0, 1), (1, 0)):
        array = constant(operand(node, gain))
        if array is not None and array.size == 1 and dims(operand(node, residual)) == dims(value):
            return operand(node, residual), array.reshape(1).astype(np.float32)
    return value, None


def _in_layout_of(editor: Editor, product: ir.Node, path: _Path, residual: ir.Value) -> ir.Value:
    """`residual`, as added at the end of `path`, in the layout of the product's output."""
    if not path.moves:
        return residual
    rank = len(dims(path.value))
    residual = _with_rank(editor, residual, rank, product)
    residual = _row_to_last(editor, residual, product) or editor.to_last(residual, product)
    if not path.tokens:
        return residual
    _, height, width, channels = dims(residual)
    shape = (1, height * width, channels)
    if height * width not in (1, dims(product.outputs[0])[1]):
        return _expand(editor, residual, path, product)
    return _reshape(editor, residual, shape, product, ".tokens")


def _with_rank(editor: Editor, value: ir.Value, rank: int, like: ir.Node) -> ir.Value:
    missing = rank - len(dims(value))
    return value if missing == 0 else _reshape(editor, value, (1,) * missing + dims(value), like, ".full")


def _row_to_last(editor: Editor, value: ir.Value, like: ir.Node) -> ir.Value | None:
    """[1, O, 1, 1] as [1, 1, 1, O]: a reshape, since no data moves."""
    one, channels, height, width = dims(value)
    if one == height == width == 1:
        return _reshape(editor, value, (1, 1, 1, channels), like, ".last")
    return None


def _expand(editor: Editor, residual: ir.Value, path: _Path, like: ir.Node) -> ir.Value:
    """A residual that broadcasts along one image axis only, spelled out before the axes are joined."""
    _, _, height, width = dims(path.value)
    full = (1, height, width, dims(residual)[3])
    shape = editor.constant(np.array(full, np.int64), "shape")
    dtype = residual.dtype or ir.DataType.FLOAT
    (expanded,) = editor.add("Expand", [residual, shape], like, [(f"{residual.name}.expanded", dtype, full)])
    return _reshape(editor, expanded, (1, height * width, full[3]), like, ".tokens")


def _reshape(editor: Editor, value: ir.Value, shape: tuple[int, ...], like: ir.Node, suffix: str) -> ir.Value:
    if dims(value) == shape:
        return value
    target = editor.constant(np.array(shape, np.int64), "shape")
    dtype = value.dtype or ir.DataType.FLOAT
    return editor.add("Reshape", [value, target], like, [(f"{value.name}{suffix}", dtype, shape)])[0]


def _producer(value: ir.Value) -> ir.Node:
    producer = value.producer()
    assert producer is not None
    return producer
