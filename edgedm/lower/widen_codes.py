"""Quantisers that no pass fused become kernels and plain arithmetic on codes of one byte, which is what kernels hold.

Given   q = QuantizeLinear(x, s, z);   y = DequantizeLinear(q, s, z)   of int4, uint4, int8 or uint8
Result  q = QuantizeCodes(x, s; -8, 7)           signed, one constant step, zero point 0
        q = QuantizeUniform(x, [1], s, z; bits)  unsigned, one step
        q = QuantizeHeads(x, s, z; bits)         unsigned, a step for each of axis 1 of [1, H, T, D]
        q = Cast(Clip(Round(x / s) + z))         any other
        y = (Cast(q) - Cast(z)) * s,  or its value where q is a constant

Exact: all quantise by division, round half to even and saturate at the same codes. A Clip of unsigned codes to
0 .. 2^bits - 1 becomes the quantiser's own width, and a Cast to 4 bits becomes one to 8, since the exporter writes no
number there that 4 bits don't hold. Every DequantizeLinear that is left is a layer without a kernel of its bits: it
runs in float32, with its weight as wide as that, and is listed in `slow`.
"""

import numpy as np
import onnx_ir as ir

from edgedm.errors import UnsupportedError
from edgedm.ops import DOMAIN
from edgedm.ops.domain import INT4_MAX, INT4_MIN
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Array, Editor, constant, describe, dims, integer, ints, is_op, operand

_F32 = ir.DataType.FLOAT
_WIDE = {
    ir.DataType.INT4: ir.DataType.INT8,
    ir.DataType.INT8: ir.DataType.INT8,
    ir.DataType.UINT4: ir.DataType.UINT8,
    ir.DataType.UINT8: ir.DataType.UINT8,
}
_UNSIGNED = (ir.DataType.UINT4, ir.DataType.UINT8)
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Concat", "Pad", "Expand")


class WidenCodes(GraphPass):
    """See the module. `slow` describes every layer that runs in float32 for want of a kernel, in order."""

    def __init__(self) -> None:
        self.slow: list[str] = []

    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float] | None:
        """See the module; UnsupportedError for steps by block and codes of other types."""
        del model
        for node in editor.nodes():
            if is_op(node, "QuantizeLinear"):
                _quantize(editor, node)
                editor.rewritten.append(node.name or "QuantizeLinear")
            elif is_op(node, "DequantizeLinear"):
                self.slow.append(_dequantize(editor, node))
                editor.rewritten.append(node.name or "DequantizeLinear")
            elif node.outputs and _is_narrow(node.outputs[0]):
                _widen(editor, node)
            elif any(is_op(node, move) for move in ("Transpose", "Reshape")):
                _fold(editor, node)
        return None


def _quantize(editor: Editor, node: ir.Node) -> None:
    x, output = operand(node, 0), node.outputs[0]
    kind = _wide(node, output)
    signed = output.dtype not in _UNSIGNED
    bits = 4 if _is_narrow(output) else 8
    clipped = None if signed else _clipped(output)
    if clipped is not None:
        bits = clipped
        for clip in list(output.consumers()):
            editor.replace(clip.outputs[0], output, rename=False)
    step, zero = operand(node, 1), _zero(editor, node, kind)
    made = [(f"{output.name}.codes", kind, dims(x))]
    heads = integer(node, "axis", 1) % len(dims(x)) == 1 and len(dims(x)) == 4 and dims(x)[0] == 1
    if signed and _is_nought(zero) and constant(step) is not None and _count(step) == 1:
        half = 2 ** (bits - 1)
        limits = {"low": -half, "high": half - 1} if bits != 4 else {"low": INT4_MIN, "high": INT4_MAX}
        codes = editor.add("QuantizeCodes", [x, _shaped(editor, node, step, ())], node, made, limits, DOMAIN)
    elif not signed and _count(step) == 1:
        one = editor.constant(np.ones(1, np.float32), "one")
        grid = [_shaped(editor, node, each, ()) for each in (step, zero)]
        codes = editor.add("QuantizeUniform", [x, one, *grid], node, made, {"bits": bits}, DOMAIN)
    elif not signed and heads:
        codes = editor.add("QuantizeHeads", [x, step, zero], node, made, {"bits": bits}, DOMAIN)
    else:
        codes = _composed(editor, node, zero, bits, signed)
    editor.replace(output, codes[0])


def _composed(editor: Editor, node: ir.Node, zero: ir.Value, bits: int, signed: bool) -> list[ir.Value]:
    """The codes by standard ops."""
    x, output = operand(node, 0), node.outputs[0]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def add(op: str, suffix: str, *inputs: ir.Value) -> ir.Value:
        return editor.add(op, inputs, node, [(f"{output.name}.{suffix}", _F32, dims(x))])[0]

    rounded = add("Round", "rounded", add("Div", "quotient", x, _along(editor, node, operand(node, 1))))
    shifted = add("Add", "shifted", rounded, _along(editor, node, _real(editor, node, zero)))
    limits = [editor.constant(np.array(limit, np.float32), "limit") for limit in (low, high)]
    kind = _wide(node, output)
    codes = [(f"{output.name}.codes", kind, dims(x))]
    return editor.add("Cast", [add("Clip", "clipped", shifted, *limits)], node, codes, {"to": int(kind)})


