"""Whole training layers against numpy, gradients included: DilateQuant's with rows and heads, BiDM's shortcuts."""

import numpy as np
import pytest
import torch
from numpy_layers import along, hat, product, product_gradients, sign, within
from torch import nn

from edgedm.quant.clock import Clock
from edgedm.quant.methods.bidm import BinaryLayer
from edgedm.quant.methods.dilatequant import IntegerZeroTable
from edgedm.quant.uniform_layer import UniformLayer

CLOSE = 1e-5  # another order of float32 sums over a few dozen products
SUMS = 2e-4  # float32 gradients summed over a few thousand products
EDGES = (0, 250, 500)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def double(tensor):
    return tensor.detach().double().numpy()


def on_grid(v, step, zero, bits):
    """(values, passes, to_step, to_zero) of v on the grid, entry by entry."""
    scaled = (torch.as_tensor(v).float() / torch.as_tensor(step).float()).double().numpy()  # rounds as float32 does
    raw = np.round(scaled) + zero
    codes = np.clip(raw, 0, 2**bits - 1)
    inside = raw == codes
    to_step = np.where(inside, np.round(scaled) - scaled, codes - zero)
    return (codes - zero) * step, inside, to_step, np.where(inside, 0, -step)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_dilatequants_layer_has_the_papers_value_and_gradients_each_image_at_its_own_row(kind):
    clock = Clock()
    clock.timestep = torch.tensor([600, 10, 300])
    plain = nn.Conv2d(4, 6, 3, padding=1) if kind == "conv" else nn.Linear(10, 6)
    layer = UniformLayer(plain, 4, 32, clock, dilate=True)
    layer.activation = IntegerZeroTable(4, EDGES, clock)
    x = torch.randn((3, 4, 5, 5) if kind == "conv" else (3, 7, 10)).requires_grad_()
    with torch.no_grad():
        layer.dilation.copy_(1 + torch.rand_like(layer.dilation))
        layer.step.mul_(0.5 + 0.6 * torch.rand_like(layer.step))  # some weights are clipped
        layer.activation.step.copy_(torch.tensor([[0.2], [0.15], [0.25]]))
        layer.activation.zero.copy_(torch.tensor([[6.3], [7.8], [5.1]]))
        layer.activation.started.fill_(True)
    y = layer(x)
    upstream = np.random.default_rng(0).normal(size=y.shape)
    y.backward(torch.tensor(upstream).float())

    channel, padding = (1, 1) if kind == "conv" else (-1, 0)
    w, s = double(layer.weight), along(double(layer.dilation), double(x), channel)
    rows = np.array([2, 0, 1])
    shape = (3, *(1,) * (x.ndim - 1))
    step, zero = (double(p)[rows].reshape(shape) for p in (layer.activation.step, layer.activation.zero))
    values, passes, to_step, to_zero = on_grid(double(x) / s, step, np.round(zero), 4)
    step_w, zero_w = along(double(layer.step), w, 0), along(double(layer.zero), w, 0)
    weight, passes_w, to_step_w, _ = on_grid(w, step_w, zero_w, 4)
    assert not passes.all() and not passes_w.all()
    expected = product(values, weight, padding=padding) + along(double(layer.bias), y, channel)
    np.testing.assert_allclose(double(y), expected, atol=SUMS)

    to_values, to_weight = product_gradients(values, weight, upstream, padding=padding)
    np.testing.assert_allclose(double(x.grad), to_values * passes / s, atol=SUMS)
    np.testing.assert_allclose(double(layer.weight.grad), to_weight * passes_w, atol=SUMS)
    others = tuple(range(1, w.ndim))
    np.testing.assert_allclose(double(layer.step.grad), (to_weight * to_step_w).sum(others), rtol=1e-3, atol=1e-2)
    outer = tuple(axis for axis in range(y.ndim) if axis != channel % y.ndim)
    np.testing.assert_allclose(double(layer.bias.grad), upstream.sum(outer), atol=SUMS)
    inner = tuple(range(1, x.ndim))
    for image, row in enumerate(rows):
        by_step = (to_values * to_step).sum(inner)[image]
        by_zero = (to_values * to_zero).sum(inner)[image]
        assert layer.activation.step.grad[row].item() == pytest.approx(by_step, rel=1e-3, abs=1e-2)
        assert layer.activation.zero.grad[row].item() == pytest.approx(by_zero, rel=1e-3, abs=1e-2)


