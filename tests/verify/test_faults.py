"""`verify` bites: each of these faults leaves a bundle that loads and samples, and each is found."""

import faults
import numpy as np
import onnx
import pytest
import tiny

from edgedm.bundle import Manifest, Operand
from edgedm.errors import InvalidModelError
from edgedm.outcome import Outcome
from edgedm.targets.kernels import code_product, mathematics
from edgedm.targets.kernels.builder import cast, const
from edgedm.targets.kernels.dot_image import Image
from edgedm.targets.kernels.tiles import Border
from edgedm.verify import main, verify

STEPS = 10
METHODS = ["bidm", *(pytest.param(method, marks=pytest.mark.slow) for method in ("binarydm", "w4a4"))]


def check(path, method: str, *levels: str) -> Outcome:
    return verify(path, tiny.checkpoint(method), levels=levels, steps=STEPS, timesteps=4, bisect=False)


def off(outcome: Outcome) -> dict[str, list[str]]:
    """Level -> its rows that are off, as `name: what`."""
    assert not outcome.ok
    return {
        level["name"]: [f"{row['name']}: {row['note']}" for row in level["rows"] if not row["ok"]]
        for level in outcome.details["levels"]
    }


def operand(manifest: Manifest, name: str) -> Operand:
    """The constant `name`, where a kernel reads it."""
    return next(o for node in manifest.nodes for o in node.inputs if o.name == name and o.source == "weights")


@pytest.mark.parametrize("method", METHODS)
def test_a_right_bundle_holds_at_every_level(bundle, method) -> None:
    outcome = check(bundle(method), method, "op", "pass", "layer", "step", "trajectory")
    assert outcome.ok, outcome.details["first_failure"]
    assert outcome.figures["layer.low_bit_layers"] > 15
    assert outcome.figures["layer.accumulators"] >= 3 * outcome.figures["layer.low_bit_layers"]
    assert outcome.figures["op.accumulators"] > 5


def test_sign_of_zero_being_minus_one_is_found(bundle, tmp_path) -> None:
    def edit(weights: np.ndarray, manifest) -> None:
        """x + threshold > 0 in place of >= 0: thresholds one unit in the last place lower."""
        for operand in {
            o.offset: o for n in manifest.nodes if n.op.startswith("PackBits") for o in n.inputs[1:]
        }.values():
            place = weights[operand.offset : operand.offset + 4 * operand.shape[0]].view(np.float32)
            place[:] = np.nextafter(place, np.float32(-np.inf))

    broken = faults.copy(bundle("bidm"), tmp_path / "b")
    faults.change_weights(broken, edit)
    rows = off(check(broken, "bidm", "op"))["op"]
    assert rows and all("edges of the sign" in row and "expected 1, got 0" in row for row in rows)


def test_one_flipped_weight_bit_is_found_in_its_layer(bundle, tmp_path) -> None:
    found = {}

    def edit(weights: np.ndarray, manifest) -> None:
        node = [node for node in manifest.nodes if node.op == "BinaryConv"][3]
        found["module"] = node.module
        weights[node.inputs[1].offset + 5] ^= 1 << 3

    broken = faults.copy(bundle("bidm"), tmp_path / "b")
    faults.change_weights(broken, edit)
    outcome = check(broken, "bidm", "layer")
    rows = off(outcome)["layer"]
    assert len(rows) == 1 and found["module"] in rows[0] and "expected" in rows[0] and "got" in rows[0]
    assert found["module"] in outcome.details["first_failure"]["where"]


def test_a_table_shifted_by_one_row_is_found(bundle, tmp_path) -> None:
    table = tiny.checkpoint("bidm").module.cache_coefficients.detach().numpy()

    def edit(weights: np.ndarray, _manifest) -> None:
        at = weights.tobytes().index(table.tobytes())
        weights[at : at + table.nbytes] = np.roll(table, 1, axis=0).reshape(-1).view(np.uint8)

    broken = faults.copy(bundle("bidm"), tmp_path / "b")
    faults.change_weights(broken, edit)
    rows = off(check(broken, "bidm", "layer", "step"))
    assert any("row" in row or "prepare" in row for row in rows["layer"])
    assert any(row.startswith("eps, step 9") for row in rows["step"])


