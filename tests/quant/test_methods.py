"""Training layers: they agree with the layers that ship, and BiDM's formula with numpy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgedm.quant import inference
from edgedm.quant.methods import bidm, binarydm

CLOSE = 1e-5  # another order of float32 sums over a few hundred +-1 products


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def disturb(layer: nn.Module) -> None:
    """Move every parameter off its initial value, so that none can be forgotten."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            amount = 0.3 if "threshold" in name else 0.1 * parameter.abs().mean().item() + 0.02
            parameter.add_(amount * torch.randn_like(parameter))


CONVS = {
    "same": (8, 8, 3, 1, 1),
    "wider": (8, 16, 3, 1, 1),
    "narrower": (72, 8, 3, 1, 1),
    "down": (8, 8, 3, 2, 1),
    "pointwise": (8, 16, 1, 1, 0),
}


@pytest.mark.parametrize("shape", CONVS.values(), ids=CONVS)
@pytest.mark.parametrize("method", [bidm.BinaryConv2d, binarydm.BinaryWeightConv2d])
def test_a_convolution_that_trains_equals_the_one_that_ships(method, shape):
    layer = method(nn.Conv2d(*shape))
    x = torch.randn(2, shape[0], 8, 8)
    layer(x)
    disturb(layer)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.to_inference()(x), atol=CLOSE, rtol=1e-4)


@pytest.mark.parametrize("method", [bidm.BinaryLinear, binarydm.BinaryWeightLinear])
def test_a_linear_layer_that_trains_equals_the_one_that_ships(method):
    layer = method(nn.Linear(70, 24))
    x = torch.randn(2, 5, 70)
    layer(x)
    disturb(layer)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.to_inference()(x), atol=CLOSE, rtol=1e-4)


def test_bidms_convolution_is_its_formula():
    layer = bidm.BinaryConv2d(nn.Conv2d(4, 6, 3, 1, 1))
    disturb(layer)
    layer.shortcut_gain.data.neg_()
    x = torch.randn(1, 4, 5, 5)
    p = {name: value.detach().double().numpy() for name, value in layer.named_parameters()}
    xs = x[0].double().numpy()

    def conv(image, weight):
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
        taps = np.stack([padded[:, i : i + 5, j : j + 5] for i in range(3) for j in range(3)], 1)
        return np.einsum("ikhw,oik->ohw", taps, weight.reshape(*weight.shape[:2], 9))

    k = conv(np.abs(xs).mean(0, keepdims=True), p["mean_filter"]) + p["mean_bias"]
    signs = np.where(xs + p["threshold"][:, None, None] >= 0, 1.0, -1.0)
    alpha = np.abs(p["weight"]).mean((1, 2, 3))[:, None, None]
    y = conv(signs, np.where(p["weight"] >= 0, 1.0, -1.0)) * alpha * k
    shortcut = np.einsum("oi,ihw->ohw", p["shortcut.weight"][:, :, 0, 0], xs) + p["shortcut.bias"][:, None, None]
    y = y + np.abs(p["shortcut_gain"]) * shortcut
    with torch.no_grad():
        np.testing.assert_allclose(layer(x)[0].numpy(), y, atol=1e-4)


def test_the_baseline_neither_learns_the_filter_nor_its_bias():
    layer = bidm.BinaryConv2d(nn.Conv2d(4, 4, 3, 1, 1), learn_filter=False)
    layer(torch.randn(1, 4, 4, 4)).sum().backward()
    assert layer.mean_filter.grad is None and layer.mean_bias.grad is None
    assert (layer.mean_filter == 1 / 9).all()
    assert layer.threshold.grad is not None


def test_time_projections_keep_a_threshold_of_zero():
    layer = bidm.BinaryLinear(nn.Linear(8, 4), learn_threshold=False)
    layer(torch.randn(2, 8)).sum().backward()
    assert layer.threshold.grad is None and (layer.threshold == 0).all()


def test_the_weight_gradient_has_no_factor_alpha_and_alpha_no_gradient():
    layer = bidm.BinaryLinear(nn.Linear(6, 3))
    x = torch.randn(4, 6)
    layer(x).sum().backward()
    signs = torch.where(x >= 0, 1.0, -1.0).sum(0)
    assert torch.equal(layer.weight.grad, signs.expand(3, 6))


def test_the_first_training_pass_sets_the_step_and_later_ones_keep_it():
    quantizer = binarydm.LSQActivation()
    x = torch.randn(100)
    quantizer(x)
    first = quantizer.step.detach().clone()
    assert float(first) == pytest.approx(2 * x.abs().mean().item() / 7**0.5, rel=1e-5)
    assert copy.deepcopy(quantizer)(10 * x).abs().max() <= 8 * first
    assert torch.equal(quantizer.step.detach(), first)
    assert isinstance(quantizer.to_inference(), inference.ActivationQuantizer4)
