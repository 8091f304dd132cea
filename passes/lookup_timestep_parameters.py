"""Check the tables of timestep bins against a schedule, and spell the lookup out in standard ops.

Given   r = TimestepLookup(table, edges, timestep)
Result  r = Gather(table, Max(ReduceSum(edges <= timestep) - 1, 0))

A table's row r was trained for the timesteps edges[r] .. edges[r + 1] - 1, the last one up to the end of training.
Every timestep of the schedule must lie within; a schedule may skip bins and may visit one several times, which is
reported. The table stays whole, since the sampler takes other schedules at run time. Exact: the function's body.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.passes.base import GraphPass
from edgedm.passes.editing import Array, Editor, constant, describe, dims, is_edgedm, operand


class LookupTimestepParameters(GraphPass):
    """TimestepLookup -> Gather, for a schedule whose timesteps all lie in trained bins.

    `timesteps` int64[steps]; `trained` is the number of training timesteps. None checks the tables only.
    """

    def __init__(self, timesteps: NDArray[np.int64] | None = None, trained: int = 1000) -> None:
        self.timesteps = timesteps
        self.trained = trained

    def rewrite(self, model: ir.Model, editor: Editor) -> dict[str, float]:
        """See the module; raises UnsupportedError if the schedule leaves the bins, InvalidModelError for bad edges."""
        notes: dict[str, float] = {}
        for node in editor.nodes():
            if not is_edgedm(node, "TimestepLookup"):
                continue
            edges = _edges(node)
            if self.timesteps is not None:
                notes |= self._count_bins(node, edges)
            _spell_out(editor, node)
        return notes

    def _count_bins(self, node: ir.Node, edges: Array) -> dict[str, float]:
        assert self.timesteps is not None
        outside = self.timesteps[(self.timesteps < edges[0]) | (self.timesteps >= self.trained)]
        if outside.size:
            raise UnsupportedError(
                f"{describe(node)}: timesteps {outside[:5].tolist()} lie outside the trained bins "
                f"{int(edges[0])}..{self.trained - 1}; choose other --steps"
            )
        visits = np.bincount(np.searchsorted(edges, self.timesteps, side="right") - 1, minlength=len(edges))
        return {
            "bins.total": len(edges),
            "bins.skipped": int(np.count_nonzero(visits == 0)),
            "bins.repeated": int(np.count_nonzero(visits > 1)),
        }


def _edges(node: ir.Node) -> Array:
    edges, rows = constant(operand(node, 1)), dims(operand(node, 0))[0]
    if edges is None:
        raise UnsupportedError(f"{describe(node)}: its bin edges are not a constant")
    if edges.ndim != 1 or len(edges) != rows or len(edges) == 0 or np.any(np.diff(edges) <= 0):
        raise InvalidModelError(
            f"{describe(node)}: expected {rows} ascending bin edges, one a row of its table, got {edges.tolist()[:8]}"
        )
    return edges


def _spell_out(editor: Editor, node: ir.Node) -> None:
    table, edges, timestep = (operand(node, index) for index in range(3))
    name, bins, integer = node.outputs[0].name, dims(edges), ir.DataType.INT64
    zero, one = (editor.constant(np.array(value, np.int64), "index") for value in (0, 1))
    (reached,) = editor.add("LessOrEqual", [edges, timestep], node, [(f"{name}.reached", ir.DataType.BOOL, bins)])
    (flags,) = editor.add("Cast", [reached], node, [(f"{name}.flags", integer, bins)], {"to": int(integer)})
    (count,) = editor.add("ReduceSum", [flags], node, [(f"{name}.count", integer, ())], {"keepdims": 0})
    (last,) = editor.add("Sub", [count, one], node, [(f"{name}.last_bin", integer, ())])
    (index,) = editor.add("Max", [last, zero], node, [(f"{name}.bin", integer, ())])
    (row,) = editor.add(
        "Gather", [table, index], node, [(f"{name}.row", ir.DataType.FLOAT, dims(table)[1:])], {"axis": 0}
    )
    editor.replace(node.outputs[0], row)
    editor.rewritten.append(describe(node))