def test_a_forgotten_carried_state_is_found(bundle, tmp_path) -> None:
    broken = faults.copy(bundle("bidm"), tmp_path / "b")
    faults.change_runtime(broken, "session.c", "  lane->current = 1 - lane->current;\n", "")
    rows = off(check(broken, "bidm", "step", "trajectory"))
    assert any(".next" in row for row in rows["step"])
    assert any(row.startswith("after step") for row in rows["trajectory"])


def test_a_dropped_padding_correction_is_found(deployed, monkeypatch) -> None:
    missing_taps = Border.missing_taps
    monkeypatch.setattr(Border, "missing_taps", lambda self: [(number, ()) for number, _ in missing_taps(self)])
    rows = off(check(tiny.bundle(deployed("bidm"), "unpadded.bundle"), "bidm", "op", "layer"))
    assert rows["op"] and rows["layer"]
    assert all("BinaryConv" in row and "first at [0, 0, 0, " in row for row in rows["op"] + rows["layer"])  # the corner


def round_half_up(monkeypatch) -> None:
    """Let kernels round ties up instead of to even."""
    nearest = mathematics.nearest

    def half_up(x, lanes: int):
        shifted = x + const(0.5, "float32", lanes)
        whole = nearest(shifted, lanes)
        return whole - cast(cast(whole, "float32", lanes) > shifted, "int32", lanes)

    monkeypatch.setattr(mathematics, "nearest", half_up)


@pytest.mark.slow
def test_rounding_half_up_is_found(deployed, monkeypatch) -> None:
    round_half_up(monkeypatch)
    rows = off(check(tiny.bundle(deployed("binarydm"), "half_up.bundle"), "binarydm", "op"))["op"]
    assert any("QuantizeCodes" in row and "ties: " in row for row in rows)
    assert any("GroupNormSiluQuantize" in row and "norm on ties: " in row for row in rows)


LAYER = "mid_block.resnets.1.conv2"
"""A dilated 3x3 convolution of the W4A4 model, on a grid from a table."""


def test_one_changed_weight_code_is_found_in_its_layer(bundle, tmp_path) -> None:
    def edit(weights: np.ndarray, manifest) -> None:
        weights[operand(manifest, f"{LAYER}.codes.last").offset + 5] ^= 1

    broken = faults.copy(bundle("w4a4"), tmp_path / "b")
    faults.change_weights(broken, edit)
    outcome = check(broken, "w4a4", "layer")
    rows = off(outcome)["layer"]
    assert len(rows) == 1 and LAYER in rows[0] and "expected" in rows[0] and "got" in rows[0]
    assert LAYER in outcome.details["first_failure"]["where"]


@pytest.mark.slow
def test_zero_points_of_the_next_timesteps_are_found(bundle, tmp_path) -> None:
    own = tiny.checkpoint("w4a4").module.unet.get_submodule(f"{LAYER}.activation").table.numpy()
    constants = {each.name: each for each in onnx.load(bundle("w4a4") / "golden/prepare.onnx").graph.initializer}
    steps, zeros = (onnx.numpy_helper.to_array(constants[name]) for name in ("tables", "tables.bytes"))
    column = tiny.column_of(own[:, 0], steps)
    assert np.array_equal(zeros[:, column], own[:, 1])

    def edit(weights: np.ndarray, _manifest) -> None:
        shifted = zeros.copy()
        shifted[:, column] = np.roll(shifted[:, column], 1)
        at = weights.tobytes().index(zeros.tobytes())
        weights[at : at + zeros.nbytes] = shifted.reshape(-1)

    broken = faults.copy(bundle("w4a4"), tmp_path / "b")
    faults.change_weights(broken, edit)
    rows = off(check(broken, "w4a4", "layer", "step"))
    assert len(rows["layer"]) == 1 and "expected" in rows["layer"][0]
    assert rows["step"]


