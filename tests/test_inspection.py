"""`edgedm inspect` describes checkpoints, graphs and bundles."""

import pytest

from edgedm.errors import InvalidModelError
from edgedm.inspection import inspect, render


def test_a_checkpoint_lists_layers_macs_tables_and_hashes(capsys):
    outcome = inspect("zoo:digits-bidm-w1a1")
    assert outcome.figures["layers.low_bit"] == 53
    assert outcome.figures["macs"] == outcome.figures["macs.float"] + outcome.figures["macs.W1A1"]
    assert outcome.figures["macs.W1A1"] > 20 * outcome.figures["macs.float"]
    tables = outcome.details["tables"]
    assert len(tables["Per-timestep tables"]) == 4
    assert all(len(row["sha256"]) == 64 for row in tables["Files"])
    render(outcome)
    assert "up_blocks.2.resnets.1.conv1" in capsys.readouterr().out


def test_a_float_checkpoint_has_no_low_bit_layer_and_no_table():
    outcome = inspect("zoo:digits-fp32")
    assert outcome.figures["layers.low_bit"] == 0
    assert outcome.details["tables"]["Per-timestep tables"] == []


def test_something_else_is_refused(tmp_path):
    with pytest.raises(InvalidModelError, match="expected a checkpoint"):
        inspect(tmp_path)


@pytest.mark.slow
def test_a_graph_and_a_bundle_are_described(digits_pipeline, capsys):
    graph = inspect(digits_pipeline / "model.onnx")
    assert graph.figures["nodes.edgedm"] > 50
    bundle = inspect(digits_pipeline / "model.bundle")
    assert bundle.figures["calls.step"] > 100
    assert bundle.figures["bytes.weights"] > graph.figures["bytes.weights"] * 0.9
    for outcome in (graph, bundle):
        render(outcome)
    assert "BinaryConv" in capsys.readouterr().out
