"""Recipes on `UNet2DConditionModel`: trajectories of prompts for a model that reads text, of classes for one that
takes them."""

import json

import numpy as np
import pytest
import torch
from architectures import SMALL_CONDITIONAL
from click.testing import CliRunner

from edgedm.cli import main
from edgedm.cli.common import BAD_INPUT, OK
from edgedm.errors import EdgedmError
from edgedm.export import export
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.training import quantize
from edgedm.training.api import loop_options
from edgedm.training.plan import plan
from edgedm.training.run import record_of, run_method, settle
from edgedm.training.trajectory import Samples, calibration_labels

TOKENS, WIDTH = 5, 12
CLOSE = 1e-4  # another order of float32 operations, a few layers deep
AGREEING = 0.9  # of the values; rounding may flip a code that lies on a boundary
OPTIONS = {
    "ptq": {"images": 4, "steps": 4},
    "efficientdm": {"trajectory_steps": 4, "bins": 4},
    "dilatequant": {"bins": 4, "calibration_samples": 64},
}
TEXT = {**SMALL_CONDITIONAL, "in_channels": 4, "out_channels": 4}
CLASSES = {
    **{key: value for key, value in SMALL_CONDITIONAL.items() if key != "cross_attention_dim"},
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "num_class_embeds": 11,
}

ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 60,
}


def base(architecture, tokens=None, null_class=None):
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DConditionModel", config=architecture),
        method="fp32",
        roles=FLOAT,
        noise_schedule={"num_train_timesteps": 1000, "clip_sample": False},
        null_class=null_class,
        condition_tokens=tokens,
    )
    return build(config, 0)


def reads_text():
    return base(TEXT, TOKENS)


@pytest.fixture
def prompts(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, TOKENS, WIDTH)).astype(np.float32)
    np.save(tmp_path / "prompts.npy", values)
    return values


@pytest.fixture
def folder(tmp_path, prompts):
    save(reads_text(), tmp_path / "base")
    np.save(tmp_path / "none.npy", np.full((TOKENS, WIDTH), 0.5, np.float32))
    return tmp_path


def short(method):
    return {} if method == "ptq" else {"iterations": 1, "batch": 2}


@pytest.mark.parametrize("method", OPTIONS)
def test_a_model_that_reads_text_is_trained_along_prompts_and_ships_what_was_trained(folder, prompts, method):
    given = {"conditions": folder / "prompts.npy", "negative": folder / "none.npy"}
    outcome = quantize(
        folder / "base", method, output=folder / "ckpt", options=OPTIONS[method], **given, **short(method)
    )
    shipped = load(folder / "ckpt")
    assert outcome.ok and shipped.config.method == method
    assert shipped.module.condition == (TOKENS, WIDTH) and "prompts" not in shipped.module.state_dict()
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([300])
    first, second = (shipped.module.record(x, t, None, torch.from_numpy(row)[None]) for row in prompts[:2])
    assert first.isfinite().all() and not torch.equal(first, second)
    record = json.loads((folder / "ckpt.training" / "run.json").read_text())
    assert record["identity"]["conditions"].startswith("3 prompts ")


def test_a_label_is_a_row_of_the_prompts_and_the_last_one_means_none(folder, prompts):
    trained = run_method(
        load(folder / "base"), "ptq", folder / "run", options=OPTIONS["ptq"], conditions=folder / "prompts.npy"
    )
    x, t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((4,), 300)
    ours = trained.denoiser.eval().record(x, t, torch.arange(4))
    given = torch.cat([torch.from_numpy(prompts), torch.zeros(1, TOKENS, WIDTH)])
    theirs = trained.checkpoint.module.record(x, t, None, given)
    assert ((ours - theirs).abs() < CLOSE).float().mean() > AGREEING
    assert not torch.allclose(ours, trained.denoiser.record(x, t, torch.zeros(4, dtype=torch.int64)), atol=CLOSE)


@pytest.mark.parametrize("method", OPTIONS)
def test_the_negative_prompt_is_calibrated_on_however_many_prompts_there_are(folder, monkeypatch, method):
    class SeenError(Exception):
        pass

    def seen(student, samples, **_):
        raise SeenError(samples.labels)

    many = 60
    values = np.random.default_rng(1).standard_normal((many, TOKENS, WIDTH))
    np.save(folder / "prompts.npy", values.astype(np.float32))
    monkeypatch.setattr(f"edgedm.training.recipes.{method}.calibrate", seen)
    with pytest.raises(SeenError) as found:
        run_method(
            load(folder / "base"),
            method,
            folder / "run",
            options=OPTIONS[method],
            conditions=folder / "prompts.npy",
            loop=loop_options(method, **short(method)),
        )
    labels = found.value.args[0]
    assert (labels == many).any() and (labels < many).any()


def test_trajectories_take_every_class_in_turn_and_a_tenth_none_where_prompts_are_too_many():
    assert calibration_labels(8, 2).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert calibration_labels(3, 2).tolist() == [0, 1, 2]
    assert calibration_labels(8, 2, prompts=True).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert calibration_labels(2, 2).tolist() == [0, 1]
    assert calibration_labels(2, 2, prompts=True).tolist() == [2, 0]
    assert calibration_labels(30, 100, prompts=True).tolist() == [100, 100, 100, *range(27)]
    assert calibration_labels(1, 5, prompts=True).tolist() == [0]
    assert calibration_labels(3, None).tolist() == [0, 0, 0]