def _dequantize(editor: Editor, node: ir.Node) -> str:
    """Rewrite one DequantizeLinear; returns what to say of it."""
    codes, output = operand(node, 0), node.outputs[0]
    kind = _wide(node, codes)
    step, zero, held = operand(node, 1), _zero(editor, node, kind), constant(codes)
    offset, scale = constant(zero), constant(step)
    if held is not None and offset is not None and scale is not None:
        difference = held.astype(np.float32) - _spread(node, offset).astype(np.float32)
        value = (difference * _spread(node, scale)).astype(np.float32)
        new = editor.constant(value, f"{output.name}.real")
        output.replace_all_uses_with(new, replace_graph_outputs=True)
        return f"{describe(node)}: its weight runs as float32"
    real = _real(editor, node, codes)
    if not _is_nought(zero):
        centred = [(f"{output.name}.centred", _F32, dims(output))]
        real = editor.add("Sub", [real, _along(editor, node, _real(editor, node, zero))], node, centred)[0]
    scaled = [(f"{output.name}.scaled", _F32, dims(output))]
    editor.replace(output, editor.add("Mul", [real, _along(editor, node, step)], node, scaled)[0])
    return f"{describe(node)}: what reads it runs in float32"


def _widen(editor: Editor, node: ir.Node) -> None:
    """A node that moves 4-bit codes, or casts to them, holds bytes from now on."""
    output = node.outputs[0]
    kind = _wide(node, output)
    if is_op(node, "Cast"):
        source = operand(node, 0)
        new = source
        if source.dtype != kind:
            new = editor.add("Cast", [source], node, [(f"{output.name}.wide", kind, dims(source))], {"to": int(kind)})[
                0
            ]
        output.replace_all_uses_with(new)
    elif any(is_op(node, move) for move in _MOVES):
        output.type = ir.TensorType(kind)
    else:
        raise UnsupportedError(f"{describe(node)}: makes codes of 4 bits; only Cast, quantisers and moves may")


def _fold(editor: Editor, node: ir.Node) -> None:
    """Turn round what became a constant just now."""
    array, output = constant(operand(node, 0)), node.outputs[0]
    if array is None or output.is_graph_output():
        return
    if is_op(node, "Transpose"):
        array = np.ascontiguousarray(array.transpose(ints(node, "perm", tuple(reversed(range(array.ndim))))))
    output.replace_all_uses_with(editor.constant(array.reshape(dims(output)), f"{output.name}.folded"))


def _clipped(codes: ir.Value) -> int | None:
    """The bits to whose range every reader clips; None if not all of them do."""
    readers = list(codes.consumers())
    found = set()
    for reader in readers:
        low, high = (constant(reader.inputs[i]) if len(reader.inputs) > i else None for i in (1, 2))
        if not is_op(reader, "Clip") or low is None or high is None or int(low) != 0:
            return None
        found.add(int(high))
    top = found.pop() if len(found) == 1 else 0
    bits = (top + 1).bit_length() - 1
    return bits if bits >= 2 and top == 2**bits - 1 and not codes.is_graph_output() else None


def _wide(node: ir.Node, codes: ir.Value) -> ir.DataType:
    if codes.dtype not in _WIDE or integer(node, "block_size", 0):
        raise UnsupportedError(
            f"{describe(node)}: codes {codes.dtype} with block size {integer(node, 'block_size', 0)}; expected "
            "int4, uint4, int8 or uint8 with a step for the whole tensor or one along an axis"
        )
    return _WIDE[codes.dtype]


def _zero(editor: Editor, node: ir.Node, kind: ir.DataType) -> ir.Value:
    """The zero point in bytes; of a node without one, 0."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return editor.constant(np.zeros(dims(operand(node, 1)), kind.numpy()), "no_zero")
    array = constant(value)
    return value if array is None else editor.constant(_bytes(array, kind), f"{value.name}.wide")


def _bytes(array: Array, kind: ir.DataType) -> Array:
    return array.astype(np.int64).astype(kind.numpy())


def _shaped(editor: Editor, node: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    if dims(value) == shape:
        return value
    array = constant(value)
    if array is not None:
        return editor.constant(array.reshape(shape), f"{value.name}.shaped")
    target = editor.constant(np.array(shape, np.int64), "shape")
    return editor.add("Reshape", [value, target], node, [(f"{value.name}.shaped", value.dtype or _F32, shape)])[0]


def _along(editor: Editor, node: ir.Node, value: ir.Value) -> ir.Value:
    """Steps or zero points so that they broadcast along the node's axis."""
    if _count(value) == 1:
        return _shaped(editor, node, value, ())
    return _shaped(editor, node, value, _broadcast_shape(node, _count(value)))


def _spread(node: ir.Node, array: Array) -> Array:
    return array.reshape(() if array.size == 1 else _broadcast_shape(node, array.size))


def _broadcast_shape(node: ir.Node, count: int) -> tuple[int, ...]:
    rank = len(dims(operand(node, 0)))
    axis = integer(node, "axis", 1) % rank
    return (*(1,) * axis, count, *(1,) * (rank - axis - 1))


def _real(editor: Editor, node: ir.Node, codes: ir.Value) -> ir.Value:
    array = constant(codes)
    if array is not None:
        return editor.constant(array.astype(np.float32), f"{codes.name}.real")
    return editor.add("Cast", [codes], node, [(f"{codes.name}.real", _F32, dims(codes))], {"to": int(_F32)})[0]


def _is_narrow(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.INT4, ir.DataType.UINT4)


def _is_nought(zero: ir.Value) -> bool:
    array = constant(zero)
    return array is not None and not np.any(array.astype(np.int64))


def _count(value: ir.Value) -> int:
    return int(np.prod(dims(value), dtype=np.int64))
