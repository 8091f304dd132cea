"""Run a graph, or regions of it, under ONNX Runtime with optimisation off: the reference that passes keep to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgedm.onnx_session import OnnxSession
from edgedm.passes.editing import Array

Feeds = Mapping[str, Array]

_INT4 = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


@dataclass(frozen=True)
class Region:
    """What computes the value `name` from the values `edge` and constants."""

    name: str
    edge: tuple[str, ...]


class Side:
    """One side of a pass: a graph, which node makes which value, and regions of it as models of their own."""

    def __init__(self, model: ir.Model) -> None:
        self.proto = ir.serde.serialize_model(model)
        graph = self.proto.graph
        self.inputs = [item.name for item in graph.input]
        self.constants = {item.name: item for item in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.types = {item.name: item for item in (*graph.input, *graph.value_info, *graph.output)}
        for item in graph.initializer:
            self.types[item.name] = onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
        self._order = {node.output[0]: index for index, node in enumerate(graph.node)}
        self._outputs: OnnxSession | None = None

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs for `feeds`, the inputs by name (others are ignored)."""
        self._outputs = self._outputs or OnnxSession(self.proto)
        return self._outputs.run(feeds)

    def all_values(self) -> OnnxSession:
        """A session for every value but those of 4 bits, which numpy cannot take from ONNX Runtime."""
        names = [name for name in self.makers if self.types[name].type.tensor_type.elem_type not in _INT4]
        return OnnxSession(
            self._model(self._nodes(names, self.inputs), self.inputs, [self.types[name] for name in names])
        )

    def model_of(self, region: Region) -> onnx.ModelProto:
        """The model of one region."""
        return self._model(self._nodes([region.name], region.edge), region.edge, [self.types[region.name]])

    def separately(self, regions: Sequence[Region]) -> OnnxSession:
        """One session for many regions, each fed at its own edge, whatever the others compute."""
        nodes: list[onnx.NodeProto] = []
        outputs: list[onnx.ValueInfoProto] = []
        for index, region in enumerate(regions):
            part = self._nodes([region.name], region.edge)
            inside = {name for node in part for name in node.output if name}
            for node in part:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                reads = [
                    f"{each}@{index}" if each in inside and each not in region.edge else each for each in node.input
                ]
                copy.input[:] = reads
                copy.output[:] = [f"{each}@{index}" if each else each for each in node.output]
                copy.name = f"{node.name}@{index}"
                nodes.append(copy)
            result = onnx.ValueInfoProto()
            result.CopyFrom(self.types[region.name])
            result.name = f"{region.name}@{index}"
            outputs.append(result)
        edges = sorted({name for region in regions for name in region.edge})
        return OnnxSession(self._model(nodes, edges, outputs), [region.name for region in regions])

    def edge(
        self, name: str, known: Iterable[str], through: Iterable[str], stops: Iterable[str] = ()
    ) -> tuple[str, ...]:
        """Where the region that computes `name` ends: the nearest `known` values.

        Values made by the operators `through`, which move data only, are looked through; values made by the
        operators `stops` always end the region.
        """
        known, through, stops = set(known), set(through), set(stops)
        found: list[str] = []
        pending, seen = list(self.makers[name].input), set()
        while pending:
            each = pending.pop()
            if not each or each in seen or each in self.constants:
                continue
            seen.add(each)
            maker = self.makers.get(each)
            if maker is None or maker.op_type in stops or (each in known and maker.op_type not in through):
                found.append(each)
            else:
                pending.extend(maker.input)
        return tuple(found)

    def _nodes(self, outputs: Sequence[str], edge: Sequence[str]) -> list[onnx.NodeProto]:
        """The nodes between `edge` and `outputs`, in order."""
        nodes: dict[int, onnx.NodeProto] = {}
        ends = set(edge)
        pending = list(outputs)
        while pending:
            name = pending.pop()
            if name not in self.makers:
                continue
            node = self.makers[name]
            if self._order[node.output[0]] not in nodes:
                nodes[self._order[node.output[0]]] = node
                pending.extend(each for each in node.input if each and each not in ends)
        return [nodes[index] for index in sorted(nodes)]

    def _model(
        self, nodes: Sequence[onnx.NodeProto], inputs: Iterable[str], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        read = {name for node in nodes for name in node.input}
        constants = [item for name, item in self.constants.items() if name in read]
        graph = onnx.helper.make_graph(nodes, "region", [self.types[name] for name in inputs], outputs, constants)
        model = onnx.helper.make_model(graph, opset_imports=self.proto.opset_import)
        model.functions.extend(self.proto.functions)
        model.ir_version = self.proto.ir_version
        return model
