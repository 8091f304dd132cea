"""Philox against its published vectors; normals against the true distribution."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from edgedm.diffusion.philox import normal_from_bits, normals, philox4x32

NORMAL_ABSOLUTE = 1.2e-6  # degree-6 fit and Horner in float32, values up to 6.3 (one ulp there is 4.8e-7)

# Random123's kat_vectors for philox4x32-10: counter, key, result
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(counter, key, want):
    words = [np.array([int(w, 16) for w in text.split()], dtype=np.uint32) for text in (counter, key, want)]
    got = philox4x32(words[0], (int(words[1][0]), int(words[1][1])))
    assert got.tolist() == words[2].tolist()


def test_every_octave_is_the_inverse_normal_distribution():
    exact = NormalDist()
    for octave in range(31):
        low = 1 << octave
        words = np.unique(np.linspace(low, 2 * low - 1, 200).astype(np.uint64)).astype(np.uint32)
        got = normal_from_bits(words << np.uint32(1))
        want = [-exact.inv_cdf((int(w) + 0.5) * 2.0**-32) for w in words]
        assert np.abs(got - want).max() < NORMAL_ABSOLUTE
    assert normal_from_bits(np.zeros(1, np.uint32))[0] == pytest.approx(6.3379, abs=1e-3)


def test_sign_bit_mirrors_exactly():
    words = np.arange(0, 2**32, 2**20 + 2, dtype=np.uint64).astype(np.uint32)
    assert np.array_equal(normal_from_bits(words), -normal_from_bits(words | np.uint32(1)))


def test_normals_have_the_moments_and_the_distribution():
    drawn = normals(seed=1234, image=0, draw=0, count=200_000).astype(np.float64)
    error = 5 / math.sqrt(drawn.size)  # five standard errors of the mean; the higher moments are wider
    assert abs(drawn.mean()) < error
    assert abs(drawn.var() - 1) < error * math.sqrt(2)
    assert abs((drawn**3).mean()) < error * math.sqrt(15)
    assert abs((drawn**4).mean() - 3) < error * math.sqrt(96)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3


def test_draws_images_and_seeds_are_independent():
    base = normals(7, 0, 0, 50_000).astype(np.float64)
    for other in (normals(7, 0, 1, 50_000), normals(7, 1, 0, 50_000), normals(8, 0, 0, 50_000)):
        assert abs(float((base * other).mean())) < 5 / math.sqrt(base.size)
    assert np.array_equal(normals(7, 0, 0, 10), base[:10].astype(np.float32))
    assert not np.array_equal(normals(7 + (1 << 32), 0, 0, 10), normals(7, 0, 0, 10))
