"""BiDM's training layer against numpy, gradients included, against the layers that ship, and its options."""

import numpy as np
import pytest
import torch
from architectures import SMALL_UNET
from diffusers import UNet2DModel
from numpy_layers import along, hat, product, product_gradients, sign, within
from torch import nn

from edgedm.errors import UnsupportedError
from edgedm.models import load
from edgedm.models.roles import output_blocks
from edgedm.quant.api import make_inference, method_options, quantize_layers
from edgedm.quant.clock import clock_of
from edgedm.quant.inference import BinaryConv2d, BinaryLinear, BinaryWeightConv2d
from edgedm.quant.integer import QuantLayer
from edgedm.quant.methods import METHODS
from edgedm.quant.methods.bidm import BinaryLayer
from edgedm.quant.methods.binarydm import BinaryWeightLayer
from edgedm.quant.policy import policy_of
from edgedm.quant.uniform_layer import UniformLayer
from edgedm.training.calibrate import calibrating

CLOSE = 1e-5  # another order of float32 sums over a few hundred +-1 products
SUMS = 2e-4  # float32 gradients summed over a few thousand products
CONVS = {
    "same": (8, 8, 3, 1, 1),
    "wider": (8, 16, 3, 1, 1),
    "narrower": (72, 8, 3, 1, 1),
    "down": (8, 8, 3, 2, 1),
    "down_wider": (8, 12, 3, 2, 1),
    "pointwise": (8, 16, 1, 1, 0),
}
PROJECTION = "mid_block.attentions.0.to_q"
TIME = "mid_block.resnets.0.time_emb_proj"
CONV = "up_blocks.0.resnets.0.conv1"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def disturb(layer: nn.Module) -> None:
    """Move every parameter off its initial value, so that none can be forgotten; some weights go beyond 1."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            amount = 0.3 if "threshold" in name else 0.1 * parameter.abs().mean().item() + 0.02
            parameter.add_(amount * torch.randn_like(parameter))
        layer.weight.mul_(8)


def double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("gain", ["abs", "raw"])
def test_a_convolution_has_bidms_value_and_gradients(gain):
    layer = BinaryLayer(nn.Conv2d(4, 6, 3, 1, 1), gain=gain)
    disturb(layer)
    layer.shortcut_gain.data.fill_(-0.4)
    x = torch.randn(2, 4, 5, 5).requires_grad_()
    y = layer(x)
    upstream = np.random.default_rng(0).normal(size=y.shape)
    y.backward(torch.tensor(upstream).float())

    p, v = {name: double(value) for name, value in layer.named_parameters()}, double(x)
    assert (np.abs(p["weight"]) > 1).any()
    mean = np.abs(v).mean(1, keepdims=True)
    k = product(mean, p["mean_filter"], 1, 1) + p["mean_bias"]
    u = v + along(p["threshold"], v, 1)
    alpha = np.abs(p["weight"]).mean((1, 2, 3), keepdims=True)
    binary = alpha * sign(p["weight"])
    inner = product(sign(u), binary, 1, 1)
    g = 0.4 if gain == "abs" else -0.4
    beside = product(v, p["shortcut.weight"]) + along(p["shortcut.bias"], y, 1)
    np.testing.assert_allclose(double(y), inner * k + g * beside, atol=1e-4)

    to_signs, to_binary = product_gradients(sign(u), binary, upstream * k, 1, 1)
    np.testing.assert_allclose(double(layer.weight.grad), to_binary * within(p["weight"]), atol=SUMS)
    np.testing.assert_allclose(double(layer.threshold.grad), (to_signs * hat(u)).sum((0, 2, 3)), atol=SUMS)
    to_k = (upstream * inner).sum(1, keepdims=True)
    to_mean, to_filter = product_gradients(mean, p["mean_filter"], to_k, 1, 1)
    np.testing.assert_allclose(double(layer.mean_filter.grad), to_filter, rtol=1e-4, atol=SUMS)
    np.testing.assert_allclose(double(layer.mean_bias.grad), [to_k.sum()], rtol=1e-4, atol=SUMS)
    to_gain = (upstream * beside).sum() * (-1 if gain == "abs" else 1)
    np.testing.assert_allclose(double(layer.shortcut_gain.grad), [to_gain], rtol=1e-4, atol=SUMS)
    to_beside, _ = product_gradients(v, p["shortcut.weight"], g * upstream)
    to_x = to_signs * hat(u) + to_mean * np.sign(v) / 4 + to_beside
    np.testing.assert_allclose(double(x.grad), to_x, atol=SUMS)


def test_a_projection_as_a_convolution_has_k_and_shortcut():
    layer = BinaryLayer(nn.Linear(70, 70))
    disturb(layer)
    x = torch.randn(2, 3, 70)
    p, v = {name: double(value) for name, value in layer.named_parameters()}, double(x)
    k = np.abs(v).mean(-1, keepdims=True) * p["mean_filter"] + p["mean_bias"]
    alpha = np.abs(p["weight"]).mean(1)
    expected = product(sign(v + p["threshold"]), sign(p["weight"])) * alpha * k + np.abs(p["shortcut_gain"]) * v
    np.testing.assert_allclose(double(layer(x)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shapes_only", [False, True])
def test_an_ignored_threshold_shapes_the_gradient_alone(shapes_only):
    layer = BinaryLayer(nn.Linear(6, 3), "none", shortcut=False, shapes_only=shapes_only)
    layer.threshold.data.copy_(torch.randn(6) * 0.7)
    x = torch.randn(50, 6).requires_grad_()
    y = layer(x)
    upstream = np.random.default_rng(0).normal(size=y.shape)
    y.backward(torch.tensor(upstream).float())
    v, w, theta = double(x), double(layer.weight), double(layer.threshold)
    binary = np.abs(w).mean(1, keepdims=True) * sign(w)
    assert (sign(v) != sign(v + theta)).any()
    np.testing.assert_allclose(double(y), sign(v if shapes_only else v + theta) @ binary.T, atol=CLOSE)
    to_u = (upstream @ binary) * hat(v + theta)
    np.testing.assert_allclose(double(x.grad), to_u, atol=CLOSE)
    np.testing.assert_allclose(double(layer.threshold.grad), to_u.sum(0), atol=SUMS)
    shipped = layer.to_inference()
    assert (shipped.threshold == 0).all() == shapes_only
    assert torch.allclose(shipped(x), y, atol=CLOSE)


FORMS = {
    "default": {},
    "fixed": {"filter": "fixed"},
    "no K": {"filter": "none"},
    "no shortcut": {"shortcut": False},
    "no threshold": {"threshold": False},
    "raw gain": {"gain": "raw", "gain_init": -0.2},
    "random bias": {"filter_bias": "uniform"},
    "bare": {"filter": "none", "shortcut": False, "threshold": False},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", CONVS.values(), ids=CONVS)
def test_a_convolution_that_trains_equals_the_one_that_ships(shape, form):
    layer = BinaryLayer(nn.Conv2d(*shape), **form)
    disturb(layer)
    x = torch.randn(2, shape[0], 8, 8)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.to_inference()(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("outputs", [70, 24])
def test_a_linear_layer_that_trains_equals_the_one_that_ships(outputs, form):
    layer = BinaryLayer(nn.Linear(70, outputs), **form)
    disturb(layer)
    x = torch.randn(2, 5, 70)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.to_inference()(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("bits", "levels"), [("W8A8", 255), ("W4A4", 15)])
def test_a_shortcut_of_few_bits_trains_and_ships(bits, levels):
    layer = BinaryLayer(nn.Conv2d(8, 16, 3, 1, 1), shortcut_bits=bits, clock=clock_of(nn.Module()))
    x, plain = torch.randn(2, 8, 8, 8), nn.Conv2d(8, 16, 1)
    plain.load_state_dict({name: getattr(layer.shortcut, name).detach() for name in ("weight", "bias")})
    with torch.no_grad(), calibrating(layer):
        layer(x)
    with torch.no_grad():
        error = (layer.shortcut(x) - plain(x)).abs().max() / plain(x).abs().max()
        assert 0 < error < 4 / levels
        packed = layer.to_inference()
        assert isinstance(packed.shortcut, QuantLayer) and packed.shortcut.codes.dtype == torch.uint8
        assert torch.allclose(layer(x), packed(x), atol=1e-4, rtol=1e-4)
    layer(x).square().mean().backward()
    assert layer.shortcut.weight.grad.abs().max() > 0 and layer.shortcut.activation.step.grad.abs().max() > 0


def test_a_shortcut_of_one_bit_is_binarydms_and_ships_packed():
    layer = BinaryLayer(nn.Conv2d(8, 16, 3, 1, 1), shortcut_bits="W1A4", clock=clock_of(nn.Module()))
    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        layer(x)  # the step starts from the first input
        packed = layer.to_inference()
        assert isinstance(packed.shortcut, BinaryWeightConv2d) and packed.shortcut.activation_bits == 4
        assert torch.allclose(layer(x), packed(x), atol=1e-4, rtol=1e-4)
    layer(x).square().mean().backward()
    assert layer.shortcut.weight.grad.abs().max() > 0 and layer.shortcut.activation.step.grad.abs().max() > 0


def test_a_blocks_shortcut_may_have_one_bit_weights_and_no_other_layer_beside():
    roles = {"0": "shortcut"}
    net = quantize_layers(nn.Sequential(nn.Conv2d(8, 16, 1)), "bidm", {"shortcut": "W1A4"}, roles=roles)
    assert isinstance(net[0], BinaryWeightLayer) and net[0].activation.bits == 4
    with pytest.raises(UnsupportedError, match="W1A4"):
        quantize_layers(nn.Sequential(nn.Conv2d(8, 16, 1)), "bidm", {"res_conv": "W1A4"}, roles={"0": "res_conv"})


def test_shortcuts_that_copy_or_pool_have_no_bits():
    clock = clock_of(nn.Module())
    for shape in ((8, 8, 3, 1, 1), (8, 8, 3, 2, 1)):
        layer = BinaryLayer(nn.Conv2d(*shape), shortcut_bits="W8A8", clock=clock)
        assert not isinstance(layer.shortcut, UniformLayer)


def test_a_padded_downsampler_and_a_1d_convolution_train():
    down = BinaryLayer(nn.Conv2d(4, 4, 3, 2, 0))
    assert down(torch.randn(1, 4, 9, 9)).shape == (1, 4, 4, 4)
    flat = BinaryLayer(nn.Conv1d(4, 4, 1), "none", shortcut=False, path="attention.qkv")
    flat(torch.randn(1, 4, 9)).sum().backward()
    with pytest.raises(UnsupportedError, match=r"'attention\.qkv'.*1-d"):
        flat.to_inference()


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 8, 2, 2, 3), (4, 4, 4, 4)])
def test_a_shortcut_without_the_outputs_shape_is_refused_by_name(shape):
    with pytest.raises(UnsupportedError, match=r"'patch'.*shortcut=False"):
        BinaryLayer(nn.Conv2d(*shape), path="patch")
    BinaryLayer(nn.Conv2d(*shape), shortcut=False)(torch.randn(1, 4, 8, 8))


def test_the_release_draws_the_filters_bias_within_one_over_its_width():
    drawn = torch.cat([BinaryLayer(nn.Conv2d(1, 1, 3, 1, 1), filter_bias="uniform").mean_bias for _ in range(300)])
    assert drawn.abs().max() <= 1 / 3 and drawn.abs().max() > 0.3 and abs(drawn.mean()) < 0.05
    assert BinaryLayer(nn.Conv2d(1, 1, 3, 1, 1)).mean_bias == 0


def unet(method: str = "bidm", **options) -> nn.Module:
    return quantize_layers(UNet2DModel(**SMALL_UNET), method, options=options)


def test_by_default_convolutions_have_k_and_shortcut_and_linear_layers_neither():
    model = unet()
    conv, projection, time = (model.get_submodule(path) for path in (CONV, PROJECTION, TIME))
    assert conv.mean_filter.requires_grad and conv.shortcut is not None
    assert conv.shortcut_gain.item() == pytest.approx(0.3)
    np.testing.assert_allclose(double(conv.mean_filter), np.full((1, 1, 3, 3), 1 / 9), rtol=1e-6)
    for layer in (projection, time):
        assert layer.mean_filter is None and layer.shortcut is None and layer.threshold.requires_grad
    assert time.shapes_only and not projection.shapes_only


STRUCTURE = {
    "no K": ({"filter": "none"}, CONV, {"mean_filter", "mean_bias"}, set()),
    "no shortcut": ({"shortcut": False}, CONV, {"shortcut_gain", "shortcut.weight", "shortcut.bias"}, set()),
    "conv2d": ({"attention": "conv2d"}, PROJECTION, set(), {"mean_filter", "mean_bias", "shortcut_gain"}),
    "fixed": ({"filter": "fixed"}, CONV, set(), set()),
    "no threshold": ({"threshold": False}, CONV, set(), set()),
    "used": ({"linear_threshold": "used"}, TIME, set(), set()),
    "int8 shortcut": (
        {"shortcut_bits": "W8A8"},
        CONV,
        {"shortcut.weight"},
        {f"shortcut.{name}" for name in ("codes", "step", "zero", "activation.table", "activation.edges")},
    ),
}


@pytest.mark.parametrize(("options", "path", "gone", "new"), STRUCTURE.values(), ids=STRUCTURE)
def test_the_structure_that_ships_follows_the_options(options, path, gone, new):
    plain, changed = unet(), unet(**options)
    make_inference(plain)
    make_inference(changed)
    before, after = (set(each.get_submodule(path).state_dict()) for each in (plain, changed))
    assert before - after == gone and after - before == new


def test_options_decide_what_learns():
    assert not unet(filter="fixed").get_submodule(CONV).mean_filter.requires_grad
    assert not unet(threshold=False).get_submodule(CONV).threshold.requires_grad
    assert not unet(linear_threshold="used").get_submodule(TIME).shapes_only
    raw = unet(gain="raw", gain_init=0.0).get_submodule(CONV)
    assert raw.gain == "raw" and raw.shortcut_gain.item() == 0
    xnor = unet("xnor").get_submodule(CONV)
    assert not xnor.mean_filter.requires_grad and not xnor.mean_bias.requires_grad
    assert xnor.threshold.requires_grad and xnor.shortcut is not None
    assert unet("xnor", shortcut=False, threshold=False).get_submodule(CONV).shortcut is None


def test_connections_are_the_last_output_blocks_two_thirds_by_default():
    method, model = METHODS["bidm"], UNet2DModel(**{**SMALL_UNET, "layers_per_block": 2})
    ends = output_blocks(model)
    assert len(ends) == 6

    def taps(**options):
        return method.taps(model, method_options("bidm", options))

    assert taps() == ends[2:] and taps(connections=1) == ends[-1:] and taps(connections=6) == ends
    assert taps(connections=0) == taps(tbs=False) == []
    with pytest.raises(UnsupportedError, match="6 output blocks, got 7"):
        taps(connections=7)
    bins = [method.bins(method_options("bidm", o)) for o in ({}, {"bins": 10}, {"tbs": False}, {"connections": 0})]
    assert bins == [100, 10, 1, 1]
    assert method.mix(method_options("bidm", {"mix_init": 0.0})) == 0 and method.mix(method_options("bidm")) == 0.3


def test_other_widths_are_uniform_or_refused_by_name():
    roles = {"0": "res_conv"}
    net = quantize_layers(nn.Sequential(nn.Linear(4, 4)), "bidm", {"res_conv": "W8A8"}, roles=roles)
    assert isinstance(net[0], UniformLayer) and net[0].symmetric
    for bits in ("W1A4", "W4A1", "A8"):
        with pytest.raises(UnsupportedError, match=f"'0'.*{bits}.*BinaryDM's"):
            quantize_layers(nn.Sequential(nn.Linear(4, 4)), "bidm", {"res_conv": bits}, roles=roles)
    with pytest.raises(UnsupportedError, match=r"'down_blocks\.1\.attentions\.0'.*stay float"):
        quantize_layers(UNet2DModel(**SMALL_UNET), "bidm", {**policy_of("bidm").bits, "attn_matmul": "A4"})


def test_the_shipped_checkpoint_has_the_structure_of_the_default_options():
    module = load("zoo:digits-bidm-w1a1").module
    convs = [each for each in module.modules() if isinstance(each, BinaryConv2d)]
    linears = [each for each in module.modules() if isinstance(each, BinaryLinear)]
    assert convs and all(each.mean_filter is not None and each.shortcut is not None for each in convs)
    assert linears and all(set(each.state_dict()) == {"bits", "scale", "threshold"} for each in linears)
