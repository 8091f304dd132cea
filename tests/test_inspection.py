"""`edgedm inspect` describes checkpoints, graphs and bundles."""

import pytest
from w4a4_model import CLASSES, EDGES, UNET

from edgedm.errors import InvalidModelError
from edgedm.export import export
from edgedm.inspection import inspect, render
from edgedm.models import CheckpointConfig, build, save
from edgedm.models.config import Architecture
from edgedm.outcome import Outcome
from edgedm.quant.policy import policy_of


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


def test_names_in_a_file_are_text_to_a_terminal(capsys):
    tables = {"Layers": [{"layer": "\x1b[2Jconv\u202e", "bytes": 1}]}
    render(Outcome(True, {}, {"summary": {"method": "\x1b[31m"}, "tables": tables}))
    shown = capsys.readouterr().out
    assert r"\x1b[2Jconv\u202e" in shown and r"\x1b[31m" in shown and "\x1b" not in shown


def test_a_float_checkpoint_has_no_low_bit_layer_and_no_table():
    outcome = inspect("zoo:digits-fp32")
    assert outcome.figures["layers.low_bit"] == 0
    assert outcome.details["tables"]["Per-timestep tables"] == []


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    """A saved 4-bit checkpoint and its graph, in one folder."""
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method="dilatequant",
        roles=dict(policy_of("dilatequant").bits),
        noise_schedule={"num_train_timesteps": 1000},
        null_class=CLASSES,
        timestep_bins=list(EDGES),
    )
    folder, checkpoint = tmp_path_factory.mktemp("uniform"), build(config, 0)
    save(checkpoint, folder / "ckpt")
    export(checkpoint, folder / "model.onnx")
    return folder


def test_a_checkpoint_of_four_bits_lists_its_bits_and_tables(uniform, capsys):
    outcome = inspect(uniform / "ckpt")
    tables = outcome.details["tables"]
    assert {row["bits"] for row in tables["Layers"]} == {"W4A4", "W8A8"}
    assert outcome.figures["macs.W4A4"] > outcome.figures["macs.W8A8"] > 0
    conv = next(row for row in tables["Layers"] if row["layer"] == "mid_block.resnets.0.conv1")
    assert 16 * 16 * 9 / 2 < conv["bytes"] < 16 * 16 * 9  # half a byte a weight, steps and tables beside it
    assert {row["bits"] for row in tables["Attention operands"]} == {"A4", "A8"}
    steps = [row for row in tables["Per-timestep tables"] if row["table"].endswith("step")]
    assert len(steps) > 40 and all(row["bins"] == "4 from 0 to 700" and row["least"] < row["most"] for row in steps)
    render(outcome)
    assert "W4A4" in capsys.readouterr().out


def test_a_graph_of_four_bits_lists_its_weights_and_tables(uniform):
    tables = inspect(uniform / "model.onnx").details["tables"]
    conv = next(row for row in tables["Quantised weights"] if row["module"] == "mid_block.resnets.0.conv1")
    assert (conv["dtype"], conv["shape"], conv["bytes"]) == ("uint4", "16x16x3x3", 16 * 16 * 9 / 2)
    assert {row["dtype"] for row in tables["Quantised weights"]} == {"uint4", "uint8"}
    assert all(row["rows"] == 4 and row["to"] == 700 for row in tables["Per-timestep tables"])


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


def test_a_bundle_names_what_no_fast_kernel_serves(uniform, tmp_path, capsys):
    from edgedm.lower import compile as compile_graph
    from edgedm.passes import optimize

    optimize(uniform / "model.onnx", tmp_path / "deploy.onnx")
    graph = inspect(tmp_path / "deploy.onnx").details["tables"]["Quantised weights"]
    assert {(row["read by"], row["dtype"]) for row in graph} >= {("QuantConv", "uint4"), ("QuantGemm", "uint4")}
    compiled = compile_graph(tmp_path / "deploy.onnx", tmp_path / "fast.bundle")
    fast = inspect(tmp_path / "fast.bundle")
    assert fast.figures["slow"] == compiled.figures["slow"] == len(compiled.details["slow"])
    slow = compile_graph(tmp_path / "deploy.onnx", tmp_path / "plain.bundle", target="x86-64")
    assert slow.figures["slow"] > fast.figures["slow"]  # no instructions of that level multiply bytes
    render(inspect(tmp_path / "plain.bundle"))
    shown = capsys.readouterr().out
    assert all(line in shown for line in slow.details["slow"])
