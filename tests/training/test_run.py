"""Low-bit training end to end on a small UNet: what it ships, what it refuses, where its states are."""

import dataclasses
import json

import pytest
import torch
from architectures import SMALL_DIT, SMALL_UNCONDITIONAL
from small_runs import NULL, SIZE, small_base

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.quant.api import method_options
from edgedm.quant.policy import policy_of
from edgedm.training import api, quantize, run
from edgedm.training.options import LoopOptions
from edgedm.training.qat import QuantizationAware
from edgedm.training.recipes import RECIPES
from edgedm.training.run import make_student, run_method, settle

CLOSE = 1e-4  # training multiplies the scale into the weight, inference after the sum; a few layers deep
AGREEING = 0.97  # of the values; rounding may flip a sign or a code that lies on its threshold
ROUNDED = ("efficientdm",)  # zero points become integers when it ships: its own tests measure what that does
# a calibration in seconds: every table row still meets a timestep of its own
QUICK = {
    "efficientdm": {"trajectory_steps": 4, "bins": 4},
    "dilatequant": {"bins": 4, "calibration_samples": 64, "tpq": True},
    "ptq": {"images": 2, "steps": 4},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "ckpt"
    save(small_base(), folder)
    return folder


def one_by_one(model, *arguments):
    """Layers that run take one timestep a batch."""
    return torch.cat([model.record(*(part[i : i + 1] for part in arguments)) for i in range(len(arguments[0]))])


@pytest.mark.parametrize("method", RECIPES)
def test_every_method_trains_and_ships_what_it_trained(base, tmp_path, method):
    loop = RECIPES[method].loop
    if loop.iterations:
        loop = dataclasses.replace(loop, iterations=2, batch=4, warm_up=0)
    trained = run_method(load(base), method, tmp_path / "run", options=QUICK.get(method), loop=loop)
    save(trained.checkpoint, tmp_path / "ckpt")
    shipped = load(tmp_path / "ckpt")
    assert shipped.config.method == method and trained.figures["peak_memory_bytes"] > 1e6
    for stage, curve in trained.curves.items():
        assert curve[-1]["iteration"] == 2 and trained.figures[f"{stage}.loss"] == curve[-1]["loss"]
        assert trained.figures[f"{stage}.seconds"] > 0
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, SIZE, SIZE, generator=generator)
    t, label = torch.tensor([10, 300, 700, 999]), torch.tensor([1, 2, 3, NULL])
    with torch.no_grad():
        ours = one_by_one(trained.denoiser.eval(), x, t, label)
        theirs = one_by_one(trained.checkpoint.module, x, t, label)
    if method not in ROUNDED:
        assert ((ours - theirs).abs() < CLOSE).float().mean() > AGREEING


@pytest.mark.slow
@pytest.mark.parametrize("method", RECIPES)
def test_every_method_trains_a_model_without_classes(tmp_path, method):
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=SMALL_UNCONDITIONAL),
        method="fp32",
        roles=FLOAT,
        noise_schedule={"num_train_timesteps": 1000},
        null_class=None,
    )
    loop = RECIPES[method].loop
    if loop.iterations:
        loop = dataclasses.replace(loop, iterations=1, batch=2)
    trained = run_method(build(config, 0), method, tmp_path / "run", options=QUICK.get(method), loop=loop)
    save(trained.checkpoint, tmp_path / "ckpt")
    assert load(tmp_path / "ckpt").config.null_class is None


def test_the_student_starts_with_the_papers_mix_and_its_taps(base):
    student = make_student(load(base).module.unet, NoiseSchedule(), "bidm", policy_of("bidm"), method_options("bidm"))
    assert student.taps == ["up_blocks.1.resnets.0", "up_blocks.1.resnets.1"]
    assert (student.cache_coefficients == 0.3).all() and student.cache_coefficients.shape == (100, 2)
    assert student.edges.tolist() == list(range(0, 1000, 10))


def xnor(base, output, **named):
    return quantize(str(base), "xnor", output=str(output), **{"iterations": 2, "batch": 2, **named})


def test_states_live_beside_the_output_and_go_when_it_is_written(base, tmp_path):
    outcome = xnor(base, tmp_path / "ckpt")
    assert outcome.ok and outcome.details["written"] == [str(tmp_path / "ckpt"), str(tmp_path / "ckpt.training")]
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt", "ckpt.training"}
    kept = sorted(str(p.relative_to(tmp_path / "ckpt.training")) for p in (tmp_path / "ckpt.training").rglob("*.*"))
    assert kept == ["run.json", "xnor/curve.json"]
    record = json.loads((tmp_path / "ckpt.training" / "run.json").read_text())
    assert record["finished"] and record["figures"] == outcome.figures
    assert record["identity"]["method"] == "xnor" and record["identity"]["loop.seed"] == 0


