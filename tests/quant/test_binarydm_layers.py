"""BinaryDM's training layers against numpy, gradients included, and against the layers that ship."""

import copy

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from numpy_layers import along, product, product_gradients, sign, within
from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.models import load
from edgedm.quant import inference
from edgedm.quant.api import make_inference, method_options, quantize_layers
from edgedm.quant.methods.binarydm import BinaryWeightLayer, LSQActivation
from edgedm.quant.policy import policy_of
from edgedm.quant.uniform_layer import UniformLayer

CLOSE = 1e-5  # another order of float32 sums over a few hundred products
SUMS = 1e-4  # float32 gradients summed over a few thousand products
LAYERS = {
    "conv2d": lambda: nn.Conv2d(5, 6, 3, 1, 1),
    "down": lambda: nn.Conv2d(5, 5, 3, 2, 1, bias=False),
    "conv1d": lambda: nn.Conv1d(5, 6, 3, padding=1),
    "linear": lambda: nn.Linear(70, 9),
}
SHAPES = {"conv2d": (2, 5, 6, 6), "down": (2, 5, 6, 6), "conv1d": (2, 5, 7), "linear": (2, 3, 70)}
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "num_class_embeds": 11,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trained(kind: str, bits: int | None = 4, second=None, ships: int = 1, dynamic: bool = False) -> BinaryWeightLayer:
    """A layer whose parameters are all off their initial values, some of the weights and residuals beyond 1."""
    activation = None if bits is None else LSQActivation(bits, dynamic)
    layer = BinaryWeightLayer(LAYERS[kind](), activation, second, ships, f"body.{kind}")
    with torch.no_grad():
        layer(torch.randn(SHAPES[kind]))
        layer.weight.copy_(torch.randn_like(layer.weight) * 1.2)
        for name, parameter in layer.named_parameters():
            if name != "weight":
                parameter.add_(0.2 * parameter.abs() * torch.randn_like(parameter) + 0.02)
    return layer


def double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("kind", LAYERS)
def test_two_bases_have_the_papers_value_and_gradients(kind):
    layer = trained(kind, second="sign")
    w, s1, s2 = (double(p) for p in (layer.weight, layer.scale, layer.scale2))
    upstream = np.random.default_rng(0).normal(size=w.shape)
    value = layer.quantized_weight()
    value.backward(torch.tensor(upstream).float())

    s1, s2 = along(s1, w, 0), along(s2, w, 0)
    r = w - s1 * sign(w)
    assert (np.abs(w) > 1).any() and (np.abs(r) > 1).any()
    np.testing.assert_allclose(double(value), s1 * sign(w) + s2 * sign(r), atol=CLOSE)
    rest = tuple(range(1, w.ndim))
    to_s1 = (upstream * sign(w) * (1 - s2 * within(r))).sum(rest)
    to_s2 = (upstream * sign(r)).sum(rest)
    to_w = upstream * (s1 * within(w) + s2 * within(r) * (1 - s1 * within(w)))
    np.testing.assert_allclose(double(layer.scale.grad), to_s1, atol=SUMS)
    np.testing.assert_allclose(double(layer.scale2.grad), to_s2, atol=SUMS)
    np.testing.assert_allclose(double(layer.weight.grad), to_w, atol=CLOSE)


def test_a_second_basis_without_sign_is_the_scaled_residual():
    layer = trained("linear", second="float")
    w, s1, s2 = (double(p) for p in (layer.weight, layer.scale[:, None], layer.scale2[:, None]))
    value = layer.quantized_weight()
    value.backward(torch.ones_like(value))
    r = w - s1 * sign(w)
    np.testing.assert_allclose(double(value), s1 * sign(w) + s2 * r, atol=CLOSE)
    np.testing.assert_allclose(double(layer.scale2.grad), r.sum(1), atol=SUMS)
    np.testing.assert_allclose(double(layer.scale.grad), (sign(w) * (1 - s2)).sum(1), atol=SUMS)
    np.testing.assert_allclose(double(layer.weight.grad), s1 * within(w) + s2 * (1 - s1 * within(w)), atol=CLOSE)


def test_one_basis_has_no_trace_of_the_second():
    layer = trained("conv2d", second="sign")
    layer.set_order(1)
    value = layer.quantized_weight()
    value.sum().backward()
    w, s1 = double(layer.weight), along(double(layer.scale), double(layer.weight), 0)
    np.testing.assert_allclose(double(value), s1 * sign(w), atol=CLOSE)
    np.testing.assert_allclose(double(layer.weight.grad), s1 * within(w), atol=CLOSE)
    assert layer.scale2.grad is None


