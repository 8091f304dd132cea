"""BiDM's recipe: the unroll across timesteps, the distillation of block outputs, and the options of both."""

import numpy as np
import pytest
import torch
from small_runs import SIZE, Blobs, begin, finish, finish_after_a_kill, started

from edgedm.quant.policy import Policy, policy_of
from edgedm.training.losses import l2_loss, spd_loss
from edgedm.training.noising import add_noise
from edgedm.training.options import LoopOptions
from edgedm.training.qat import Features, block_outputs

CLOSE = 1e-4  # training multiplies the scale into the weight, inference after the sum; a few layers deep


def test_the_papers_losses_are_weighted_and_summed():
    losses = begin("bidm").losses(0)
    assert set(losses) == {"loss", "eps", "distill", "spd"}
    assert torch.allclose(losses["loss"], losses["eps"] + 1e-2 * losses["spd"])
    losses = begin("bidm", distillation="none", distill=1.0).losses(0)
    assert set(losses) == {"loss", "eps", "distill"}
    assert torch.allclose(losses["loss"], losses["eps"] + losses["distill"])
    assert set(begin("xnor").losses(0)) == {"loss", "eps"}
    assert set(begin("xnor", distill=0.5).losses(0)) == {"loss", "eps", "distill"}


@pytest.mark.parametrize(("name", "loss"), [("spd", spd_loss), ("l2", l2_loss)])
def test_distillation_is_of_the_block_outputs(name, loss):
    begun = begin("bidm", distillation=name, tbs=False, spd_weight=0.5)
    losses = begun.losses(0)
    batch = Blobs().draw(torch.Generator().manual_seed(0))
    ours = Features(begun.run.student.unet)
    ours.start()
    begun.run.student.record(batch.noisy, batch.timesteps, batch.labels)
    expected = loss(ours.finish(), block_outputs(begun.run.teacher, batch))
    assert torch.allclose(losses[name], expected)
    assert torch.allclose(losses["loss"], losses["eps"] + 0.5 * losses[name])


