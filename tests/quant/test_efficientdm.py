"""EfficientDM's layers against numpy: the merged weight, its gradients through the quantiser, rows, integers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgedm.errors import UnsupportedError
from edgedm.ops import unpack_codes
from edgedm.quant.api import make_inference, method_options, quantize_layers
from edgedm.quant.clock import Clock, clock_of
from edgedm.quant.methods.efficientdm import RELEASED_RATES, EfficientDMOptions, QALoRALayer, TimestepTable
from edgedm.quant.policy import policy_of
from edgedm.quant.uniform_layer import UniformLayer

CLOSE = 1e-5  # float32 against float64, a few dozen products
SAME = 1e-6  # the same products in another order

LAYERS = {
    "linear": lambda: nn.Linear(10, 6),
    "conv": lambda: nn.Conv2d(4, 6, 3, 1, 1),
    "strided": lambda: nn.Conv2d(4, 6, 3, 2, 1, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, 1, 1, groups=2),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "conv1d": lambda: nn.Conv1d(4, 6, 3, 1, 1),
}
INPUTS = {nn.Linear: (2, 5, 10), nn.Conv2d: (2, 4, 6, 6), nn.Conv1d: (2, 4, 7)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def clock_at(timestep=0):
    clock = Clock()
    clock.timestep = torch.tensor([timestep])
    return clock


def moved(layer: nn.Module) -> QALoRALayer:
    """Give A and B values that change many codes, the steps another size, and push some weights into the clip."""
    with torch.no_grad():
        if layer.rank:
            layer.lora_b.copy_(0.1 * torch.randn_like(layer.lora_b))
        layer.step.mul_(0.8 + 0.3 * torch.rand_like(layer.step))
        layer.step[0] *= 0.5
    return layer


def training_layer(float_layer, bits=4, base="quantized", rank=3, edges=(0,), clock=None):
    layer = QALoRALayer(float_layer, bits, 4, clock or clock_at(), edges, rank, base)
    layer.activation.calibrate(torch.randn(INPUTS[type(float_layer)]))
    return layer


def arrays(layer):
    """Return (W0 in its trained grid, d W0 / d step, step, zero, A, B) as float64, weights as [O, rest]."""
    step, zero = layer.step.detach().double().numpy()[:, None], layer.zero.double().numpy()[:, None]
    if layer.base.dtype == torch.uint8:
        codes = unpack_codes(layer.base, layer.weight_bits, layer.shape).flatten(1).double().numpy()
        w0, slope = (codes - zero) * step, codes - zero
    else:
        w0, slope = layer.base.flatten(1).double().numpy(), 0.0
    a, b = layer.lora_a.detach().flatten(1).double().numpy(), layer.lora_b.detach().double().numpy()
    return w0, slope, step, zero, a, b


@pytest.mark.parametrize("base", ["quantized", "float"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_weight_and_its_gradients_are_the_formulas(kind, base):
    layer = moved(training_layer(LAYERS[kind](), base=base))
    upstream = torch.randn(layer.shape)
    weight = layer.quantized_weight()
    (weight * upstream).sum().backward()

    w0, slope, step, zero, a, b = arrays(layer)
    v = w0 + b @ a
    raw = np.round(v / step) + zero
    q = np.clip(raw, 0, 15)
    inside = raw == q
    assert inside.any() and not inside.all()
    np.testing.assert_allclose(layer.merged_weight().detach().flatten(1).numpy(), v, atol=CLOSE)
    np.testing.assert_allclose(weight.detach().flatten(1).numpy(), (q - zero) * step, atol=CLOSE)

    g = upstream.flatten(1).double().numpy()
    dv = g * inside
    np.testing.assert_allclose(layer.lora_b.grad.numpy(), dv @ a.T, atol=1e-4)
    np.testing.assert_allclose(layer.lora_a.grad.flatten(1).numpy(), b.T @ dv, atol=1e-4)
    dstep = g * np.where(inside, np.round(v / step) - v / step + slope, q - zero)
    np.testing.assert_allclose(layer.step.grad.numpy(), dstep.sum(1), atol=1e-3)


def test_the_update_of_a_convolution_is_two_convolutions():
    layer = moved(training_layer(nn.Conv2d(4, 6, 3, 1, 1), base="float"))
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        apart = F.conv2d(F.conv2d(x, layer.lora_a, padding=1), layer.lora_b[:, :, None, None])
        together = F.conv2d(x, layer.merged_weight() - layer.base, padding=1)
    assert torch.allclose(apart, together, atol=1e-5)


def test_an_untrained_layer_is_the_quantised_float_layer():
    for kind, make in LAYERS.items():
        layer = make()
        plain = UniformLayer(layer, 4, 4, clock_at())
        for base in ("quantized", "float"):
            ours = QALoRALayer(layer, 4, 4, clock_at(), base=base)
            assert torch.equal(ours.codes(), plain.codes()), kind
            assert torch.allclose(ours.quantized_weight(), plain.quantized_weight(), atol=SAME)


def test_the_rank_is_clipped_to_what_the_weight_allows():
    assert QALoRALayer(nn.Linear(10, 6), 4, 4, Clock()).rank == 6
    assert QALoRALayer(nn.Linear(3, 6), 4, 4, Clock()).rank == 3
    assert QALoRALayer(nn.Conv2d(4, 64, 3), 4, 4, Clock()).rank == 32
    depthwise = QALoRALayer(nn.Conv2d(64, 64, 3, groups=64), 4, 4, Clock())
    assert depthwise.rank == 9 and depthwise.lora_a.shape == (9, 1, 3, 3)


def test_a_starts_uniform_below_one_over_root_fan_in_and_b_at_zero():
    layer = QALoRALayer(nn.Conv2d(64, 64, 3), 4, 4, Clock())
    bound = 1 / np.sqrt(64 * 9)
    assert bound * 0.99 < layer.lora_a.abs().max() <= bound and (layer.lora_b == 0).all()
    assert layer.lora_a.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.02)


def test_w0_is_a_packed_buffer_that_no_optimiser_sees():
    layer = training_layer(nn.Conv2d(4, 6, 3))
    assert layer.base.dtype == torch.uint8 and layer.base.shape == (6, 18)
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"step", "lora_a", "lora_b", "activation.step", "activation.zero"}
    assert layer.bias is not None and not layer.zero.requires_grad


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("base", ["quantized", "float"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_layer_that_runs_has_the_merged_integers_and_the_same_output(kind, base, bits):
    float_layer = LAYERS[kind]()
    layer = moved(training_layer(float_layer, bits, base)).eval()
    x = torch.randn(INPUTS[type(float_layer)])
    shipped = layer.to_inference()
    w0, _, step, zero, a, b = arrays(layer)
    codes = np.clip(np.round((w0 + b @ a) / step) + zero, 0, 2**bits - 1)
    assert np.array_equal(unpack_codes(shipped.codes, bits, shipped.shape).flatten(1).numpy(), codes)
    assert "lora_a" not in dict(shipped.named_buffers())
    with torch.no_grad():
        assert torch.allclose(layer(x), shipped(x), atol=CLOSE)


def test_merging_rounds_and_clamps_the_zero_points_of_activations():
    layer = training_layer(nn.Linear(10, 6), edges=(0, 500))
    layer.activation.zero.data.copy_(torch.tensor([[6.4], [17.2]]))
    assert layer.to_inference().activation.table[:, 1].tolist() == [6, 15]


def test_only_the_current_row_has_a_gradient():
    clock = clock_at(700)
    table = TimestepTable(4, (0, 250, 500, 750), clock)
    table.calibrate(torch.randn(100))
    x = torch.linspace(-4, 4, 33)[None].clone().requires_grad_()
    upstream = torch.randn(x.shape)
    (table(x) * upstream).sum().backward()
    step, zero = table.step[2].item(), table.zero[2].item()
    v, g = x.detach().double().numpy(), upstream.double().numpy()
    raw = np.round(v / step) + zero
    q = np.clip(raw, 0, 15)
    inside = raw == q
    assert table.step.grad[[0, 1, 3]].abs().sum() == 0 and table.zero.grad[[0, 1, 3]].abs().sum() == 0
    dstep = (g * np.where(inside, np.round(v / step) - v / step, q - zero)).sum()
    assert table.step.grad[2].item() == pytest.approx(dstep, abs=1e-4)
    assert table.zero.grad[2].item() == pytest.approx((g * np.where(inside, 0, -step)).sum(), abs=1e-4)
    np.testing.assert_allclose(x.grad.numpy(), g * inside, atol=SAME)


def test_skipped_rows_are_copies_of_the_nearest_trained_row():
    clock = clock_at()
    table = TimestepTable(4, (0, 100, 200, 300, 400), clock)
    table.calibrate(torch.randn(50))
    table.step.data[:, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    assert table.nearest().tolist() == [0, 1, 2, 3, 4]  # none trained yet
    x = torch.randn(3, 8)
    for timestep in (150, 450):
        clock.timestep = torch.tensor([timestep])
        table.train()(x)
    assert table.visited.tolist() == [False, True, False, False, True]
    shipped = table.eval().to_inference()
    assert shipped.table[:, 0].tolist() == pytest.approx([0.2, 0.2, 0.2, 0.5, 0.5])
    for timestep in (0, 250, 350):
        clock.timestep = torch.tensor([timestep])
        assert torch.allclose(table(x), shipped(x), atol=SAME)
    assert table.visited.sum() == 2  # evaluation trains nothing


class Net(nn.Module):
    """Every kind of layer, called as diffusers' denoisers are."""

    def __init__(self):
        super().__init__()
        self.first, self.time = nn.Conv2d(1, 4, 3, 1, 1), nn.Linear(4, 4)
        self.body, self.skip = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1)
        self.tokens, self.last = nn.Conv1d(4, 4, 1), nn.Conv2d(4, 1, 3, 1, 1)

    def forward(self, x, timestep):
        h = self.first(x) + self.time(torch.ones(1, 4) * timestep[0] / 1000)[..., None, None]
        h = self.body(h) + self.skip(h)
        return self.last(self.tokens(h.flatten(2)).reshape(h.shape))