def test_scales_start_at_the_mean_magnitudes_of_weight_and_residual():
    layer = BinaryWeightLayer(nn.Conv2d(3, 4, 3), LSQActivation(), "sign")
    w = double(layer.weight)
    s1 = np.abs(w).mean((1, 2, 3))
    np.testing.assert_allclose(double(layer.scale), s1, atol=CLOSE)
    r = w - along(s1, w, 0) * sign(w)
    np.testing.assert_allclose(double(layer.scale2), np.abs(r).mean((1, 2, 3)), atol=CLOSE)


def test_a_float_layer_starts_its_scales_anew_when_it_becomes_binary():
    layer, x = BinaryWeightLayer(nn.Linear(6, 3), LSQActivation(), "sign"), torch.randn(4, 6)
    layer.set_order(0)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert not layer.activation.started
    layer.weight.data.mul_(3)
    layer.set_order(2)
    np.testing.assert_allclose(double(layer.scale), np.abs(double(layer.weight)).mean(1), atol=CLOSE)
    layer.weight.data.mul_(3)
    before = layer.scale.detach().clone()
    layer.set_order(1)
    assert torch.equal(layer.scale.detach(), before)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_a_whole_layer_has_the_papers_value_and_gradients(kind, bits):
    layer = trained(kind, bits, "sign")
    padding = 1 if kind == "conv2d" else 0
    x = (torch.randn(SHAPES[kind]) * 2).requires_grad_()
    y = layer(x)
    upstream = np.random.default_rng(1).normal(size=y.shape)
    y.backward(torch.tensor(upstream).float())

    v, w, s1, s2, b, step = (
        double(t) for t in (x, layer.weight, layer.scale, layer.scale2, layer.bias, layer.activation.step)
    )
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scaled = (x / layer.activation.step).detach().double().numpy()  # rounds as float32 does
    inside = (scaled >= low) & (scaled <= high)
    code = np.clip(np.round(scaled), low, high)
    r = w - along(s1, w, 0) * sign(w)
    full = along(s1, w, 0) * sign(w) + along(s2, w, 0) * sign(r)
    expected = product(code * step, full, padding=padding) + along(b, y, 1 if kind == "conv2d" else -1)
    np.testing.assert_allclose(double(y), expected, atol=SUMS)
    to_codes, to_full = product_gradients(code * step, full, upstream, padding=padding)
    slope = np.where(inside, code - scaled, code)
    np.testing.assert_allclose(double(x.grad), to_codes * inside, atol=SUMS)
    to_step = (to_codes * slope).sum() / np.sqrt(v.size * high)
    np.testing.assert_allclose(double(layer.activation.step.grad), [to_step], rtol=1e-3, atol=SUMS)
    s1, s2 = along(s1, w, 0), along(s2, w, 0)
    to_w = to_full * (s1 * within(w) + s2 * within(r) * (1 - s1 * within(w)))
    np.testing.assert_allclose(double(layer.weight.grad), to_w, atol=10 * SUMS)
    others = tuple(axis for axis in range(y.ndim) if axis != (1 if kind == "conv2d" else y.ndim - 1))
    np.testing.assert_allclose(double(layer.bias.grad), upstream.sum(others), atol=SUMS)


@pytest.mark.parametrize("ships", [1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 6, 8, None])
@pytest.mark.parametrize("kind", ["conv2d", "down", "linear"])
def test_a_layer_that_trains_equals_the_one_that_ships(kind, bits, dynamic, ships):
    layer = trained(kind, bits, "sign", ships, dynamic)
    layer.set_order(ships)
    shipped = layer.to_inference()
    x = torch.randn(SHAPES[kind])
    with torch.no_grad():
        assert torch.allclose(layer(x), shipped(x), atol=CLOSE, rtol=1e-4)
    names = {"bits", "scale", "bias"} | ({"bits2", "scale2"} if ships == 2 else set())
    assert set(shipped.state_dict()) == names | (set() if dynamic or bits is None else {"step"})


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2)])
def test_a_geometry_without_a_packed_form_is_refused_by_name_when_it_ships(layer):
    made = BinaryWeightLayer(layer, LSQActivation(), path="encoder.7")
    made(torch.randn(1, 4, 9) if isinstance(layer, nn.Conv1d) else torch.randn(1, 4, 9, 9)).sum().backward()
    with pytest.raises(UnsupportedError, match=r"'encoder\.7'.*groups 1.*'float' in the policy"):
        made.to_inference()


