"""`verify` on a graph bites: a right graph holds at every level, each of these faults is found and its layer named."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from onnx import numpy_helper
from w4a4_model import w4a4_checkpoint

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export import export
from edgedm.outcome import Outcome
from edgedm.passes import optimize
from edgedm.verify import verify
from edgedm.verify.cut import path_of

STEPS = 10
LAYER = "mid_block.resnets.1.conv2"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(path of the graph, checkpoint)."""
    checkpoint = w4a4_checkpoint()
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export(checkpoint, path)
    return path, checkpoint


@pytest.fixture
def broken(exported, tmp_path):
    """broken(edit): the graph after `edit(proto, {constant's name: array})`; arrays that changed are written back."""

    def make(edit):
        proto = onnx.load(exported[0])
        tensors = {item.name: item for item in proto.graph.initializer}
        arrays = {name: numpy_helper.to_array(item).copy() for name, item in tensors.items()}
        before = {name: array.copy() for name, array in arrays.items()}
        edit(proto, arrays)
        for name, array in arrays.items():
            if not np.array_equal(array, before[name]):
                tensors[name].CopyFrom(numpy_helper.from_array(array, name))
        path = tmp_path / "broken.onnx"
        onnx.save(proto, path)
        return path

    return make


def check(path, exported, *levels: str) -> Outcome:
    return verify(path, exported[1], levels=levels, steps=STEPS, timesteps=4, bisect=False)


def off(outcome: Outcome) -> dict[str, list[str]]:
    """Level -> its rows that are off, as `name: what`."""
    return {
        level["name"]: [f"{row['name']}: {row['note']}" for row in level["rows"] if not row["ok"]]
        for level in outcome.details["levels"]
    }


def test_a_right_graph_holds_at_every_level(exported) -> None:
    outcome = verify(*exported, steps=STEPS)
    assert outcome.ok, outcome.details["first_failure"]
    assert [level["name"] for level in outcome.details["levels"]] == ["weights", "layer", "step", "trajectory"]
    assert outcome.figures["layer.layers.fused"] == 0
    quantised = [name for name, _ in exported[1].module.unet.named_modules() if name.endswith(".activation")]
    assert outcome.figures["layer.layers"] > len(quantised) > 40
    labels = exported[1].config.null_class + 1
    assert outcome.figures["step.rows"] == STEPS + labels  # every step and every label has a test of its own
    assert 0 < outcome.figures["layer.worst_use_of_bound"] <= 1


def test_one_flipped_nibble_is_found_in_its_layer(exported, broken) -> None:
    def edit(_proto, arrays) -> None:
        codes = arrays[f"{LAYER}.codes"]
        codes[3, 2, 1, 0] = (int(codes[3, 2, 1, 0]) ^ 8) & 15

    outcome = check(broken(edit), exported, "weights", "layer", "step")
    rows = off(outcome)
    assert outcome.details["first_failure"]["where"] == f"QuantLayer {LAYER}"
    assert len(rows["weights"]) == 1 and "weight code [3, 2, 1, 0]: expected" in rows["weights"][0]
    assert len(rows["layer"]) == 1 and f"{LAYER}: step 0, image 0: product" in rows["layer"][0]
    assert rows["step"]  # not every step: the 4-bit quantisers behind may swallow it in one of the ten runs


def test_a_table_shifted_by_a_row_is_found(exported, broken) -> None:
    def edit(_proto, arrays) -> None:
        arrays[f"{LAYER}.activation.table"][:] = np.roll(arrays[f"{LAYER}.activation.table"], 1, axis=0)

    rows = off(check(broken(edit), exported, "weights", "layer", "step"))
    assert len(rows["weights"]) == 1 and f"{LAYER}: activation step of row 0 at timestep" in rows["weights"][0]
    assert len(rows["layer"]) == 1 and f"{LAYER}: step" in rows["layer"][0] and "activation: " in rows["layer"][0]
    assert rows["step"]


