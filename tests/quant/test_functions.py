"""The differentiable quantisers against independent numpy formulas."""

import numpy as np
import pytest
import torch

from edgedm.quant.functions import lsq, lsq_initial_step, scaled_sign_ste, sign_polynomial, sign_ste

CLOSE = 1e-5  # float32 sums of a few hundred terms


@pytest.fixture
def x():
    values = np.random.default_rng(0).normal(0, 1.2, (3, 5, 4)).astype(np.float32)
    values[0, 0] = [0.0, -0.0, 1.0, -1.0]
    return values


@pytest.fixture
def upstream():
    return np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)


def run(function, upstream, *inputs):
    tensors = [torch.tensor(value, requires_grad=True) for value in inputs]
    y = function(*tensors)
    y.backward(torch.tensor(upstream))
    return y.detach().numpy(), *(None if t.grad is None else t.grad.numpy() for t in tensors)


def test_sign_ste_is_plus_one_at_zero_and_passes_the_gradient_inside_the_unit_interval(x, upstream):
    y, grad = run(sign_ste, upstream, x)
    assert (y == np.where(x >= 0, 1, -1)).all()
    assert (grad == upstream * (np.abs(x) <= 1)).all()


def test_scaled_sign_ste_keeps_the_scale_out_of_the_gradient(x, upstream):
    scale = np.abs(x).mean((1, 2), keepdims=True)
    y, grad, none = run(scaled_sign_ste, upstream, x, scale)
    assert (y == np.where(x >= 0, scale, -scale)).all()
    assert (grad == upstream * (np.abs(x) <= 1)).all()
    assert none is None


def test_sign_polynomial_has_bi_real_nets_gradient(x, upstream):
    y, grad = run(sign_polynomial, upstream, x)
    slope = np.select([(x >= -1) & (x < 0), (x >= 0) & (x < 1)], [2 + 2 * x, 2 - 2 * x], 0)
    assert (y == np.where(x >= 0, 1, -1)).all()
    np.testing.assert_allclose(grad, upstream * slope, atol=CLOSE)


@pytest.mark.parametrize("step", [0.05, 0.13, 0.6])
def test_lsq_is_the_papers_forward_and_backward(x, upstream, step):
    step = np.array([step], np.float32)
    y, grad, grad_step = run(lsq, upstream, x, step)
    v = x / step
    code = np.clip(np.round(v), -8, 7)
    inside = (v >= -8) & (v <= 7)
    slope = np.where(inside, np.round(v) - v, np.clip(v, -8, 7))
    np.testing.assert_allclose(y, code * step, atol=CLOSE)
    assert (grad == upstream * inside).all()
    expected = (upstream.astype(np.float64) * slope).sum() / np.sqrt(x.size * 7)
    np.testing.assert_allclose(grad_step, [expected], rtol=1e-4)


def test_lsq_rounds_half_to_even():
    step = torch.ones(1)
    assert lsq(torch.tensor([0.5, 1.5, 2.5, -0.5, -9.0, 9.0]), step).tolist() == [0, 2, 2, 0, -8, 7]


def test_lsq_starts_at_twice_the_mean_over_the_root_of_the_largest_code(x):
    assert float(lsq_initial_step(torch.tensor(x))) == pytest.approx(2 * np.abs(x).mean() / np.sqrt(7), rel=1e-5)
