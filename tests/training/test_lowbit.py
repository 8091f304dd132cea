"""Low-bit training end to end on a small UNet: what it ships, what it resumes."""


import pytest
import torch

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.quant.api import method_options
from edgedm.quant.policy import policy_of
from edgedm.training import quantize, state
from edgedm.training.loop import learning_rate_factor
from edgedm.training.options import LoopOptions
from edgedm.training.recipes import RECIPES
from edgedm.training.run import make_student, run_method

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
    outcome = quantize(str(base), method, output=str(tmp_path / "out"), iterations=2, threads=1)
    checkpoint = load(tmp_path / "out")
    iterations = {value for name, value in outcome.figures.items() if name.endswith(".iteration")}
    assert outcome.ok and iterations == (set() if method == "ptq" else {2})  # PTQ trains nothing
    assert checkpoint.config.method == method
    assert bool(checkpoint.config.taps) == (method == "bidm")


@pytest.mark.parametrize("method", RECIPES)
def test_the_trained_model_equals_the_one_that_ships(base, tmp_path, method):
    loaded = load(base)
    trained = run_method(loaded, method, tmp_path, loop=LoopOptions(3, 1e-3, batch=4))
    shipped, ema = trained.checkpoint.module, trained.denoiser
    x, t, label = torch.randn(2, 1, 16, 16), torch.tensor([10, 700]), torch.tensor([1, 10])
    with torch.no_grad():
        ours, theirs = (one_by_one(model, x, t, label) for model in (ema.eval(), shipped))
    # rounding may flip a sign or a code that lies on its threshold; all else agrees
    assert ((ours - theirs).abs() < CLOSE).float().mean() > 0.98


def one_by_one(model, *arguments):
    """Layers that run take one timestep a batch."""
    return torch.cat([model.record(*(part[i : i + 1] for part in arguments)) for i in range(len(arguments[0]))])


def test_a_resumed_run_equals_an_uninterrupted_one(base, tmp_path, monkeypatch):
    options = LoopOptions(4, 1e-3, batch=4, save_every=2)

    def run(folder):
        return run_method(load(base), "bidm", folder, loop=options).denoiser.state_dict()

    once = run(tmp_path / "once")
    saved = state.State.save

    def stop(*arguments):
        saved(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(state.State, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "twice")
    monkeypatch.undo()
    resumed = run(tmp_path / "twice")
    assert all(torch.equal(once[name], resumed[name]) for name in once)


def test_the_student_starts_with_the_papers_mix_and_its_taps(base):
    student = make_student(load(base).module.unet, NoiseSchedule(), "bidm", policy_of("bidm"), method_options("bidm"))
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
        quantize(str(base), "magic")
    with pytest.raises(UnsupportedError, match="digits"):
        quantize(str(base), "bidm", data="imagenet")
    quantize(str(base), "xnor", output=str(tmp_path / "low"), iterations=1, threads=1)
    with pytest.raises(InvalidModelError, match="xnor"):
        quantize(str(tmp_path / "low"), "bidm")
