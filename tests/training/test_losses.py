"""BiDM's patch distillation, and the plain one, against numpy."""

import numpy as np
import pytest
import torch

from edgedm.errors import UnsupportedError
from edgedm.training.losses import l2_loss, spd_loss

CLOSE = 1e-6  # float32 sums of a few dozen products


def reference(student, teacher):
    terms = []
    for s, t in zip(student, teacher, strict=True):
        height, width = s.shape[2] // 4, s.shape[3] // 4
        for row in range(4):
            for column in range(4):
                normed = []
                for feature in (s, t):
                    rows, columns = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
                    patch = feature[:, :, rows, columns]
                    gram = np.einsum("ncij,nckj->ncik", patch, patch)
                    normed.append(gram / np.linalg.norm(gram))
                terms.append(np.linalg.norm(normed[0] - normed[1]))
    return np.mean(terms)


def test_spd_is_the_mean_over_features_and_patches_of_the_norm_of_normalised_grams():
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 16, 16), (2, 5, 8, 8), (2, 4, 4, 4)]
    student = [rng.normal(size=shape) for shape in shapes]
    teacher = [rng.normal(size=shape) for shape in shapes]
    ours = spd_loss([torch.tensor(f).float() for f in student], [torch.tensor(f).float() for f in teacher])
    assert float(ours) == pytest.approx(reference(student, teacher), rel=1e-5)


def slope(student, teacher):
    """The gradient of `reference` to each of the student's features, by the chain rule through P P^T / ||P P^T||."""
    found = [np.zeros_like(feature) for feature in student]
    for s, t, gradient in zip(student, teacher, found, strict=True):
        height, width = s.shape[2] // 4, s.shape[3] // 4
        for row in range(4):
            for column in range(4):
                cut = np.s_[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
                ours, theirs = (np.einsum("ncij,nckj->ncik", f[cut], f[cut]) for f in (s, t))
                size = np.linalg.norm(ours)
                q = ours / size
                difference = q - theirs / np.linalg.norm(theirs)
                to_q = difference / np.linalg.norm(difference) / (16 * len(student))
                to_gram = (to_q - q * (q * to_q).sum()) / size
                gradient[cut] = np.einsum("ncik,nckj->ncij", to_gram + to_gram.swapaxes(2, 3), s[cut])
    return found


def test_spd_has_the_formulas_gradient():
    rng = np.random.default_rng(1)
    shapes = [(2, 3, 8, 16), (1, 4, 4, 4)]
    student, teacher = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    ours = [torch.tensor(feature).float().requires_grad_() for feature in student]
    spd_loss(ours, [torch.tensor(feature).float() for feature in teacher]).backward()
    for feature, expected in zip(ours, slope(student, teacher), strict=True):
        np.testing.assert_allclose(feature.grad, expected, rtol=1e-3, atol=CLOSE)


def test_the_gradient_that_the_formulas_are_held_against_is_that_of_the_reference():
    rng = np.random.default_rng(2)
    student, teacher = ([rng.normal(size=(1, 2, 4, 8))] for _ in range(2))
    (analytic,) = slope(student, teacher)
    for index in ((0, 0, 1, 3), (0, 1, 2, 6)):
        moved = [student[0].copy(), student[0].copy()]
        moved[0][index] += 1e-6
        moved[1][index] -= 1e-6
        numeric = (reference(moved[:1], teacher) - reference(moved[1:], teacher)) / 2e-6
        assert analytic[index] == pytest.approx(numeric, rel=1e-4)


def test_spd_does_not_see_the_scale_of_a_feature():
    feature = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(spd_loss([3 * feature], [feature])) < 1e-5


def test_spd_has_finite_gradients_where_student_and_teacher_agree():
    feature = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    spd_loss([feature], [feature.detach()]).backward()
    assert torch.isfinite(feature.grad).all()


def test_a_feature_that_has_no_4x4_grid_is_refused():
    with pytest.raises(UnsupportedError, match=r"6x6.*distillation='l2'"):
        spd_loss([torch.ones(1, 1, 6, 6)], [torch.ones(1, 1, 6, 6)])


def test_l2_is_the_mean_over_features_of_mean_squared_errors():
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 6, 6), (2, 5, 2, 2)]
    student, teacher = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    expected = np.mean([np.mean((s - t) ** 2) for s, t in zip(student, teacher, strict=True)])
    ours = [torch.tensor(f, requires_grad=True) for f in student]
    loss = l2_loss(ours, [torch.tensor(f) for f in teacher])
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    for feature, s, t in zip(ours, student, teacher, strict=True):
        np.testing.assert_allclose(feature.grad, 2 * (s - t) / s.size / len(student))
