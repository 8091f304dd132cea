"""Distances between sets: a real shift is told from chance, equal sets pass as often as the test says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedm.training.quality import frechet_distance as other_frechet
from edgedm.training.quality import precision_recall as other_precision_recall
from edgedm.verify import shift
from edgedm.verify.distribution_level import NOISES, TESTS, rows_of
from edgedm.verify.gate import DistributionGate
from edgedm.verify.report import Level
from edgedm.verify.shift import frechet_distance, frechet_shift, precision_recall, variance

SPREAD = np.linspace(0.2, 2.0, 8)


def draw(rng: np.random.Generator, count: int = 64) -> np.ndarray:
    """Features as a ReLU leaves them: skewed, of unequal spread."""
    return np.maximum(rng.standard_normal((count, len(SPREAD))) + 0.3, 0) * SPREAD


@given(count=st.integers(5, 40), features=st.integers(2, 60), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_distance_is_that_of_the_formula_with_more_samples_or_more_features(count, features, seed) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, count, features))
    expected = other_frechet(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)  # its roots of small eigenvalues lose digits
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * variance(a))


def test_precision_and_recall_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = draw(rng), draw(rng) * 1.3
    found = precision_recall(a, b, 0.05)
    assert (found[0].seen, found[1].seen) == other_precision_recall(b, a)


def test_equal_distributions_fail_about_as_often_as_the_test_says() -> None:
    """Of 100 pairs of equal sets with a chance of 0.1, 1 to 22 are rejected but once in some thousand."""
    rng = np.random.default_rng(1)
    runs, chance = 100, 0.1
    frechet = precision = 0
    for seed in range(runs):
        a, b = draw(rng, 24), draw(rng, 24)
        frechet += frechet_shift(a, b, False, chance, seed).probability < chance
        precision += precision_recall(a, b, chance, seed)[0].probability < chance
    assert 1 <= frechet <= 22
    assert precision <= 22  # shares are coarse, so it rejects less often


def test_the_interval_of_equal_distributions_holds_zero_and_that_of_a_shift_does_not() -> None:
    rng = np.random.default_rng(2)
    a = draw(rng, 128)
    equal, shifted = (frechet_shift(a, draw(rng, 128) + gap, False, 1e-2) for gap in (0.0, 0.5))
    assert equal.low <= 0 <= equal.high
    assert shifted.low > 0 and shifted.high > 0.5**2 * len(SPREAD) > shifted.low


@pytest.mark.parametrize("features", [4, 24, 48])
def test_the_interval_holds_the_true_distance_with_few_samples_a_feature_too(features: int, monkeypatch) -> None:
    """One in twenty may miss it: of 12 intervals 3 or more do so once in fifty, were it no more than that."""
    monkeypatch.setattr(shift, "RESAMPLES", 100)
    rng, count, missed = np.random.default_rng(features), 48, 0
    for gap in (0.0, 0.3) * 6:
        a, b = rng.standard_normal((2, count, features))
        found = frechet_shift(a, b + gap, False, 0.5)
        missed += not found.low <= features * gap**2 <= found.high
    assert missed <= 2


def rows(torch, ours, name: str = "independent", gate: DistributionGate | None = None) -> Level:
    gate = gate or DistributionGate(chance=0.01)
    return Level("distribution", "", tuple(row for row, _ in rows_of(name, torch, ours, gate)))


def level(rng: np.random.Generator, count: int, gate: DistributionGate, gap: float = 0.0) -> Level:
    """Both noises: images of the same noise differ by a rounding of each engine's own, others by the noise too."""
    torch = draw(rng, count)
    same, other = (each + rng.normal(0, 0.05, torch.shape) for each in (torch, draw(rng, count)))
    torch = torch + rng.normal(0, 0.05, torch.shape)
    pairs = zip(NOISES, (same, other), strict=True)
    found = tuple(row for name, ours in pairs for row, _ in rows_of(name, torch, ours + gap * SPREAD, gate))
    assert len(found) == TESTS
    return Level("distribution", "", found)


def test_the_whole_level_fails_equal_engines_as_seldom_as_its_chance_says() -> None:
    """Of 40 runs at a chance of 0.2 at most 17 fail but once in a thousand; uncorrected, half of them would."""
    gate, rng = DistributionGate(chance=0.2, max_shift=0.0, max_drop=0.0), np.random.default_rng(6)
    failed = sum(not level(rng, 16, gate).ok for _ in range(40))
    assert 1 <= failed <= 17


def test_a_shift_is_found_in_every_run() -> None:
    rng = np.random.default_rng(7)
    for _ in range(5):
        found = level(rng, 64, DistributionGate(chance=0.05), gap=0.5)
        assert not found.ok and not found.rows[0].ok and not found.rows[3].ok


def test_a_drop_of_precision_counts_only_beyond_what_the_gate_allows() -> None:
    rng = np.random.default_rng(8)
    torch = draw(rng, 128)
    wide = draw(rng, 128) * 1.6  # further out than torch's
    precision = {
        most: next(row for row, name in rows_of("independent", torch, wide, gate) if name == "precision")
        for most in (0.02, 0.9)
        for gate in [DistributionGate(chance=0.01, max_drop=most)]
    }
    assert not precision[0.02].ok and "lower, at most 0.02 allowed" in precision[0.02].note
    assert precision[0.9].ok and precision[0.9].figures["drop"] > 0.1


def test_a_shift_of_a_few_images_is_found() -> None:
    rng = np.random.default_rng(3)
    a, b = draw(rng, 128), draw(rng, 128)
    assert rows(a, b).ok
    collapsed = b.copy()
    collapsed[:64] = b[0]  # a mode that takes half of all images
    off = rows(a, collapsed).first_failure
    assert off is not None and "expected" in off.note and "by chance" in off.note
    noisy = b + 0.5 * rng.standard_normal(b.shape)
    assert not rows(a, noisy).ok


def test_from_the_same_noise_a_shift_that_does_not_count_passes_and_one_that_does_fails() -> None:
    rng = np.random.default_rng(4)
    a = draw(rng, 128)
    slight = a + 1e-4  # in every image, so chance never gives it; a ten-thousandth of nothing that anybody sees
    assert rows(a, slight, "same").ok
    strict = DistributionGate(max_shift=0.0, chance=0.01)
    assert not rows(a, slight, "same", strict).ok
    assert not rows(a, a + 0.4 * SPREAD, "same").ok


def test_a_distance_has_the_interval_of_what_is_beyond_chance_and_says_so() -> None:
    rng = np.random.default_rng(9)
    distance, *shares = rows(draw(rng), draw(rng)).rows
    assert {"beyond chance low", "beyond chance high"} < set(distance.figures) and "low" not in distance.figures
    assert all(row.figures["low"] <= row.figures["seen"] <= row.figures["high"] for row in shares)


def test_identical_images_pass() -> None:
    a = draw(np.random.default_rng(5), 64)
    assert rows(a, a.copy(), "same", DistributionGate(max_shift=0.0, chance=0.01)).ok
