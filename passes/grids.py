"""Recognise an activation that went through a grid of integer codes, in every form that exports produce, and add the
quantiser that makes its codes.

    DequantizeLinear(QuantizeLinear(x, s, z), s, z)                   uint4 or uint8: 4 or 8 bits
    DequantizeLinear(QuantizeLinear(x, s, z), s, z)                   int4 or int8, z constant: the unsigned grid with
                                                                      the zero point z + 8 or z + 128
    DequantizeLinear(Clip(QuantizeLinear(x, s, z), 0, 2^b - 1), s, z) uint8: b bits

Steps and zero points are constants or computed (rows of a table). Kernels rely on zero points that are codes, so one
beyond the codes, constant or in any row of its table, has none. A uint4 zero point that is cast from uint8 is read
before the cast: the exporter writes no number there that 4 bits don't hold.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgedm.ops import DOMAIN
from edgedm.passes.editing import Array, Editor, constant, dims, integer, is_op, operand
from edgedm.passes.merge_tables import RESHAPES, sliced

_WIDTHS = {ir.DataType.UINT4: 4, ir.DataType.UINT8: 8, ir.DataType.INT4: 4, ir.DataType.INT8: 8}
_SIGNED = {ir.DataType.INT4: 8, ir.DataType.INT8: 128}  # what makes the lowest code 0


@dataclass(frozen=True)
class Grid:
    """The quantisation of `x` by `quantise` to codes of `bits` with one step, or one for each index of `axis`."""

    quantise: ir.Node
    x: ir.Value
    step: ir.Value
    zero: ir.Value | None
    bits: int
    axis: int | None  # None: one step
    shift: int = 0  # to be added to codes and zero point to make them unsigned

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return int(np.prod(dims(self.step)))


def match_grid(value: ir.Value) -> Grid | str | None:
    """The grid that `value` lies on; None if nothing quantises it; in words, why its grid has no kernel."""
    dequantize = value.producer()
    if dequantize is None or not is_op(dequantize, "DequantizeLinear"):
        return None
    quantize, top = operand(dequantize, 0).producer(), None
    if quantize is not None and is_op(quantize, "Clip"):
        limits = [constant(each) for each in quantize.inputs[1:]]
        if len(limits) != 2 or limits[0] is None or limits[1] is None or limits[0] != 0:
            return "its codes are clipped to limits that are not constants from 0 on"
        top, quantize = int(limits[1]), operand(quantize, 0).producer()
    if quantize is None or not is_op(quantize, "QuantizeLinear"):
        return None
    codes = quantize.outputs[0].dtype
    if codes not in _WIDTHS:
        return f"its codes are {codes}; expected {', '.join(dtype.name for dtype in _WIDTHS)}"
    if top is not None and codes in _SIGNED:
        return f"its codes are {codes} and clipped; expected UINT8"
    bits = _WIDTHS[codes] if top is None else (top + 1).bit_length() - 1
    if top is not None and not (2 <= bits <= _WIDTHS[codes] and top == 2**bits - 1):
        return f"its codes are clipped to 0..{top}; expected 2^bits - 1"
    return _grid_of(quantize, dequantize, bits)


def _grid_of(quantize: ir.Node, dequantize: ir.Node, bits: int) -> Grid | str:
    x, step = operand(quantize, 0), operand(quantize, 1)
    zero, other = (node.inputs[2] if len(node.inputs) > 2 else None for node in (quantize, dequantize))
    if not _same(step, operand(dequantize, 1)) or not (_same(zero, other) or (_is_zero(zero) and _is_zero(other))):
        return "it is quantised on one grid and dequantised on another"
    known = constant(step)
    if known is not None and not np.all((known > 0) & np.isfinite(known)):
        return f"its step {known.reshape(-1)[:4].tolist()} is not positive"
    if step.dtype != ir.DataType.FLOAT or x.dtype != ir.DataType.FLOAT:
        return f"it quantises {x.dtype} by a step of {step.dtype}; expected FLOAT"
    if any(integer(node, "block_size", 0) for node in (quantize, dequantize)):
        return "it has a step for each block"
    shift = _SIGNED.get(quantize.outputs[0].dtype or ir.DataType.UNDEFINED, 0)
    if shift and zero is not None and constant(zero) is None:
        return "its codes are signed and its zero point is not a constant"
    largest = 0.0 if zero is None else _largest(zero) + shift
    if not largest <= 2**bits - 1:
        return f"its zero point {largest:g} lies beyond its codes 0..{2**bits - 1}"
    if dims(step) in ((), (1,)):
        return Grid(quantize, x, step, zero, bits, None, shift)
    axes = {integer(node, "axis", 1) % len(dims(x)) for node in (quantize, dequantize)}
    if len(axes) > 1:
        return "it is quantised along one axis, read another"
    return Grid(quantize, x, step, zero, bits, axes.pop(), shift)


def _same(left: ir.Value | None, right: ir.Value | None) -> bool:
    if left is right:
        return True
    first, second = constant(left), constant(right)
    return first is not None and second is not None and bool(np.array_equal(first, second))


def _is_zero(point: ir.Value | None) -> bool:
    """Whether this zero point is 0, as one that is left out is."""
    known = constant(point)
    return point is None or (known is not None and bool(np.all(known == 0)))


def _largest(zero: ir.Value) -> float:
    """The largest zero point, of all timesteps, as far as constants tell."""
    entries = constant(zero)
    entries = _every_row(zero) if entries is None else entries
    return 0.0 if entries is None else float(np.trunc(entries.astype(np.float32)).max(initial=0))


def _every_row(value: ir.Value) -> Array | None:
    """What `value`, cut out of a row of a constant table, is for each row: [rows, *its shape]; else None."""
    node = value.producer()
    if node is None or not node.inputs:
        return None
    source = operand(node, 0)
    cells = np.arange(np.prod(dims(source), dtype=np.int64)).reshape(dims(source))
    if is_op(node, "Gather") and integer(node, "axis", 0) == 0:
        index = constant(operand(node, 1))
        if index is None:
            return constant(source) if dims(operand(node, 1)) == () else None
        part: Array | None = cells[index]
    elif is_op(node, "Slice"):
        part = sliced(node, cells)
    elif any(is_op(node, name) for name in ("Cast", *RESHAPES)):
        part = cells.reshape(dims(value))
    else:
        return None
    rows = _every_row(source)
    return None if rows is None or part is None else rows.reshape(len(rows), -1)[:, part]


def step_of(editor: Editor, grid: Grid, shape: tuple[int, ...], like: ir.Node) -> ir.Value:
    """The step as f32 `shape`, which is [] or one value a head."""
    return _shaped(editor, grid.step, constant(grid.step), shape, like)


def zero_of(editor: Editor, grid: Grid, shape: tuple[int, ...], like: ir.Node) -> ir.Value:
    """The zero point as uint8 `shape`."""
    zero = grid.zero
    if zero is None:
        return editor.constant(np.full(shape, grid.shift, np.uint8), "zero")
    array = constant(zero)
    if array is None and zero.dtype != ir.DataType.UINT8:
        cast = zero.producer()
        if cast is not None and is_op(cast, "Cast") and operand(cast, 0).dtype == ir.DataType.UINT8:
            zero = operand(cast, 0)
        else:
            byte = (f"{zero.name}.byte", ir.DataType.UINT8, dims(zero))
            (zero,) = editor.add("Cast", [zero], like, [byte], {"to": int(ir.DataType.UINT8)})
    return _shaped(editor, zero, None if array is None else _unsigned(array, grid.shift), shape, like)


def _unsigned(zero: Array, shift: int) -> Array:
    return (zero.astype(np.int16) + shift).astype(np.uint8)


def _shaped(editor: Editor, value: ir.Value, array: Array | None, shape: tuple[int, ...], like: ir.Node) -> ir.Value:
    if array is not None:
        values = array.reshape(()) if array.size == 1 else array
        return editor.constant(np.broadcast_to(values, shape).copy(), value.name or "grid")
    if dims(value) == shape:
        return value
    op_type = "Reshape" if int(np.prod(dims(value))) == int(np.prod(shape)) else "Expand"
    target = editor.constant(np.array(shape, np.int64), "shape")
    output = (f"{value.name}.spread", value.dtype or ir.DataType.FLOAT, shape)
    return editor.add(op_type, [value, target], like, [output])[0]


def add_codes(editor: Editor, grid: Grid, x: ir.Value, step: ir.Value, zero: ir.Value, like: ir.Node) -> ir.Value:
    """Add QuantizeUniform of `x`, channels last, or QuantizeHeads where `step` is [H]; the codes have x's shape."""
    heads = bool(dims(step))
    neutral = [] if heads else [editor.constant(np.ones(1, np.float32), "neutral.divisor")]
    (codes,) = editor.add(
        "QuantizeHeads" if heads else "QuantizeUniform",
        [x, *neutral, step, zero],
        like,
        [(f"{x.name}.codes", ir.DataType.UINT8, dims(x))],
        {"bits": grid.bits},
        domain=DOMAIN,
    )
    return codes
