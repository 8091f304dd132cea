"""EfficientDM's training: the trajectory, what is trained at which rate, what it ships, what it resumes."""

import dataclasses

import numpy as np
import pytest
import torch
from architectures import SMALL_UNET

from edgedm.diffusion import NoiseSchedule
from edgedm.errors import UnsupportedError
from edgedm.models import CheckpointConfig, build, load, save
from edgedm.models.config import Architecture
from edgedm.models.roles import FLOAT
from edgedm.quant.integer import QuantLayer
from edgedm.quant.methods.efficientdm import RELEASED_RATES, EfficientDMOptions, QALoRALayer
from edgedm.quant.policy import policy_of
from edgedm.quant.uniform_layer import UniformLayer
from edgedm.training.calibrate import calibrate
from edgedm.training.efficientdm import TrajectoryDistillation, changed_codes, eps_mse, random_labels, weight_codes
from edgedm.training.options import LoopOptions
from edgedm.training.recipes import RECIPES
from edgedm.training.recipes import efficientdm as recipe
from edgedm.training.run import make_student, run_method
from edgedm.training.trajectory import calibration_samples, predictor

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule()
STEPS = 4
LOOP = LoopOptions(4, 1.0, batch=3, warm_up=0, decay="linear", ema_decay=0.0, weight_decay=0.01, save_every=2)
FIGURES = {
    "calibrated.eps_mse",
    "merge.eps_mse_before",
    "merge.eps_mse_after",
    "codes.changed",
    "codes.untouched",
}
SHORT = dataclasses.replace(LOOP, iterations=2)
HALF = 0.2  # float16 of steps and tables moves values across rounding thresholds, a few layers deep


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