def test_a_lookup_that_is_one_timestep_off_is_found(exported, broken) -> None:
    def edit(_proto, arrays) -> None:
        edges = next(array for name, array in arrays.items() if name.endswith("edges"))
        edges[2] += 1

    rows = off(check(broken(edit), exported, "weights"))["weights"]
    assert rows and all("of row 2 at timestep 500" in row for row in rows)


def test_a_table_of_another_layer_is_found(exported, broken) -> None:
    def edit(proto, _arrays) -> None:
        (node,) = [node for node in proto.graph.node if node.input[0] == f"{LAYER}.activation.table"]
        node.input[0] = "mid_block.resnets.1.conv1.activation.table"

    outcome = check(broken(edit), exported, "weights", "layer")
    assert all(len(rows) == 1 and LAYER in rows[0] for rows in off(outcome).values())


@pytest.mark.parametrize("row", [0, 3])
def test_a_zero_point_off_by_one_is_found(exported, broken, row: int) -> None:
    def edit(_proto, arrays) -> None:
        zero = arrays["up_blocks.0.resnets.0.conv1.activation.table"][row, 1:]
        zero += 1 if zero < 15 else -1

    rows = off(check(broken(edit), exported, "weights"))["weights"]
    assert len(rows) == 1 and f"activation zero point of row {row}" in rows[0]


@pytest.mark.parametrize("name", ["conv_in.activation.zero", f"{LAYER}.zero"])
def test_a_constant_zero_point_off_by_one_is_found(exported, broken, name: str) -> None:
    def edit(_proto, arrays) -> None:
        flat = arrays[name].reshape(-1)
        flat[0] = int(flat[0]) - 1 if int(flat[0]) else 1

    rows = off(check(broken(edit), exported, "weights"))["weights"]
    assert len(rows) == 1 and "zero point" in rows[0] and name.split(".zero")[0].removesuffix(".activation") in rows[0]


@pytest.mark.parametrize("name", [f"{LAYER}.step", "conv_out.activation.step", f"{LAYER}.dilation", f"{LAYER}.bias"])
def test_a_changed_scale_is_found(exported, broken, name: str) -> None:
    def edit(_proto, arrays) -> None:
        flat = arrays[name].reshape(-1)
        flat[0] *= np.float32(1.1)

    # one channel's codes may stay as they are at the four timesteps that are the default
    outcome = verify(broken(edit), exported[1], levels=("weights", "layer"), steps=STEPS, timesteps=STEPS)
    layer = name.removesuffix(".activation.step").rsplit(".", 1)[0] if "conv_out" not in name else "conv_out"
    for rows in off(outcome).values():
        assert len(rows) == 1 and layer in rows[0]


def test_swapped_heads_are_found(exported, broken) -> None:
    name = "mid_block.attentions.0.processor.quantizers.key"

    def edit(_proto, arrays) -> None:
        table = arrays[f"{name}.table"]
        table[:] = table[:, [1, 0, 3, 2]]

    outcome = check(broken(edit), exported, "weights", "layer")
    assert all(len(rows) == 1 and name in rows[0] for rows in off(outcome).values())


def test_a_quantiser_that_was_left_out_is_found(exported, broken) -> None:
    def edit(proto, _arrays) -> None:
        nodes = [node for node in proto.graph.node if path_of(node) == f"{LAYER}.activation"]
        x = next(node.input[0] for node in nodes if node.op_type == "QuantizeLinear")
        y = next(node.output[0] for node in nodes if node.op_type == "DequantizeLinear")
        for node in proto.graph.node:
            if y in node.input:
                node.input[list(node.input).index(y)] = x

    outcome = check(broken(edit), exported, "weights", "layer")
    assert "no QuantizeLinear" in outcome.details["first_failure"]["what"]
    missing = "the graph doesn't have this layer by itself"
    assert off(outcome)["layer"] == [f"QuantLayer {LAYER}: step 0, image 0: {missing}"]


