"""The deployed products and their epilogue: which operand is which, and what each holds when absent.

    y = ((acc * multiplier) * factor + addend) + residual_scale * residual

`factor` is the pixel_scale of a BinaryConv, the activation's step of QuantConv and QuantGemm; the others have none.

Absent operands are neutral constants. Zeros are written as -0.0, because v + -0.0 is v for every v, while
-0.0 + 0.0 is +0.0: so a fusion that adds a neutral operand changes no bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.ops import DOMAIN
from edgedm.passes.editing import (
    TO_FIRST,
    Array,
    Editor,
    constant,
    describe,
    dims,
    is_edgedm,
    operand,
    sole_consumer,
    transposed_by,
)

_GEMM = ("activation", "weight", "multiplier", "addend", "residual", "residual_scale")
_QUANT = (
    *("activation", "zero", "weight", "weight_zero"),
    *("multiplier", "step", "addend", "residual", "residual_scale"),
)
OPERANDS = {
    "BinaryConv": ("activation", "weight", "multiplier", "pixel_scale", "addend", "residual", "residual_scale"),
    "BinaryGemm": _GEMM,
    "BinaryWeightConv": _GEMM,
    "BinaryWeightGemm": _GEMM,
    "QuantConv": _QUANT,
    "QuantGemm": _QUANT,
}
_NEUTRAL = {"multiplier": 1.0, "pixel_scale": 1.0, "step": 1.0, "addend": -0.0, "residual": -0.0, "residual_scale": 1.0}

Vector = NDArray[np.float32]


def is_product(node: ir.Node | None) -> bool:
    """Whether `node` is one of the products."""
    return is_edgedm(node, *OPERANDS)


def index_of(node: ir.Node, name: str) -> int | None:
    """Where the operand `name` of this product stands; None if the op has no such operand."""
    names = OPERANDS[node.op_type]
    return names.index(name) if name in names else None


def is_neutral(node: ir.Node, *names: str) -> bool:
    """Whether all these operands of a product are absent (or not operands of it at all)."""
    for name in names:
        index = index_of(node, name)
        if index is None:
            continue
        array = constant(operand(node, index))
        if array is None or not np.all(array == _NEUTRAL[name]):
            return False
    return True


def set_operand(node: ir.Node, name: str, value: ir.Value) -> None:
    """Put `value` in the place of operand `name`."""
    index = index_of(node, name)
    assert index is not None, f"{node.op_type} has no operand {name}"
    node.replace_input_with(index, value)


@dataclass(frozen=True)
class Tail:
    """Where the result of a product appears: its output, or that output transposed to channels first."""

    value: ir.Value
    axis: int  # of the channels

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(dims(self.value))


def tail_of(product: ir.Node) -> Tail:
    """Follow a product's output through the transpose that stands behind every fused convolution."""
    value = product.outputs[0]
    after = sole_consumer(value)
    if after is not None and transposed_by(after) == TO_FIRST.get(len(dims(value))) and len(dims(value)) == 4:
        return Tail(after.outputs[0], 1)
    return Tail(value, len(dims(value)) - 1)


def absorb(editor: Editor, product: ir.Node, tail: Tail, consumed: ir.Node) -> None:
    """Drop `consumed`, which `product` now computes: its output's name moves to the product's result."""
    name = consumed.outputs[0].name
    editor.replace(consumed.outputs[0], tail.value)
    if tail.value is not product.outputs[0]:
        product.outputs[0].name = editor.unique(f"{name}.last")
    editor.rewritten.append(describe(consumed))


def add_product(
    editor: Editor,
    op_type: str,
    operands: Mapping[str, ir.Value],
    like: ir.Node,
    shape: Sequence[int],
    attributes: dict[str, int | list[int]],
) -> ir.Value:
    """Add a product with output f32 `shape`; operands that are not given are neutral."""
    channels = tuple(shape[-1:])
    shapes = {"multiplier": channels, "addend": channels, "residual": (1,) * len(shape), "residual_scale": (1,)}
    shapes |= {"pixel_scale": (1, 1, 1, 1), "step": ()}
    inputs = [
        operands[name]
        if name in operands
        else editor.constant(np.full(shapes[name], _NEUTRAL[name], np.float32), f"neutral.{name}")
        for name in OPERANDS[op_type]
    ]
    outputs = [(f"{like.outputs[0].name}.last", ir.DataType.FLOAT, shape)]
    return editor.add(op_type, inputs, like, outputs, attributes, domain=DOMAIN)[0]


def channel_vector(array: Array, channels: int, axis: int, rank: int) -> Vector | None:
    """`array`, broadcast to a tensor of `rank`, as a vector over `axis`; None if it varies along another axis."""
    if array.ndim > rank:
        return None
    sizes = (1,) * (rank - array.ndim) + array.shape
    if sizes[axis] not in (1, channels) or any(size != 1 for index, size in enumerate(sizes) if index != axis):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float32)
