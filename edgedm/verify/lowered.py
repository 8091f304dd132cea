"""The graphs inside a bundle that its kernels are held against; they have to be those that its manifest describes."""

import math

import numpy as np
import onnx

from edgedm.bundle import Bundle, Node, Operand
from edgedm.bundle.manifest import GraphName
from edgedm.errors import InvalidModelError
from edgedm.export.graph_io import load_graph
from edgedm.verify.graphs import Graph


def load_lowered(bundle: Bundle, name: GraphName) -> Graph:
    """Load the graph `name` of a bundle.

    Raises InvalidModelError naming the file if it isn't there, or if it lacks a port, a node or a value that the
    manifest names, or has it in another size.
    """
    path = bundle.path / "golden" / f"{name}.onnx"
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file; verify needs the lowered graphs: compile the bundle again")
    graph = Graph(load_graph(path))
    fault = _fault(bundle, name, graph)
    if fault:
        raise InvalidModelError(f"{path}: {fault}; it isn't the graph of manifest.json: compile the bundle again")
    return graph


def _fault(bundle: Bundle, name: GraphName, graph: Graph) -> str:
    """What the manifest says of the graph and isn't so, or nothing."""
    manifest = bundle.manifest
    for kind, ports, own in (
        ("inputs", manifest.inputs[name], graph.inputs),
        ("outputs", manifest.outputs[name], [item.name for item in graph.proto.graph.output]),
    ):
        if [port.name for port in ports] != own:
            return f"expected {kind} {', '.join(port.name for port in ports)}, got {', '.join(own)}"
        for port in ports:
            fault = _size(graph, port.name, math.prod(port.shape) * np.dtype(port.dtype).itemsize)
            if fault:
                return fault
    faults = (_node(graph, node) for node in manifest.nodes if node.graph == name and node.node)
    return next((fault for fault in faults if fault), "")


def _node(graph: Graph, node: Node) -> str:
    made = [graph.maker(operand.name) for operand in node.outputs]
    maker = made[0] if made else None
    if maker is None or any(each is not maker for each in made) or maker.op_type != node.op:
        return f"no node {node.op} makes {', '.join(operand.name for operand in node.outputs)}"
    given = [operand for operand in node.inputs if operand.source != "weights"]
    for operand in given:
        if operand.name not in maker.input:
            return f"node {maker.name!r} doesn't read {operand.name!r}"
    return next(filter(None, (_size(graph, each.name, _bytes(each)) for each in (*given, *node.outputs))), "")


def _size(graph: Graph, value: str, wanted: int) -> str:
    if value not in graph.types:
        return f"has no value {value!r}"
    kind = graph.types[value].type.tensor_type.elem_type
    own = math.prod(graph.shape(value)) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    return "" if own == wanted else f"{value!r} has {own} bytes, expected {wanted}"


def _bytes(operand: Operand) -> int:
    return math.prod(operand.shape) * np.dtype(operand.dtype).itemsize