def test_float_weights_are_compared_too(exported, broken) -> None:
    def edit(_proto, arrays) -> None:
        arrays["conv_norm_out.bias"][0] += np.float32(1e-3)

    outcome = check(broken(edit), exported, "weights", "step")
    assert off(outcome)["weights"] and "conv_norm_out.bias" in off(outcome)["weights"][0]


def test_a_checkpoint_of_another_model_is_refused(exported) -> None:
    other = w4a4_checkpoint(edges=(0, 100))
    with pytest.raises(InvalidModelError, match="timestep_bins differ"):
        verify(exported[0], other)


@pytest.mark.parametrize("level", ["step", "trajectory"])
def test_so_few_images_that_no_fault_could_show_are_refused(exported, level: str) -> None:
    with pytest.raises(UnsupportedError, match="expected at least 10, with which a fault shows, got 9"):
        verify(*exported, levels=[level], steps=STEPS, images=9)


def test_the_levels_of_a_bundle_are_refused(exported) -> None:
    with pytest.raises(UnsupportedError, match="levels: of a graph there are weights"):
        verify(*exported, levels=["op"])


@pytest.fixture(scope="module")
def optimised(exported):
    """The graph after all passes, each checked."""
    path = exported[0].with_name("deploy.onnx")
    outcome = optimize(exported[0], path, check=True)
    assert outcome.ok, outcome.details
    return path


def test_an_optimised_graph_holds_with_its_weights_still_packed(exported, optimised) -> None:
    outcome = verify(optimised, exported[1], steps=STEPS)
    assert outcome.ok, outcome.details["first_failure"]
    figures = outcome.figures
    assert figures["layer.layers.fused"] == figures["layer.products.fused"] == 0
    assert 0 < figures["layer.quantisers.fused"] < figures["layer.layers"]  # those behind a norm


@pytest.mark.slow
def test_a_table_of_an_optimised_graph_shifted_by_a_row_is_found(exported, optimised, tmp_path) -> None:
    for path in (optimised, optimised.with_suffix(".prepare.onnx")):
        shutil.copyfile(path, tmp_path / path.name)
    prepare = onnx.load(tmp_path / "deploy.prepare.onnx")
    own = exported[1].module.unet.get_submodule(f"{LAYER}.activation").table.numpy()
    (joined,) = [item for item in prepare.graph.initializer if item.name == "tables"]
    tables = numpy_helper.to_array(joined).copy()
    tables[:, tiny.column_of(own[:, 0], tables)] = np.roll(own[:, 0], 1)
    joined.CopyFrom(numpy_helper.from_array(tables, joined.name))
    onnx.save(prepare, tmp_path / "deploy.prepare.onnx")
    rows = off(check(tmp_path / "deploy.onnx", exported, "weights", "layer"))
    assert all(len(each) == 1 and LAYER in each[0] for each in rows.values())


