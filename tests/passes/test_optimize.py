import json
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pass_testing import run, text_of
from safetensors.numpy import load_file

import edgedm
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.graph_io import graph_info, load_graph
from edgedm.passes import PIPELINE, Schedule, optimize, run_passes
from edgedm.passes.split_prepare import PREPARE

METHODS = ["fp32", "bidm", "binarydm", "w4a4"]
PASSES = [make(Schedule()).name for make in PIPELINE]

EPS_TOLERANCE = 1e-3
"""Of the largest |eps|: no code flips on these golden inputs, and rounding grows to about 1e-5 over the layers."""


@pytest.fixture(scope="module")
def deployed(exports, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed")
    return {name: (optimize(path, folder / f"{name}.onnx"), folder / f"{name}.onnx") for name, path in exports.items()}


def ops_of(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("method", METHODS)
def test_the_optimised_graphs_compute_what_torch_computed(method, exports, deployed):
    _, path = deployed[method]
    golden = load_file(path.with_suffix(".golden.safetensors"))
    step, prepare = load_graph(path), load_graph(path.with_suffix(".prepare.onnx"))
    for index in (0, 49):
        feeds = {
            name.removeprefix(f"step.{index}."): value for name, value in golden.items() if f"step.{index}." in name
        }
        rows = run(prepare, {value.name: feeds[value.name] for value in prepare.graph.inputs})
        feeds |= dict(zip([value.name for value in prepare.graph.outputs], rows, strict=True))
        outputs = run(step, {value.name: feeds[value.name] for value in step.graph.inputs})
        for value, output in zip(step.graph.outputs, outputs, strict=True):
            expected = feeds[value.name]
            assert np.abs(output - expected).max() <= EPS_TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("method", METHODS)
def test_every_pass_of_every_model_passes_the_check(method, exports, tmp_path):
    outcome = optimize(exports[method], tmp_path / "deploy.onnx", check=True)
    assert outcome.ok, outcome.details.get("broken")
    assert [verdict["name"] for verdict in outcome.details["check"]] == PASSES
    assert all(verdict["identical"] == verdict["regions"] for verdict in outcome.details["check"] if verdict["exact"])


def test_no_low_bit_layer_is_left_in_float(exports, deployed):
    bidm, binarydm = ops_of(deployed["bidm"][1]), ops_of(deployed["binarydm"][1])
    for ops in (bidm, binarydm):
        assert not {"UnpackBits", "UnpackBitsLinear", "Binarize", "TimestepLookup", "GroupNormalization"} & set(ops)
    assert bidm["Conv"] == ops_of(exports["bidm"])["Conv"] - bidm["BinaryConv"]
    assert binarydm["Conv"] == 2  # conv_in, conv_out
    assert binarydm["Add"] == 0  # every residual is fused
    assert binarydm["GroupNormSiluQuantize"] == 2 * 8  # both norms of eight residual blocks


def test_every_layer_and_product_of_a_uniform_model_is_one_of_integers(exports, deployed):
    outcome, path = deployed["w4a4"]
    step, prepare, exported = ops_of(path), ops_of(path.with_suffix(".prepare.onnx")), ops_of(exports["w4a4"])
    both = step + prepare
    float_ops = {"Conv", "MatMul", "Gemm", "QuantizeLinear", "DequantizeLinear", "Clip", "Div", "Add"}
    assert not float_ops & set(step) and not (float_ops - {"Div", "Add"}) & set(both)
    assert both["QuantMatMul"] == 2 * exported["Softmax"] and both["QuantConv"] == exported["Conv"]
    assert both["QuantGemm"] == exported["MatMul"] + exported["Gemm"] - both["QuantMatMul"]
    assert step["GroupNormSiluQuantizeUniform"] == exported["GroupNormalization"] - step["GroupNorm"]
    assert outcome.figures["FoldWeightDilation.channels.quantiser"] > 0 and not outcome.details["refusals"]
    tables = [node for node in load_graph(path.with_suffix(".prepare.onnx")).graph if node.op_type == "Gather"]
    assert sum(node.inputs[0].const_value is not None for node in tables) == 3  # numbers, bytes, class embedding
    types = {value.dtype for node in load_graph(path).graph for value in node.outputs}
    assert types <= {ir.DataType.FLOAT, ir.DataType.UINT8}


def test_interfaces_and_roles_of_both_graphs(deployed):
    _, path = deployed["bidm"]
    step, prepare = load_graph(path), load_graph(path.with_suffix(".prepare.onnx"))
    roles = graph_info(step).inputs
    assert list(roles)[:4] == ["x", "has_state", "state.up_blocks.0.upsamplers.0", "state.up_blocks.1.resnets.1"]
    assert {role for name, role in roles.items() if name.startswith("row.")} == {"row"}
    assert [value.name for value in prepare.graph.inputs] == ["timestep", "class_labels"]
    assert [value.name for value in prepare.graph.outputs] == [name for name in roles if name.startswith("row.")]


def test_every_node_of_the_deployed_graph_names_its_module(exports, deployed):
    known = {node.metadata_props["edgedm.module"] for node in load_graph(exports["bidm"]).graph}
    for node in load_graph(deployed["bidm"][1]).graph:
        assert node.metadata_props["edgedm.module"] in known
        if node.op_type == "BinaryConv":
            assert node.metadata_props["edgedm.module"].rpartition(".")[2] in ("conv1", "conv2", "conv")


def test_the_pipeline_run_on_its_own_result_changes_nothing(exports):
    model = load_graph(exports["bidm"])
    run_passes(model)
    step, prepare = text_of(model), text_of(model.meta[PREPARE])
    results = run_passes(model)
    assert text_of(model) == step
    assert text_of(model.meta[PREPARE]) == prepare
    assert not any(report.rewritten for _, report in results)


def test_equal_inputs_give_equal_bytes(exports, deployed, tmp_path):
    optimize(exports["bidm"], tmp_path / "again.onnx")
    for suffix in (".onnx", ".prepare.onnx", ".golden.safetensors"):
        first = deployed["bidm"][1].with_suffix(suffix)
        assert (tmp_path / "again.onnx").with_suffix(suffix).read_bytes() == first.read_bytes()


def test_figures_tell_nodes_and_rewrites_of_every_pass(deployed):
    figures = deployed["bidm"][0].figures
    assert figures["nodes.exported"] > figures["nodes.SplitPrepare"]
    for name in PASSES:
        assert {f"nodes.{name}", f"rewritten.{name}", f"refused.{name}"} <= set(figures)
    assert figures["LookupTimestepParameters.bins.total"] == 3
    assert json.dumps(deployed["bidm"][0].details)


def test_the_dump_holds_a_valid_graph_after_every_pass(exports, tmp_path):
    optimize(exports["bidm"], tmp_path / "deploy.onnx", dump=tmp_path / "dump")
    expected = ["00-exported.onnx", *(f"{number:02}-{name}.onnx" for number, name in enumerate(PASSES, 1))]
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == sorted(
        [*expected, f"{len(PASSES):02}-SplitPrepare.prepare.onnx"]
    )
    for path in (tmp_path / "dump").iterdir():
        load_graph(path)


def test_without_golden_data_random_inputs_are_checked(exports, tmp_path):
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(exports["fp32"].read_bytes())
    outcome = optimize(alone, tmp_path / "deploy.onnx", check=True)
    assert outcome.ok
    assert not (tmp_path / "deploy.golden.safetensors").exists()


def test_a_schedule_outside_the_trained_bins_is_refused_and_nothing_is_written(exports, tmp_path):
    model = onnx.load(exports["bidm"])
    (edges,) = [item for item in model.graph.initializer if item.name.endswith("edges")]
    edges.CopyFrom(onnx.numpy_helper.from_array(np.array([10, 100, 500]), edges.name))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match=r"LookupTimestepParameters: .*\[0\]"):
        optimize(tmp_path / "model.onnx", tmp_path / "deploy.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_optimised_graph_is_not_optimised_again(deployed, tmp_path):
    with pytest.raises(InvalidModelError, match="level 'deployed'"):
        optimize(deployed["bidm"][1], tmp_path / "again.onnx")


def test_golden_data_of_another_model_are_an_error(exports, tmp_path):
    (tmp_path / "model.onnx").write_bytes(exports["bidm"].read_bytes())
    golden = exports["fp32"].with_suffix(".golden.safetensors").read_bytes()
    (tmp_path / "model.golden.safetensors").write_bytes(golden)
    with pytest.raises(InvalidModelError, match=r"model\.golden\.safetensors: tensor .* is missing"):
        optimize(tmp_path / "model.onnx", tmp_path / "deploy.onnx", check=True)
    (tmp_path / "model.golden.safetensors").write_bytes(golden[:100])
    with pytest.raises(InvalidModelError, match="golden data"):
        optimize(tmp_path / "model.onnx", tmp_path / "deploy.onnx", check=True)


@pytest.mark.parametrize("options", [{"sampler": "euler"}, {"steps": 0}, {"steps": 1001}])
def test_an_unknown_schedule_is_refused(exports, tmp_path, options):
    with pytest.raises(UnsupportedError, match=r"sampler|steps"):
        optimize(exports["fp32"], tmp_path / "deploy.onnx", **options)


def test_the_public_function_is_the_verb():
    assert edgedm.optimize is optimize
