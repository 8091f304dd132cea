"""Gate files: what they may say, what they mean by method, and how figures are held against them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.verify import verify
from edgedm.verify.distribution_level import fits, rows_of
from edgedm.verify.gate import DEFAULTS, MAX_BYTES, Gate, load_gate
from edgedm.verify.gates import gate_rows, unmeasured_rows, with_requirements
from edgedm.verify.report import Level, Row
from edgedm.verify.request import SWEEPS, request_of

LEVELS = [
    Level("op", "", (Row("a", True),), {"worst_use_of_bound": 0.7}),
    Level("layer", "", (Row("a", True),), {"codes": 1e6, "flips": 50.0, "left_out": 3.0, "worst_use_of_bound": 0.9}),
    Level("step", "", (Row("a", True),), {"snr_db.edgedm": 41.0}),
    Level("trajectory", "", (Row("a", True),), {"psnr_db.median": 30.0, "psnr_db.worst": 12.0}),
]


def gate(tmp_path, text: str) -> Gate:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    return load_gate(path)


def test_an_empty_file_demands_the_defaults(tmp_path) -> None:
    tables = gate(tmp_path, "").of_method("bidm")
    assert tables.step.ratio == 2.0 and tables.layer.max_flip_share == 1e-4
    assert tables.step.min_snr_db is None


def test_dots_of_a_comment_are_none_of_a_key(tmp_path) -> None:
    assert gate(tmp_path, f"# {'.' * 500}\nsteps = 7  # {'.' * 500}\n").steps == 7


def test_defaults_go_by_method_and_the_file_goes_before_them(tmp_path) -> None:
    found = gate(tmp_path, "[step]\nmin_snr_db = 30\n[method.bidm.step]\nmin_snr_db = 12\nratio = 3\n")
    assert found.of_method("fp32").trajectory.min_psnr_db == DEFAULTS["fp32"]["trajectory"]["min_psnr_db"]
    assert found.of_method("fp32").step.min_snr_db == 30
    assert (found.of_method("bidm").step.min_snr_db, found.of_method("bidm").step.ratio) == (12, 3)
    assert found.of_method("dilatequant").step.min_snr_db == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[layer]\nmax_flip_shares = 1", "layer.max_flip_shares: unknown key; expected one of required, max_use_of"),
        ("laayer = 1", "laayer: unknown key; expected one of .*layer"),
        ("[method.bidm.step]\nration = 2", "method.bidm.step.ration: unknown key; expected one of required, ratio"),
        ("[method.other.step]\nratio = 2", "method.other"),
        ("[step]\nratio = 0.5", "step.ratio: .*greater than or equal to 1, got 0.5"),
        ("[step]\nmin_snr_db = nan", "step.min_snr_db: .*finite"),
        ("[layer]\nmax_flip_share = 2.0", "layer.max_flip_share"),
        ("[distribution]\nchance = inf", "distribution.chance"),
        ("[distribution]\nchance = 1e-5", "distribution.chance"),
        ("[distribution]\nsamples = 8193", "distribution.samples"),
        ("[distribution]\nsamples = 16", "distribution: with samples = 16 and chance = 0.001 .* at least 18 samples"),
        ("[distribution]\nsamples = 20\nchance = 1e-4", "at least 21 samples, or a chance of at least 0.00019"),
        (
            "[distribution]\nsamples = 18\n[method.bidm.distribution]\nchance = 1e-4",
            "method.bidm.distribution: with samples = 18 and chance = 0.0001 a shift, however large, might not show",
        ),
        ("steps = 0", "steps"),
        ("steps = 'many'", "steps"),
        ("levels = []", "levels"),
        ("levels = ['layers']", "levels.0"),
        ("[layer", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path, text: str, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message) as caught:
        gate(tmp_path, text)
    assert "gate.toml" in str(caught.value)


def test_the_fewest_samples_of_a_chance_are_enough_for_a_shift_to_show(tmp_path) -> None:
    samples = 16
    method = f"[distribution]\nchance = 0.003\n[method.bidm.distribution]\nsamples = {samples}\n"
    found = gate(tmp_path, method).of_method("bidm").distribution
    torch = np.random.default_rng(0).standard_normal((samples, 4))
    (distance, _), *_ = rows_of("independent", torch, torch + 9.0, found)
    assert not distance.ok
    with pytest.raises(InvalidModelError, match=r"might not show.* a chance of at least 0\.003$"):
        gate(tmp_path, method.replace("0.003", "0.0029"))


def test_a_missing_or_huge_file_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidModelError, match="no such file"):
        load_gate(tmp_path / "none.toml")
    with open(tmp_path / "huge.toml", "wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(InvalidModelError, match="at most"):
        load_gate(tmp_path / "huge.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidModelError, match="not valid TOML"):
        load_gate(tmp_path / "binary.toml")


def test_each_threshold_is_a_row_with_what_was_allowed_and_what_came(tmp_path) -> None:
    tables = gate(
        tmp_path,
        "[op]\nmax_use_of_bound = 0.5\n[layer]\nmax_left_out = 3\n[step]\nmin_snr_db = 40\n"
        "[trajectory]\nmin_worst_psnr_db = 20\n[size]\nmax_shipped_bytes = 100\n[speed]\nmin_times_torch = 2",
    ).of_method("bidm")
    rows = {row.name: row for row in gate_rows(LEVELS, tables, {"bytes.shipped": 101.0}, {"edgedm": 1.0, "torch": 3.0})}
    assert not rows["op.max_use_of_bound"].ok
    assert rows["op.max_use_of_bound"].note == "expected at most 0.5, got 0.7"
    assert rows["layer.max_left_out"].ok and rows["layer.max_flip_share"].ok
    assert rows["layer.max_flip_share"].figures == {"allowed": 1e-4, "actual": 5e-5}
    assert rows["step.min_snr_db"].ok
    assert rows["trajectory.min_worst_psnr_db"].note == "expected at least 20, got 12"
    assert not rows["size.max_shipped_bytes"].ok
    assert rows["speed.min_times_torch"].ok


def test_a_threshold_that_nothing_measured_fails(tmp_path) -> None:
    tables = gate(tmp_path, "[speed]\nmin_times_torch = 2").of_method("bidm")
    (row,) = [row for row in gate_rows([], tables, {}, {"edgedm": 1.0}) if row.name.startswith("speed")]
    assert not row.ok and "nothing measured it" in row.note


def test_size_and_speed_are_of_a_bundle_measured_or_not(tmp_path) -> None:
    tables = gate(tmp_path, "[size]\nmin_ratio = 4\n[speed]\nmax_step_ms = 1").of_method("bidm")
    of_bundle = {row.name: row for row in gate_rows([], tables, {}, {})}
    assert set(of_bundle) == {"size.min_ratio", "speed.max_step_ms"}  # compiled for another machine: not timed
    assert not any(row.ok for row in of_bundle.values())
    assert gate_rows([], tables, {"bytes.graph": 9.0, "size.ratio": 2.0}, {}, of_bundle=False) == []


def test_a_threshold_on_a_level_that_the_file_leaves_out_fails(tmp_path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(
        "levels = ['op']\n[step]\nmin_snr_db = 30\n[weights]\nrequired = true\n[layer]\nrequired = false\n"
        "max_left_out = 0\n[method.bidm.distribution]\nmax_shift = 0.1\nsamples = 32\n"
    )
    asked = request_of(None, None, None, None, None, None, None, None, True, path)
    rows = unmeasured_rows(LEVELS[:1], ("op", "layer", "step", "distribution"), asked, "bidm")
    assert [row.name for row in rows] == ["step.min_snr_db", "distribution.max_shift"]
    assert all(not row.ok and "did not run" in row.note for row in rows)
    assert [row.name for row in unmeasured_rows(LEVELS[:1], ("op", "step"), asked, "fp32")] == ["step.min_snr_db"]
    narrowed = request_of(("layer",), None, None, None, None, None, None, None, True, path)
    assert unmeasured_rows(LEVELS[1:2], ("op", "layer", "step"), narrowed, "bidm") == []


def test_a_table_of_one_method_switches_level_distribution_on_for_it(tmp_path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text("[method.bidm.distribution]\nsamples = 32\n")
    asked = request_of(None, None, None, None, None, None, None, None, True, path)
    assert fits({"method": "bidm"}, asked) and not fits({"method": "fp32"}, asked)


def test_thresholds_of_a_level_that_is_not_required_are_told_and_do_not_decide(tmp_path) -> None:
    tables = gate(tmp_path, "[step]\nrequired = false\nmin_snr_db = 90").of_method("bidm")
    (row,) = [row for row in gate_rows(LEVELS, tables, {}, {}) if row.name.startswith("step")]
    assert row.ok and row.note.startswith("not required: expected at least 90, got")
    assert [level.required for level in with_requirements(LEVELS, tables)] == [True, True, False, True]


def test_arguments_go_before_the_file_and_the_file_before_the_defaults(tmp_path) -> None:
    (tmp_path / "gate.toml").write_text("steps = 20\nimages = 12\nfeatures = 'net.onnx'\nlevels = ['op']\n")
    asked = request_of(None, 30, None, None, None, None, None, None, True, tmp_path / "gate.toml")
    assert (asked.steps, asked.images, asked.sampler) == (30, 12, "ddim")
    assert asked.features == tmp_path / "net.onnx"  # named from the gate file's own folder
    assert asked.chosen(("op", "layer"), "a bundle") == ["op"]
    with pytest.raises(UnsupportedError, match=r"gate\.toml: levels: of a graph there are layer, got op"):
        asked.chosen(("layer",), "a graph")


def test_too_few_images_and_a_chain_that_is_none_are_refused_before_anything_runs(tmp_path) -> None:
    with pytest.raises(UnsupportedError, match="images: expected at least 10"):
        request_of(None, None, None, 3, None, None, None, None, True, None)
    assert request_of(("op",), None, None, 3, None, None, None, None, True, None).images == 3
    with pytest.raises(InvalidModelError, match="expected the graphs of `edgedm optimize --dump`"):
        verify(tmp_path / "none.bundle", "none", chain=tmp_path)


def test_reports_without_a_place_of_their_own_are_refused_before_anything_runs(tmp_path) -> None:
    with pytest.raises(InvalidModelError, match="is a folder; expected a name for a file"):
        verify(tmp_path / "none.bundle", "none", html=tmp_path)
    with pytest.raises(UnsupportedError, match="one would replace another"):
        verify(tmp_path / "none.bundle", "none", html=tmp_path / "a", junit=tmp_path / "b" / ".." / "a")


@given(layers=st.integers(1, 500), steps=st.integers(1, 1000))
def test_by_turns_every_layer_comes_up_at_about_as_many_steps(layers: int, steps: int) -> None:
    asked = request_of(None, steps, None, None, None, None, None, None, True, None)
    assert asked.visits() == steps
    share = asked.layers_a_visit(layers)
    if steps <= SWEEPS:
        assert share is None  # all, at each
    else:
        assert share is not None and steps * share >= layers * SWEEPS > steps * (share - 1)
