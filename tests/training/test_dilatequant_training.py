"""Block-wise distillation: which blocks, what it moves, what it leaves, and that it goes on where it stopped."""

import copy

import numpy as np
import pytest
import torch
from architectures import SMALL_UNET
from small_runs import started

from edgedm.diffusion import NoiseSchedule
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.quant.api import method_options
from edgedm.quant.policy import policy_of
from edgedm.quant.uniform import ActivationTable
from edgedm.quant.uniform_layer import UniformLayer
from edgedm.training import loop
from edgedm.training.blockwise import BlockReconstruction, Rates, blocks_of
from edgedm.training.calibrate import calibrate
from edgedm.training.objective import Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.recipes import dilatequant
from edgedm.training.run import make_student, run_method
from edgedm.training.trajectory import Samples

BLOCKS = [
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "conv_in",
    "down_blocks.0.resnets.0",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.resnets.0",
    "down_blocks.1.attentions.0",
    "mid_block.resnets.0",
    "mid_block.attentions.0",
    "mid_block.resnets.1",
    "up_blocks.0.resnets.0",
    "up_blocks.0.attentions.0",
    "up_blocks.0.resnets.1",
    "up_blocks.0.attentions.1",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.1.resnets.0",
    "up_blocks.1.resnets.1",
    "conv_out",
]
OPTIONS = {"bins": 4, "calibration_samples": 64}
RATES = Rates(1e-2, 1e-3)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(dilatequant, "STEPS", 8)
    monkeypatch.setattr(dilatequant, "CALIBRATED", 64)


@pytest.fixture(scope="module")
def base():
    config = CheckpointConfig(
        architecture=Architecture(class_name="UNet2DModel", config=SMALL_UNET),
        method="fp32",
        roles=FLOAT,
        noise_schedule={"num_train_timesteps": 1000},
        null_class=10,
    )
    return build(config, 0)


def a_run(base, loop_options=None, **options):
    settings = method_options("dilatequant", {**OPTIONS, **options})
    teacher = base.module.unet
    student = make_student(teacher, NoiseSchedule(), "dilatequant", policy_of("dilatequant"), settings)
    return Run(
        student=student,
        teacher=teacher,
        batches=None,
        schedule=NoiseSchedule(),
        shape=(1, 8, 8),
        null_class=10,
        options=settings,
        loop=loop_options or LoopOptions(20, 1.0, batch=16, warm_up=0, ema_decay=0.0),
    )


def samples(count=48):
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(count) * 1000 // count
    return Samples(torch.randn((count, 1, 8, 8), generator=generator), t, torch.arange(count) % 11)


def call(unet, some):
    return unet(some.noisy, some.timesteps, class_labels=some.labels)


def objective(run, path, **named):
    return BlockReconstruction(run.student, run.teacher, path, samples(), RATES, batch=16, **named)


def calibrated(base, **options):
    run = a_run(base, **options)
    calibrate(run.student, samples(), per_row=True)
    return run


def loss_and_gradients(block, iteration=0):
    block.zero_grad()
    loss = block(iteration, torch.Generator().manual_seed(iteration))["loss"]
    loss.backward()
    return float(loss.detach())


def test_blocks_are_residual_blocks_attentions_and_single_layers_in_the_order_of_the_forward_pass(base):
    run = a_run(base)
    assert blocks_of(run.student.unet, lambda: call(run.student.unet, samples(1))) == BLOCKS
    assert not any(module._forward_pre_hooks for module in run.student.unet.modules() if module is not run.student.unet)


def test_the_loss_compares_the_block_behind_the_low_bit_prefix_with_the_float_one(base):
    run, some = calibrated(base), samples()
    prefix, path = BLOCKS[:7], "mid_block.resnets.0"
    for earlier in prefix:  # every block moves before the next one is looked at
        for parameter in run.student.unet.get_submodule(earlier).parameters():
            parameter.data.mul_(1.1)
    block, given = objective(run, path), []
    handle = block.block.register_forward_hook(lambda _m, _i, y: given.append(y))
    got = block(0, torch.Generator().manual_seed(5))["loss"]
    handle.remove()
    given[-1].retain_grad()
    got.backward()
    rows = torch.randint(len(some), (16,), generator=torch.Generator().manual_seed(5))
    outputs = []
    for unet in (run.student.unet, run.teacher):
        handle = unet.get_submodule(path).register_forward_hook(lambda _m, _i, y: outputs.append(y))
        with torch.no_grad():
            call(unet, some.take(rows))
        handle.remove()
    ours, theirs = outputs
    ours, theirs = ours.double().numpy(), theirs.double().numpy()
    assert float(got.detach()) == pytest.approx(((ours - theirs) ** 2).mean(), rel=1e-5)
    np.testing.assert_allclose(given[-1].grad, 2 * (ours - theirs) / ours.size, atol=1e-7)


