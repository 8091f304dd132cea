"""The baselines' recipes end to end on a small UNet: what they calibrate, train and ship."""

from dataclasses import replace

import pytest
import torch
from architectures import SMALL_UNET
from small_runs import begin, finish, finish_after_a_kill

from edgedm.diffusion import NoiseSchedule
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.quant.policy import policy_of
from edgedm.quant.uniform import ActivationTable
from edgedm.training.options import LoopOptions
from edgedm.training.recipes import RECIPES
from edgedm.training.run import run_method

CLOSE = 1e-4  # training multiplies the scale into the weight, inference after the sum; a few layers deep
SHARE = 0.95  # rounding flips the few codes that lie on a border


@pytest.fixture(scope="module")
def base():
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=SMALL_UNET),
        method="fp32",
        roles=FLOAT,
        noise_schedule=NoiseSchedule().model_dump(mode="json"),
        null_class=10,
    )
    return build(config, 0)


CASES = {
    "dorefa": ("dorefa", None, {}),
    "dorefa-signed": ("dorefa", None, {"inputs": "signed"}),
    "reactnet": ("reactnet", None, {}),
    "lsq": ("lsq", None, {}),
    "lsq-w2a4": ("lsq", "W2A4", {}),
    "ptq": ("ptq", None, {"images": 4, "steps": 5}),
    "ptq-minmax": ("ptq", "W8A8", {"weights": "minmax", "images": 4, "steps": 5}),
}


@pytest.mark.parametrize("method, nominal, options", CASES.values(), ids=CASES)
def test_a_baseline_trains_ships_and_loads_with_the_same_output(base, tmp_path, method, nominal, options):
    policy = policy_of(method, nominal=nominal)
    loop = RECIPES["ptq"].loop if method == "ptq" else LoopOptions(2, 1e-3, batch=4)
    trained = run_method(base, method, tmp_path, policy=policy, options=options, loop=loop)
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor([500, 500]), torch.tensor([1, 10])
    save(trained.checkpoint, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert dict(loaded.config.roles) == dict(policy.bits) and loaded.config.method == method
    with torch.no_grad():
        ours = trained.denoiser.eval().record(x, t, label)
        ships = trained.checkpoint.module.record(x, t, label)
    assert ((ours - ships).abs() < CLOSE).float().mean() >= SHARE
    for name, tensor in loaded.module.state_dict().items():
        ours = trained.checkpoint.module.state_dict()[name]
        assert torch.equal(tensor, ours.half().float() if ours.is_floating_point() else ours)


@pytest.mark.parametrize("method", ["dorefa", "reactnet", "lsq"])
def test_a_few_steps_lower_the_loss(method):
    losses = begin(method, loop=LoopOptions(32, 2e-3, batch=8)).train(32)
    assert sum(losses[-8:]) / 8 < 0.9 * sum(losses[:4]) / 4


@pytest.mark.parametrize("method", ["dorefa", "reactnet", "lsq"])
def test_a_resumed_run_is_the_same(tmp_path, monkeypatch, method):
    once = finish(method, tmp_path / "once")
    resumed = finish_after_a_kill(monkeypatch, 3, method, tmp_path / "twice")
    ours, theirs = once.denoiser.state_dict(), resumed.denoiser.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ["lsq", "ptq"])
def test_every_activation_table_is_calibrated_before_training(base, tmp_path, method):
    loop = RECIPES["ptq"].loop if method == "ptq" else LoopOptions(1, 0.0, batch=4)
    trained = run_method(base, method, tmp_path, loop=loop)
    tables = [module for module in trained.denoiser.modules() if isinstance(module, ActivationTable)]
    assert tables and all(table.started for table in tables)
    assert bool(trained.curves) == (method == "lsq")


def test_post_training_quantisation_depends_on_the_seed_alone_and_keeps_the_float_weights(base, tmp_path):
    def run(seed):
        options, loop = {"images": 2, "steps": 3}, replace(RECIPES["ptq"].loop, seed=seed)
        return run_method(base, "ptq", tmp_path, options=options, loop=loop).denoiser

    first, again, other = run(0).state_dict(), run(0).state_dict(), run(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    weight = "unet.mid_block.resnets.0.conv1.weight"
    assert torch.equal(first[weight], base.module.unet.state_dict()[weight.removeprefix("unet.")])