@pytest.mark.parametrize("prompts", [1, 2, 3, 60])
@pytest.mark.parametrize(("images", "steps", "count"), [(40, 50, 512), (6, 100, 300), (10, 100, 500), (103, 50, 64)])
def test_a_spread_of_samples_meets_the_negative_prompt_and_most_timesteps(prompts, images, steps, count):
    labels = calibration_labels(images, prompts, prompts=True)
    times = torch.arange(steps).repeat_interleave(images)
    samples = Samples(torch.zeros(len(times)), times, labels.repeat(steps))
    rows, plain = samples.spread(count, turn=True), samples.spread(count)
    assert {0, prompts} <= set(samples.labels[rows].tolist())
    assert rows.unique().numel() == len(rows) == len(plain) <= count
    assert torch.equal(times[rows], times[plain])


def test_the_negative_prompt_is_the_last_row(folder, prompts):
    config, files = reads_text().config, {"conditions": folder / "prompts.npy"}
    held = settle(config, "ptq", **files, negative=folder / "none.npy").prompts
    assert torch.equal(held, torch.from_numpy(np.concatenate([prompts, np.load(folder / "none.npy")[None]])))
    assert not settle(config, "ptq", **files).prompts[-1].any()


def test_the_command_line_hands_both_files_on(folder):
    command = ["quantize", "--method", "ptq", "--base", folder / "base", "--dry-run"]
    files = ["--conditions", folder / "prompts.npy", "--negative"]
    done = CliRunner().invoke(main, [*map(str, [*command, *files, folder / "none.npy"])])
    assert done.exit_code == OK and "attn2" in done.output
    np.save(folder / "short.npy", np.zeros((TOKENS - 1, WIDTH), np.float32))
    refused = CliRunner().invoke(main, [*map(str, [*command, *files, folder / "short.npy"])])
    assert refused.exit_code == BAD_INPUT and "short.npy" in refused.output


def test_other_prompts_are_another_run(folder, prompts):
    checkpoint = reads_text()

    def identity(**negative):
        settings = settle(checkpoint.config, "ptq", conditions=folder / "prompts.npy", **negative)
        return record_of(checkpoint, settings)

    first, negative = identity(), identity(negative=folder / "none.npy")
    np.save(folder / "prompts.npy", 2 * prompts)
    for other in (negative, identity()):
        assert {key for key in first if first[key] != other[key]} == {"conditions"}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "data"), [("efficientdm", "none"), ("xnor", "digits")])
def test_a_class_conditional_one_is_trained_by_its_classes_and_exported(tmp_path, method, data):
    made = run_method(
        base(CLASSES, null_class=10),
        method,
        tmp_path / "run",
        options=OPTIONS.get(method),
        data=data,
        loop=loop_options(method, iterations=1, batch=2),
    )
    save(made.checkpoint, tmp_path / "ckpt")
    assert export(str(tmp_path / "ckpt"), str(tmp_path / "model.onnx")).ok


def test_a_plan_counts_the_products_with_the_prompts_own_length(folder):
    given = {"conditions": folder / "prompts.npy"}
    rows = plan(folder / "base", "dilatequant", options=OPTIONS["dilatequant"], **given).details["tables"]["Layers"]
    macs = {row["layer"]: row["macs"] for row in rows if row["role"] == "attn_matmul"}
    pixels, channels = 64, 16
    assert macs["down_blocks.0.attentions.0.transformer_blocks.0.attn1"] == 2 * pixels * channels * pixels
    assert macs["down_blocks.0.attentions.0.transformer_blocks.0.attn2"] == 2 * pixels * channels * TOKENS


def test_what_cannot_be_trained_is_refused_by_name(folder):
    config, given = reads_text().config, {"conditions": folder / "prompts.npy"}
    with pytest.raises(EdgedmError, match=r"--conditions FILE.*\[N, 5, 12\]"):
        settle(config, "ptq")
    with pytest.raises(EdgedmError, match=r"reads text, and bidm .* ptq"):
        settle(config, "bidm", **given)
    with pytest.raises(EdgedmError, match="reads no text"):
        settle(base(CLASSES, null_class=10).config, "ptq", **given)
    with pytest.raises(EdgedmError, match="class labels beside text"):
        settle(base({**TEXT, "num_class_embeds": 3}, TOKENS, 2).config, "ptq", **given)
    with pytest.raises(EdgedmError, match="'text_time'"):
        settle(base({**TEXT, **ADDED}, TOKENS).config, "ptq", **given)
    with pytest.raises(EdgedmError, match=r"how many vectors it reads; write it into the checkpoint's config\.json"):
        settle(base(TEXT).config, "ptq")
    np.save(folder / "prompts.npy", np.zeros((0, TOKENS, WIDTH), np.float32))
    with pytest.raises(EdgedmError, match=r"conditions: .*float32\[N, 5, 12\], got float32\[0, 5, 12\]"):
        settle(config, "ptq", **given)