def test_the_first_tensor_sets_the_step_and_later_ones_keep_it():
    quantizer = LSQActivation()
    x = torch.randn(100)
    quantizer(x)
    first = quantizer.step.detach().clone()
    assert float(first) == pytest.approx(2 * x.abs().mean().item() / 7**0.5, rel=1e-5)
    assert copy.deepcopy(quantizer)(10 * x).abs().max() <= 8 * first
    assert torch.equal(quantizer.step.detach(), first)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_dynamic_step_follows_every_tensor_and_takes_no_gradient(bits):
    quantizer, high = LSQActivation(bits, dynamic=True), 2 ** (bits - 1) - 1
    for scale in (1.0, 7.0):
        x = (torch.randn(200) * scale).requires_grad_()
        y = quantizer(x)
        y.sum().backward()
        v = double(x)
        step = 2 * np.abs(v).mean() / np.sqrt(high)
        np.testing.assert_allclose(double(y), np.clip(np.round(v / step), -high - 1, high) * step, rtol=1e-5)
        assert (double(x.grad) == ((v / step >= -high - 1) & (v / step <= high))).all()
        assert torch.equal(quantizer.to_inference()(x), y)
    assert not list(quantizer.parameters())
    assert (quantizer(torch.zeros(3)) == 0).all() and (quantizer.to_inference()(torch.zeros(3)) == 0).all()


def unet(policy="code", **options) -> nn.Module:
    return quantize_layers(UNet2DModel(**UNET), "binarydm", policy_of("binarydm", policy), options=options)


def double_based(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if getattr(module, "scale2", None) is not None]


HEAD_AND_TAIL = ("down_blocks.0.", "down_blocks.1.resnets.", "up_blocks.1.", "up_blocks.2.")


@pytest.mark.parametrize("bases", ["ebb", "lmb"])
def test_head_and_tail_train_two_bases_and_lmb_ships_them(bases):
    model = unet(bases=bases)
    layers = [path for path, module in model.named_modules() if isinstance(module, BinaryWeightLayer)]
    two = double_based(model)
    assert two == [path for path in layers if path.startswith(HEAD_AND_TAIL)] and len(two) < len(layers)
    make_inference(model)
    assert double_based(model) == (two if bases == "lmb" else [])


def test_scope_counts_blocks_and_vanilla_has_one_basis_everywhere():
    assert double_based(unet(bases="none")) == [] == double_based(unet(scope=0))
    one = double_based(unet(scope=1))  # conv_in alone at the head, the last residual block at the tail
    assert one and all(path.startswith("up_blocks.2.resnets.1.") for path in one)
    assert set(double_based(unet(scope=2))) > set(one)


def test_edges_of_eight_bits_are_uniform_and_symmetric_not_binary():
    model = unet("paper")
    for path in ("conv_in", "conv_out"):
        layer = model.get_submodule(path)
        assert isinstance(layer, UniformLayer) and layer.symmetric and (layer.zero == 128).all()
        assert layer.weight_bits == layer.activation.bits == 8
    assert isinstance(model.get_submodule("time_embedding.linear_1"), nn.Linear)


@pytest.mark.parametrize(("nominal", "bits"), [("W1A4", 4), ("W1A8", 8), ("W1A32", 32)])
def test_body_layers_and_operands_take_the_activation_bits_of_the_policy(nominal, bits):
    table = policy_of("binarydm", "code", nominal)
    model = quantize_layers(UNet2DModel(**UNET), "binarydm", table)
    layer = model.get_submodule("mid_block.resnets.0.conv1")
    operands = model.get_submodule("mid_block.attentions.0").processor.quantizers
    if bits == 32:
        assert layer.activation is None and not operands
    else:
        assert layer.activation.bits == bits and {each.bits for each in operands.values()} == {bits}
    make_inference(model)
    assert model.get_submodule("mid_block.resnets.0.conv1").activation_bits == bits
    arguments = (torch.randn(1, 1, 8, 8), torch.tensor([5]))
    assert torch.isfinite(model(*arguments, class_labels=torch.tensor([1])).sample).all()


@pytest.mark.parametrize(("bits", "message"), [("W1A1", "one bit is BiDM's"), ("A8", "leaves the weight float")])
def test_widths_that_are_not_binarydms_are_refused_by_layer(bits, message):
    with pytest.raises(UnsupportedError, match=rf"'0'.*{message}"):
        quantize_layers(nn.Sequential(nn.Linear(4, 4)), "binarydm", {"res_conv": bits}, roles={"0": "res_conv"})


def test_a_float_second_basis_cannot_ship():
    with pytest.raises(UnsupportedError, match="cannot ship as bits"):
        method_options("binarydm", {"bases": "lmb", "second_basis": "float"})


def test_the_shipped_checkpoint_has_the_structure_of_the_default_options():
    module = load("zoo:digits-binarydm-w1a4").module
    layers = [each for each in module.modules() if isinstance(each, inference.LOW_BIT_LAYERS)]
    assert layers and all(set(each.state_dict()) == {"bits", "scale", "bias", "step"} for each in layers)
    assert {each.activation_bits for each in layers} == {4}