ROLES = {
    "first": "conv_in",
    "time": "time_mlp",
    "body": "res_conv",
    "skip": "shortcut",
    "tokens": "attn_qkv",
    "last": "conv_out",
}


@pytest.mark.parametrize("nominal", ["W4A4", "W4A8", "W8A8", "W2A8"])
def test_edges_have_eight_bits_without_update_or_rows_and_the_body_has_both(nominal):
    net = quantize_layers(Net(), "efficientdm", policy_of("efficientdm", nominal=nominal), roles=ROLES, edges=(0, 500))
    for path in ("first", "time", "last"):
        layer = net.get_submodule(path)
        assert isinstance(layer, UniformLayer) and layer.weight_bits == 8 and layer.activation.bits == 8
        assert len(layer.activation.edges) == 1
    for path in ("body", "skip", "tokens"):
        layer = net.get_submodule(path)
        assert isinstance(layer, QALoRALayer) and f"W{layer.weight_bits}A{layer.activation.bits}" == nominal
        assert len(layer.activation.edges) == 2 and layer.activation.clock is clock_of(net)
    x = torch.randn(2, 1, 6, 6)
    timestep = torch.tensor([600, 600])
    make_inference(net)
    assert net(x, timestep).shape == x.shape


def test_the_codes_policy_leaves_what_the_release_skips():
    net = quantize_layers(Net(), "efficientdm", policy_of("efficientdm", "code"), roles=ROLES)
    assert type(net.skip) is nn.Conv2d and type(net.tokens) is nn.Conv1d and isinstance(net.body, QALoRALayer)


def test_without_qalora_there_is_no_update():
    net = quantize_layers(Net(), "efficientdm", roles=ROLES, options={"qalora": False})
    assert not any("lora" in name for name, _ in net.named_parameters())
    assert net.body(torch.randn(1, 4, 6, 6)).shape == (1, 4, 6, 6)


def test_bad_options_and_bits_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="rank"):
        method_options("efficientdm", {"rank": 0})
    with pytest.raises(UnsupportedError, match=r"body.*res_conv.*W1A4"):
        quantize_layers(Net(), "efficientdm", {"res_conv": "W1A4"}, roles=ROLES)
    with pytest.raises(UnsupportedError, match=r"body.*A4"):
        quantize_layers(Net(), "efficientdm", {"res_conv": "A4"}, roles=ROLES)


def test_the_defaults_are_the_releases_and_its_rates_have_a_name():
    options = EfficientDMOptions(**RELEASED_RATES)
    assert (options.rank, options.bins, options.trajectory_steps, options.eta) == (32, 100, 100, 1.0)
    assert (options.lora_divisor, options.step_rate, options.activation_rate) == (2500, 1e-6, 5e-4)
    assert options.qalora and options.scale_aware and options.talsq and options.base == "quantized"
