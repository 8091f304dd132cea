"""The arithmetic of parity: how much rounding may do, which flipped decisions it explains, how errors add up.

Rounding: N. Higham, "Accuracy and Stability of Numerical Algorithms", chapter 3: n float32 operations in any
order change a sum of terms by at most gamma_n * sum(abs(terms)).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT_ROUNDOFF = 2.0**-24
"""Half a unit in the last place of float32: the relative error of one operation."""

FLIP_SHARE = 1e-4
"""Explained flips stay below this share of a layer's codes: float32 noise of 1e-6 around a threshold that one
code in a hundred comes near flips about one in 1e6; a hundred times that is no longer noise."""

FLIP_DEVIATIONS = 4.0
"""Flips are rare and fall at random, so that few codes may show a larger share: by so many standard deviations of
their number (Poisson's, the root of its mean), and one. Without that one run in forty of a single timestep on ARMv7,
where a layer of 16,384 codes has 0.25 flips on average, fails for two."""

BALANCE_PROBABILITY = 1e-6
"""Noise flips codes up as often as down; a less balanced outcome than this has a cause."""

Float = NDArray[np.float64]
Codes = NDArray[np.int64]


def gamma(count: float) -> float:
    """The factor gamma_n = n u / (1 - n u) of `count` float32 operations; infinite from 1 / u on."""
    product = count * UNIT_ROUNDOFF
    return product / (1.0 - product) if product < 1.0 else math.inf


def balance(up: int, down: int) -> float:
    """Two-sided binomial probability of a split at least as uneven as `up` to `down` under fair odds."""
    total, least = up + down, min(up, down)
    log_half = total * math.log(2.0)
    tail = sum(
        math.exp(math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - log_half)
        for k in range(least + 1)
    )
    return min(1.0, 2.0 * tail)


def widest_gap(got: NDArray[Any], expected: NDArray[Any]) -> str:
    """Where two arrays of numbers lie furthest apart, in words; NaN is furthest from everything, empty if nowhere."""
    if got.shape != expected.shape:
        return f"expected shape {list(expected.shape)}, got {list(got.shape)}"
    if not got.size:
        return ""
    with np.errstate(invalid="ignore"):
        gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    gap = np.where(got == expected, 0.0, np.nan_to_num(gap, nan=np.inf))  # infinities may be equal
    place = np.unravel_index(int(np.argmax(gap)), gap.shape)
    where = tuple(int(index) for index in place)
    return f"at {where} expected {float(expected[place]):.6g}, got {float(got[place]):.6g}"


@dataclass(frozen=True)
class Flips:
    """Codes of one layer that differ from the reference's, over all the inputs that it was fed."""

    codes: int = 0
    up: int = 0  # ours above the reference's
    down: int = 0
    unexplained: int = 0

    def __add__(self, other: "Flips") -> "Flips":
        return Flips(
            self.codes + other.codes,
            self.up + other.up,
            self.down + other.down,
            self.unexplained + other.unexplained,
        )

    @property
    def total(self) -> int:
        """Number of codes that differ."""
        return self.up + self.down

    @property
    def allowed(self) -> int:
        """Most flips that pass: `FLIP_SHARE` of the codes, and what chance adds to it."""
        share = FLIP_SHARE * self.codes
        return int(share + FLIP_DEVIATIONS * math.sqrt(share) + 1.0)

    def complaint(self) -> str | None:
        """Why these flips fail, or None."""
        if self.unexplained:
            return f"{self.unexplained} of {self.codes} codes differ where no threshold lies within rounding"
        if self.total > self.allowed:
            return f"{self.total} of {self.codes} codes flipped, at most {self.allowed} allowed"
        if balance(self.up, self.down) <= BALANCE_PROBABILITY:
            return f"flips lean one way: {self.up} up, {self.down} down"
        return None


def count_flips(ours: Codes, reference: Codes, low: Codes, high: Codes) -> Flips:
    """Compare codes of one layer, all arrays of one shape.

    `low` and `high` are the least and the greatest code that exact arithmetic gives within the rounding
    bounds of the pre-activation. A code that differs is explained if both codes lie between them, that is, if
    a threshold lies between the reference's pre-activation and ours and both are within the bound.
    """
    lower, upper = np.minimum(ours, reference), np.maximum(ours, reference)
    differs = ours != reference
    explained = (low <= lower) & (upper <= high)
    return Flips(
        codes=int(ours.size),
        up=int(np.count_nonzero(ours > reference)),
        down=int(np.count_nonzero(ours < reference)),
        unexplained=int(np.count_nonzero(differs & ~explained)),
    )


def worst_use(error: Float, bound: Float) -> float:
    """The largest error / bound; 0 where there is no error, infinite where an error meets a bound of 0 or is NaN."""
    if error.size == 0:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        use = np.where(error == 0.0, 0.0, error / bound)
    return float(np.max(np.where(np.isnan(use), math.inf, use)))


def relative_error(actual: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """RMS of the difference over RMS of the reference, both taken as float64; infinite if not finite."""
    actual, reference = np.asarray(actual, np.float64), np.asarray(reference, np.float64)
    power = float(np.sqrt(np.mean(reference**2)))
    with np.errstate(invalid="ignore", over="ignore"):
        error = float(np.sqrt(np.mean((actual - reference) ** 2)))
    if not math.isfinite(error):
        return math.inf
    return error / power if power > 0 else (0.0 if error == 0 else math.inf)


def snr_db(error: float) -> float:
    """Signal-to-noise ratio in dB of a relative error; 300 dB (below float64's noise) where there is none.

    An error that is not finite leaves no signal: minus infinity, which is below every threshold.
    """
    if not math.isfinite(error):
        return -math.inf
    return min(300.0, -20.0 * math.log10(error)) if error > 0 else 300.0


def psnr_db(actual: NDArray[np.floating], reference: NDArray[np.floating], span: float) -> float:
    """Peak signal-to-noise ratio in dB for values that cover `span` (2 for images in -1..1); as `snr_db`."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = float(np.sqrt(np.mean((np.asarray(actual, np.float64) - np.asarray(reference, np.float64)) ** 2)))
    return snr_db(error / span)


def at_least(count: int, total: int) -> float:
    """Probability that a fair coin shows heads at least `count` times in `total` throws."""
    return float(sum(math.comb(total, k) for k in range(count, total + 1)) / 2**total)
