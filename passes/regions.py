"""Run a graph, or any region of it, under ONNX Runtime with optimisation off: the reference that passes keep to."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgedm.passes.editing import Array

Feeds = Mapping[str, Array]

_INT4 = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


class Side:
    """One side of a pass: a graph, which node makes which value, and regions of it as models of their own."""

    def __init__(self, model: ir.Model) -> None:
        self.proto = ir.serde.serialize_model(model)
        graph = self.proto.graph
        self.inputs = [item.name for item in graph.input]
        self.outputs = [item.name for item in graph.output]
        self.constants = {item.name: item for item in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.types = {item.name: item for item in (*graph.input, *graph.value_info, *graph.output)}
        for item in graph.initializer:
            self.types[item.name] = onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
        self._order = {node.output[0]: index for index, node in enumerate(graph.node)}

    def region(self, edge: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
        """The model that computes `outputs` from the values `edge` and constants; what makes the edge stays out."""
        nodes: dict[int, onnx.NodeProto] = {}
        constants: dict[str, onnx.TensorProto] = {}
        pending = list(outputs)
        while pending:
            name = pending.pop()
            if name in self.constants:
                constants[name] = self.constants[name]
            elif name not in edge or name in outputs:
                node = self.makers[name]
                if self._order[node.output[0]] not in nodes:
                    nodes[self._order[node.output[0]]] = node
                    pending.extend(each for each in node.input if each and each not in edge)
        graph = onnx.helper.make_graph(
            [nodes[index] for index in sorted(nodes)],
            "region",
            [self.types[name] for name in edge],
            [self.types[name] for name in outputs],
            list(constants.values()),
        )
        model = onnx.helper.make_model(graph, opset_imports=self.proto.opset_import)
        model.functions.extend(self.proto.functions)
        model.ir_version = self.proto.ir_version
        return model

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs for `feeds`, the inputs by name (others are ignored)."""
        return run(self.proto, {name: feeds[name] for name in self.inputs})

    def run_all(self, feeds: Feeds) -> dict[str, Array]:
        """Every value, the inputs included; not those of 4 bits, which numpy cannot take from ONNX Runtime."""
        names = [name for name in self.makers if self.types[name].type.tensor_type.elem_type not in _INT4]
        return {**feeds, **run(self.region(self.inputs, names), {name: feeds[name] for name in self.inputs})}

    def edge(self, name: str, known: Iterable[str], through: Iterable[str], stops: Iterable[str] = ()) -> list[str]:
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
        return found


def run(model: onnx.ModelProto, feeds: Feeds) -> dict[str, Array]:
    """All outputs of `model`: one thread, every optimisation off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in model.graph.output]
    return dict(zip(names, session.run(names, {k: np.asarray(v) for k, v in feeds.items()}), strict=True))
