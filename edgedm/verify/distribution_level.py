"""Level "distribution": torch's samples against ours as sets, once from the same noise and once from other noise.

From the same noise a pair differs by what rounding and flipped decisions did, so small shifts show; from other noise
nothing is shared but what was asked for, as between two people who draw. A row fails only where chance would give as
much too seldom, and what is beyond chance is so much that it counts; see `shift`. Each of the rows is a test, and the
gate's `chance` is that of the level: a row is held to its part of it (Bonferroni's correction, whatever the rows have
to do with each other), so that a CI of many runs fails equal engines as seldom as it was told.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.diffusion import sample as numpy_sample
from edgedm.errors import InvalidModelError
from edgedm.runtime import Runner as BundleRunner
from edgedm.verify.features import features_for
from edgedm.verify.gate import NOISES, TESTS, DistributionGate
from edgedm.verify.report import Level, Row, number
from edgedm.verify.request import Request
from edgedm.verify.run_level import SEED, Runner
from edgedm.verify.shift import Features, Finding, frechet_shift, precision_recall, variance
from edgedm.verify.torch_reference import TorchReference

Floats = NDArray[np.float32]

BATCH = 32
"""Images that torch draws together; all steps of a batch are kept in memory."""


class Decodes(Protocol):
    """What turns a latent into an image, if the model draws latents."""

    def decode(self, latent: Floats) -> Floats:
        """The image f32[3, H, W] of a latent f32[C, h, w]."""


def fits(config: Mapping[str, Any], request: Request) -> bool:
    """Whether the level runs without being named: it takes minutes, so a gate file or features have to ask for it.

    A gate file asks by a table for all methods, or by one for the method of `config`.
    """
    return request.features is not None or "distribution" in request.gate.written(str(config["method"]))


def distribution_level(
    runner: Runner, own: Decodes, reference: TorchReference, request: Request, gate: DistributionGate
) -> Level:
    """Draw `gate.samples` images with torch, from the same noise with ours, and as many from other noise.

    `own` decodes, and draws whole images if it is a bundle.
    """
    labels = _labels(reference, gate.samples)
    torch = _torch(reference, labels, request)
    probe = reference.decode(32, torch[0]) if reference.decodes else torch[0]
    features = features_for(probe.shape, request.features)
    first = features(_decoded(torch, lambda x: reference.decode(32, x), reference))
    check_features(first, request.features)
    rows: list[Row] = []
    figures: dict[str, float] = {"samples": float(gate.samples), "chance": gate.chance}
    for name, offset in zip(NOISES, (0, gate.samples), strict=True):
        drawn = _ours(runner, own, reference, labels, request, offset)
        second = features(_decoded(drawn, own.decode, reference))
        if not np.isfinite(second).all():
            rows.append(Row(f"images, {name} noise", False, note="features are not finite"))
            continue
        for row, statistic in rows_of(name, first, second, gate):
            rows.append(row)
            figures[f"{statistic}.{name}"] = row.figures["seen"]
    demand = (
        f"no shift that equal engines give with a probability below {number(gate.chance)}, all rows together, and that "
        f"is more than {number(gate.max_shift)} of the features' variance or {number(gate.max_drop)} of the images"
    )
    return Level("distribution", demand, tuple(rows), figures)


def check_features(torch: Features, path: Path | None) -> None:
    """`InvalidModelError` unless the features [N, F] of torch's own images tell images apart, in finite numbers."""
    what = path or "the classifier of digits"
    if not np.isfinite(torch).all():
        raise InvalidModelError(f"{what}: expected finite features of the checkpoint's images, got NaN or infinity")
    if not variance(torch) > 0:
        raise InvalidModelError(f"{what}: all images have the same features, so it tells no two sets of them apart")


def rows_of(name: str, torch: Features, ours: Features, gate: DistributionGate) -> list[tuple[Row, str]]:
    """Judge features [N, F] of images from the `name` noise (same, independent); each row with its statistic's name."""
    chance = gate.chance / TESTS
    found = frechet_shift(torch, ours, name == "same", chance)
    beyond = (found.seen - found.by_chance) / variance(torch)
    note = ""
    if found.probability < chance and beyond > gate.max_shift:
        note = (
            f"expected a distance of {number(found.by_chance)} by chance, got {number(found.seen)}, which chance gives "
            f"with a probability of {number(found.probability)}; beyond chance it is {number(beyond)} of the "
            f"variance, at most {number(gate.max_shift)} allowed"
        )
    figures = {**_figures(found, "beyond chance "), "shift": beyond}
    rows = [(Row(f"Frechet distance, {name} noise", not note, figures, note), "frechet")]
    for statistic, share in zip(("precision", "recall"), precision_recall(torch, ours, chance), strict=True):
        drop, note = share.by_chance - share.seen, ""
        if share.probability < chance and drop > gate.max_drop:
            note = (
                f"expected {number(share.by_chance)} by chance, got {number(share.seen)}, so low with a probability "
                f"of {number(share.probability)}; it is {number(drop)} lower, at most {number(gate.max_drop)} allowed"
            )
        rows.append((Row(f"{statistic}, {name} noise", not note, {**_figures(share), "drop": drop}, note), statistic))
    return rows


def _figures(found: Finding, what: str = "") -> dict[str, float]:
    """`what` the interval is of, if not of the figure that was seen."""
    return {
        "seen": found.seen,
        "by chance": found.by_chance,
        "probability": found.probability,
        f"{what}low": found.low,
        f"{what}high": found.high,
    }


def _labels(reference: TorchReference, count: int) -> list[int]:
    """As many of each label as can be, the null class included; those of one label stand together."""
    classes = reference.null_class + 1
    return sorted(image % classes for image in range(count))


def _torch(reference: TorchReference, labels: list[int], request: Request) -> Floats:
    images = []
    for start in range(0, len(labels), BATCH):
        some = labels[start : start + BATCH]
        noise = [(SEED, start + k) for k in range(len(some))]
        images.append(reference.sample(32, some, noise, request.steps, request.sampler).images[-1])
    return np.concatenate(images).astype(np.float32)


def _ours(
    runner: Runner,
    own: object,
    reference: TorchReference,
    labels: list[int],
    request: Request,
    offset: int,
) -> Floats:
    """Image i has label i and the noise of image `offset` + i."""
    images: list[Floats] = []
    told = progress.track(sorted(set(labels)), "images of a label", len(set(labels)))
    for label in told:
        first, count = labels.index(label), labels.count(label)
        wanted = None if label == reference.null_class else label
        runner.prepare(request.steps, request.sampler, label=wanted)
        if isinstance(own, BundleRunner):
            images += list(own.sample(count, SEED, first_image=offset + first))
            continue
        for image in range(offset + first, offset + first + count):
            runner.prepare(request.steps, request.sampler, label=wanted)
            predict = _steps(runner)
            images.append(
                numpy_sample(
                    predict, reference.schedule, reference.shape, request.steps, request.sampler, 0.0, SEED, image
                )
            )
    return np.stack(images)


def _steps(runner: Runner) -> Callable[[Floats, int, int], Floats]:
    return lambda x, _timestep, step: runner.run_step(step, x)


def _decoded(images: Floats, decode: Callable[[Floats], Any], reference: TorchReference) -> Floats:
    if not reference.decodes:
        return images
    return np.stack([np.asarray(decode(each), np.float32) for each in images])
