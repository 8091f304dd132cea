"""The sign test: chance passes, faults do not."""

import math

import numpy as np

from edgedm.verify.run_level import CHANCE, sign_test


def lognormal(rng: np.random.Generator, runs: int, scale: float = 1e-3) -> list[float]:
    return (scale * np.exp(rng.standard_normal(runs))).tolist()


def test_equally_precise_implementations_pass_almost_always() -> None:
    rng = np.random.default_rng(0)
    failed = sum(sign_test(lognormal(rng, 10), lognormal(rng, 10))[2] < CHANCE for _ in range(2000))
    assert failed <= 2000 * CHANCE


def test_a_flip_in_a_few_runs_is_chance() -> None:
    ratio, above, chance = sign_test([1e-7] * 7 + [0.1] * 3, [1e-7] * 10)
    assert (ratio, above) == (1.0, 3)
    assert chance > CHANCE


def test_a_fault_in_every_run_is_none() -> None:
    ratio, above, chance = sign_test([0.01] * 10, [1e-7] * 10)
    assert (ratio, above) == (1e4, 10)
    assert chance < CHANCE


def test_a_fault_shows_beside_flips_of_torch_itself() -> None:
    rng = np.random.default_rng(1)
    assert sign_test(lognormal(rng, 80, 0.05), lognormal(rng, 80, 0.005))[2] < CHANCE


def test_errors_below_the_floor_are_not_told_apart() -> None:
    assert sign_test([9e-7] * 10, [1e-9] * 10) == (1.0, 0, 1.0)


def test_infinity_counts_as_above() -> None:
    assert sign_test([math.inf] * 10, [1e-3] * 10)[1] == 10
