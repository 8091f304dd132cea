"""The figures of samples, and the shipped classifier."""

import numpy as np
import pytest
import torch

from edgedm.training.classifier import accuracy, load_classifier
from edgedm.training.data import load_digits
from edgedm.training.quality import frechet_distance, measure, precision_recall


def test_the_frechet_distance_of_diagonal_gaussians_is_its_closed_form():
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 2.0, 0.5])
    a = rng.normal(size=(200_000, 3))
    b = rng.normal(size=(200_000, 3)) * scale + 1
    assert frechet_distance(a, b) == pytest.approx(3 + ((1 - scale) ** 2).sum(), rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_precision_and_recall_tell_missing_modes_from_wrong_ones():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + 50
    both = np.concatenate([left, right])
    one = rng.normal(size=(400, 4))
    precision, recall = precision_recall(one, both)
    assert precision > 0.8 and 0.3 < recall < 0.55
    precision, recall = precision_recall(both, one)
    assert 0.3 < precision < 0.55 and recall > 0.8


def test_the_classifier_that_ships_names_98_percent_of_held_out_digits():
    assert accuracy(load_classifier()) >= 0.98


def test_real_digits_are_accepted_and_noise_is_far():
    digits = load_digits()
    classifier = load_classifier()
    real = measure(digits.held_out_images, digits.train_images, classifier, digits.held_out_labels)
    noise = torch.randn(360, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    far = measure(noise, digits.train_images, classifier)
    assert real.accepted > 0.95 and real.named is not None and real.named >= 0.98
    assert far.frechet > 10 * real.frechet
    assert sum(real.class_shares) == pytest.approx(1, abs=1e-5)


def test_the_digits_are_scaled_and_split_without_overlap():
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 16, 16) and len(digits.held_out_labels) == 359
    assert digits.images.min() == -1 and digits.images.max() <= 1
    assert set(digits.held_out_labels.tolist()) == set(range(10))
