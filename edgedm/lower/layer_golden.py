"""Golden data of the kernels for the native self-test: what ONNX Runtime computes at every call of one step.

The step graph and its prepare graph run on the recorded inputs of one golden step, without optimisation. The format
is described in `runtime/templates/layers.c`, which reads it.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.bundle.manifest import Node, Operand
from edgedm.errors import InvalidModelError
from edgedm.export.graph_io import serialize_graph
from edgedm.golden_file import read_golden
from edgedm.onnx_session import OnnxSession
from edgedm.ops import attach_functions, infer_shapes

MAGIC = b"EDMLAYR1"
Array = NDArray[Any]


def layers_path(golden: Path) -> Path:
    """Where `edgedm export --layer-golden` puts the layers' data, beside the golden data at `golden`."""
    return golden.with_name(golden.name.replace(".golden.", ".layers."))


def layer_golden(models: Mapping[str, ir.Model], golden: Path, nodes: Sequence[Node]) -> bytes:
    """Return inputs and outputs of every kernel call of the step graph that is an operation of ours.

    `models` are the channels-last graphs, `nodes` the manifest's calls. Raises InvalidModelError if the golden data
    do not fit the graphs.
    """
    calls = [node for node in nodes if node.graph == "step" and node.node]
    values = _values(models, golden, {each.name for node in calls for each in (*_given(node), *node.outputs)})
    data = [struct.pack("<8sII", MAGIC, len(calls), 0)]
    for node in calls:
        name = f"{node.module or node.node} ({node.op}, {node.family})".encode()
        data += [struct.pack("<II", node.index, len(name)), name]
        data += [_bytes(values[each.name], each, node) for each in (*_given(node), *node.outputs)]
    return b"".join(data)


def _given(node: Node) -> list[Operand]:
    return [operand for operand in node.inputs if operand.source != "weights"]


def _bytes(array: Array, operand: Operand, node: Node) -> bytes:
    data = np.ascontiguousarray(array).tobytes()
    wanted = int(np.prod(operand.shape, dtype=np.int64)) * np.dtype(operand.dtype).itemsize
    if len(data) != wanted:
        raise AssertionError(f"kernel {node.kernel}: {operand.name!r} has {len(data)} bytes in the graph, not {wanted}")
    return data


def _values(models: Mapping[str, ir.Model], golden: Path, wanted: set[str]) -> dict[str, Array]:
    recorded = read_golden(golden)
    if not recorded.steps:
        raise InvalidModelError(f"{golden}: records no step; export the checkpoint again")
    step = recorded.steps[len(recorded.steps) // 2] if recorded.layers_step is None else recorded.layers_step
    tensors = {name.removeprefix(f"step.{step}."): array for name, array in recorded.tensors.items()}
    try:
        rows = _run(models["prepare"], tensors, set())
        return _run(models["step"], {**tensors, **rows}, wanted)
    except KeyError as error:
        raise InvalidModelError(f"{golden}: tensor {error} of step {step} is missing; export again") from error
    except ValueError as error:
        raise InvalidModelError(f"{golden}: step {step} is not of this model: {error}; export again") from error


def _run(model: ir.Model, tensors: Mapping[str, Array], wanted: set[str]) -> dict[str, Array]:
    """The graph's inputs, its outputs and the values in `wanted`, by name."""
    copy = ir.serde.deserialize_model(onnx.load_from_string(serialize_graph(model)))
    infer_shapes(copy)
    made = {value.name: value for node in copy.graph for value in node.outputs}
    there = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(made[name] for name in sorted(wanted - there) if name in made)
    attach_functions(copy)
    session = OnnxSession(ir.serde.serialize_model(copy))
    feeds = {name: _fitting(tensors[name], shape) for name, shape in session.inputs.items()}
    return {**feeds, **session.run(feeds)}


def _fitting(array: Array, shape: tuple[int, ...]) -> Array:
    """Recorded states are channels first, those of the graph channels last."""
    moved = np.moveaxis(array, 1, -1) if array.ndim == 4 and array.shape != shape else array
    return np.ascontiguousarray(moved.reshape(shape))
