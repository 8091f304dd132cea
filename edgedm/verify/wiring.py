"""Is a bundle's graph, node by node, the one that a fresh pipeline makes of the checkpoint?

Constants are compared by name elsewhere (`constants_row`); a node that reads another one, or an attribute that differs,
may change the output by too little for any comparison of numbers to see.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.lower.layout import lay_out
from edgedm.verify.graphs import Graph
from edgedm.verify.report import Row

Operand = tuple[str, int, int] | NDArray[Any]


def wiring_row(fresh: Mapping[str, ir.Model], graphs: Mapping[str, Graph]) -> Row | None:
    """Compare operations, attributes, inputs and outputs of the bundle's graphs with those of `fresh`.

    `fresh` are deployed graphs, which are laid out in place. None where the bundle was made by other passes, so that
    its operations are others: there is nothing to hold a node against.
    """
    compared, note = 0, ""
    for name, model in fresh.items():
        lay_out(model)
        ours, theirs = _Wiring(ir.serde.serialize_model(model).graph), _Wiring(graphs[name].proto.graph)
        if [(n.domain, n.op_type) for n in ours.nodes] != [(n.domain, n.op_type) for n in theirs.nodes]:
            return None
        compared += len(ours.nodes)
        note = note or next((f"{name}: {each}" for each in _differences(ours, theirs)), "")
    return Row("nodes", not note, {"compared": float(compared)}, note)


class _Wiring:
    """Where every operand of a graph comes from."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.outputs = [each.name for each in graph.output]
        self._from: dict[str, Operand] = {"": ("none", 0, 0)}
        self._from |= {each.name: ("input", number, 0) for number, each in enumerate(graph.input)}
        self._from |= {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
        for number, node in enumerate(self.nodes):
            self._from |= {name: ("node", number, place) for place, name in enumerate(node.output) if name}

    def source(self, name: str) -> Operand:
        """The array of a constant, or what makes a value: kind, number and place."""
        return self._from[name]


def _differences(ours: _Wiring, theirs: _Wiring) -> Iterator[str]:
    for one, other in zip(ours.nodes, theirs.nodes, strict=True):
        place = f"{other.op_type} {other.name}"
        if _attributes(one) != _attributes(other):
            yield f"{place}: its attributes are not those of a fresh graph"
        if len(one.input) != len(other.input):
            yield f"{place}: expected {len(one.input)} inputs, got {len(other.input)}"
            continue
        for number, (wanted, got) in enumerate(zip(one.input, other.input, strict=True)):
            if not _same(ours.source(wanted), theirs.source(got)):
                yield f"{place}: input {number}: expected {_shown(ours, wanted)}, got {_shown(theirs, got)}"
    for wanted, got in zip(ours.outputs, theirs.outputs, strict=True):
        if not _same(ours.source(wanted), theirs.source(got)):
            yield f"output {got}: expected {_shown(ours, wanted)}, got {_shown(theirs, got)}"


def _attributes(node: onnx.NodeProto) -> dict[str, bytes]:
    return {each.name: each.SerializeToString(deterministic=True) for each in node.attribute}


def _same(one: Operand, other: Operand) -> bool:
    if isinstance(one, tuple) or isinstance(other, tuple):
        return isinstance(one, tuple) and isinstance(other, tuple) and one == other
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _shown(wiring: _Wiring, name: str) -> str:
    """An operand in words: its name, and the number where it is one."""
    source = wiring.source(name)
    return name if isinstance(source, tuple) or source.size != 1 else f"{name} = {source.reshape(-1)[0]}"
