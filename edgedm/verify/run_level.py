"""Levels "step" and "trajectory", free-running: our error against float64 beside torch float32's own.

Low-bit networks amplify one flipped decision by orders of magnitude, so no absolute bound fits; the gate is
relative. One run is no measure either: whether a decision flips in it is chance, for torch as for us, and a flip
outweighs a thousand runs without one. So errors are taken over several images, labels and moments, each relative
to its own reference, and compared by two figures: the geometric mean, in which every run counts alike (a flip that
only one side has in one of n runs moves it by the n-th root), and the worst run, which a rare large error cannot
escape. The geometric mean must be at most `RATIO` times torch's, the worst run at most `WORST_RATIO` times
torch's worst; both above `FLOOR`, which is far below float32's own noise in a network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.diffusion.sampler import trajectory
from edgedm.runtime.local import LocalRunner
from edgedm.verify.comparison import geometric_mean, psnr_db, relative_error, snr_db
from edgedm.verify.report import Level, Row
from edgedm.verify.torch_reference import Moment, TorchReference

Array = NDArray[Any]

RATIO = 2.0
"""Design, section 8: at most twice torch float32's error."""

WORST_RATIO = 10.0
"""One flip more or less among the worst runs is chance; a wrong table, state or kernel is a factor of 1000."""

FLOOR = 1e-6
"""Relative errors below ten units of float32's precision are not told apart."""

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
) -> list[Run]:
    """Sample `images` trajectories in torch; labels go round through the classes, the null class last."""
    runs = []
    for image in progress.track(range(images), "torch in float32 and float64", images):
        label = image % (reference.null_class + 1)
        single, moments = reference.trajectory(32, label, seed, image, steps, sampler, tuple(keep))
        double, _ = reference.trajectory(64, label, seed, image, steps, sampler)
        runs.append(Run(label, seed, image, tuple(moments), tuple(single), tuple(double)))
    return runs


def step_level(runner: LocalRunner, reference: TorchReference, runs: Sequence[Run]) -> Level:
    """Single steps from the moments of all runs: the output and the state that each leaves."""
    moments = [(run, moment) for run in runs for moment in run.moments]
    rows: list[Row] = []
    ours, theirs = _Errors(), _Errors()
    states = [port.name for port in runner.manifest.states()]
    for run, moment in progress.track(moments, "steps", len(moments)):
        exact, exact_state = reference.predict(64, moment)
        single, single_state = reference.predict(32, moment)
        label = None if moment.label == reference.null_class else moment.label
        given = dict(zip(states, moment.state, strict=True)) if moment.has_state else None
        output, after = runner.step(moment.timestep, moment.x, label, given)
        left = {"eps": (output, single, exact)}
        for name, true, torch32 in zip(states, exact_state, single_state, strict=True):
            left[f"{name}.next"] = (after[f"{name}.next"], torch32, true)
        where = f"image {run.image}, step {moment.step}"
        for name, (mine, torch32, true) in left.items():
            ours.add(name, relative_error(mine, true), where)
            theirs.add(name, relative_error(torch32, true), where)
    rows = [_row(name, ours, theirs) for name in ours.of]
    return _level("step", f"error at most {RATIO:g} times torch float32's, same inputs", rows, ours, "eps")


def trajectory_level(
    runner: LocalRunner, reference: TorchReference, runs: Sequence[Run], steps: int, sampler: str
) -> Level:
    """Whole trajectories from the same noise: the images at five points along the way, the last one included."""
    points = [int(point) for point in np.linspace(0, steps, 6).round()[1:]]
    ours, theirs = _Errors(), _Errors()
    psnr: list[float] = []
    same = 0
    for run in progress.track(runs, "trajectories", len(runs)):
        mine, sampled = _trajectory(runner, reference, run, steps, sampler)
        same += np.array_equal(mine[-1].view(np.uint32), sampled.view(np.uint32))
        for point in points:
            name = f"after step {point}"
            ours.add(name, relative_error(mine[point], run.float64[point]), f"image {run.image}")
            theirs.add(name, relative_error(run.float32[point], run.float64[point]), f"image {run.image}")
        psnr.append(psnr_db(mine[-1], run.float64[-1], IMAGE_SPAN))
    rows = [_row(name, ours, theirs) for name in ours.of]
    note = "" if same == len(runs) else f"edm_sample differs from edm_step in {len(runs) - same} of {len(runs)} images"
    rows.append(Row("edm_sample, bit for bit", not note, {"runs": float(len(runs))}, note))
    last = f"after step {points[-1]}"
    demand = f"error at most {RATIO:g} times torch float32's, same noise"
    return _level("trajectory", demand, rows, ours, last, {"psnr_db.worst": min(psnr, default=0.0)})


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
    """Relative errors by what was compared, and where each happened."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = {}
        self.where: dict[str, list[str]] = {}

    def add(self, name: str, error: float, where: str) -> None:
        self.of.setdefault(name, []).append(error)
        self.where.setdefault(name, []).append(where)


def _row(name: str, ours: _Errors, theirs: _Errors) -> Row:
    """Compare our errors with torch float32's by geometric mean and worst run."""
    mine, torch32 = ours.of[name], theirs.of[name]
    typical, allowed = geometric_mean(mine, FLOOR), RATIO * geometric_mean(torch32, FLOOR)
    worst, worst_allowed = max(mine), WORST_RATIO * max(*torch32, FLOOR)
    note = ""
    if not typical <= allowed:
        note = f"error {typical:.3g}, at most {allowed:.3g} allowed ({RATIO:g} times torch float32's)"
    elif not worst <= worst_allowed:
        where = ours.where[name][mine.index(worst)]
        note = f"error {worst:.3g} at {where}, at most {worst_allowed:.3g} allowed"
    figures = {
        "error": typical,
        "error of torch32": allowed / RATIO,
        "ratio": typical / (allowed / RATIO),
        "worst": worst,
        "worst of torch32": max(torch32),
    }
    return Row(name, not note, figures, note)


def _level(
    name: str, demand: str, rows: Sequence[Row], ours: _Errors, main: str, more: Mapping[str, float] | None = None
) -> Level:
    """A level whose headline figures are those of the row `main`."""
    row = next(row for row in rows if row.name == main)
    figures = {
        "runs": float(len(ours.of[main])),
        "error.edgedm": row.figures["error"],
        "error.torch32": row.figures["error of torch32"],
        "ratio": row.figures["ratio"],
        "snr_db.edgedm": snr_db(row.figures["error"]),
        "snr_db.torch32": snr_db(row.figures["error of torch32"]),
        **(more or {}),
    }
    return Level(name, demand, tuple(rows), figures)
