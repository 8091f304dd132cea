"""Low-rank mimicking against numpy: the axes, their number, the loss."""

import numpy as np
import pytest
import torch

from edgedm.training.low_rank import LowRankMimicking, principal_axes

CLOSE = 1e-5  # float32 axes from float64 ones


def feature(shape, seed=0):
    """Axes of unequal weight, off centre, so that the leading ones are well defined and centring matters."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) + 0.7
    values *= np.linspace(1, 3, shape[1])[None, :, None, None]
    values *= np.linspace(3, 1, shape[3])
    return torch.tensor(values, dtype=torch.float32)


def rows(values, axis):
    array = values.double().numpy()
    return (
        array.transpose(0, 2, 3, 1).reshape(-1, array.shape[1])
        if axis == "channel"
        else array.reshape(-1, array.shape[3])
    )


@pytest.mark.parametrize(
    ("axis", "divisor", "shape", "rank"),
    [
        ("channel", 4, (2, 16, 6, 6), 4),
        ("channel", 2, (2, 16, 6, 6), 8),
        ("channel", 4, (2, 11, 4, 4), 3),
        ("channel", 4, (1, 1, 4, 4), 1),
        ("width", 4, (2, 3, 16, 16), 4),
        ("width", 4, (2, 3, 4, 4), 2),
        ("width", 4, (2, 3, 1, 1), 1),
    ],
)
def test_axes_span_the_leading_principal_subspace_of_the_teacher(axis, divisor, shape, rank):
    values = feature(shape)
    axes = principal_axes(values, axis, divisor).double().numpy()
    data = rows(values, axis)
    data = data - data.mean(0) if axis == "width" else data
    _, _, right = np.linalg.svd(data, full_matrices=False)
    assert axes.shape == (data.shape[1], rank)
    np.testing.assert_allclose(axes @ axes.T, right[:rank].T @ right[:rank], atol=CLOSE)


@pytest.mark.parametrize("axis", ["channel", "width"])
def test_the_loss_is_the_mean_over_blocks_of_the_projected_error(axis):
    shapes = [(2, 8, 6, 6), (2, 12, 4, 4)]
    first, theirs, ours = ([feature(shape, seed) for shape in shapes] for seed in (0, 1, 2))
    module = LowRankMimicking(first, axis, 4)
    student = [each.requires_grad_() for each in ours]
    loss = module(student, theirs)
    loss.backward()
    terms = []
    for index, (s, t) in enumerate(zip(ours, theirs, strict=True)):
        axes = module.get_buffer(f"basis{index}").double().numpy()
        error = (rows(s.detach(), axis) - rows(t, axis)) @ axes
        terms.append((error**2).mean())
        gradient = 2 * error @ axes.T / error.size / len(shapes)
        np.testing.assert_allclose(rows(s.grad, axis), gradient, atol=CLOSE)
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_axes_are_kept_with_the_state():
    features = [feature((2, 8, 4, 4))]
    module, other = LowRankMimicking(features), LowRankMimicking([torch.randn(2, 8, 4, 4)])
    assert list(module.state_dict()) == ["basis0"]
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.basis0, module.basis0)
