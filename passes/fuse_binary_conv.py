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
from edgedm.passes.low_bit import Vector, channel_vector
from edgedm.passes.weights import Match, fused_product, match_binary

LARGEST_EXACT_SUM = 2**24
"""float32 holds every integer up to this one, so sums of at most so many signs are exact in any order."""


class FuseBinaryConv(GraphPass):
    """Conv, MatMul or Gemm of binarised activations and unpacked signs -> BinaryConv or BinaryGemm."""

    def rewrite(self, model: ir.Model, editor: Editor) -> None:
        """See the module."""
        for node in editor.nodes():
            match = match_binary(node)
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
    limit = editor.constant(threshold, f"{match.weight.name}.threshold")
    shape = (*dims(x)[:-1], packed_bytes(match.channels))
    (bits,) = editor.add("PackBits", [x, limit], node, [(f"{x.name}.bits", ir.DataType.UINT8, shape)], domain=DOMAIN)
    operands = {"activation": bits, "weight": match.weight}
    y = fused_product(editor, match, "Binary", operands, {"channels": match.channels})
    editor.replace(node.outputs[0], y)
    editor.rewritten.append(describe(node))


def check_packing(match: Match) -> None:
    """`InvalidModelError` if the packed weight does not fit the channels or its padding bits are not zero."""
    bits = constant(match.weight)
    assert bits is not None
    where, expected = describe(match.node), packed_bytes(match.channels)
    if bits.dtype != np.uint8 or bits.shape[-1] != expected:
        raise InvalidModelError(
            f"{where}: packed weight {match.weight.name!r} of {match.channels} channels: expected uint8 with "
            f"{expected} bytes in the last axis, got {bits.dtype} {bits.shape}"
        )
    taps = int(np.prod(bits.shape[1:-1], dtype=np.int64)) * match.channels
    if taps > LARGEST_EXACT_SUM:
        raise InvalidModelError(f"{where}: {taps} products a sum exceed {LARGEST_EXACT_SUM}")
    padding = np.unpackbits(bits, axis=-1, bitorder="little")[..., match.channels :]
    if padding.any():
        raise InvalidModelError(f"{where}: packed weight {match.weight.name!r} has padding bits that are not zero")
