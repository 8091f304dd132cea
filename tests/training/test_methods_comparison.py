"""The comparison of methods: rows, hashes, reports, and one tiny cell from the command line to the page."""

import copy
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgedm.diffusion import NoiseSchedule
from edgedm.models import CheckpointConfig, build, save
from edgedm.models.config import Architecture
from edgedm.models.presets import DIGITS_8
from edgedm.models.roles import FLOAT
from edgedm.quant.api import method_options
from edgedm.quant.policy import policy_of
from edgedm.training.comparison import cell as cells
from edgedm.training.comparison.cell import run_cell
from edgedm.training.comparison.measures import Judge, dilation_figures
from edgedm.training.comparison.plots import draw_all
from edgedm.training.comparison.report import by_row, number, ranking, report, table, write_page
from edgedm.training.comparison.rows import ROWS, Row, digest, samples
from edgedm.training.run import make_student

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_methods.py"
SMALL = {**DIGITS_8, "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8}
FLOAT_NOISE = 1e-5  # of the output's largest magnitude: another order of the same float32 sums


@pytest.fixture(scope="module")
def base():
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=SMALL),
        method="fp32",
        roles=FLOAT,
        noise_schedule=NoiseSchedule().model_dump(mode="json"),
        null_class=10,
    )
    return build(config, 0)


# rows


def test_every_row_is_a_valid_configuration_with_a_key_and_hash_of_its_own():
    digests = {row.key: digest(row.configuration(0, 1.0, "base")) for row in ROWS}
    assert len(digests) == len(ROWS) and len(set(digests.values())) == len(ROWS)


def test_budgets_are_equal_inside_a_family():
    for family in {row.family for row in ROWS}:
        loops = [row.loop_options(0) for row in ROWS if row.family == family and row.method != "ptq"]
        assert all(loop == loops[0] for loop in loops), family


def test_the_hash_follows_the_seed_the_scale_the_base_and_the_options():
    row = ROWS[0]
    first = digest(row.configuration(0, 1.0, "base"))
    assert first == digest(row.configuration(0, 1.0, "base"))
    others = [
        row.configuration(1, 1.0, "base"),
        row.configuration(0, 0.5, "base"),
        row.configuration(0, 1.0, "other"),
        Row(row.family, row.name, row.method, {**row.options, "lrm": True}, loop=row.loop).configuration(
            0, 1.0, "base"
        ),
    ]
    assert first not in map(digest, others)


def test_the_scale_shortens_training_and_sampling():
    row = ROWS[0]
    assert row.loop_options(0, 0.1).iterations == round(row.loop_options(0).iterations / 10)
    assert (samples(1.0), samples(2.0), samples(0.1), samples(0.001)) == (500, 500, 50, 10)


# measures


def test_the_eps_figures_of_the_float_model_are_zero_and_its_own_error(base):
    judge = Judge(base, 5)
    figures = judge.eps(base.module)
    assert figures["eps_mse"] == 0 and figures["eps_error"] > 0
    other = copy.deepcopy(base.module)
    other.unet.conv_out.bias.data.add_(0.5)
    assert judge.eps(other)["eps_mse"] == pytest.approx(0.25, rel=1e-3)


def test_dilation_leaves_the_float_output_and_the_steps_and_the_check_sees_if_it_did_not(base):
    options = method_options("dilatequant", {"bins": 2})
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([5, 600]), torch.tensor([1, 2])

    def forward(model):
        return model(x, t, class_labels=labels, return_dict=False)[0]

    def figures(change):
        unet = copy.deepcopy(base.module.unet)
        student = make_student(unet, NoiseSchedule(), "dilatequant", policy_of("dilatequant"), options)
        change(student)
        return dilation_figures(unet, student.unet, forward)

    found = figures(lambda student: None)
    assert found["difference"] < FLOAT_NOISE and found["steps_changed"] == 0
    assert all(0 <= share <= 1 <= mean for share, mean in found["layers"].values())
    wrong = figures(lambda student: student.unet.conv_out.weight.data.mul_(2))
    assert wrong["difference"] > 0.1


# cells and report