def test_every_head_of_every_row_has_gradients_of_its_own():
    clock = Clock()
    clock.timestep = torch.tensor([300, 600])
    table = IntegerZeroTable(4, EDGES, clock, heads=2)
    with torch.no_grad():
        table.step.copy_(0.1 + 0.2 * torch.rand(3, 2))
        table.zero.copy_(4 + 6 * torch.rand(3, 2))
        table.started.fill_(True)
    x = torch.randn(2, 2, 5, 4).requires_grad_()
    y = table(x)
    upstream = np.random.default_rng(0).normal(size=y.shape)
    y.backward(torch.tensor(upstream).float())
    rows = np.array([1, 2])
    step, zero = (double(p)[rows][:, :, None, None] for p in (table.step, table.zero))
    values, passes, to_step, to_zero = on_grid(double(x), step, np.round(zero), 4)
    np.testing.assert_allclose(double(y), values, atol=CLOSE)
    np.testing.assert_allclose(double(x.grad), upstream * passes, atol=CLOSE)
    np.testing.assert_allclose(double(table.step.grad)[rows], (upstream * to_step).sum((2, 3)), atol=SUMS)
    np.testing.assert_allclose(double(table.zero.grad)[rows], (upstream * to_zero).sum((2, 3)), atol=SUMS)
    assert table.step.grad[0].abs().sum() == 0 and table.zero.grad[0].abs().sum() == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_bidms_identity_and_pooled_shortcuts_have_the_papers_value_and_gradients(stride):
    layer = BinaryLayer(nn.Conv2d(4, 4, 3, stride, 1))
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
        layer.threshold.copy_(0.3 * torch.randn(4))
        layer.mean_filter.add_(0.05 * torch.randn_like(layer.mean_filter))
        layer.mean_bias.add_(0.1)
    x = torch.randn(2, 4, 6, 6).requires_grad_()
    y = layer(x)
    upstream = np.random.default_rng(0).normal(size=y.shape)
    y.backward(torch.tensor(upstream).float())

    v, w = double(x), double(layer.weight)
    mean = np.abs(v).mean(1, keepdims=True)
    k = product(mean, double(layer.mean_filter), stride, 1) + double(layer.mean_bias)
    u = v + along(double(layer.threshold), v, 1)
    binary = np.abs(w).mean((1, 2, 3), keepdims=True) * sign(w)
    inner = product(sign(u), binary, stride, 1)
    beside = v if stride == 1 else v.reshape(2, 4, 3, 2, 3, 2).mean((3, 5))
    gain = double(layer.shortcut_gain)
    np.testing.assert_allclose(double(y), inner * k + gain * beside, atol=1e-4)

    to_signs, to_binary = product_gradients(sign(u), binary, upstream * k, stride, 1)
    to_mean, _ = product_gradients(mean, double(layer.mean_filter), (upstream * inner).sum(1, keepdims=True), stride, 1)
    back = gain * upstream
    to_beside = back if stride == 1 else back.repeat(2, 2).repeat(2, 3) / 4
    np.testing.assert_allclose(double(x.grad), to_signs * hat(u) + to_mean * np.sign(v) / 4 + to_beside, atol=SUMS)
    np.testing.assert_allclose(double(layer.weight.grad), to_binary * within(w), atol=SUMS)
    np.testing.assert_allclose(double(layer.threshold.grad), (to_signs * hat(u)).sum((0, 2, 3)), atol=SUMS)
    np.testing.assert_allclose(double(layer.shortcut_gain.grad), [(upstream * beside).sum()], rtol=1e-4, atol=SUMS)