@pytest.mark.slow
def test_a_constant_that_differs_between_step_and_prepare_graph_is_refused(exported, optimised, tmp_path) -> None:
    for path in (optimised, optimised.with_suffix(".prepare.onnx")):
        shutil.copyfile(path, tmp_path / path.name)
    step, prepare = (onnx.load(tmp_path / name) for name in ("deploy.onnx", "deploy.prepare.onnx"))
    extra = numpy_helper.from_array(np.zeros(3, np.float32), "shared")
    prepare.graph.initializer.append(extra)
    step.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "shared"))
    onnx.save(step, tmp_path / "deploy.onnx")
    onnx.save(prepare, tmp_path / "deploy.prepare.onnx")
    with pytest.raises(InvalidModelError, match="'shared': the prepare graph holds something else"):
        check(tmp_path / "deploy.onnx", exported, "weights")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "what", "levels"),
    [
        ("down_blocks.0.downsamplers.0.conv", "codes.last", ("weights", "layer")),
        ("down_blocks.0.downsamplers.0.conv", "codes.zero", ("weights", "layer")),
        ("down_blocks.0.downsamplers.0.conv", "step", ("weights", "layer")),
        (LAYER, "dilation.divisor", ("weights",)),  # of a quantiser inside a norm
    ],
)
def test_a_changed_constant_of_a_fused_layer_is_found(exported, optimised, tmp_path, layer, what, levels) -> None:
    shutil.copyfile(optimised.with_suffix(".prepare.onnx"), tmp_path / "deploy.prepare.onnx")
    step = onnx.load(optimised)
    (tensor,) = [item for item in step.graph.initializer if item.name == f"{layer}.{what}"]
    array = numpy_helper.to_array(tensor).copy()
    flat = array.reshape(-1)
    if what == "dilation.divisor":
        flat[:] = np.roll(flat, 1)
    else:
        flat[0] = flat[0] * 1.1 if what == "step" else int(flat[0]) ^ 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(step, tmp_path / "deploy.onnx")
    rows = off(check(tmp_path / "deploy.onnx", exported, *levels))
    assert all(len(each) == 1 and layer in each[0] for each in rows.values()), rows


def edited(optimised, folder, change) -> Path:
    """A copy of an optimised graph after `change(its step graph)`."""
    shutil.copyfile(optimised.with_suffix(".prepare.onnx"), folder / "deploy.prepare.onnx")
    step = onnx.load(optimised)
    change(step.graph)
    onnx.save(step, folder / "deploy.onnx")
    return folder / "deploy.onnx"


DOWN = "down_blocks.0.downsamplers.0.conv"
ATTENTION = "mid_block.attentions.0"
PROJECTIONS = [f"{ATTENTION}.{name}" for name in ("to_q", "to_k", "to_v")]


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """(optimised graph, checkpoint) of a model whose projections share a dilation, which goes into the norm before."""
    checkpoint = w4a4_checkpoint()
    projections = [checkpoint.module.unet.get_submodule(path) for path in PROJECTIONS]
    dilation = 1 + torch.rand(projections[0].in_channels, generator=torch.Generator().manual_seed(0))
    for layer in projections:
        layer.dilation = dilation.clone()
    down = checkpoint.module.unet.get_submodule(DOWN)  # no norm before it
    down.dilation = 1 + torch.rand(down.in_channels, generator=torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("folded")
    export(checkpoint, folder / "model.onnx")
    outcome = optimize(folder / "model.onnx", folder / "deploy.onnx")
    assert outcome.figures["FoldWeightDilation.channels.norm"] > 0
    return folder / "deploy.onnx", checkpoint


@pytest.mark.slow
def test_a_dilation_that_was_divided_into_a_norm_holds(folded) -> None:
    outcome = check(folded[0], folded, "weights", "layer", "step")
    assert outcome.ok, outcome.details["first_failure"]


@pytest.mark.slow
@pytest.mark.parametrize("layer", [DOWN, LAYER])
def test_a_missing_dilation_is_found(folded, tmp_path, layer) -> None:
    def change(graph) -> None:
        (divisor,) = [item for item in graph.initializer if item.name.startswith(f"{layer}.dilation")]
        divisor.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), divisor.name))
        for typed in [item for item in graph.value_info if item.name == divisor.name]:
            graph.value_info.remove(typed)

    alone = layer != LAYER  # the other's quantiser is inside a norm, and has no input of its own
    rows = off(check(edited(folded[0], tmp_path, change), folded, "weights", *(["layer"] if alone else [])))
    assert rows["weights"] == [f"QuantLayer {layer}: its dilation is missing"]
    assert not alone or (len(rows["layer"]) == 1 and f"{layer}: step" in rows["layer"][0])


