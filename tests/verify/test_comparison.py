"""The arithmetic of parity on numbers whose answers are known."""

import math

import numpy as np
import pytest

from edgedm.verify import comparison
from edgedm.verify.comparison import Flips, at_least, balance, count_flips, gamma, widest_gap


def test_gamma_bounds_the_error_of_a_float32_sum_in_any_order() -> None:
    rng = np.random.default_rng(0)
    for count in (10, 1000, 100_000):
        terms = rng.standard_normal(count).astype(np.float32)
        exact = terms.astype(np.float64).sum()
        bound = gamma(count) * np.abs(terms.astype(np.float64)).sum()
        in_order = np.cumsum(terms, dtype=np.float32)[-1]
        assert abs(float(in_order) - exact) <= bound
        assert abs(float(terms[::-1].sum(dtype=np.float32)) - exact) <= bound


def test_gamma_is_infinite_where_no_digit_is_left() -> None:
    assert gamma(1) == pytest.approx(2.0**-24)
    assert gamma(2.0**24) == math.inf


def test_balance_is_the_two_sided_binomial_probability() -> None:
    assert balance(0, 0) == 1.0
    assert balance(5, 5) == 1.0
    assert balance(0, 1) == 1.0
    assert balance(0, 4) == pytest.approx(2 / 16)
    assert balance(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert balance(30, 0) == pytest.approx(2.0**-29)


def test_a_flip_is_explained_only_where_rounding_reaches_the_threshold() -> None:
    ours = np.array([1, 1, 0, 3])
    reference = np.array([1, 0, 1, 1])
    low, high = np.array([1, 0, 1, 1]), np.array([1, 1, 1, 3])
    flips = count_flips(ours, reference, low, high)
    assert flips == Flips(codes=4, up=2, down=1, unexplained=1)
    complaint = flips.complaint()
    assert complaint is not None and "1 of 4 codes differ" in complaint


def test_too_many_explained_flips_fail() -> None:
    assert Flips(codes=10_000_000, up=563, down=564).complaint() is None
    assert "at most 1127 allowed" in (Flips(codes=10_000_000, up=564, down=564).complaint() or "")


def test_one_flip_passes_in_a_layer_too_small_to_have_a_share() -> None:
    assert Flips(codes=64, up=1).complaint() is None
    assert Flips(codes=64, up=1, down=1).complaint() is not None


@pytest.mark.parametrize("codes", [1_000, 16_384, 200_000, 10_000_000])
def test_flips_at_the_bound_itself_hardly_ever_fail_and_three_times_as_many_do_where_there_are_many(codes) -> None:
    rng, runs = np.random.default_rng(0), 20_000
    noise = rng.poisson(comparison.FLIP_SHARE * codes, runs)
    assert np.mean(noise > Flips(codes).allowed) < 2e-3  # the share that passes; what is seen is a tenth of it
    fault = rng.poisson(3 * comparison.FLIP_SHARE * codes, runs)
    assert codes < 200_000 or np.mean(fault > Flips(codes).allowed) > 0.99


def test_flips_that_lean_one_way_fail() -> None:
    assert Flips(codes=1_000_000, up=18, down=2).complaint() is None
    assert "lean one way" in (Flips(codes=1_000_000, up=30, down=2).complaint() or "")


def test_flips_add_up_over_inputs() -> None:
    assert Flips(10, 1, 2, 0) + Flips(5, 0, 1, 1) == Flips(15, 1, 3, 1)


def test_worst_use_is_infinite_for_an_error_that_must_not_be() -> None:
    assert comparison.worst_use(np.array([0.0, 0.0]), np.array([0.0, 1.0])) == 0.0
    assert comparison.worst_use(np.array([0.0, 0.5]), np.array([0.0, 1.0])) == 0.5
    assert comparison.worst_use(np.array([1e-9]), np.array([0.0])) == math.inf
    assert comparison.worst_use(np.array([math.nan]), np.array([1.0])) == math.inf


def test_relative_error_and_decibels() -> None:
    reference = np.array([3.0, 4.0])
    assert comparison.relative_error(reference * 1.01, reference) == pytest.approx(0.01)
    assert comparison.relative_error(np.array([math.nan, 1.0]), reference) == math.inf
    assert comparison.snr_db(0.01) == pytest.approx(40.0)
    assert comparison.snr_db(0.0) == 300.0
    assert comparison.psnr_db(np.array([0.02]), np.array([0.0]), span=2.0) == pytest.approx(40.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e300])
def test_what_is_not_finite_has_no_signal(broken: float) -> None:
    assert comparison.snr_db(math.nan) == comparison.snr_db(math.inf) == -math.inf
    assert comparison.psnr_db(np.array([broken]), np.array([0.0]), span=2.0) == -math.inf


def test_at_least_is_the_tail_of_a_fair_coin() -> None:
    assert at_least(0, 5) == 1.0
    assert at_least(5, 5) == 1 / 32
    assert at_least(9, 10) == 11 / 1024


def test_the_widest_gap_is_told_by_its_place_and_both_numbers():
    expected = np.array([[1.0, np.inf, -2.0]])
    assert widest_gap(np.array([[1.5, np.inf, -4.0]]), expected) == "at (0, 2) expected -2, got -4"
    assert widest_gap(np.array([[1.5, np.nan, -4.0]]), expected) == "at (0, 1) expected inf, got nan"
    assert widest_gap(expected[:, :2], expected) == "expected shape [1, 3], got [1, 2]"
    assert widest_gap(expected[:0], expected[:0]) == ""
