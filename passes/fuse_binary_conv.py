"""Turn W1A1 products into integer ops on packed bits.

Given   y = Conv(Binarize(x, t), UnpackBits(w))                     x, y [1, C, H, W]
Result  y = ToFirst(BinaryConv(PackBits(ToLast(x), t), w))          neutral epilogue
Given   y = MatMul(Binarize(x, t), Transpose(UnpackBitsLinear(w)))  x, y [..., C]   (or Gemm with transB)
Result  y = BinaryGemm(PackBits(x, t), w)

Exact: a float32 convolution of +1, -1 and 0 (the padding, which follows the sign in both graphs) sums integers
below 2^24, in any order without rounding. A bias becomes the addend, added once after the sum in both.
"""

import numpy as np
import onnx_ir as ir

from edgedm.errors import InvalidModelError
from edgedm.ops import DOMAIN
from edgedm.ops.packing import packed_bytes
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Editor, constant, describe, dims, is_edgedm, operand
from edgedm.passes.low_bit import Vector, add_product, channel_vector
from edgedm.passes.weights import Match, match_product

LARGEST_EXACT_SUM = 2**24
"""float32 holds every integer up to this one, so sums of at most so many signs are exact in any order."""


class FuseBinaryConv(GraphPass):
    """Conv, MatMul or Gemm of binarised activations and unpacked signs -> BinaryConv or BinaryGemm."""

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            match = match_product(node)
            if match is None or not is_edgedm(match.activation.producer(), "Binarize"):
                continue
            threshold = _threshold(match)
            if match.refusal or isinstance(threshold, str):
                editor.refuse(node, match.refusal or str(threshold))
                continue
            _fuse(editor, match, threshold)


def _threshold(match: Match) -> Vector | str:
    """The threshold of the Binarize before the product as a vector over channels, or why there is none."""
    binarize = match.activation.producer()
    assert binarize is not None
    array = constant(operand(binarize, 1))
    if array is None:
        return "its threshold is not a constant"
    rank = len(dims(match.activation))
    vector = channel_vector(array, match.channels, 1 if match.is_conv else rank - 1, rank)
    return vector if vector is not None else f"its threshold {array.shape} varies along more than the channels"


def _fuse(editor: Editor, match: Match, threshold: Vector) -> None:
    node, binarize = match.node, match.activation.producer()
    assert binarize is not None
    check_packing(match)
    x = operand(binarize, 0)
    x = editor.to_last(x, node) if match.is_conv else x
    limit = editor.constant(threshold, f"{match.bits.name}.threshold")
    shape = (*dims(x)[:-1], packed_bytes(match.channels))
    (bits,) = editor.add("PackBits", [x, limit], node, [(f"{x.name}.bits", ir.DataType.UINT8, shape)], domain=DOMAIN)
    attributes: dict[str, int | list[int]] = {"channels": match.channels}
    y = fused_product(editor, match, "Binary", bits, attributes)
    editor.replace(node.outputs[0], y)
    editor.rewritten.append(describe(node))


def fused_product(
    editor: Editor,
    match: Match,
    family: str,
    activation: ir.Value,
    attributes: dict[str, int | list[int]],
    multiplier: Vector | None = None,
) -> ir.Value:
    """Add the product `family`Conv or `family`Gemm for `match`; the result has the axes of the node it replaces."""
    node, outputs = match.node, dims(match.bits)[0]
    if not match.is_conv:
        shape = (*dims(activation)[:-1], outputs)
        return add_product(
            editor,
            f"{family}Gemm",
            activation,
            match.bits,
            node,
            shape,
            attributes,
            multiplier=multiplier,
            addend=match.bias,
        )
    _, _, height, width = dims(node.outputs[0])
    attributes |= {"strides": list(match.strides), "pads": list(match.pads)}
    y = add_product(
        editor,
        f"{family}Conv",
        activation,
        match.bits,
        node,
        (1, height, width, outputs),
        attributes,
        multiplier=multiplier,
        addend=match.bias,
    )
    return editor.to_first(y, node)


def check_packing(match: Match) -> None:
    """`InvalidModelError` if the packed weight does not fit the channels or its padding bits are not zero."""
    bits = constant(match.bits)
    assert bits is not None
    where, expected = describe(match.node), packed_bytes(match.channels)
    if bits.dtype != np.uint8 or bits.shape[-1] != expected:
        raise InvalidModelError(
            f"{where}: packed weight {match.bits.name!r} of {match.channels} channels: expected uint8 with {expected} "
            f"bytes in the last axis, got {bits.dtype} {bits.shape}"
        )
    taps = int(np.prod(bits.shape[1:-1], dtype=np.int64)) * match.channels
    if taps > LARGEST_EXACT_SUM:
        raise InvalidModelError(f"{where}: {taps} products a sum exceed {LARGEST_EXACT_SUM}")
    padding = np.unpackbits(bits, axis=-1, bitorder="little")[..., match.channels :]
    if padding.any():
        raise InvalidModelError(f"{where}: packed weight {match.bits.name!r} has padding bits that are not zero")
