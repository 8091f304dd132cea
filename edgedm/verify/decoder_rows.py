"""The decoder of a latent model: our image of each of torch's latents against torch's own, in both precisions.

Teacher-forced, as single steps are: our error against float64 beside torch float32's, judged by the same sign test. A
VQ decoder decides for every pixel which row of its codebook is nearest, and rounding may decide otherwise in either.
"""

import math
import statistics
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.verify.comparison import relative_error, widest_gap
from edgedm.verify.report import Level, Row
from edgedm.verify.request import CHANCE
from edgedm.verify.run_level import RATIO, first_above, sign_test
from edgedm.verify.torch_reference import TorchReference

Array = NDArray[Any]


class Decodes(Protocol):
    """What decodes a latent: a bundle or a graph."""

    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """The image f32[3, H, W] of a latent f32[C, h, w]."""


def with_decoder(
    level: Level, runner: Decodes, reference: TorchReference, latents: Array, most: float = RATIO
) -> Level:
    """The level with a row for the decoder, if the model has one; `latents` are torch's, [N, C, h, w].

    `most` is how many times torch float32's error ours may be.
    """
    if not reference.decodes:
        return level
    ours, torch32, gaps = [], [], []
    for latent in progress.track(latents, "decoding", len(latents)):
        given = np.asarray(latent, np.float32)
        exact = reference.decode(64, given)
        decoded = runner.decode(given)
        gaps.append(widest_gap(decoded, exact))
        ours.append(relative_error(decoded, exact))
        torch32.append(relative_error(reference.decode(32, given), exact))
    ratio, above, chance = sign_test(ours, torch32, most)
    note = ""
    if not all(map(math.isfinite, ours)):
        note = "not finite"
    elif chance < CHANCE:
        first = first_above(ours, torch32, most)
        note = (
            f"error above {most:g} times torch float32's in {above} of {len(ours)} images, typically "
            f"{statistics.median(ours):.3g} where torch has {statistics.median(torch32):.3g}; "
            f"first image {first}, {gaps[first]}"
        )
    figures = {
        "runs": float(len(ours)),
        "error": statistics.median(ours),
        "torch32": statistics.median(torch32),
        "ratio": ratio,
        "above": float(above),
        "worst": max(ours),
        "torch32 worst": max(torch32),
    }
    summary = {"decoder.error": figures["error"], "decoder.ratio": ratio}
    rows = (*level.rows, Row("decoder", not note, figures, note))
    return replace(level, rows=rows, figures={**level.figures, **summary})
