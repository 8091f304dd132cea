"""Cut graphs into pieces and run them under ONNX Runtime with every optimisation off: the reference of the kernels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from edgedm.errors import InvalidModelError
from edgedm.ops import attach_functions, infer_shapes

Array = NDArray[Any]


class Graph:
    """A lowered graph (step or prepare): its nodes by output, its constants, and pieces of it to run."""

    def __init__(self, model: ir.Model) -> None:
        infer_shapes(model)
        attach_functions(model)
        self.model = model
        self.proto = ir.serde.serialize_model(model)
        self.types = {item.name: item for item in _typed(self.proto.graph)}
        self.constants = {item.name: onnx.numpy_helper.to_array(item) for item in self.proto.graph.initializer}
        self._producers = {name: node for node in self.proto.graph.node for name in node.output if name}
        self._order = {id(node): index for index, node in enumerate(self.proto.graph.node)}

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [item.name for item in self.proto.graph.input]

    def has(self, value: str) -> bool:
        """Whether the graph knows a value or constant of this name."""
        return value in self._producers or value in self.constants or value in self.inputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every value that the graph computes from `feeds`, its inputs by name."""
        names = [name for node in self.proto.graph.node for name in node.output if name]
        part = self.part(self.inputs, names)
        return {**feeds, **run(part, {name: feeds[name] for name in self.inputs})}

    def part(self, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
        """The piece of the graph that computes `outputs` from `inputs` and constants, as a model of its own.

        Raises `InvalidModelError` if it needs anything else.
        """
        given, nodes, constants = set(inputs), {}, {}
        pending = [name for name in outputs if name not in given]
        while pending:
            name = pending.pop()
            if name in given or name in constants:
                continue
            if name in self.constants:
                constants[name] = self.constants[name]
                continue
            if name not in self._producers:
                raise InvalidModelError(f"{', '.join(outputs)}: needs {name!r}, which is none of {', '.join(inputs)}")
            node = self._producers[name]
            if id(node) not in nodes:
                nodes[id(node)] = node
                pending.extend(each for each in node.input if each)
        ordered = sorted(nodes.values(), key=lambda node: self._order[id(node)])
        graph = onnx.helper.make_graph(
            ordered,
            "part",
            [self.types[name] for name in inputs],
            [self.types[name] for name in outputs],
            [item for item in self.proto.graph.initializer if item.name in constants],
        )
        return _with_functions(graph, self.proto)


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs of `model` under ONNX Runtime: one thread, no optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in model.graph.output]
    fed = {name: np.asarray(array) for name, array in feeds.items() if name in _names(model.graph.input)}
    return dict(zip(names, session.run(names, fed), strict=True))


def _with_functions(graph: onnx.GraphProto, source: onnx.ModelProto) -> onnx.ModelProto:
    used = {(node.domain, node.op_type) for node in graph.node}
    model = onnx.helper.make_model(
        graph,
        opset_imports=source.opset_import,
        functions=[function for function in source.functions if (function.domain, function.name) in used],
    )
    model.ir_version = source.ir_version
    return model


def _typed(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output
    for item in graph.initializer:
        yield onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))


def _names(items: Iterable[onnx.ValueInfoProto]) -> set[str]:
    return {item.name for item in items}
