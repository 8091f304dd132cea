"""Join the tables that are looked up for one timestep: one table of numbers, one of bytes, two lookups in all.

Given   r = Gather(table, bin);  s = Reshape(Slice(r));  z = Cast(Reshape(Slice(r)), uint8)      for many tables
Result  f = Gather(numbers f32[bins, n], bin);  b = Gather(bytes uint8[bins, m], bin)
        s = Gather(f, column);  z = Gather(b, column)                                            columns as s, z shaped

A quantiser's table has a step and a zero point, or some of each, which the export cuts apart by slices, reshapes and
casts. Only columns that something reads are kept; one that is cast to uint8 and whole in every bin becomes bytes.
Exact: the same numbers. Every s and z stays a value of its own, so in the step graph each is a row that a kernel reads
as it is: cut out of one joint row there, each would cost a call of its own in every step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Array, Editor, constant, describe, dims, integer, is_op, operand

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Identity")
_FLOAT, _BYTE = ir.DataType.FLOAT, ir.DataType.UINT8

Columns = NDArray[np.int64]


@dataclass(frozen=True)
class _Read:
    """A value that holds some columns of a table, and is read by more than moves."""

    value: ir.Value
    table: ir.Value
    columns: Columns


class MergeTables(GraphPass):
    """Gathers of rows of several tables by one index -> one Gather a dtype, and one for each value read."""

    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float]:
        """See the module."""
        lookups: dict[ir.Value, list[ir.Node]] = {}
        for node in editor.nodes():
            if _is_lookup(node):
                lookups.setdefault(operand(node, 1), []).append(node)
        groups = {index: nodes for index, nodes in lookups.items() if len({operand(node, 0) for node in nodes}) > 1}
        before = {operand(node, 0) for nodes in groups.values() for node in nodes}
        after: set[ir.Value] = set()
        for index, nodes in groups.items():
            reads = [read for node in nodes for read in _reads(node)]
            for dtype in (_FLOAT, _BYTE):
                of_dtype = [read for read in reads if read.value.dtype == dtype]
                if of_dtype:
                    after.add(_merge(editor, index, of_dtype, dtype))
            editor.rewritten.extend(describe(node) for node in nodes)
        return {"tables.before": float(len(before)), "tables.after": float(len(after))}


def _is_lookup(node: ir.Node) -> bool:
    """Whether this takes one row, not known before, of a constant table of float32."""
    if not is_op(node, "Gather") or integer(node, "axis", 0) != 0 or dims(operand(node, 1)) != ():
        return False
    table = constant(operand(node, 0))
    return table is not None and table.ndim == 2 and table.dtype == np.float32 and constant(operand(node, 1)) is None


def _reads(lookup: ir.Node) -> list[_Read]:
    """Every value cut out of the row that something other than a move reads."""
    table = operand(lookup, 0)
    return [_Read(value, table, columns) for value, columns in _cut(lookup.outputs[0], _all(table), table)]


def _all(table: ir.Value) -> Columns:
    return np.arange(dims(table)[1], dtype=np.int64)


def _cut(value: ir.Value, columns: Columns, table: ir.Value) -> Iterator[tuple[ir.Value, Columns]]:
    """(v, its columns) for `value` and what moves make of it, where it is read otherwise; columns have v's shape."""
    moved = 0
    for node, _ in value.uses():
        part = _moved(node, value, columns, table)
        if part is not None:
            moved += 1
            yield from _cut(node.outputs[0], part, table)
    if moved < len(list(value.uses())) or value.is_graph_output():
        yield value, columns


def _moved(node: ir.Node, value: ir.Value, columns: Columns, table: ir.Value) -> Columns | None:
    """The columns of the result of a move of `value`, or of a cast to bytes that loses nothing; else None."""
    if node.inputs[0] is not value or (value.dtype == _BYTE and is_op(node, "Cast")):
        return None
    if any(is_op(node, name) for name in RESHAPES):
        return columns.reshape(dims(node.outputs[0]))
    if is_op(node, "Slice"):
        return sliced(node, columns)
    if is_op(node, "Cast") and node.outputs[0].dtype == _BYTE:
        entries = _table(table)[:, columns.reshape(-1)]
        return columns if np.all((entries == np.rint(entries)) & (entries >= 0) & (entries <= 255)) else None
    return None


def sliced(node: ir.Node, columns: Columns) -> Columns | None:
    """What a Slice takes of `columns`; None if its limits are not constants or it goes backwards."""
    given = [constant(each) for each in node.inputs[1:]]
    if any(array is None for array in given):
        return None
    starts, ends, *rest = (array.reshape(-1).tolist() for array in given if array is not None)
    axes = rest[0] if rest else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    where = [slice(None)] * columns.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            return None  # an end below 0 would mean something else to numpy
        where[axis] = slice(start, end, step)
    return columns[tuple(where)]


def _table(table: ir.Value) -> Array:
    array = constant(table)
    assert array is not None
    return array


def _merge(editor: Editor, index: ir.Value, reads: list[_Read], dtype: ir.DataType) -> ir.Value:
    """Let all `reads`, of one dtype, read the row `index` of a joint table; the table."""
    first = _maker(reads[0])  # the lookups themselves may be gone: those that only numbers were read from
    places: dict[tuple[ir.Value, int], int] = {}
    for read in reads:
        for column in read.columns.reshape(-1).tolist():
            places.setdefault((read.table, column), len(places))
    joint = np.stack([_table(table)[:, column] for table, column in places], axis=1).astype(dtype.numpy())
    data = editor.constant(joint, "tables" if dtype == _FLOAT else "tables.bytes")
    output = (f"{data.name}.row", dtype, (len(places),))
    (row,) = editor.add("Gather", [data, index], first, [output], {"axis": 0})
    taken: set[ir.Value] = set()
    for read in reads:
        columns = [places[read.table, column] for column in read.columns.reshape(-1).tolist()]
        where = editor.constant(np.array(columns, np.int64).reshape(read.columns.shape), "columns")
        output = (f"{read.value.name}.column", dtype, read.columns.shape)
        (value,) = editor.add("Gather", [row, where], _maker(read), [output], {"axis": 0})
        editor.replace(read.value, value, rename=value not in taken)  # equal reads share one, with one name
        taken.add(value)
    return data


def _maker(read: _Read) -> ir.Node:
    maker = read.value.producer()
    assert maker is not None
    return maker