def test_a_finished_checkpoint_is_trained_once(base, tmp_path, monkeypatch):
    output = tmp_path / "ckpt"
    first = xnor(base, output)
    with monkeypatch.context() as patch:
        patch.setattr(run, "train", die)
        again = xnor(base, output, save_every=1)  # which changes no result
    assert again.ok and again.figures == first.figures and again.details["curves"] == first.details["curves"]
    assert again.details["finished"] == str(output) and again.details["written"] == []


def test_another_run_replaces_a_finished_checkpoint_only_where_it_may(base, tmp_path):
    output, weights = tmp_path / "ckpt", tmp_path / "ckpt" / "model.safetensors"
    xnor(base, output)
    before = weights.read_bytes()
    for named in ({"seed": 1}, {"seed": 1, "restart": True}):
        with pytest.raises(UnsupportedError, match=r"ckpt: .*loop\.seed was 0, is 1.*--overwrite"):
            xnor(base, output, **named)
    assert weights.read_bytes() == before
    assert xnor(base, output, seed=1, overwrite=True).details["written"][0] == str(output)
    assert weights.read_bytes() != before
    assert xnor(base, output, seed=1).details["written"] == []


def test_a_checkpoint_that_was_not_trained_here_is_not_taken_for_the_finished_one(base, tmp_path):
    save(load(base), tmp_path / "other")
    with pytest.raises(UnsupportedError, match=r"other: .*no record.*--overwrite"):
        xnor(base, tmp_path / "other")
    for name, seed in (("a", 0), ("b", 1)):
        xnor(base, tmp_path / name, seed=seed, runs=tmp_path / "runs")
    with pytest.raises(UnsupportedError, match=r"a: .*not the one that was trained here"):
        xnor(base, tmp_path / "a", seed=1, runs=tmp_path / "runs")


def test_a_folder_of_other_files_is_never_replaced(base, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"mine")
    with pytest.raises(InvalidModelError, match="photos: holds other files"):
        xnor(base, tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"mine"
    (tmp_path / "empty").mkdir()
    assert xnor(base, tmp_path / "empty").ok


def test_a_kill_while_a_checkpoint_is_replaced_or_just_after_needs_no_second_permission(base, tmp_path, monkeypatch):
    xnor(base, tmp_path / "ckpt")
    for name in ("save", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(api, name, die)
            with pytest.raises(RuntimeError, match="killed"):
                xnor(base, tmp_path / "ckpt", seed=1, overwrite=True)
    assert xnor(base, tmp_path / "ckpt", seed=1).details["written"]
    assert xnor(base, tmp_path / "ckpt", seed=1).details["written"] == []


def die(*arguments):
    raise RuntimeError("killed")


def test_an_unfinished_run_is_protected_from_other_settings_until_restarted(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "to_checkpoint", die)
        with pytest.raises(RuntimeError, match="killed"):
            xnor(base, tmp_path / "ckpt")
    with pytest.raises(UnsupportedError, match=r"loop.seed was 0, is 1.*--restart.*--runs"):
        xnor(base, tmp_path / "ckpt", seed=1)
    with pytest.raises(UnsupportedError, match=r"bits.down was W1A1, is float"):
        table = {**policy_of("xnor").bits, "down": "float"}
        policy = policy_of("xnor").__class__("mine", "W1A1", table, {})
        quantize(str(base), "xnor", policy, output=str(tmp_path / "ckpt"), iterations=2, batch=2)
    assert not (tmp_path / "ckpt").exists()
    assert xnor(base, tmp_path / "ckpt", seed=1, restart=True).ok


def test_the_same_call_finishes_what_was_killed(base, tmp_path, monkeypatch):
    xnor(base, tmp_path / "once", iterations=5, save_every=2)
    forward, calls = QuantizationAware.forward, []

    def dying(self, iteration, generator):
        if iteration == 3 and calls.count(3) == 0:
            calls.append(3)
            raise RuntimeError("killed")
        calls.append(iteration)
        return forward(self, iteration, generator)

    monkeypatch.setattr(QuantizationAware, "forward", dying)
    with pytest.raises(RuntimeError, match="killed"):
        xnor(base, tmp_path / "twice", iterations=5, save_every=2)
    xnor(base, tmp_path / "twice", iterations=5, save_every=2)
    assert calls == [0, 1, 2, 3, 2, 3, 4]
    once, twice = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "twice"))
    assert once == twice


def test_another_base_is_another_run(base, tmp_path, monkeypatch):
    other = small_base()
    other.module.unet.get_parameter("conv_in.bias").data += 1
    with monkeypatch.context() as patch:
        patch.setattr(run, "to_checkpoint", die)
        with pytest.raises(RuntimeError, match="killed"):
            run_method(load(base), "xnor", tmp_path, loop=LoopOptions(1, 1e-3, batch=2))
    with pytest.raises(UnsupportedError, match="base was"):
        run_method(other, "xnor", tmp_path, loop=LoopOptions(1, 1e-3, batch=2))