@pytest.mark.slow
@pytest.mark.parametrize(("what", "suffix"), [("weight", "gamma"), ("bias", "beta")])
def test_a_norm_that_was_not_divided_by_the_dilation_behind_it_is_found(folded, tmp_path, what, suffix) -> None:
    norm = f"{ATTENTION}.group_norm"
    own = folded[1].module.unet.get_submodule(norm).get_parameter(what).detach().numpy()

    def change(graph) -> None:
        (divided,) = [item for item in graph.initializer if item.name == f"{norm}.{what}.{suffix}"]
        divided.CopyFrom(numpy_helper.from_array(own, divided.name))

    rows = off(check(edited(folded[0], tmp_path, change), folded, "weights"))["weights"]
    assert [row.split(": ")[0] for row in rows] == [f"QuantLayer {path}" for path in PROJECTIONS]
    assert all(f"{norm}.{what} / dilation [" in row for row in rows)


@pytest.mark.slow
def test_a_dilation_whose_norm_is_passed_by_is_found(folded, tmp_path) -> None:
    def change(graph) -> None:
        (norm,) = [node for node in graph.node if f"{ATTENTION}.group_norm.weight.gamma" in node.input]
        for node in graph.node:
            if node.input[0] == norm.output[0]:
                node.input[0] = norm.input[0]

    rows = off(check(edited(folded[0], tmp_path, change), folded, "weights"))["weights"]
    assert rows == [f"QuantLayer {path}: its dilation is missing" for path in PROJECTIONS]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bidm", "binarydm"])
def test_graphs_of_binary_models_hold_too(method: str, tmp_path) -> None:
    checkpoint = tiny.checkpoint(method)
    export(checkpoint, tmp_path / "model.onnx")
    outcome = verify(tmp_path / "model.onnx", checkpoint, steps=STEPS)
    assert outcome.ok, outcome.details["first_failure"]
    assert outcome.figures["layer.layers"] >= 30 and outcome.figures["layer.layers.fused"] == 0


BINARY = "mid_block.resnets.0.conv1"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scale", "threshold"])
def test_a_changed_constant_of_a_binary_layer_is_found(name: str, tmp_path) -> None:
    checkpoint = tiny.checkpoint("bidm")
    export(checkpoint, tmp_path / "model.onnx")
    assert not off(verify(tmp_path / "model.onnx", checkpoint, levels=["weights"]))["weights"]
    proto = onnx.load(tmp_path / "model.onnx")
    (constant,) = [item for item in proto.graph.initializer if item.name == f"{BINARY}.{name}"]
    array = numpy_helper.to_array(constant).copy()
    array.reshape(-1)[2] += np.float32(0.125)
    constant.CopyFrom(numpy_helper.from_array(array, constant.name))
    onnx.save(proto, tmp_path / "model.onnx")
    rows = off(verify(tmp_path / "model.onnx", checkpoint, levels=["weights"]))["weights"]
    assert len(rows) == 1 and f"BinaryConv2d {BINARY}: {BINARY}.{name} [2]: expected" in rows[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sibling"),
    [
        ("zoo:digits-bidm-w1a1", "down_blocks.1.resnets.0.time_emb_proj"),
        ("zoo:digits-binarydm-w1a4", "mid_block.attentions.0.to_k"),
    ],
)
def test_layers_that_share_what_they_make_of_their_input_are_judged(tmp_path, name, sibling) -> None:
    """Equal thresholds or steps of one input are one node of the graph, which only the first layer has by itself."""
    export(name, tmp_path / "model.onnx")
    outcome = verify(tmp_path / "model.onnx", name, levels=("layer",), timesteps=1, bisect=False)
    assert outcome.ok, outcome.details["first_failure"]
    proto = onnx.load(tmp_path / "model.onnx")
    bits = next(item for item in proto.graph.initializer if item.name == f"{sibling}.bits")
    bits.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bits) ^ 1, bits.name))
    onnx.save(proto, tmp_path / "broken.onnx")
    wrong = off(verify(tmp_path / "broken.onnx", name, levels=("layer",), timesteps=1, bisect=False))["layer"]
    assert len(wrong) == 1 and sibling in wrong[0]
