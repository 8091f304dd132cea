"""Level "pass" compares every constant that a bundle's graphs share with the checkpoint's."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgedm.export.graph_io import load_graph
from edgedm.lower.layout import lay_out
from edgedm.verify.graphs import Graph
from edgedm.verify.pass_level import constants_row
from edgedm.verify.wiring import wiring_row


@pytest.fixture
def fresh(deployed) -> dict[str, ir.Model]:
    """Step and prepare graph after all passes."""
    path = deployed("bidm")
    return {"step": load_graph(path), "prepare": load_graph(path.with_suffix(".prepare.onnx"))}


@pytest.fixture
def graphs(deployed) -> dict[str, Graph]:
    """The same graphs, lowered as a bundle's are."""
    path, lowered = deployed("bidm"), {}
    for name, file in (("step", path), ("prepare", path.with_suffix(".prepare.onnx"))):
        model = load_graph(file)
        lay_out(model)
        lowered[name] = Graph(model)
    return lowered


def test_the_constants_of_a_right_bundle_are_the_checkpoints(fresh, graphs) -> None:
    row = constants_row(fresh, graphs)
    assert row.ok, row.note
    held = sum(len(graph.constants) for graph in graphs.values())
    assert 0.9 * held < row.figures["compared"] <= held  # lowering adds a few shapes


@pytest.mark.parametrize(
    ("graph", "name"),
    [("step", "conv_norm_out.weight"), ("step", "down_blocks.0.resnets.0.conv1.bits"), ("prepare", "edges")],
)
def test_a_changed_constant_is_found_and_where_it_is_first_another(fresh, graphs, graph: str, name: str) -> None:
    changed = graphs[graph].constants[name].copy()
    before = changed.reshape(-1)[1]
    changed.reshape(-1)[1] += 1
    place = [int(i) for i in np.unravel_index(1, changed.shape)]
    graphs[graph].constants[name] = changed
    row = constants_row(fresh, graphs)
    assert not row.ok and row.note.startswith(f"{graph}: {name}: ")
    assert row.note.endswith(
        f" differ from the checkpoint's; first at {place}: expected {before}, got {changed.reshape(-1)[1]}"
    )


def test_a_zero_of_the_other_sign_is_counted_and_shown(fresh, graphs) -> None:
    for holder in (graphs["step"].constants, fresh["step"].graph.initializers):
        assert "conv_norm_out.weight" in holder
    zeros = np.zeros_like(graphs["step"].constants["conv_norm_out.weight"])
    fresh["step"].graph.initializers["conv_norm_out.weight"].const_value = ir.tensor(zeros)
    graphs["step"].constants["conv_norm_out.weight"] = np.where(np.arange(zeros.size) == 2, np.float32(-0.0), zeros)
    note = constants_row(fresh, graphs).note
    assert note.endswith(
        f"1 of {zeros.size} numbers differ from the checkpoint's; first at [2]: expected 0.0, got -0.0"
    )


def test_a_constant_of_another_shape_is_found(fresh, graphs) -> None:
    graphs["step"].constants["conv_norm_out.weight"] = np.ones(1, np.float32)
    note = constants_row(fresh, graphs).note
    assert "step: conv_norm_out.weight: all" in note and note.endswith(", got float32[1]")


def test_the_nodes_of_a_right_bundle_are_those_of_a_fresh_graph(fresh, graphs) -> None:
    row = wiring_row(fresh, graphs)
    assert row is not None and row.ok, row
    assert row.figures["compared"] == sum(len(graph.proto.graph.node) for graph in graphs.values())


def _rewire(graph: onnx.GraphProto) -> str:
    node = next(each for each in graph.node if each.op_type == "Mul")
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return f"step: Mul {node.name}: input 0: expected "


def _scale(graph: onnx.GraphProto) -> str:
    scalars = {each.name: each for each in graph.initializer if each.data_type == 1 and not list(each.dims)}
    node = next(each for each in graph.node if each.op_type == "Mul" and each.input[1] in scalars)
    other = onnx.numpy_helper.to_array(scalars[node.input[1]]) * np.float32(1.001)
    graph.initializer.append(onnx.numpy_helper.from_array(other, "by hand"))
    node.input[1] = "by hand"
    return f"step: Mul {node.name}: input 1: expected "


def _attribute(graph: onnx.GraphProto) -> str:
    node = next(each for each in graph.node if each.op_type == "Softmax")
    node.attribute[0].i = 1
    return f"step: Softmax {node.name}: its attributes are not those of a fresh graph"


@pytest.mark.parametrize("change", [_rewire, _scale, _attribute])
def test_a_node_that_is_another_is_named(fresh, graphs, change) -> None:
    expected = change(graphs["step"].proto.graph)
    row = wiring_row(fresh, graphs)
    assert row is not None and not row.ok and row.note.startswith(expected)


def test_a_graph_of_other_passes_has_nothing_to_be_held_against(fresh, graphs) -> None:
    del graphs["step"].proto.graph.node[-1]
    assert wiring_row(fresh, graphs) is None


def test_a_comparison_of_nothing_fails() -> None:
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="empty"), ir_version=10)
    row = constants_row({"step": empty}, {"step": Graph(empty)})
    assert not row.ok and row.note.startswith("nothing to compare")
