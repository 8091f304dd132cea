"""Figures of a set of samples: accepted share, class shares, Frechet distance, precision and recall."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedm.training.classifier import CLASSES, DigitClassifier

Features = NDArray[np.float64]
CONFIDENT = 0.9
NEIGHBOURS = 3


@dataclass(frozen=True)
class Quality:
    """`accepted`: share of samples with confidence >= 0.9; `named`: share classified as their label, if given."""

    accepted: float
    class_shares: list[float]
    frechet: float
    precision: float
    recall: float
    named: float | None = None


@torch.no_grad()
def measure(images: Tensor, real: Tensor, classifier: DigitClassifier, labels: Tensor | None = None) -> Quality:
    """Return the figures of `images` f32[N, 1, 16, 16] against `real`; `labels` int64[N] if they were asked for."""
    probability = torch.softmax(classifier(images), 1)
    confidence, named = probability.max(1)
    ours = classifier.features(images).double().numpy()
    theirs = classifier.features(real).double().numpy()
    precision, recall = precision_recall(ours, theirs)
    return Quality(
        accepted=float((confidence >= CONFIDENT).float().mean()),
        class_shares=(torch.bincount(named, minlength=CLASSES) / len(named)).tolist(),
        frechet=frechet_distance(ours, theirs),
        precision=precision,
        recall=recall,
        named=None if labels is None else float((named == labels).float().mean()),
    )


def frechet_distance(a: Features, b: Features) -> float:
    """Return |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2) of features [N, F] (Heusel et al. 2017).

    tr (C_a C_b)^1/2 is the sum of the roots of the eigenvalues of C_a^1/2 C_b C_a^1/2, which is symmetric.
    """
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross)


def precision_recall(ours: Features, real: Features, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Return the shares of `ours` within the k-NN manifold of `real`, and the reverse (Kynkaanniemi et al. 2019)."""
    return _covered(ours, real, k), _covered(real, ours, k)


def _covered(points: Features, manifold: Features, k: int) -> float:
    radius = np.sort(_distances(manifold, manifold), 1)[:, k]  # column 0 is the point itself
    return float((_distances(points, manifold) <= radius).any(1).mean())


def _distances(a: Features, b: Features) -> Features:
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    result: Features = np.sqrt(square.clip(0))
    return result
