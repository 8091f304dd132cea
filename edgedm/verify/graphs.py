"""Cut graphs into pieces and run them under ONNX Runtime with every optimisation off: the reference of the kernels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgedm.errors import InvalidModelError
from edgedm.onnx_session import OnnxSession
from edgedm.ops import attach_functions, infer_shapes
from edgedm.verify.float64 import evaluate
from edgedm.verify.rounding import Bounded

Array = NDArray[Any]
_VIEWS = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


class Graph:
    """A lowered graph (step or prepare): its nodes by output, its constants, and pieces of it to run."""

    def __init__(self, model: ir.Model) -> None:
        infer_shapes(model)
        attach_functions(model)
        self.model = model
        self.proto = ir.serde.serialize_model(model)
        self.types = {item.name: item for item in _typed(self.proto.graph)}
        self.constants = {item.name: onnx.numpy_helper.to_array(item) for item in self.proto.graph.initializer}
        self._producers: dict[str, onnx.NodeProto] = {
            name: node for node in self.proto.graph.node for name in node.output if name
        }
        self._order = {node.output[0]: index for index, node in enumerate(self.proto.graph.node)}
        self._parts: dict[tuple[tuple[str, ...], tuple[str, ...]], Part] = {}

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [item.name for item in self.proto.graph.input]

    def shape(self, value: str) -> tuple[int, ...]:
        """The static shape of a value or constant."""
        return tuple(each.dim_value for each in self.types[value].type.tensor_type.shape.dim)

    def dtype(self, value: str) -> str:
        """The element type of a value or constant: "float", "uint4" ..."""
        return str(onnx.TensorProto.DataType.Name(self.types[value].type.tensor_type.elem_type)).lower()

    def node(self, output: str) -> onnx.NodeProto:
        """The node that computes a value."""
        return self._producers[output]

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a value; None for an input or a constant."""
        return self._producers.get(name)

    def aliases(self, name: str) -> list[str]:
        """`name` and the values that it only renames or reshapes: the same numbers in the same order."""
        found = [name]
        while found[-1] in self._producers and self._producers[found[-1]].op_type in _VIEWS:
            found.append(self._producers[found[-1]].input[0])
        return found

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every value that the graph computes from `feeds`, its inputs by name; the inputs themselves too."""
        names = [name for node in self.proto.graph.node for name in node.output if name]
        whole = self.part(self.inputs, names)
        return {**feeds, **whole.run({name: feeds[name] for name in self.inputs})}

    def part(
        self, inputs: Sequence[str], outputs: Sequence[str], constants: Mapping[str, Array] | None = None
    ) -> "Part":
        """The piece of the graph that computes `outputs` from `inputs` and constants.

        `constants` replaces some of the graph's own. Pieces are made once. Raises `InvalidModelError` if one
        needs anything else.
        """
        key = (tuple(inputs), tuple(outputs))
        if constants is None and key in self._parts:
            return self._parts[key]
        nodes, used = self._needed(set(inputs), outputs)
        graph = onnx.helper.make_graph(
            nodes,
            "part",
            [self.types[name] for name in inputs],
            [self.types[name] for name in outputs],
            [onnx.numpy_helper.from_array((constants or {}).get(n, self.constants[n]), n) for n in used],
        )
        part = Part(_with_functions(graph, self.proto))
        if constants is None:
            self._parts[key] = part
        return part

    def _needed(self, given: set[str], outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], list[str]]:
        """Nodes in order and names of the constants between `given` and `outputs`."""
        nodes: dict[int, onnx.NodeProto] = {}
        constants: dict[str, None] = {}
        pending = [name for name in outputs if name not in given]
        while pending:
            name = pending.pop()
            if name in self.constants and name not in given:
                constants[name] = None
            elif name in self._producers and name not in given:
                node = self._producers[name]
                if self._order[node.output[0]] not in nodes:
                    nodes[self._order[node.output[0]]] = node
                    pending.extend(each for each in node.input if each)
            elif name not in given:
                raise InvalidModelError(
                    f"{', '.join(outputs)}: needs {name!r}, which is none of {', '.join(sorted(given))}"
                )
        return [nodes[index] for index in sorted(nodes)], list(constants)


class Part:
    """A small model that is run many times, under ONNX Runtime or in float64."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.outputs = [item.name for item in model.graph.output]
        self._inputs = [item.name for item in model.graph.input]
        self._session: OnnxSession | None = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs under ONNX Runtime."""
        self._session = self._session or OnnxSession(self.model)
        return self._session.run(feeds)

    def evaluate(self, feeds: Mapping[str, Array], lean: int = 0) -> dict[str, Bounded]:
        """All values in float64 with rounding bounds; see `edgedm.verify.float64`."""
        return evaluate(self.model, {name: feeds[name] for name in self._inputs}, lean)


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
