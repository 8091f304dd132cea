"""Low-bit training end to end on a small UNet: what it ships, what it resumes."""

import dataclasses

import pytest
import torch

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.training import loop, quantize
from edgedm.training.api import RECIPES
from edgedm.training.loop import LoopOptions, learning_rate_factor
from edgedm.training.lowbit import make_student, train_low_bit
from edgedm.training.shipping import to_checkpoint

UNET = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "num_class_embeds": 11,
}
CLOSE = 1e-4  # training multiplies the scale into the weight, inference after the sum; a few layers deep


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random float checkpoint of a small UNet; returns its folder."""
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=UNET),
        method="fp32",
        roles=FLOAT,
        noise_schedule={"num_train_timesteps": 1000},
        null_class=10,
    )
    folder = tmp_path_factory.mktemp("base") / "ckpt"
    save(build(config, 0), folder)
    return folder


@pytest.mark.parametrize("method", RECIPES)
def test_quantize_writes_a_checkpoint_that_loads(base, tmp_path, method):
    outcome = quantize(method, str(base), output=str(tmp_path / "out"), iterations=2, threads=1)
    checkpoint = load(tmp_path / "out")
    assert outcome.ok and outcome.figures["iterations"] == 2
    assert checkpoint.config.method == method
    assert bool(checkpoint.config.taps) == (method == "bidm")


@pytest.mark.parametrize("method", RECIPES)
def test_the_trained_model_equals_the_one_that_ships(base, tmp_path, method):
    loaded = load(base)
    low_bit = dataclasses.replace(RECIPES[method][0], batch=4)
    ema, _ = train_low_bit(loaded.module.unet, low_bit, LoopOptions(3, 1e-3, bf16=False), tmp_path)
    shipped = to_checkpoint(ema, loaded.config, low_bit.method).module
    x, t, label = torch.randn(2, 1, 16, 16), torch.tensor([10, 700]), torch.tensor([1, 10])
    with torch.no_grad():
        ours, theirs = ema.eval().record(x, t, label), shipped.record(x, t, label)
    # rounding may flip a sign or a code that lies on its threshold; all else agrees
    assert ((ours - theirs).abs() < CLOSE).float().mean() > 0.98


def test_a_resumed_run_equals_an_uninterrupted_one(base, tmp_path, monkeypatch):
    low_bit = dataclasses.replace(RECIPES["bidm"][0], batch=4)
    options = LoopOptions(4, 1e-3, bf16=False, save_every=2)

    def run(folder):
        return train_low_bit(load(base).module.unet, low_bit, options, folder)[0].state_dict()

    once = run(tmp_path / "once")
    saved = loop._save

    def stop(*arguments):
        saved(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "twice")
    monkeypatch.undo()
    resumed = run(tmp_path / "twice")
    assert all(torch.equal(once[name], resumed[name]) for name in once)


def test_the_student_starts_with_the_papers_mix_and_its_taps(base):
    student = make_student(load(base).module.unet, RECIPES["bidm"][0])
    assert student.taps == ["up_blocks.1.resnets.0", "up_blocks.1.resnets.1"]
    assert (student.cache_coefficients == 0.3).all() and student.cache_coefficients.shape == (100, 2)
    assert student.edges.tolist() == list(range(0, 1000, 10))


def test_the_learning_rate_warms_up_and_falls_to_zero():
    options = LoopOptions(1000, 1e-3, warm_up=100)
    factors = [learning_rate_factor(i, options) for i in range(1001)]
    assert factors[0] == 0.01 and factors[99] == 1 and factors[1000] == pytest.approx(0)
    assert max(factors) == 1 and factors[550] == pytest.approx(0.5)


def test_unknown_methods_data_and_low_bit_bases_are_refused(base, tmp_path):
    with pytest.raises(UnsupportedError, match="bidm"):
        quantize("magic", str(base))
    with pytest.raises(UnsupportedError, match="digits"):
        quantize("bidm", str(base), data="imagenet")
    quantize("xnor", str(base), output=str(tmp_path / "low"), iterations=1, threads=1)
    with pytest.raises(InvalidModelError, match="xnor"):
        quantize("bidm", str(tmp_path / "low"))