def test_given_loop_settings_replace_the_recipes(base, tmp_path):
    given = {"learning_rate": 0.5, "ema": 0.25, "precision": "bf16", "seed": 7, "save_every": 1}
    xnor(base, tmp_path / "a", runs=tmp_path / "runs", **given)
    record = json.loads((tmp_path / "runs" / "xnor" / "run.json").read_text())["identity"]
    assert (record["loop.learning_rate"], record["loop.ema_decay"], record["loop.bf16"]) == (0.5, 0.25, True)
    assert (record["loop.seed"], record["loop.batch"], record["loop.iterations"]) == (7, 2, 2)
    assert not (tmp_path / "a.training").exists()


def test_the_same_seed_gives_the_same_checkpoint_another_seed_another(base, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        xnor(base, tmp_path / name, seed=seed)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == again != other


def test_what_cannot_be_trained_is_refused_and_leaves_nothing(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for named, complaint in (
        ({"method": "magic"}, "bidm"),
        ({"method": "bidm", "data": "imagenet"}, "digits"),
        ({"method": "bidm", "data": "none"}, "bidm trains on images.*efficientdm"),
        ({"method": "bidm", "options": {"colour": 1}}, "colour"),
        ({"method": "bidm", "policy": "mine"}, "paper"),
        ({"method": "lsq", "bits": "W3"}, "W3"),
        ({"method": "dilatequant", "ema": 0.99}, r"one after the other and keep no average; --ema 0"),
        ({"method": "dilatequant", "data": "folder:pictures"}, r"dilatequant trains without images.*folder:pictures"),
        ({"method": "ptq", "iterations": 5}, r"ptq: iterations is 5, but nothing is trained"),
        ({"method": "ptq", "precision": "bf16"}, "--precision"),
        ({"method": "bidm", "null_class": 3}, "null_class: .* has 10, got 3"),
    ):
        with pytest.raises(UnsupportedError, match=complaint):
            quantize(str(base), **named)
    assert list(tmp_path.iterdir()) == []


def test_a_low_bit_base_is_refused(base, tmp_path):
    xnor(base, tmp_path / "low")
    with pytest.raises(InvalidModelError, match="xnor"):
        quantize(str(tmp_path / "low"), "bidm", output=str(tmp_path / "again"))


def test_architectures_that_no_recipe_calls_are_refused_by_name():
    config = CheckpointConfig(
        architecture=Architecture(class_name="DiTTransformer2DModel", config=SMALL_DIT),
        method="fp32",
        roles=FLOAT,
        noise_schedule={"num_train_timesteps": 1000},
        null_class=NULL,
    )
    with pytest.raises(UnsupportedError, match=r"UNet2DConditionModel, got DiTTransformer2DModel.*edgedm\.quantize"):
        settle(config, "efficientdm")


def test_a_latent_model_keeps_its_decoder_and_takes_no_images(tmp_path):
    decoder = load("preset:latent-class,narrow=16")
    config = CheckpointConfig(
        architecture=Architecture(
            class_name="UNet2DModel", config={**SMALL_UNCONDITIONAL, "in_channels": 3, "out_channels": 3}
        ),
        method="fp32",
        roles=FLOAT,
        noise_schedule={"num_train_timesteps": 1000},
        null_class=None,
        decoder=decoder.config.decoder,
    )
    with pytest.raises(UnsupportedError, match=r"draws latents.*efficientdm"):
        settle(config, "bidm")
    latent = dataclasses.replace(build(config, 0), decoder=decoder.decoder)
    trained = run_method(latent, "ptq", tmp_path / "run", options=QUICK["ptq"])
    save(trained.checkpoint, tmp_path / "ckpt")
    assert load(tmp_path / "ckpt").decoder is not None


def test_a_base_of_diffusers_with_classes_is_told_which_one_means_none(tmp_path):
    from diffusers import DDPMScheduler

    small_base().module.unet.save_pretrained(tmp_path / "base" / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "base" / "scheduler")
    with pytest.raises(UnsupportedError, match="null_class"):
        xnor(tmp_path / "base", tmp_path / "ckpt")
    xnor(tmp_path / "base", tmp_path / "ckpt", null_class=NULL)
    assert load(tmp_path / "ckpt").config.null_class == NULL


def test_more_classes_than_the_base_knows_are_refused(base, tmp_path):
    for index in range(NULL + 1):
        (tmp_path / "images" / str(index)).mkdir(parents=True)
        (tmp_path / "images" / str(index) / "a.png").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"11 classes.* 10"):
        xnor(base, tmp_path / "out", data=f"folder:{tmp_path / 'images'}")