@pytest.mark.parametrize(
    "row",
    [
        Row("efficientdm", "+TALSQ", "efficientdm", {"bins": 4}, loop={"batch": 2}, trace=True, code_changes=True),
        Row("dilatequant", "+TPQ+WD", "dilatequant", {"bkd": False, "bins": 2}, dilation=True),
    ],
    ids=lambda row: row.key,
)
def test_a_cell_has_every_figure_of_its_row(base, tmp_path, monkeypatch, row):
    for name, less in {"STEPS": 3, "POINTS": 2, "QUICK": (10, 2)}.items():
        monkeypatch.setattr(cells, name, less)
    cell = run_cell(row, 0, 0.003, base, "base", tmp_path / "state")
    assert cell["digest"] == digest(row.configuration(0, 0.003, "base"))
    assert cell["eps_mse"] > 0 and cell["frechet"] > 0 and cell["peak_rss"] > 0
    assert bool(cell.get("trace")) == row.trace and bool(cell.get("changed_codes")) == row.code_changes
    assert bool(cell.get("dilation")) == row.dilation
    assert bool(cell["memory"]["total"]) == bool(cell["curves"])
    assert not (tmp_path / "state").exists()
    json.dumps(cell)


BITS = {"bidm": "W1A1", "w1a1": "W1A1", "binarydm": "W1A4"}  # the other families: W4A4


def cell(row, seed, **figures):
    made = {
        "row": row,
        "seed": seed,
        "frechet": 10.0,
        "precision": 0.5,
        "recall": 0.5,
        "accepted": 0.5,
        "named": 0.5,
        "eps_mse": 0.1,
        "eps_error": 0.2,
        "seconds": 60.0,
        "cpu_seconds": 50.0,
        "memory": {"saved": 1, "model": 1, "trained": 1, "cache": 2**20, "total": 3 * 2**20},
        "peak_rss": 2**30,
        "curves": {"s": [{"iteration": 50, "loss": 1.0, "eps": 0.9}, {"iteration": 100, "loss": 0.5, "eps": 0.4}]},
        "configuration": {"loop": {"batch": 32}, "bits": {"res_conv": BITS.get(row.partition("/")[0], "W4A4")}},
    }
    return {**made, **figures}


CELLS = [
    cell("bidm/XNOR", 0, frechet=30.0),
    cell("bidm/XNOR", 1, frechet=34.0),
    cell("bidm/+learnedk", 0, frechet=20.0),
    cell("bidm/+learnedk", 1, frechet=31.0),
    cell("bidm/+TBS", 0, frechet=5.0),
    cell(
        "efficientdm/+TALSQ",
        0,
        changed_codes={"a": 0.0, "b": 0.5},
        trace=[{"iteration": 9, "cpu_seconds": 10.0, "frechet": 8.0, "eps_error": 0.1, "eps_mse": 0.1}],
    ),
    cell(
        "w4a4/LSQ",
        0,
        trace=[
            {"iteration": 9, "cpu_seconds": 12.0, "frechet": 20.0, "eps_error": 0.3, "eps_mse": 0.1},
            {"iteration": 18, "cpu_seconds": 25.0, "frechet": 7.0, "eps_error": 0.2, "eps_mse": 0.2},
        ],
    ),
    cell(
        "dilatequant/+TPQ+WD",
        0,
        dilation={"layers": {"a": [0.5, 1.2], "b": [0.0, 1.0]}, "difference": 2e-7, "steps_changed": 0.0},
    ),
    cell("dilatequant/+TPQ+WD+BKD", 0),
]
ORDER = [row.key for row in ROWS]


def test_a_table_gives_means_and_half_the_spread():
    text = table(by_row(CELLS, ["bidm/XNOR", "bidm/+TBS"]))
    assert "| XNOR | 2 | 32.00 ± 2.00 |" in text and "| +TBS | 1 | 5.00 |" in text
    assert number([1.0, 2.0], ".1f") == "1.5 ± 0.5" and number([0.25], ".0%") == "25%"


def test_a_ranking_tells_rows_apart_only_where_no_seeds_overlap():
    rows = by_row(CELLS, [key for key in ORDER if key.startswith("bidm/")])
    assert ranking(rows, "frechet") == "XNOR ~ +learnedk > +TBS"


def test_rows_of_all_families_are_ranked_at_each_width():
    more = [*CELLS, cell("w1a1/DoReFa", 0, frechet=25.0), cell("binarydm/vanilla", 0)]
    text = report(more, ORDER)
    assert "- **W1A1**: bidm/XNOR ~ bidm/+learnedk ~ w1a1/DoReFa > bidm/+TBS." in text
    assert "- **W4A4**: " in text and "- **W1A4**" not in text  # a single row has nothing to be held against


