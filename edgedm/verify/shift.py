"""Whether two sets of features come from one distribution: distances with intervals, tests that chance seldom fails.

Features come in pairs [N, F]: row i of both was asked for in the same way (the same label, perhaps the same noise).
Under the hypothesis that both engines draw alike the two rows of a pair may be swapped without changing anything, so
swapping each pair at a coin's throw gives the statistic's distribution under chance, whatever the features are
(a permutation test: R. Fisher, "The Design of Experiments", section 21). A Frechet distance of finite samples is never
0, which is why the distance itself says nothing; its excess over what chance gives does.

Intervals are of 95 %. That of the distance is one of the distance beyond chance, which is what is left of it with all
the samples there could be: its place comes from the exchanged pairs, which know the bias of finite samples, its width
from resampling (the basic bootstrap: A. Davison, D. Hinkley, "Bootstrap Methods and their Application", section 5.2).
Resampling alone would not do for its place: with samples not many times the features it adds more bias than there is.
Those of precision and recall resample the points that are looked up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
Swaps = NDArray[np.bool_]

NEIGHBOURS = 3
"""k of the k-nearest-neighbour manifolds (T. Kynkaanniemi et al. 2019)."""

LEAST_SWAPS = 200
"""Throws that are always made: they also say what chance gives on average."""

ENOUGH = 10
"""Throws at least as extreme as what was seen, after which more would only refine a large probability (J. Besag,
P. Clifford 1991)."""

RESAMPLES = 400
LEVEL = 0.95


@dataclass(frozen=True)
class Finding:
    """One statistic: what was seen, what chance gives on average, the probability of being as extreme, the interval.

    The interval is of a share itself, and of a distance beyond chance.
    """

    seen: float
    by_chance: float
    probability: float
    low: float
    high: float


def frechet_distance(a: Features, b: Features) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2) of features [N, F] (M. Heusel et al. 2017).

    With centred rows A and B over sqrt(N - 1), tr (C_a C_b)^1/2 is the sum of the singular values of A B^T, which is
    no larger than the samples are many; with more samples than features the eigenvalues of C_a^1/2 C_b C_a^1/2 are
    fewer.
    """
    first, second = (each - each.mean(0) for each in (a, b))
    first, second = first / np.sqrt(len(a) - 1), second / np.sqrt(len(b) - 1)
    if a.shape[1] > len(a):
        cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    else:
        values, vectors = np.linalg.eigh(first.T @ first)
        root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        half = second @ root
        cross = np.sqrt(np.linalg.eigvalsh(half.T @ half).clip(0)).sum()
    spread = (first**2).sum() + (second**2).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread - 2 * cross)


def variance(features: Features) -> float:
    """The variance of all features together: the trace of their covariance."""
    return float(features.var(0, ddof=1).sum())


def frechet_shift(reference: Features, ours: Features, paired: bool, chance: float, seed: int = 0) -> Finding:
    """The distance of two sets [N, F]; its probability counts throws that give as much or more.

    `paired`: the rows of a pair depend on each other (same noise), so resampling keeps them together.
    """
    rng = np.random.default_rng(seed)
    seen = frechet_distance(reference, ours)

    def thrown(swaps: Swaps) -> float:
        return frechet_distance(*_swapped(reference, ours, swaps))

    null, probability = _chance(thrown, seen, chance, rng, len(ours))
    resampled = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(ours), len(ours))
        others = rows if paired else rng.integers(0, len(ours), len(ours))
        resampled.append(frechet_distance(reference[rows], ours[others]))
    low, high = np.quantile(np.array(resampled) - np.mean(resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Finding(seen, null, probability, seen - null - float(high), seen - null - float(low))


def precision_recall(reference: Features, ours: Features, chance: float, seed: int = 0) -> tuple[Finding, Finding]:
    """Shares of `ours` within the k-NN manifold of `reference`, and the reverse; probabilities count lower shares."""
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([reference, ours])
    distances, count = _distances(pooled), len(ours)

    def coverage(swaps: Swaps, turned: bool) -> NDArray[np.bool_]:
        first = np.where(swaps, np.arange(count) + count, np.arange(count))
        second = np.where(swaps, np.arange(count), np.arange(count) + count)
        manifold, points = (second, first) if turned else (first, second)
        inside = distances[np.ix_(manifold, manifold)]
        radius = np.partition(inside, NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # the nearest is the point itself
        return np.asarray((distances[np.ix_(points, manifold)] <= radius).any(1))

    found = []
    for turned in (False, True):
        inside = coverage(np.zeros(count, bool), turned)
        seen = float(inside.mean())
        null, probability = _chance(lambda s, t=turned: -float(coverage(s, t).mean()), -seen, chance, rng, count)  # type: ignore[misc]
        shares = rng.choice(inside, (RESAMPLES, count)).mean(1)
        low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found.append(Finding(seen, -null, probability, float(low), float(high)))
    return found[0], found[1]


def _chance(
    statistic: Callable[[Swaps], float], seen: float, chance: float, rng: np.random.Generator, pairs: int
) -> tuple[float, float]:
    """The mean of `statistic` under swaps, and the probability that it is at least `seen`.

    Throws go on until that probability is known to be above `chance`, or could be told to be below.
    """
    most = max(LEAST_SWAPS, int(np.ceil(2 / chance)))
    thrown: list[float] = []
    above = 0
    slack = 1e-9 * abs(seen)  # equal statistics count, whatever the order of their sums
    while len(thrown) < most and (len(thrown) < LEAST_SWAPS or above < ENOUGH):
        thrown.append(statistic(rng.random(pairs) < 0.5))
        above += thrown[-1] >= seen - slack
    return float(np.mean(thrown)), (1 + above) / (1 + len(thrown))


def _swapped(a: Features, b: Features, swaps: Swaps) -> tuple[Features, Features]:
    mask = swaps[:, None]
    return np.where(mask, b, a), np.where(mask, a, b)


def _distances(points: Features) -> Features:
    square = (points**2).sum(1)
    result: Features = np.sqrt((square[:, None] + square - 2 * points @ points.T).clip(0))
    np.fill_diagonal(result, 0.0)
    return result