@pytest.fixture(autouse=True)
def small(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(recipe, "TRAJECTORIES", 2)
    monkeypatch.setattr(recipe, "STEPS", 5)


def calibrated(base, **named):
    """Return (student, objective, options) of a small calibrated student."""
    options = EfficientDMOptions(**{**RELEASED_RATES, "trajectory_steps": STEPS, "bins": 10, **named})
    student = make_student(base.module.unet, SCHEDULE, "efficientdm", policy_of("efficientdm"), options)
    predict = predictor(base.module.unet)
    calibrate(student.eval(), calibration_samples(predict, SCHEDULE, SHAPE, torch.tensor([1, 10]), 5))
    objective = TrajectoryDistillation(student, base.module.unet, SCHEDULE, SHAPE, 10, options, 3, 0.5)
    return student.train(), objective, options


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_trajectory_is_the_teachers_by_the_formulas_of_ddim(base, guidance):
    student, objective, _ = calibrated(base, guidance=guidance)
    alphas = SCHEDULE.alphas_cumprod()
    x = labels = None
    for step, timestep in enumerate((750, 500, 250, 0, 750)):
        draws = torch.Generator().manual_seed(step)
        if step % STEPS == 0:
            x = torch.randn((3, *SHAPE), generator=draws).double().numpy()
            labels = random_labels(3, 10, draws, 0.5)
        noise = torch.randn((3, *SHAPE), generator=draws).double().numpy()
        losses = objective(step, torch.Generator().manual_seed(step))

        def predict(network, labels, x=x, timestep=timestep):
            with torch.no_grad():
                return network(torch.from_numpy(x).float(), torch.full((3,), timestep), labels).double().numpy()

        def guided(network, labels=labels, predict=predict):
            free = predict(network, torch.full((3,), 10))
            return free + guidance * (predict(network, labels) - free)

        eps = guided(predictor(base.module.unet))
        squares = (guided(student.record) - eps) ** 2
        assert losses["loss"].item() == pytest.approx(squares.sum(), rel=1e-3)
        assert losses["eps_mse"].item() == pytest.approx(squares.mean(), rel=1e-3)
        now, before = alphas[timestep], alphas[timestep - 250] if timestep else 1.0
        sigma = np.sqrt((1 - before) / (1 - now) * (1 - now / before))
        x0 = np.clip((x - np.sqrt(1 - now) * eps) / np.sqrt(now), -1, 1)
        x = np.sqrt(before) * x0 + np.sqrt(1 - before - sigma**2) * eps + sigma * noise
        np.testing.assert_allclose(objective.x.numpy(), x, atol=1e-4)
        assert torch.equal(objective.labels, labels) and int(objective.step) == (step + 1) % STEPS


@pytest.mark.parametrize(("guidance", "balance"), [(1.0, False), (1.5, False), (1.0, True)])
def test_the_loss_has_the_formulas_gradient_in_both_halves_of_a_guided_call(base, guidance, balance):
    """Balanced, the gradient is that of the sum divided by its mean, as if the mean were a constant."""
    student, objective, _ = calibrated(base, guidance=guidance, balance=balance)
    found = {}

    def keep(name):
        def hook(_module, _inputs, output):
            found[name] = output
            if output.requires_grad:
                output.retain_grad()

        return hook

    student.unet.conv_out.register_forward_hook(keep("ours"))
    objective.teacher.module.conv_out.register_forward_hook(keep("theirs"))
    objective(0, torch.Generator().manual_seed(0))["loss"].backward()

    def guided(output):
        output = output.detach().double().numpy()
        if guidance == 1.0:
            return output
        conditional, free = output[:3], output[3:]
        return free + guidance * (conditional - free)

    difference = guided(found["ours"]) - guided(found["theirs"])
    size = np.mean(difference**2) if balance else 1
    error = 2 * difference
    expected = error if guidance == 1.0 else np.concatenate([guidance * error, (1 - guidance) * error])
    np.testing.assert_allclose(size * found["ours"].grad.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_only_updates_weight_steps_and_the_current_rows_are_trained(base):
    student, objective, _ = calibrated(base)
    objective(0, torch.Generator().manual_seed(0))["loss"].backward()
    trained = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained
    for name in trained:
        owner = student.get_submodule(name.rsplit(".", 1)[0].removesuffix(".activation"))
        assert isinstance(owner, QALoRALayer)
    layer = student.unet.get_submodule("mid_block.resnets.0.conv1")
    assert layer.activation.step.grad.abs().flatten().nonzero().tolist() == [[7]]  # timestep 750 of 10 bins
    edges = [m for m in student.modules() if isinstance(m, UniformLayer)]
    assert len(edges) == 4 and not any(p.requires_grad for m in edges for p in m.parameters())


def test_zero_points_stay_where_they_are_told_to(base):
    student, objective, _ = calibrated(base, zero_learning=False)
    assert not any(p.requires_grad for n, p in student.named_parameters() if n.endswith("activation.zero"))
    assert all(p.requires_grad for p in objective.parameter_groups(1.0)[-1]["params"])


def test_scale_aware_rates_follow_the_weight_steps_and_agnostic_ones_are_their_mean(base):
    student, objective, _ = calibrated(base)
    layers = [m for m in student.modules() if isinstance(m, QALoRALayer)]
    means = [m.step.mean().item() for m in layers]
    aware = objective.parameter_groups(2.0)
    assert [g["lr"] for g in aware[:-2]] == pytest.approx([2 * mean / 2500 for mean in means])
    assert aware[0]["params"][0] is layers[0].lora_a and aware[0]["params"][1] is layers[0].lora_b
    assert aware[-2]["lr"] == pytest.approx(2e-6) and len(aware[-2]["params"]) == len(layers)
    assert aware[-1]["lr"] == pytest.approx(1e-3) and len(aware[-1]["params"]) == 2 * len(layers)
    listed = {id(p) for g in aware for p in g["params"]}
    assert listed == {id(p) for p in student.parameters() if p.requires_grad}
    _, objective, _ = calibrated(base, scale_aware=False)
    agnostic = [g["lr"] for g in objective.parameter_groups(2.0)[:-2]]
    assert agnostic == pytest.approx([2 * sum(means) / len(means) / 2500] * len(means))


def test_changed_codes_counts_integers_layer_by_layer(base):
    student, _, _ = calibrated(base)
    before = weight_codes(student)
    assert set(changed_codes(before, weight_codes(student)).values()) == {0.0}
    path, layer = next((n, m) for n, m in student.named_modules() if isinstance(m, QALoRALayer))
    with torch.no_grad():
        layer.lora_a.zero_()
        layer.lora_a[0, 0, 0, 0] = 1.0
        layer.lora_b[:, 0] = torch.where(before[path][:, 0, 0, 0] < 8, 3.0, -3.0) * layer.step
    changed = changed_codes(before, weight_codes(student))
    assert changed[path] == pytest.approx(1 / before[path][0].numel())
    assert sum(share > 0 for share in changed.values()) == 1


def test_training_lowers_the_loss_and_leaves_w0_alone(base):
    student, objective, _ = calibrated(base, trajectory_steps=2, activation_rate=2e-5)
    frozen = {name: buffer.clone() for name, buffer in student.named_buffers() if not name.endswith("visited")}
    optimiser = torch.optim.AdamW(objective.parameter_groups(100.0), weight_decay=0.01)
    losses = []
    for iteration in range(25):
        objective.step.zero_()  # the same trajectory's first step again and again
        loss = objective(iteration, torch.Generator().manual_seed(0))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.75 * losses[0]
    after = dict(student.named_buffers())
    assert all(torch.equal(buffer, after[name]) for name, buffer in frozen.items())  # W0, zero points, biases


def test_the_recipe_reports_what_training_and_merging_did(base, tmp_path):
    options = {"trajectory_steps": 2, "bins": 10}
    trained = run_method(base, "efficientdm", tmp_path, options=options, loop=LOOP)
    assert set(trained.figures) >= FIGURES
    predict = predictor(base.module.unet)
    labels = random_labels(2, 10, torch.Generator().manual_seed(1))
    held = calibration_samples(predict, SCHEDULE, SHAPE, labels, 5, seed=1)
    before, after = trained.figures["merge.eps_mse_before"], trained.figures["merge.eps_mse_after"]
    assert before == pytest.approx(eps_mse(trained.denoiser, base.module.unet, held))
    assert after == pytest.approx(eps_mse(trained.checkpoint.module, base.module.unet, held))
    assert before != after  # rounding a zero point shows


def test_a_resumed_run_equals_an_uninterrupted_one(base, tmp_path, monkeypatch):
    options = {"trajectory_steps": 3, "bins": 5}  # the second half starts inside a trajectory
    loop_options = dataclasses.replace(LOOP, iterations=4, learning_rate=1.0)

    def run(folder):
        return run_method(base, "efficientdm", folder, options=options, loop=loop_options)

    once = run(tmp_path / "once")
    forward = TrajectoryDistillation.forward

    def stop(objective, iteration, generator):
        if iteration == 2:  # the state was saved after two
            raise KeyboardInterrupt
        return forward(objective, iteration, generator)

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryDistillation, "forward", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "twice")
    resumed = run(tmp_path / "twice")
    ours, theirs = once.denoiser.state_dict(), resumed.denoiser.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in FIGURES:
        assert once.figures[name] == resumed.figures[name]


CHOICES = {
    "paper": ("W4A4", {}),
    "one row": ("W2A8", {"talsq": False}),
    "float base": ("W4A8", {"base": "float"}),
    "no update": ("W8A8", {"qalora": False}),
}


@pytest.mark.parametrize(("nominal", "chosen"), CHOICES.values(), ids=CHOICES)
def test_a_checkpoint_comes_back_as_it_was_trained(base, tmp_path, nominal, chosen):
    policy, options = policy_of("efficientdm", nominal=nominal), {"bins": 10, "trajectory_steps": 3, **chosen}
    trained = run_method(base, "efficientdm", tmp_path / "run", policy=policy, options=options, loop=SHORT)
    save(trained.checkpoint, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert loaded.config.method == "efficientdm" and loaded.config.options == trained.checkpoint.config.options
    rows = 1 if chosen == {"talsq": False} else 10
    for name, layer in loaded.module.named_modules():
        if isinstance(layer, QuantLayer):
            edge = name.split(".")[1] in ("conv_in", "time_embedding", "conv_out")
            assert f"W{layer.weight_bits}A{layer.activation.bits}" == ("W8A8" if edge else nominal)
            assert len(layer.activation.table) == (1 if edge else rows)
    before, after = trained.checkpoint.module.state_dict(), loaded.module.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(expected, after[name]), name
    samples = calibration_samples(predictor(base.module.unet), SCHEDULE, SHAPE, torch.tensor([3]), 5)
    ours = eps_mse(trained.checkpoint.module, base.module.unet, samples)
    assert eps_mse(loaded.module, base.module.unet, samples) == pytest.approx(ours, rel=HALF)


def test_a_model_without_classes_trains_and_refuses_guidance(tmp_path):
    architecture = Architecture(class_name="UNet2DModel", config={**SMALL_UNET, "num_class_embeds": None})
    noise = {"num_train_timesteps": 1000}
    config = CheckpointConfig(
        architecture=architecture, method="fp32", roles=FLOAT, noise_schedule=noise, null_class=None
    )
    plain, options = build(config, 0), {"trajectory_steps": 2, "bins": 2}
    assert RECIPES["efficientdm"].data_free
    trained = run_method(plain, "efficientdm", tmp_path / "plain", options=options, loop=SHORT)
    assert trained.checkpoint.config.null_class is None
    with pytest.raises(UnsupportedError, match="guidance"):
        run_method(plain, "efficientdm", tmp_path / "guided", options={**options, "guidance": 1.5}, loop=SHORT)