def test_the_committed_cells_have_the_configurations_of_the_rows():
    runs, names = Path(__file__).parents[2] / "docs" / "methods", runpy.run_path(str(SCRIPT))
    base = names["base_digest"](runs)
    stale = [f"{row.key} {seed}" for row in ROWS for seed in (0, 1) if not names["is_done"](runs, row, seed, 1.0, base)]
    assert not stale, "measure them again: python scripts/bench_methods.py --runs docs/methods"


def test_every_ranking_by_frechet_distance_says_that_a_few_tenths_are_no_order():
    lines = [line for line in report(CELLS, ORDER).splitlines() if line.startswith("By Frechet distance")]
    assert len(lines) > 1 and all("a few tenths are no order" in line for line in lines)


def test_the_report_states_the_claims_in_figures():
    text = report(CELLS, ORDER)
    assert "changes 25.00% of a layer's integer weights" in text and "50% of the layers do not change" in text
    assert "25.0% of a layer's input channels can be dilated" in text and "2.0e-07" in text
    assert "LSQ reaches it after 25 s, 2.50 times as long" in text
    assert "LSQ does not within 25 s (0.2), more than 2.50 times as long" in text
    assert "a training step takes 2.0 MiB at batch 32, LSQ's 3.0 MiB at batch 32: -33%" in text


def test_the_page_keeps_what_is_written_by_hand(tmp_path):
    page = tmp_path / "docs" / "index.md"
    write_page(page, "old")
    page.write_text("by hand\n" + page.read_text() + "below\n")
    write_page(page, "new")
    text = page.read_text()
    assert text.startswith("by hand\n") and text.endswith("below\n") and "new" in text and "old" not in text


def test_plots_are_written_for_what_there_is_and_the_same_every_time(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need edgedm[bench]")
    rows = by_row(CELLS, ORDER)
    names = draw_all(rows, tmp_path / "a")
    assert {"frechet-bidm.svg", "frechet-all.svg", "changed-codes.svg", "dilatable.svg", "lsq-efficientdm.svg"} <= set(
        names
    )
    assert "loss-binarydm.svg" not in names
    draw_all(rows, tmp_path / "b")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


# the command


@pytest.mark.slow
def test_one_command_runs_a_cell_writes_the_page_and_skips_what_is_done(base, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need edgedm[bench]")
    save(base, tmp_path / "runs" / "base" / "checkpoint")
    command = [sys.executable, str(SCRIPT), "--runs", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")]
    command += ["--scale", "0.003", "--seeds", "0", "--rows", "w1a1/DoReFa"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 cells, 1 to run" in first.stdout and "w1a1_DoReFa-0: done" in first.stdout
    assert "| DoReFa | 1 |" in (tmp_path / "docs" / "index.md").read_text()
    path = tmp_path / "runs" / "cells" / "w1a1_DoReFa-0.json"
    made = path.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 cells, 0 to run" in again.stdout and path.read_bytes() == made
    names = runpy.run_path(str(SCRIPT))
    row = next(row for row in ROWS if row.key == "w1a1/DoReFa")
    digest_of_base = names["base_digest"](tmp_path / "runs")
    assert names["is_done"](tmp_path / "runs", row, 0, 0.003, digest_of_base)
    assert not names["is_done"](tmp_path / "runs", row, 0, 0.01, digest_of_base)
    names["write_report"](tmp_path / "runs", tmp_path / "other", 0.01)
    assert "DoReFa" not in (tmp_path / "other" / "index.md").read_text()  # a cell of another budget


def test_a_cell_that_fails_is_named_with_its_log(base, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need edgedm[bench]")
    folder = tmp_path / "runs" / "base" / "checkpoint"
    save(base, folder)
    (folder / "config.json").write_text("{}")
    command = [sys.executable, str(SCRIPT), "--runs", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")]
    done = subprocess.run([*command, "--seeds", "0", "--rows", "w1a1/DoReFa"], capture_output=True, text=True)
    assert done.returncode and "w1a1_DoReFa-0" in done.stderr
    assert "config.json" in (tmp_path / "runs" / "logs" / "w1a1_DoReFa-0.log").read_text()
