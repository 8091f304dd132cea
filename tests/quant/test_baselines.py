"""The baselines' layers against independent numpy versions, gradients included, and against what ships."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.quant.api import quantize_layers
from edgedm.quant.clock import Clock
from edgedm.quant.methods import dorefa, lsq, ptq, reactnet
from edgedm.quant.methods.method import Site

CLOSE = 1e-4  # float32 sums of a few hundred products
SHIPS = 1e-5  # another order of the same sums


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def disturb(layer):
    """Move every parameter off its initial value, so that none can be forgotten; calibrated grids stay."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "step" not in name and "zero" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))


def numbers(layer):
    return {name: value.detach().double().numpy() for name, value in layer.named_parameters()}


def signs(x):
    return np.where(x >= 0, 1.0, -1.0)


def patches(image, kernel=3, pad=1):
    """[I, H, W] -> [I, kernel^2, H, W] of a convolution with stride 1."""
    _, h, w = image.shape
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    return np.stack([padded[:, i : i + h, j : j + w] for i in range(kernel) for j in range(kernel)], 1)


def conv(image, weight):
    return np.einsum("ikhw,oik->ohw", patches(image), weight.reshape(*weight.shape[:2], -1))


def conv_grad_input(upstream, weight):
    """The gradient of `conv` with respect to its image."""
    return conv(upstream, weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))


def conv_grad_weight(upstream, image):
    grad = np.einsum("ohw,ikhw->oik", upstream, patches(image))
    return grad.reshape(*grad.shape[:2], 3, 3)


def backward(layer, x, upstream):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(upstream)
    return y.detach().numpy(), x.grad.numpy()


def site(bits, role="res_conv"):
    return Site("layer", role, bits, Clock())


# DoReFa


@pytest.mark.parametrize("inputs", ["unit", "signed"])
def test_dorefa_is_the_papers_forward_and_backward(inputs):
    layer = dorefa.DoReFaLayer(nn.Conv2d(3, 4, 3, padding=1), inputs)
    disturb(layer)
    x, upstream = torch.randn(1, 3, 5, 5), torch.randn(1, 4, 5, 5)
    y, grad = backward(layer, x, upstream)
    p, xs, g = numbers(layer), x[0].double().numpy(), upstream[0].double().numpy()
    if inputs == "unit":
        bits, passes = (np.clip(xs, 0, 1) >= 0.5).astype(float), (xs >= 0) & (xs <= 1)
    else:
        bits, passes = signs(xs), np.abs(xs) <= 1
    weight = signs(p["weight"]) * np.abs(p["weight"]).mean()
    np.testing.assert_allclose(y[0], conv(bits, weight) + p["bias"][:, None, None], atol=CLOSE)
    np.testing.assert_allclose(grad[0], conv_grad_input(g, weight) * passes, atol=CLOSE)
    np.testing.assert_allclose(layer.weight.grad.numpy(), conv_grad_weight(g, bits), atol=CLOSE)
    np.testing.assert_allclose(layer.bias.grad.numpy(), g.sum((1, 2)), atol=CLOSE)


def test_dorefas_bit_is_one_from_a_half_on_and_zero_for_everything_negative():
    assert dorefa.unit_bit(torch.tensor([-3.0, 0.0, 0.49, 0.5, 7.0])).tolist() == [0, 0, 0, 1, 1]
    assert dorefa.signed_bit(torch.tensor([-3.0, -0.01, 0.0, 0.5, 7.0])).tolist() == [-1, -1, 1, 1, 1]


SHAPES = {
    "same": nn.Conv2d(8, 8, 3, padding=1),
    "wider": nn.Conv2d(8, 16, 3, padding=1, bias=False),
    "narrower": nn.Conv2d(72, 8, 3, padding=1),
    "down": nn.Conv2d(8, 8, 3, stride=2, padding=1),
    "pointwise": nn.Conv2d(8, 16, 1),
    "linear": nn.Linear(70, 24),
}