@pytest.mark.parametrize("gap", [1, 20])
def test_the_unroll_mixes_the_detached_features_of_the_noisier_timestep(gap):
    begun = begin("bidm", gap=gap, distillation="none", bins=4, connections=2)
    student, batch = begun.run.student, Blobs().draw(torch.Generator().manual_seed(0))
    batch.timesteps[0] = 1000 - gap  # its predecessor leaves the schedule
    student.cache_coefficients.data.copy_(torch.rand_like(student.cache_coefficients))
    mixes, state = begun.objective._unroll(batch)

    before = (batch.timesteps + gap).clamp(max=999)
    student.record(add_noise(batch.images, batch.noise, before, begun.run.batches.alphas), before, batch.labels)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state, student.carry.next, strict=True))
    assert not any(each.requires_grad for each in state) and all(each.requires_grad for each in mixes)
    table = student.cache_coefficients.detach()
    for tap, mix in enumerate(mixes):
        expected = table[batch.timesteps // 250, tap]
        expected[0] = 0
        assert torch.equal(mix.flatten().detach(), expected) and mix.shape == (4, 1, 1, 1)


def test_a_tap_becomes_the_mean_of_its_output_and_the_state_by_the_coefficients():
    begun = begin("bidm", connections=1)
    student, batch = begun.run.student, Blobs().draw(torch.Generator().manual_seed(0))
    inputs = (batch.noisy, batch.timesteps, batch.labels)
    student.record(*inputs)
    plain = student.carry.next[0].detach()
    c, state = torch.rand(4, 1, 1, 1), torch.randn_like(plain)
    _, mixed = student.mix(*inputs, [c], [state])
    assert torch.allclose(mixed, (1 - c) * plain + c * state, atol=1e-6)


def test_the_mix_has_the_formulas_gradients():
    begun = begin("bidm", connections=1)
    student, batch = begun.run.student, Blobs().draw(torch.Generator().manual_seed(0))
    own = []

    def keep(_module, _inputs, feature):
        feature.retain_grad()
        own.append(feature)

    student.unet.get_submodule(student.taps[0]).register_forward_hook(keep, prepend=True)  # in front of the mix
    student.record(batch.noisy, batch.timesteps, batch.labels)
    c = torch.rand(4, 1, 1, 1, requires_grad=True)
    state = torch.randn_like(own[0], requires_grad=True)
    _, mixed = student.mix(batch.noisy, batch.timesteps, batch.labels, [c], [state])
    upstream = torch.randn_like(mixed)
    (mixed * upstream).sum().backward()
    g, h, s, mix = (tensor.detach().double().numpy() for tensor in (upstream, own[-1], state, c))
    np.testing.assert_allclose(own[-1].grad, (1 - mix) * g, atol=1e-6)
    np.testing.assert_allclose(state.grad, mix * g, atol=1e-6)
    np.testing.assert_allclose(c.grad.flatten(), (g * (s - h)).sum((1, 2, 3)), rtol=1e-4, atol=1e-3)


def test_the_error_and_the_distillation_have_the_formulas_values_and_gradients():
    begun = begin("bidm", distill=0.5, tbs=False, distillation="none")
    outputs = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        outputs.append(output)

    begun.run.student.unet.conv_out.register_forward_hook(keep)
    losses = begun.losses(0)
    losses["loss"].backward()
    batch = Blobs().draw(torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = begun.run.teacher(batch.noisy, batch.timesteps, class_labels=batch.labels)[0]
    eps, noise, target = (tensor.detach().double().numpy() for tensor in (outputs[0], batch.noise, target))
    assert losses["eps"].item() == pytest.approx(((eps - noise) ** 2).mean(), rel=1e-5)
    assert losses["distill"].item() == pytest.approx(((eps - target) ** 2).mean(), rel=1e-4)
    expected = (2 * (eps - noise) + 0.5 * 2 * (eps - target)) / eps.size
    np.testing.assert_allclose(outputs[0].grad, expected, atol=1e-6)


def test_the_coefficients_learn_from_the_mix_alone():
    begun = begin("bidm")
    begun.losses(0)["loss"].backward()
    table = begun.run.student.cache_coefficients
    batch = Blobs().draw(torch.Generator().manual_seed(0))
    used = set((batch.timesteps // 10).tolist())
    assert {int(row) for row in table.grad.abs().sum(1).nonzero()} <= used and table.grad.abs().sum() > 0


def test_the_table_starts_at_the_options_mix():
    assert (begin("bidm").run.student.cache_coefficients == 0.3).all()
    assert (begin("bidm", mix_init=0.0).run.student.cache_coefficients == 0).all()
    assert not begin("bidm", tbs=False).run.student.taps
    assert begin("bidm", tbs=False).objective.gap == 0


def test_edges_of_eight_bits_are_calibrated():
    wider = {**policy_of("bidm").bits, "conv_in": "W8A8", "conv_out": "W8A8"}
    begun = begin("bidm", Policy("edges at 8 bits", "W1A1", wider, {}))
    assert started(begun.run.student)
    begun.losses(0)["loss"].backward()
    assert begun.run.student.unet.conv_in.step.grad is not None


VARIANTS = {
    "paper": ("bidm", {}),
    "shipped in the zoo": ("bidm", {"distill": 1.0, "gap": 20}),
    "cifar": (
        "bidm",
        {"attention": "conv2d", "gain": "raw", "gain_init": 0.0, "mix_init": 0.0, "filter_bias": "uniform"},
    ),
    "ablated": ("bidm", {"filter": "none", "tbs": False, "distillation": "l2", "linear_threshold": "used"}),
    "one connection": ("bidm", {"connections": 1, "threshold": False}),
    "xnor": ("xnor", {}),
    "bare xnor": ("xnor", {"shortcut": False, "threshold": False, "distill": 1.0}),
}


@pytest.mark.parametrize("variant", ["paper", "cifar", "xnor"])
def test_a_few_steps_lower_the_loss(variant):
    method, options = VARIANTS[variant]
    losses = begin(method, loop=LoopOptions(32, 2e-3, batch=8), **options).train(32)
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:4])


@pytest.mark.parametrize(("method", "options"), VARIANTS.values(), ids=VARIANTS)
def test_every_variant_ships_what_it_trained(tmp_path, method, options):
    trained = finish(method, tmp_path, **options)
    shipped, ours = trained.checkpoint.module, trained.denoiser.eval()
    assert shipped.taps == ours.taps
    x, t, label = torch.randn(2, 1, SIZE, SIZE), torch.tensor([10, 700]), torch.tensor([1, 10])
    with torch.no_grad():
        difference = (ours.record(x, t, label) - shipped.record(x, t, label)).abs()
    # rounding may flip a sign that lies on its threshold; all else agrees
    assert (difference < CLOSE).float().mean() > 0.9


def test_a_resumed_run_is_the_same(tmp_path, monkeypatch):
    once = finish("bidm", tmp_path / "once")
    resumed = finish_after_a_kill(monkeypatch, 3, "bidm", tmp_path / "twice")
    ours, theirs = once.denoiser.state_dict(), resumed.denoiser.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
