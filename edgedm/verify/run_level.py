"""Levels "step" and "trajectory", free-running: our error against float64 beside torch float32's own.

Low-bit networks amplify one flipped decision by orders of magnitude, so no absolute bound fits; the gate is
relative, run by run: on the same input, ours is meant to be at most `RATIO` times torch float32's. In a single run
even that is chance, since a decision may flip in one implementation and not in the other, and the mean over runs
is ruled by the few in which one did. What no chance can do is to be worse in nearly every run: two equally precise
implementations are exchangeable, so ours exceeds twice torch's in less than half of the runs. The gate is
therefore a sign test, which assumes nothing of the errors' distribution: it fails if our error exceeds `RATIO`
times torch's in so many runs that a fair coin would do it with a probability below `CHANCE`. A right kernel fails
at most that often; a wrong table, state or constant is wrong in every run. Each compared tensor and each step is a
row with a test of its own, so that a fault of one timestep is not outvoted. Reported beside it: the median of the
run-by-run ratios, and medians and worst of both errors.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.diffusion.sampler import trajectory
from edgedm.runtime.local import LocalRunner
from edgedm.verify.comparison import at_least, psnr_db, relative_error, snr_db
from edgedm.verify.report import Level, Row
from edgedm.verify.torch_reference import Moment, TorchReference

Array = NDArray[Any]

RATIO = 2.0
"""Design, section 8: at most twice torch float32's error."""

CHANCE = 1e-3
"""A sign test below this is no chance; with ten runs that takes all of them."""

FLOOR = 1e-6
"""Relative errors below about ten units of float32's precision are not told apart."""

IMAGE_SPAN = 2.0  # images cover -1..1


@dataclass(frozen=True)
class Run:
    """One free-running trajectory of the checkpoint in both precisions, and moments of the float32 one."""

    label: int
    seed: int
    image: int
    moments: tuple[Moment, ...]
    float32: tuple[Array, ...]  # the images before every step and after the last
    float64: tuple[Array, ...]


def draw_runs(
    reference: TorchReference, images: int, steps: int, sampler: str, keep: Sequence[int], seed: int = 0
) -> Iterator[Run]:
    """Sample `images` trajectories in torch; labels go round through the classes, the null class first."""
    classes = reference.null_class + 1
    for image in range(images):
        label = (image + reference.null_class) % classes
        single, moments = reference.trajectory(32, label, seed, image, steps, sampler, tuple(keep))
        double, _ = reference.trajectory(64, label, seed, image, steps, sampler)
        yield Run(label, seed, image, tuple(moments), tuple(single), tuple(double))


def step_level(runner: LocalRunner, reference: TorchReference, runs: Sequence[Run]) -> Level:
    """Single steps from the moments of all runs: the output, step by step, and the state that each leaves."""
    moments = [(run, moment) for run in runs for moment in run.moments]
    errors = _Errors()
    states = [port.name for port in runner.manifest.states()]
    for run, moment in progress.track(moments, "steps", len(moments)):
        exact, exact_state = reference.predict(64, moment)
        single, single_state = reference.predict(32, moment)
        label = None if moment.label == reference.null_class else moment.label
        given = dict(zip(states, moment.state, strict=True)) if moment.has_state else None
        output, after = runner.step(moment.timestep, moment.x, label, given)
        where = f"image {run.image}, step {moment.step}"
        errors.add(f"eps, step {moment.step} (timestep {moment.timestep})", output, single, exact, where)
        for name, true, torch32 in zip(states, exact_state, single_state, strict=True):
            errors.add(f"{name}.next", after[f"{name}.next"], torch32, true, where)
    demand = f"error at most {RATIO:g} times torch float32's, same inputs"
    return _level("step", demand, errors, [name for name in errors.ours if name.startswith("eps")])