@pytest.mark.parametrize("float_layer", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("inputs", ["unit", "signed"])
def test_dorefas_layer_that_trains_equals_the_one_that_ships(float_layer, inputs):
    layer = dorefa.DOREFA.layer(float_layer, site("W1A1"), dorefa.DoReFaOptions(inputs=inputs))
    assert_ships(layer, float_layer)


def assert_ships(layer, float_layer):
    disturb(layer)
    linear = isinstance(float_layer, nn.Linear)
    x = torch.randn(2, 5, 70) if linear else torch.randn(2, float_layer.in_channels, 8, 8)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.to_inference()(x), atol=SHIPS * 10, rtol=1e-4)


# ReActNet


def test_reactnets_convolution_is_the_papers_forward_and_backward():
    layer = reactnet.ReActConv2d(nn.Conv2d(4, 4, 3, padding=1))
    disturb(layer)
    x, upstream = torch.randn(1, 4, 5, 5), torch.randn(1, 4, 5, 5)
    y, grad = backward(layer, x, upstream)
    p, xs, g = numbers(layer), x[0].double().numpy(), upstream[0].double().numpy()

    def channel(name):
        return p[name][:, None, None]

    u = xs + channel("threshold")
    weight = signs(p["weight"]) * np.abs(p["weight"]).mean((1, 2, 3), keepdims=True)
    v = conv(signs(u), weight) + channel("bias") + xs - channel("shift")
    np.testing.assert_allclose(y[0], np.where(v > 0, v, channel("slope") * v) + channel("lift"), atol=CLOSE)

    through = g * np.where(v > 0, 1, channel("slope"))
    polynomial = np.clip(2 - 2 * np.abs(u), 0, None)
    to_signs = conv_grad_input(through, weight) * polynomial
    np.testing.assert_allclose(grad[0], to_signs + through, atol=CLOSE)
    grads = {name: value.grad.numpy() for name, value in layer.named_parameters()}
    np.testing.assert_allclose(grads["threshold"], to_signs.sum((1, 2)), atol=CLOSE)
    np.testing.assert_allclose(grads["slope"], (g * np.minimum(v, 0)).sum((1, 2)), atol=CLOSE)
    np.testing.assert_allclose(grads["lift"], g.sum((1, 2)), atol=CLOSE)
    np.testing.assert_allclose(grads["shift"], -through.sum((1, 2)), atol=CLOSE)
    np.testing.assert_allclose(grads["bias"], through.sum((1, 2)), atol=CLOSE)
    clipped = conv_grad_weight(through, signs(u)) * (np.abs(p["weight"]) <= 1)
    np.testing.assert_allclose(grads["weight"], clipped, atol=CLOSE)


def test_reactnets_linear_layer_is_its_formula():
    layer = reactnet.ReActLinear(nn.Linear(6, 3))
    disturb(layer)
    x = torch.randn(4, 6)
    p, xs = numbers(layer), x.double().numpy()
    weight = signs(p["weight"]) * np.abs(p["weight"]).mean(1, keepdims=True)
    with torch.no_grad():
        np.testing.assert_allclose(layer(x).numpy(), signs(xs + p["threshold"]) @ weight.T + p["bias"], atol=CLOSE)


@pytest.mark.parametrize("float_layer", SHAPES.values(), ids=SHAPES)
def test_reactnets_layer_that_trains_equals_the_one_that_ships(float_layer):
    assert_ships(reactnet.REACTNET.layer(float_layer, site("W1A1"), reactnet.ReActNetOptions()), float_layer)


@pytest.mark.parametrize("method", [dorefa.DOREFA, reactnet.REACTNET], ids=lambda m: m.name)
def test_one_bit_baselines_refuse_other_bits_and_layers_by_name(method):
    grouped = nn.Conv2d(4, 4, 1, groups=2)
    for bits, layer in (("W4A4", nn.Linear(4, 4)), ("W1A1", nn.Conv1d(4, 4, 1)), ("W1A1", grouped)):
        with pytest.raises(UnsupportedError, match=f"{method.name}: layer 'layer'"):
            method.layer(layer, site(bits), method.options())


