"""Level "pass" compares every constant that a bundle's graphs share with the checkpoint's."""

import numpy as np
import onnx_ir as ir
import pytest

from edgedm.export.graph_io import load_graph
from edgedm.lower.channels_last import ChannelsLast
from edgedm.lower.split_gemm import SplitGemm
from edgedm.lower.widen_codes import WidenCodes
from edgedm.verify.graphs import Graph
from edgedm.verify.pass_level import constants_row


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
        for phase in (WidenCodes(), SplitGemm(), ChannelsLast()):
            phase(model)
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
def test_a_changed_constant_is_found(fresh, graphs, graph: str, name: str) -> None:
    changed = graphs[graph].constants[name].copy()
    changed.reshape(-1)[1] += 1
    graphs[graph].constants[name] = changed
    row = constants_row(fresh, graphs)
    assert not row.ok and row.note.startswith(f"{graph}: {name}: ")


def test_a_constant_of_another_shape_is_found(fresh, graphs) -> None:
    graphs["step"].constants["conv_norm_out.weight"] = np.ones(1, np.float32)
    assert "step: conv_norm_out.weight: all" in constants_row(fresh, graphs).note


def test_a_comparison_of_nothing_fails() -> None:
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="empty"), ir_version=10)
    row = constants_row({"step": empty}, {"step": Graph(empty)})
    assert not row.ok and row.note.startswith("nothing to compare")