def trajectory_level(
    runner: LocalRunner, reference: TorchReference, runs: Sequence[Run], steps: int, sampler: str
) -> Level:
    """Whole trajectories from the same noise: the images at five points along the way, the last one included."""
    points = sorted({int(point) for point in np.linspace(0, steps, 6).round()[1:]})
    errors, psnr, unlike = _Errors(), [], []
    for run in progress.track(runs, "trajectories", len(runs)):
        mine, sampled = _trajectory(runner, reference, run, steps, sampler)
        where = f"image {run.image}"
        for point in points:
            errors.add(f"after step {point}", mine[point], run.float32[point], run.float64[point], where)
        psnr.append(psnr_db(mine[-1], run.float64[-1], IMAGE_SPAN))
        if not np.array_equal(mine[-1].view(np.uint32), sampled.view(np.uint32)):
            unlike.append(where)
    demand = f"error at most {RATIO:g} times torch float32's, same noise; edm_sample is edm_step bit for bit"
    level = _level("trajectory", demand, errors, [f"after step {points[-1]}"])
    note = f"edm_sample and numpy's sampler over edm_step differ: {', '.join(unlike)}" if unlike else ""
    rows = (*level.rows, Row("edm_sample", not note, {"runs": float(len(runs))}, note))
    figures = {**level.figures, "psnr_db.median": statistics.median(psnr), "psnr_db.worst": min(psnr)}
    return replace(level, rows=rows, figures=figures)


def _trajectory(
    runner: LocalRunner, reference: TorchReference, run: Run, steps: int, sampler: str
) -> tuple[list[Array], NDArray[np.float32]]:
    """Our images before every step and after the last (numpy's sampler over `edm_step`), and `edm_sample`'s."""
    runner.prepare(steps, sampler, label=None if run.label == reference.null_class else run.label)

    def predict(x: Array, _timestep: int, step: int) -> NDArray[np.float32]:
        return runner.run_step(step, x)

    images = list(trajectory(predict, reference.schedule, reference.shape, steps, sampler, 0.0, run.seed, run.image))
    return list(images), runner.sample(1, run.seed, run.image)[0]


class _Errors:
    """Relative errors against float64, ours and torch float32's, run by run, by what was compared."""

    def __init__(self) -> None:
        self.ours: dict[str, list[float]] = {}
        self.torch32: dict[str, list[float]] = {}
        self.where: dict[str, list[str]] = {}

    def add(self, name: str, ours: Array, torch32: Array, exact: Array, where: str) -> None:
        self.ours.setdefault(name, []).append(relative_error(ours, exact))
        self.torch32.setdefault(name, []).append(relative_error(torch32, exact))
        self.where.setdefault(name, []).append(where)


def sign_test(ours: Sequence[float], torch32: Sequence[float]) -> tuple[float, int, float]:
    """Median of the run-by-run ratios, runs in which ours exceeds `RATIO` times torch's, and their probability."""
    ratios = [max(mine, FLOOR) / max(theirs, FLOOR) for mine, theirs in zip(ours, torch32, strict=True)]
    above = sum(not ratio <= RATIO for ratio in ratios)
    return statistics.median(ratios), above, at_least(above, len(ratios))


def _row(name: str, errors: _Errors) -> Row:
    ours, torch32, where = errors.ours[name], errors.torch32[name], errors.where[name]
    ratio, above, chance = sign_test(ours, torch32)
    note = ""
    broken = [place for place, error in zip(where, ours, strict=True) if not math.isfinite(error)]
    if broken:
        note = f"not finite at {broken[0]}"
    elif chance < CHANCE:
        note = (
            f"error above {RATIO:g} times torch float32's in {above} of {len(ours)} runs, typically "
            f"{statistics.median(ours):.3g} where torch has {statistics.median(torch32):.3g}; first {where[0]}"
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
    return Row(name, not note, figures, note)


def _level(name: str, demand: str, errors: _Errors, headline: Sequence[str]) -> Level:
    """A level whose figures are taken over the rows `headline`."""
    rows = tuple(_row(each, errors) for each in errors.ours)
    ours = [error for each in headline for error in errors.ours[each]]
    torch32 = [error for each in headline for error in errors.torch32[each]]
    ratio, above, _ = sign_test(ours, torch32)
    figures = {
        "runs": float(len(ours)),
        "error.edgedm": statistics.median(ours),
        "error.torch32": statistics.median(torch32),
        "ratio": ratio,
        "above": float(above),
        "snr_db.edgedm": snr_db(statistics.median(ours)),
        "snr_db.torch32": snr_db(statistics.median(torch32)),
    }
    return Level(name, demand, rows, figures)
