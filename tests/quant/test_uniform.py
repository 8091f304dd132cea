"""Uniform quantisers against numpy, gradients included, and per-timestep tables."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgedm.ops import pack_codes, unpack_codes
from edgedm.quant.clock import Clock, clock_of
from edgedm.quant.geometry import Geometry
from edgedm.quant.uniform import ActivationTable, fake_quantize, minmax_grid, mse_grid
from edgedm.quant.uniform_layer import UniformLayer, weight_grid

EXACT = 1e-6  # float32 rounding of one multiplication and one sum
CLOSE = 1e-5  # another order of float32 sums over a few hundred products


def numpy_quantize(v, step, zero, bits):
    """(values, d/dv, d/dstep, d/dzero) by the formulas, float64."""
    scaled = v / step
    rounded = np.rint(scaled) + zero
    code = rounded.clip(0, 2**bits - 1)
    inside = rounded == code
    by_step = np.where(inside, np.rint(scaled) - scaled, code - zero)
    by_zero = np.where(inside, 0.0, -step)
    return (code - zero) * step, inside.astype(float), by_step, by_zero


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from([2, 4, 6, 8]),
    step=st.floats(0.01, 0.5),
    zero=st.floats(0, 15),
    seed=st.integers(0, 1000),
)
def test_fake_quantisation_and_its_three_gradients_are_the_formulas(bits, step, zero, seed):
    generator = np.random.default_rng(seed)
    v = generator.normal(size=40) * 3
    weight = generator.normal(size=40)
    edge = np.rint(v / step) + zero
    v = v[(np.abs(edge) > 1e-3) & (np.abs(edge - (2**bits - 1)) > 1e-3)]  # at a bound both gradients are right
    weight = weight[: len(v)]
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (v, step, zero)]
    result = fake_quantize(*tensors, bits)
    torch.autograd.backward((result * torch.tensor(weight)).sum())
    values, by_v, by_step, by_zero = numpy_quantize(v, step, zero, bits)
    np.testing.assert_allclose(result.detach(), values, atol=1e-9)
    np.testing.assert_allclose(tensors[0].grad, weight * by_v, atol=1e-9)
    np.testing.assert_allclose(tensors[1].grad, (weight * by_step).sum(), atol=1e-8)
    np.testing.assert_allclose(tensors[2].grad, (weight * by_zero).sum(), atol=1e-9)


def test_the_min_max_grid_holds_zero_and_both_ends():
    v = torch.tensor([[0.5, 2.0], [-1.0, 3.0], [0.0, 0.0], [-2.0, -0.5]])
    step, zero = minmax_grid(v, 4, (1,))
    np.testing.assert_allclose(step.ravel(), [2 / 15, 4 / 15, 1e-4, 2 / 15], atol=EXACT)
    assert zero.ravel().tolist() == [0, 4, 0, 15]


def test_the_least_error_grid_is_that_of_a_search_in_numpy():
    v = np.random.default_rng(0).standard_t(3, size=500)
    best = (np.inf, 0.0, 0.0)
    for factor in 1 - 0.01 * np.arange(80):
        low, high = min(v.min(), 0) * factor, max(v.max(), 0) * factor
        step = (high - low) / 15
        zero = np.rint(-low / step)
        error = (np.abs(numpy_quantize(v, step, zero, 4)[0] - v) ** 2.4).mean()
        best = min(best, (error, step, zero))
    step, zero = mse_grid(torch.tensor(v), 4, (0,))
    assert step.item() == pytest.approx(best[1], rel=1e-6) and zero.item() == best[2]
    assert step < minmax_grid(torch.tensor(v), 4, (0,))[0]


class Model(nn.Module):
    """Two quantised steps under one clock."""

    def __init__(self, heads=1):
        super().__init__()
        self.table = ActivationTable(4, [0, 100, 700], clock_of(self), heads)

    def forward(self, x, timestep):
        return self.table(x)


def test_every_image_of_a_batch_takes_the_row_of_its_own_timestep():
    model = Model()
    for row, scale in enumerate((1.0, 2.0, 4.0)):
        model.table.calibrate(scale * torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), row)
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([699, 0, 999, 100])
    output = model(x, timesteps)
    for image, row in enumerate((1, 0, 2, 1)):
        step, zero = model.table.step[row].item(), model.table.zero[row].item()
        values, *_ = numpy_quantize(x[image].double().numpy(), step, zero, 4)
        np.testing.assert_allclose(output[image].detach(), values, atol=EXACT)
    torch.autograd.backward(output[:1].sum())
    assert model.table.step.grad[1].abs() > 0 and model.table.step.grad[[0, 2]].abs().sum() == 0


def test_heads_have_grids_of_their_own():
    model = Model(heads=2)
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0])[:, None, None]
    model.table.calibrate(x)
    output = model(x, torch.tensor([5]))
    for head in range(2):
        step, zero = mse_grid(x[:, head], 4, (0, 1, 2))
        np.testing.assert_allclose(output[:, head].detach(), fake_quantize(x[:, head], step, zero, 4), atol=EXACT)
    inference = model.table.to_inference()
    assert inference.table.shape == (3, 4)
    assert torch.allclose(inference(x), output, atol=EXACT)


def test_a_table_before_calibration_passes_its_input():
    table, x = ActivationTable(4, [0], Clock()), torch.randn(3, 3)
    assert torch.equal(table(x), x)


def test_a_table_of_several_rows_refuses_to_run_without_its_model():
    table = ActivationTable(4, [0, 10], Clock())
    table.calibrate(torch.randn(2, 2))
    with pytest.raises(RuntimeError, match="call the model itself"):
        table(torch.randn(2, 2))


LAYERS = {
    "conv2d": (nn.Conv2d(5, 6, 3, padding=1, stride=2), (2, 5, 7, 7)),
    "no bias": (nn.Conv2d(5, 3, 1, bias=False), (1, 5, 4, 4)),
    "linear": (nn.Linear(7, 9), (2, 3, 7)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (1, 6, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bits", [(4, 4), (2, 4), (6, 6), (8, 8), (4, 32)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_uniform_layer_that_trains_equals_the_one_that_runs(name, bits, symmetric):
    layer, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    uniform = UniformLayer(layer, *bits, Clock(), symmetric=symmetric, dilate=True)
    uniform.dilation.copy_(torch.rand(uniform.dilation.shape, generator=generator) + 1)
    x = torch.randn(shape, generator=generator)
    if uniform.activation is not None:
        uniform.activation.calibrate(x)
    runs = uniform.to_inference()
    assert torch.allclose(uniform(x), runs(x), atol=CLOSE, rtol=CLOSE)
    assert runs.weight().unique().numel() <= 2 ** bits[0] * layer.weight.shape[0]
    error = (runs.weight() - layer.weight).abs().amax() / layer.weight.abs().amax()
    assert error < 1.01 / (2 ** bits[0] - 2)


def test_a_symmetric_weight_grid_is_centred():
    weight = torch.tensor([[-3.5, 1.0], [0.2, 0.7]])
    step, zero = weight_grid(weight, 4, symmetric=True)
    np.testing.assert_allclose(step, [0.5, 0.1], atol=EXACT)
    assert zero.tolist() == [8, 8]


@given(
    bits=st.sampled_from([2, 4, 6, 8]),
    out=st.integers(1, 5),
    row=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_packed_codes_unpack_to_themselves_at_their_real_width(bits, out, row, seed):
    codes = torch.randint(2**bits, (out, *row), generator=torch.Generator().manual_seed(seed))
    packed = pack_codes(codes, bits)
    per_byte = {2: 4, 4: 2, 6: 1, 8: 1}[bits]
    assert packed.shape == (out, -(-int(np.prod(row)) // per_byte))
    assert torch.equal(unpack_codes(packed, bits, (out, *row)).long(), codes)


def test_codes_are_packed_on_their_own_device():
    codes = torch.zeros(3, 5, device="meta")
    assert pack_codes(codes, 4).device == codes.device


def test_packed_codes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="expected those of"):
        unpack_codes(torch.zeros(2, 3, dtype=torch.uint8), 4, (2, 9))


def test_geometry_is_that_of_the_layer():
    for layer, shape in LAYERS.values():
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(Geometry.of(layer).apply(x, layer.weight, layer.bias), layer(x))