def test_gradients_reach_the_blocks_low_bit_layers_and_tables_alone(base):
    run = calibrated(base)
    path = "mid_block.attentions.0"
    block = objective(run, path)
    loss_and_gradients(block)
    got = {name for name, p in run.student.unet.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got and all(name.startswith(path + ".") for name in got)
    wanted = {f"{path}.{name}.weight" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    wanted |= {f"{path}.processor.quantizers.{name}.step" for name in ("query", "key", "value", "weight")}
    assert wanted <= got
    assert not any("group_norm" in name or "quantizers.weight.zero" in name for name in got)
    trained = {id(p) for group in block.parameter_groups(1.0) for p in group["params"]}
    assert {id(p) for p in block.parameters() if p.requires_grad} == trained


def test_rates_are_relative_to_what_they_move(base):
    block = objective(calibrated(base), "mid_block.attentions.0")
    rates = {id(group["params"][0]): group["lr"] for group in block.parameter_groups(2.0)}
    layer, softmax = block.block.to_q, block.block.processor.quantizers["weight"]
    step = layer.step.mean().item()
    assert rates[id(layer.weight)] == rates[id(layer.bias)] == pytest.approx(2 * 1e-2 * step)
    assert rates[id(layer.step)] == pytest.approx(2 * 1e-3 * step)
    assert rates[id(layer.activation.zero)] == pytest.approx(2 * 1e-3 * 15)
    assert rates[id(softmax.step)] == pytest.approx(2 * 1e-3 * softmax.step.mean().item())
    assert id(softmax.zero) not in rates


def test_a_block_is_calibrated_again_behind_the_finished_ones(base):
    run, path = calibrated(base), "mid_block.resnets.0"
    tables = [m for m in run.student.unet.get_submodule(path).modules() if isinstance(m, ActivationTable)]
    before = [table.step.detach().clone() for table in tables]
    run.student.unet.get_submodule("down_blocks.1.resnets.0.conv2").weight.data.mul_(2)
    block = objective(run, path)
    block(0, torch.Generator())
    after = [table.step.detach().clone() for table in tables]
    assert not torch.equal(before[0], after[0])
    tables[0].step.data.mul_(2)
    block(1, torch.Generator())  # once
    assert torch.equal(tables[0].step.detach(), 2 * after[0])


@pytest.mark.parametrize("path", ["time_embedding.linear_2", "down_blocks.0.resnets.0", "mid_block.attentions.0"])
def test_a_few_steps_lower_the_loss_of_a_block_and_leave_every_other_one_alone(base, path, tmp_path):
    run = calibrated(base)
    block = objective(run, path)
    before = copy.deepcopy(run.student.state_dict())
    _, curve = loop.train(Stage("one", block, run.loop), tmp_path)
    first = BlockReconstruction(calibrated(base).student, run.teacher, path, samples(), RATES, batch=48)
    assert curve[-1]["iteration"] == 20
    with torch.no_grad():
        started_at = float(first(0, torch.Generator().manual_seed(1))["loss"])
        block.batch = 48
        ended_at = float(block(0, torch.Generator().manual_seed(1))["loss"])
    assert ended_at < 0.99 * started_at
    changed = {name for name, value in run.student.state_dict().items() if not torch.equal(before[name], value)}
    assert changed and all(name.startswith(f"unet.{path}.") for name in changed)
    assert not any("norm" in name or name.endswith("dilation") for name in changed)


def test_the_state_of_a_stage_is_that_of_its_block(base):
    block = objective(calibrated(base), "conv_in")
    assert set(block.state_dict()) == {"begun"} | {f"block.{name}" for name in block.block.state_dict()}


def test_without_a_cache_the_same_batches_give_the_same_losses(base):
    run = calibrated(base)
    path = "down_blocks.1.attentions.0"
    kept, anew = objective(run, path), objective(run, path, cache=False)
    for iteration in range(2):
        first, second = loss_and_gradients(kept, iteration), loss_and_gradients(anew, iteration)
        assert first == pytest.approx(second, rel=1e-5)
    assert kept.cached is not None and anew.cached is None


def test_the_recipe_dilates_and_makes_one_stage_a_block(base):
    run = a_run(base)
    names = []
    for stage in dilatequant.stages(run):
        names.append(stage.name)
        assert stage.loop.ema_decay == 0
        assert stage.objective.samples.timesteps.unique().tolist() == [125 * i for i in range(8)]
    assert names == [f"{index:03}-{path}" for index, path in enumerate(BLOCKS)]
    assert any((module.dilation > 1).any() for module in run.student.modules() if isinstance(module, UniformLayer))
    assert run.figures["dilation.mean"] > 1 and 0 < run.figures["dilation.share"] < 1
    assert 0 < run.figures["dilation.range_ratio"] <= 1


def test_without_distillation_every_table_is_calibrated_and_nothing_trained(base, tmp_path):
    options = {**OPTIONS, "bkd": False, "dilate": False}
    trained = run_method(base, "dilatequant", tmp_path, options=options)
    assert trained.curves == {} and started(trained.denoiser)
    for path, layer in trained.denoiser.unet.named_modules():
        if isinstance(layer, UniformLayer):
            assert torch.equal(layer.weight, base.module.unet.get_submodule(path).weight)
        if isinstance(layer, ActivationTable) and len(layer.edges) > 1:
            assert len(layer.step.unique(dim=0)) > 1
    plain = run_method(base, "dilatequant", tmp_path, options={**options, "tpq": False})
    assert all(len(m.edges) == 1 for m in plain.denoiser.modules() if isinstance(m, ActivationTable))


@pytest.mark.parametrize("killed", [5, 8], ids=["between two stages", "inside the second"])
def test_a_resumed_run_equals_an_uninterrupted_one(base, tmp_path, monkeypatch, killed):
    monkeypatch.setattr(dilatequant, "blocks_of", lambda *_: BLOCKS[5:8])
    options = LoopOptions(4, 1.0, batch=8, warm_up=0, ema_decay=0.0, save_every=2)

    def run(folder):
        trained = run_method(base, "dilatequant", folder, loop=options, options=OPTIONS)
        losses = {name: [point["loss"] for point in curve] for name, curve in trained.curves.items()}
        return trained.denoiser.state_dict(), losses

    once, losses = run(tmp_path / "once")
    real, calls = BlockReconstruction.forward, []

    def stop(self, iteration, generator):
        calls.append(iteration)
        if len(calls) == killed:
            raise KeyboardInterrupt
        return real(self, iteration, generator)

    monkeypatch.setattr(BlockReconstruction, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "twice")
    calls.clear()
    monkeypatch.setattr(BlockReconstruction, "forward", real)
    resumed, again = run(tmp_path / "twice")
    assert all(torch.equal(once[name], resumed[name]) for name in once)
    assert losses == again


def test_a_finished_stage_is_loaded_and_not_run_again(base, tmp_path, monkeypatch):
    monkeypatch.setattr(dilatequant, "blocks_of", lambda *_: BLOCKS[:3])
    options = LoopOptions(2, 1.0, batch=8, ema_decay=0.0)
    first = run_method(base, "dilatequant", tmp_path, loop=options, options=OPTIONS).denoiser.state_dict()
    monkeypatch.setattr(BlockReconstruction, "forward", None)
    again = run_method(base, "dilatequant", tmp_path, loop=options, options=OPTIONS).denoiser.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("nominal", ["W4A4", "W6A6"])
def test_a_trained_checkpoint_ships_what_was_trained(base, tmp_path, nominal):
    options = LoopOptions(2, 1.0, batch=8, ema_decay=0.0)
    policy = policy_of("dilatequant", nominal=nominal)
    trained = run_method(base, "dilatequant", tmp_path / "runs", loop=options, options=OPTIONS, policy=policy)
    save(trained.checkpoint, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert loaded.config.roles["res_conv"] == nominal and loaded.config.timestep_bins == [0, 250, 500, 750]
    some, shipped = samples(6), trained.checkpoint.module
    stored = {name: v.half().float() if v.is_floating_point() else v for name, v in shipped.state_dict().items()}
    again = loaded.module.state_dict()
    assert again.keys() == stored.keys() and all(torch.equal(again[name], stored[name]) for name in stored)
    with torch.no_grad():
        for i in range(6):
            image = some.take(slice(i, i + 1))
            arguments = (image.noisy, image.timesteps, image.labels)
            difference = trained.denoiser.eval().record(*arguments) - shipped.record(*arguments)
            # an activation on a rounding boundary may take the other code
            assert (difference.abs() < 1e-4).float().mean() > 0.9