@pytest.mark.slow
def test_dilations_of_the_wrong_channels_are_found(bundle, tmp_path) -> None:
    def edit(weights: np.ndarray, manifest) -> None:
        place = operand(manifest, f"{LAYER}.dilation.divisor")
        dilation = weights[place.offset : place.offset + 4 * place.shape[0]].view(np.float32)
        dilation[:] = np.roll(dilation, 1)

    broken = faults.copy(bundle("w4a4"), tmp_path / "b")
    faults.change_weights(broken, edit)
    rows = off(check(broken, "w4a4", "op", "layer"))
    assert len(rows["layer"]) == 1 and "GroupNormSiluQuantizeUniform" in rows["layer"][0]


@pytest.mark.slow
def test_one_slightly_changed_dilation_is_found_whatever_its_channel_carries(bundle, tmp_path) -> None:
    """A tenth more changes no code of most inputs: what a kernel reads is held against the graph too."""

    def edit(weights: np.ndarray, manifest) -> None:
        place = operand(manifest, f"{LAYER}.dilation.divisor")
        dilation = weights[place.offset : place.offset + 4 * place.shape[0]].view(np.float32)
        dilation[3] *= np.float32(1.1)

    broken = faults.copy(bundle("w4a4"), tmp_path / "b")
    faults.change_weights(broken, edit)
    outcome = verify(broken, tiny.checkpoint("w4a4"), levels=("layer",), steps=STEPS, timesteps=1)
    (row,) = off(outcome)["layer"]
    assert "GroupNormSiluQuantizeUniform" in row and "dilation.divisor" in row and "expected" in row
    assert outcome.details["first_failure"]["introduced_by"].startswith("the constants that the kernel reads of Group")


@pytest.mark.slow
def test_padding_with_zeros_is_found(deployed, monkeypatch) -> None:
    fill = Image.fill
    monkeypatch.setattr(Image, "fill", lambda self, zero, image, pixel: fill(self, zero * 0, image, pixel))
    rows = off(check(tiny.bundle(deployed("w4a4"), "unpadded.bundle"), "w4a4", "op", "layer"))
    assert rows["op"] and rows["layer"]
    assert all("QuantConv" in row and "first at [0, 0, 0, " in row for row in rows["op"] + rows["layer"])  # the corner


@pytest.mark.slow
def test_a_dropped_correction_for_the_zero_points_is_found(deployed, monkeypatch) -> None:
    def without(self, weight_zero: np.ndarray) -> np.ndarray:
        terms = pack_zeros(self, weight_zero)
        terms[0] = 0  # what the activation's zero point adds
        return terms

    pack_zeros = code_product.Kernel.pack_zeros
    monkeypatch.setattr(code_product.Kernel, "pack_zeros", without)
    rows = off(check(tiny.bundle(deployed("w4a4"), "uncorrected.bundle"), "w4a4", "op", "layer"))
    for level in rows.values():
        assert level and all(row.startswith(("QuantConv", "QuantGemm")) for row in level)


@pytest.mark.slow
def test_uniform_rounding_half_up_is_found(deployed, monkeypatch) -> None:
    round_half_up(monkeypatch)
    rows = off(check(tiny.bundle(deployed("w4a4"), "half_up.bundle"), "w4a4", "op"))["op"]
    assert any("QuantizeUniform" in row and "ties: " in row for row in rows)
    assert any("QuantizeHeads" in row and "ties: " in row for row in rows)
    assert any("GroupNormSiluQuantizeUniform" in row and "norm on ties: " in row for row in rows)


def test_a_checkpoint_of_another_config_is_refused_before_the_first_level(bundle, monkeypatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(main.Examination, "level", lambda _self, name: ran.append(name))
    with pytest.raises(InvalidModelError, match=r"was not made from this checkpoint: .*method.* differ"):
        verify(bundle("bidm"), tiny.checkpoint("binarydm"), levels=("op", "pass", "layer"), steps=4)
    assert ran == []