# LSQ


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsqs_weight_is_the_papers_forward_and_backward(bits):
    layer = lsq.LSQLayer(nn.Linear(12, 5), bits, 32, Clock())
    step = layer.step.detach().double().numpy()
    w = layer.weight.detach().double().numpy()
    largest = 2 ** (bits - 1) - 1
    np.testing.assert_allclose(step, 2 * np.abs(w).mean(1) / np.sqrt(largest), rtol=1e-5)
    upstream = torch.randn(5, 12)
    quantized = layer.quantized_weight()
    quantized.backward(upstream)
    v = w / step[:, None]
    codes = np.clip(np.round(v), -largest - 1, largest)
    np.testing.assert_allclose(quantized.detach().numpy(), codes * step[:, None], atol=CLOSE)
    inside = (np.round(v) >= -largest - 1) & (np.round(v) <= largest)
    g = upstream.double().numpy()
    np.testing.assert_allclose(layer.weight.grad.numpy(), g * inside, atol=CLOSE)
    slope = np.where(inside, np.round(v) - v, codes)
    np.testing.assert_allclose(layer.step.grad.numpy(), (g * slope).sum(1) / np.sqrt(12 * largest), atol=CLOSE)


def test_lsqs_activation_step_learns_with_the_papers_scale_and_its_zero_point_stays():
    table = lsq.LSQTable(4, Clock())
    x = torch.randn(3, 4, 5, requires_grad=True)
    table.calibrate(x.detach())
    upstream = torch.randn(3, 4, 5)
    y = table(x)
    y.backward(upstream)
    xs, g = x.detach().double().numpy(), upstream.double().numpy()
    step, zero = table.step.item(), table.zero.item()
    codes = np.round(xs / step) + zero
    inside = (codes >= 0) & (codes <= 15)
    np.testing.assert_allclose(y.detach().numpy(), (np.clip(codes, 0, 15) - zero) * step, atol=CLOSE)
    np.testing.assert_allclose(x.grad.numpy(), g * inside, atol=CLOSE)
    slope = np.where(inside, np.round(xs / step) - xs / step, np.clip(codes, 0, 15) - zero)
    assert table.step.grad.item() == pytest.approx((g * slope).sum() / np.sqrt(60 * 15), rel=1e-3)
    assert table.zero.grad is None


@pytest.mark.parametrize("float_layer", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("method", [lsq.LSQ, ptq.PTQ], ids=lambda m: m.name)
def test_a_uniform_baseline_that_trains_equals_the_one_that_ships(float_layer, method):
    layer = method.layer(float_layer, site("W4A4"), method.options())
    layer.activation.calibrate(torch.randn(1000))
    assert_ships(layer, float_layer)


# PTQ


def test_ptqs_weights_take_the_range_of_least_error_or_min_and_max():
    w = np.random.default_rng(0).standard_t(3, (2, 40))  # heavy tails: shrinking the range pays
    layer = nn.Linear(40, 2)
    layer.weight.data.copy_(torch.from_numpy(w))

    def rounded(row, low, high):
        step = (high - low) / 15
        zero = np.clip(np.round(-low / step), 0, 15)
        return (np.clip(np.round(row / step) + zero, 0, 15) - zero) * step

    for weights in ("mse", "minmax"):
        made = ptq.PTQ.layer(layer, site("W4A32"), ptq.PTQOptions(weights=weights))
        for row, ours in zip(w, made.quantized_weight().detach().numpy(), strict=True):
            low, high = min(row.min(), 0), max(row.max(), 0)
            trials = [rounded(row, low * f, high * f) for f in (1 - 0.01 * np.arange(80 if weights == "mse" else 1))]
            best = min(trials, key=lambda trial: (np.abs(trial - row) ** 2.4).mean())
            np.testing.assert_allclose(ours, best, atol=CLOSE)


def test_every_baseline_is_swapped_in_by_role():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    roles = {"0": "conv_in", "1": "res_conv"}
    for name, kinds in (
        ("dorefa", (nn.Conv2d, dorefa.DoReFaLayer)),
        ("reactnet", (nn.Conv2d, reactnet.ReActConv2d)),
        ("lsq", (lsq.LSQLayer, lsq.LSQLayer)),
        ("ptq", (ptq.UniformLayer, ptq.UniformLayer)),
    ):
        made = quantize_layers(copy.deepcopy(net), name, roles=roles)
        assert tuple(type(layer) for layer in made) == kinds
