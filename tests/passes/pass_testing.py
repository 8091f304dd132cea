"""Graphs as text in, graphs and outputs out: every pass test goes through `apply`, which also checks the frame."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgedm.ops import attach_functions, infer_shapes
from edgedm.ops.packing import pack_rows
from edgedm.passes.base import GraphPass, Report, interface
from edgedm.passes.check import Checker, Verdict
from edgedm.passes.pipeline import PIPELINE, Schedule
from edgedm.passes.regions import Side

HEADER = '<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>\n'


def graph(text: str, **constants: np.ndarray) -> ir.Model:
    """Parse the text of one graph; every keyword is an initialiser. All nodes get the module path `m.<output>`."""
    initializers = [ir.tensor(array, name=name) for name, array in constants.items()]
    model = ir.from_onnx_text(HEADER + text, initializers=initializers)
    for value in model.graph.initializers.values():
        value.type, value.shape = ir.TensorType(value.const_value.dtype), value.const_value.shape
    for node in model.graph:
        node.name = node.outputs[0].name
        node.metadata_props["edgedm.module"] = f"m.{node.outputs[0].name}"
    attach_functions(model)
    infer_all_shapes(model)
    return model


def infer_all_shapes(model: ir.Model) -> None:
    """`infer_shapes`, and what onnx does not know: a group norm keeps its shape (torch's exporter writes it down)."""
    infer_shapes(model)
    for node in model.graph:
        if node.op_type == "GroupNormalization" and node.outputs[0].shape is None:
            node.outputs[0].dtype, node.outputs[0].shape = node.inputs[0].dtype, node.inputs[0].shape
            infer_shapes(model)


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run under ONNX Runtime, optimisation off, one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def random_feeds(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        shape = tuple(value.shape)
        dtype = value.dtype.numpy()
        if np.issubdtype(dtype, np.integer):
            feeds[value.name] = rng.integers(0, 255, shape).astype(dtype)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def text_of(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


@dataclass
class Applied:
    each: GraphPass
    before: ir.Model
    model: ir.Model
    report: Report

    @property
    def ops(self) -> list[str]:
        return [node.op_type for node in self.model.graph]

    def one(self, op_type: str) -> ir.Node:
        (node,) = [node for node in self.model.graph if node.op_type == op_type]
        return node

    def outputs(self, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
        feeds = random_feeds(self.before, seed)
        return run(self.before, feeds), run(self.model, feeds)

    def assert_same_bits(self) -> None:
        for seed in range(3):
            for left, right in zip(*self.outputs(seed), strict=True):
                assert left.tobytes() == right.tobytes()

    def assert_within_rounding(self) -> Verdict:
        """The check that `optimize --check` does, on random inputs."""
        checker = Checker([random_feeds(self.before, seed) for seed in range(3)])
        checker.check(self.each, Side(self.before), self.model)
        (verdict,) = checker.verdicts
        assert verdict.failure is None
        return verdict


def apply(each: GraphPass, model: ir.Model) -> Applied:
    """Run a pass and assert what holds for every pass: the graph is valid with static shapes, its interface and
    module paths are kept, and running the pass again changes nothing."""
    before = model.clone()
    report = each(model)
    assert isinstance(report, Report)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert interface(model) == interface(before)
    assert all("edgedm.module" in node.metadata_props for node in model.graph)
    assert types_of(model) == types_of(model, inferred=True)
    once = text_of(model)
    again = each(model)
    assert text_of(model) == once
    assert not again.rewritten  # type: ignore[attr-defined]
    return Applied(each, before, model, report)


def survive(model: ir.Model, seed: int) -> list[str]:
    """Run all passes but the one that splits the graph, check each on random inputs; return the op types that come out.

    The interface and the module paths are kept, and running all of them again changes nothing.
    """
    ends = interface(model)
    checker = Checker([random_feeds(model, seed)])
    side = Side(model)
    for make in PIPELINE[:-1]:
        each = make(Schedule())
        each(model)
        side = checker.check(each, side, model)
    assert interface(model) == ends
    assert all("edgedm.module" in node.metadata_props for node in model.graph)
    once = text_of(model)
    for make in PIPELINE[:-1]:
        make(Schedule())(model)
    assert text_of(model) == once
    return [node.op_type for node in model.graph]


def types_of(model: ir.Model, inferred: bool = False) -> dict[str, tuple[ir.DataType, tuple[int, ...]]]:
    """Dtype and static shape of every value, as declared, or as inferred afresh."""
    if inferred:
        model = model.clone()
        for node in model.graph:
            for value in node.outputs:
                value.shape = None
        infer_all_shapes(model)
    return {value.name: (value.dtype, tuple(value.shape)) for node in model.graph for value in node.outputs}


def signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random packed signs: shape ends in the number of channels."""
    return pack_rows(rng.integers(0, 2, shape).astype(bool))
