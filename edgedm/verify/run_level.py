"""Levels "step" and "trajectory", free-running: our error against float64 beside torch float32's own.

Low-bit networks amplify one flipped decision by orders of magnitude, so no absolute bound fits; the gate is
relative, run by run: on the same input, ours is meant to be at most `RATIO` times torch float32's. In a single run
even that is chance, since a decision may flip in one implementation and not in the other, and the mean over runs
is ruled by the few in which one did. What no chance can do is to be worse in nearly every run: two equally precise
implementations are exchangeable, so ours exceeds twice torch's in less than half of the runs. The gate is
therefore a sign test, which assumes nothing of the errors' distribution: it fails if our error exceeds `RATIO`
times torch's in so many runs that a fair coin would do it with a probability below `CHANCE`. A right kernel fails
at most that often; a wrong table, state or constant is wrong in every run. Each compared tensor, each step and each
label is a row with a test of its own, so that a fault of one timestep or of one label is not outvoted. Reported beside
it: the median of the run-by-run ratios, and medians and worst of both errors.

The runs of one step are independent but for what depends on the timestep alone. Where the embedding of a timestep is
itself quantised and one of its codes lies on a boundary within rounding, that one coin decides for all runs: such a
row says nothing, is counted as `undecided` and passes, as long as its errors are at most `MOST_OF_A_COIN` and no more
than one of the steps, or `MOST_UNDECIDED` of them, are so. A bundle's few compared steps keep off such timesteps.
So it is with a text: keys and values of its cross-attention depend on it alone, and each label of a model that reads
texts is one text. Those labels have no row, nor have labels of too few runs for a test; `labels.untested` counts both.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.diffusion.sampler import trajectory
from edgedm.errors import UnsupportedError
from edgedm.verify.comparison import at_least, psnr_db, relative_error, snr_db, widest_gap
from edgedm.verify.evidence import Evidence
from edgedm.verify.report import Level, Row
from edgedm.verify.request import CHANCE, LEAST_IMAGES
from edgedm.verify.torch_reference import Moment, TorchReference, Trajectories

Array = NDArray[Any]
Sample = Callable[[int, int, int], NDArray[np.float32]]
"""(count, seed, first image) -> images."""

Decode = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A latent f32[C, h, w] -> its image f32[3, H, W]."""

RATIO = 2.0
"""At most twice torch float32's error."""

MOST_UNDECIDED = 0.1
"""Share of the steps whose timestep may be undecided: one code in some hundreds is, and a fault is not in so few."""

MOST_OF_A_COIN = 0.1
"""Relative error of an output that one code of the embedding explains: 0.02 to 0.03 were measured at 4 bits."""

FLOOR = 1e-6
"""Relative errors below about ten units of float32's precision are not told apart."""

IMAGE_SPAN = 2.0  # images cover -1..1

VISITED = 4
"""Trajectories whose moments level layer looks at, by turns: the null class and three labels."""

SEED = 0


@dataclass(frozen=True)
class Runs:
    """Free-running trajectories of the checkpoint in both precisions, from the same noise and labels.

    Moments are those of float32 alone: what takes a step from one in float64 is given the same numbers.
    """

    labels: list[int]
    float32: Trajectories
    float64: Trajectories


def draw_runs(reference: TorchReference, images: int, steps: int, sampler: str, keep: Sequence[int]) -> Runs:
    """Sample `images` trajectories in torch; labels go round through the classes, the null class first.

    `UnsupportedError` for fewer than the sign test can fail with: 2^-images must be below `CHANCE`.
    """
    if images < LEAST_IMAGES:
        raise UnsupportedError(f"images: expected at least {LEAST_IMAGES}, with which a fault shows, got {images}")
    labels, noise = _labels(reference, images)
    progress.stage(f"{images} trajectories of torch in float32 and float64")
    single = reference.sample(32, labels, noise, steps, sampler, keep)
    return Runs(labels, single, reference.sample(64, labels, noise, steps, sampler))


def _labels(reference: TorchReference, images: int) -> tuple[list[int], list[tuple[int, int]]]:
    labels = [(image + reference.null_class) % (reference.null_class + 1) for image in range(images)]
    return labels, [(SEED, image) for image in range(images)]


def visit_moments(reference: TorchReference, steps: int, count: int) -> tuple[list[Moment], list[int]]:
    """`count` moments spread over a schedule, in float32, and the number of the image to look at in each.

    That is another one at each, with another label, where the model has labels: of `VISITED` trajectories at most,
    since all of them take every step and only one is looked at.
    """
    chosen = sorted({int(step) for step in np.linspace(0, steps - 1, min(count, steps)).round()})
    labels, noise = _labels(reference, min(len(chosen), reference.null_class + 1, VISITED))
    progress.stage(f"{len(chosen)} steps of torch in float32")
    return reference.visit(labels, noise, steps, chosen), [number % len(labels) for number in range(len(chosen))]


class Runner(Protocol):
    """What runs a model: a bundle (`LocalRunner`) or a graph (`GraphRunner`)."""

    def prepare(self, steps: int = ..., sampler: str = ..., *, label: int | None = ...) -> object:
        """Choose a schedule and start a trajectory."""

    def run_step(self, step: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output at one step of the schedule; carried state moves on."""

    def step(
        self, timestep: int, x: NDArray[np.float32], label: int | None = ..., state: Mapping[str, Array] | None = ...
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The output at a timestep from a given state, and the next state."""


class Predicts(Protocol):
    """What answers for torch: a `TorchReference`."""

    null_class: int

    def predict(self, bits: int, moment: Moment) -> tuple[Array, list[Array]]:
        """The model's outputs at one moment in float`bits`, and the states it leaves."""


def step_level(
    runner: Runner,
    states: Sequence[str],
    reference: Predicts,
    runs: Runs,
    undecided: Callable[[int], bool] | None = None,
    most: float = RATIO,
) -> Level:
    """Single steps from moments of the float32 trajectories: the output, and the state that each leaves.

    `most` is how many times torch float32's error ours may be.

    `states` names the graph's state inputs in the order of the checkpoint's taps. `undecided` tells of a timestep
    whether rounding may take a decision of its own path, which all images share, either way.
    """
    moments = runs.float32.moments
    errors, by_label = _Errors(), _Errors()
    for moment in progress.track(moments, "steps", len(moments)):
        exact, exact_state = reference.predict(64, moment)
        single, single_state = reference.predict(32, moment)
        for image, label in enumerate(runs.labels):
            given = {name: each[image : image + 1] for name, each in zip(states, moment.state, strict=False)}
            output, after = runner.step(
                moment.timestep, moment.x[image], _wanted(reference, label), given if moment.has_state else None
            )
            where = f"image {image}, step {moment.step}"
            name = f"eps, step {moment.step} (timestep {moment.timestep})"
            errors.add(name, output, single[image], exact[image], where, moment)
            by_label.add(f"eps, label {label}", output, single[image], exact[image], where)
            for state, true, torch32 in zip(states, exact_state, single_state, strict=True):
                errors.add(f"{state}.next", after[f"{state}.next"][0], torch32[image], true[image], where)
    demand = f"error at most {most:g} times torch float32's, same inputs"
    level = _level("step", demand, errors, most, [name for name in errors.ours if name.startswith("eps")])
    of_labels = [] if any(moment.texts is not None for moment in moments) else _label_rows(by_label, most)
    untested = len(by_label.ours) - len(of_labels) if len(by_label.ours) > 1 else 0
    figures = {**level.figures, "labels.untested": float(untested)}
    level = replace(level, rows=(*level.rows, *of_labels), figures=figures)
    timesteps = {f"(timestep {moment.timestep})": moment.timestep for moment in moments}
    return level if undecided is None else without_coins(level, timesteps, undecided)


def _label_rows(errors: "_Errors", most: float) -> list[Row]:
    """A row for each of several labels, over all steps: of so many runs that the sign test can fail."""
    told = [name for name, runs in errors.ours.items() if len(runs) >= LEAST_IMAGES]
    return [_row(name, errors, most) for name in told] if len(errors.ours) > 1 else []


def without_coins(level: Level, timesteps: Mapping[str, int], undecided: Callable[[int], bool]) -> Level:
    """The level whose failed rows pass where one decision stands for all runs, unless there are too many of them."""
    found = [next((t for text, t in timesteps.items() if row.name.endswith(text)), None) for row in level.rows]
    most = math.ceil(MOST_UNDECIDED * sum(timestep is not None for timestep in found))
    rows, excused = [], 0
    for row, timestep in zip(level.rows, found, strict=True):
        explained = not row.ok and row.figures["worst"] <= MOST_OF_A_COIN
        if explained and timestep is not None and undecided(timestep):
            excused += 1
            row = replace(row, ok=excused <= most, figures={**row.figures, "undecided": 1.0})
        rows.append(row)
    return replace(level, rows=tuple(rows), figures={**level.figures, "undecided": float(excused)})


def trajectory_level(
    runner: Runner,
    reference: TorchReference,
    runs: Runs,
    steps: int,
    sampler: str,
    sample: Sample | None = None,
    most: float = RATIO,
    seen: Evidence | None = None,
    decode: Decode | None = None,
) -> Level:
    """Whole trajectories from the same noise: the images at five points along the way, the last one included.

    `sample` is the runner's own sampler, if it has one: its image must be the one of its steps, bit by bit. `seen`
    takes the images that a report shows. `decode` is the artefact's own decoder, if the model is a latent one: peak
    signal-to-noise ratios are those of images, each side decoded by its own.
    """
    points = sorted({int(point) for point in np.linspace(0, steps, 6).round()[1:]})
    errors, psnr, unlike = _Errors(), [], []
    for image in progress.track(range(len(runs.labels)), "trajectories", len(runs.labels)):
        runner.prepare(steps, sampler, label=_wanted(reference, runs.labels[image]))
        mine = _trajectory(runner, reference, image, steps, sampler)
        for point in points:
            exact, torch32 = (each.images[point][image] for each in (runs.float64, runs.float32))
            errors.add(f"after step {point}", mine[point], torch32, exact, f"image {image}")
        if seen is not None:
            torchs = [each[image] for each in runs.float32.images]
            seen.add(runs.labels[image], torchs, mine)
        finished = runs.float64.images[-1][image]
        if decode is None:
            psnr.append(psnr_db(mine[-1], finished, IMAGE_SPAN))
        else:
            psnr.append(psnr_db(decode(mine[-1]), reference.decode(32, finished), IMAGE_SPAN))
        if sample and not np.array_equal(mine[-1].view(np.uint32), sample(1, SEED, image)[0].view(np.uint32)):
            unlike.append(str(image))
    demand = f"error at most {most:g} times torch float32's, same noise"
    demand += "; edm_sample is edm_step bit for bit" if sample else ""
    level = _level("trajectory", demand, errors, most, [f"after step {points[-1]}"])
    note = f"edm_sample and numpy's sampler over edm_step differ in image {', '.join(unlike)}" if unlike else ""
    sampled = (Row("edm_sample", not note, {"runs": float(len(runs.labels))}, note),) if sample else ()
    rows = (*level.rows, *sampled)
    figures = {**level.figures, "psnr_db.median": statistics.median(psnr), "psnr_db.worst": min(psnr)}
    return replace(level, rows=rows, figures=figures)


def _trajectory(
    runner: Runner, reference: TorchReference, image: int, steps: int, sampler: str
) -> list[NDArray[np.float32]]:
    """Our images before every step and after the last: numpy's sampler over the runner's steps."""

    def predict(x: NDArray[np.float32], _timestep: int, step: int) -> NDArray[np.float32]:
        return runner.run_step(step, x)

    return list(trajectory(predict, reference.schedule, reference.shape, steps, sampler, 0.0, SEED, image))


def _wanted(reference: Predicts, label: int) -> int | None:
    return None if label == reference.null_class else label


class _Errors:
    """Relative errors against float64, ours and torch float32's, run by run, by what was compared."""

    def __init__(self) -> None:
        self.ours: dict[str, list[float]] = {}
        self.torch32: dict[str, list[float]] = {}
        self.where: dict[str, list[str]] = {}
        self.gaps: dict[str, list[str]] = {}  # where they lie furthest apart
        self.moments: dict[str, Moment] = {}

    def add(
        self, name: str, ours: Array, torch32: Array, exact: Array, where: str, moment: Moment | None = None
    ) -> None:
        if moment is not None:
            self.moments[name] = moment
        self.ours.setdefault(name, []).append(relative_error(ours, exact))
        self.torch32.setdefault(name, []).append(relative_error(torch32, exact))
        self.where.setdefault(name, []).append(where)
        self.gaps.setdefault(name, []).append(widest_gap(ours, exact))


def _ratios(ours: Sequence[float], torch32: Sequence[float]) -> list[float]:
    return [max(mine, FLOOR) / max(theirs, FLOOR) for mine, theirs in zip(ours, torch32, strict=True)]


def first_above(ours: Sequence[float], torch32: Sequence[float], most: float) -> int:
    """The number of the first run whose error is more than `most` times torch's; there must be one."""
    return next(number for number, ratio in enumerate(_ratios(ours, torch32)) if not ratio <= most)


def sign_test(ours: Sequence[float], torch32: Sequence[float], most: float = RATIO) -> tuple[float, int, float]:
    """Median of the run-by-run ratios, runs in which ours exceeds `most` times torch's, and their probability."""
    ratios = _ratios(ours, torch32)
    above = sum(not ratio <= most for ratio in ratios)
    return statistics.median(ratios), above, at_least(above, len(ratios))


def _row(name: str, errors: _Errors, most: float) -> Row:
    ours, torch32, where = errors.ours[name], errors.torch32[name], errors.where[name]
    ratio, above, chance = sign_test(ours, torch32, most)
    note = ""
    broken = [place for place, error in zip(where, ours, strict=True) if not math.isfinite(error)]
    if broken:
        note = f"not finite at {broken[0]}"
    elif chance < CHANCE:
        first = first_above(ours, torch32, most)
        note = (
            f"error above {most:g} times torch float32's in {above} of {len(ours)} runs, typically "
            f"{statistics.median(ours):.3g} where torch has {statistics.median(torch32):.3g}; first {where[first]}, "
            f"{errors.gaps[name][first]}"
        )
    figures = {
        "runs": float(len(ours)),
        "error": statistics.median(ours),
        "torch32": statistics.median(torch32),
        "ratio": ratio,
        "above": float(above),
        "worst": float(np.max(ours)),
        "torch32 worst": max(torch32),
    }
    return Row(name, not note, figures, note, _moments(errors.moments.get(name), figures))


def _moments(moment: Moment | None, figures: Mapping[str, float]) -> tuple[dict[str, float], ...]:
    """The row as a point over the timesteps, if it is one."""
    if moment is None:
        return ()
    ratios = {"snr_db": snr_db(figures["error"]), "torch32_snr_db": snr_db(figures["torch32"])}
    return ({"step": float(moment.step), "timestep": float(moment.timestep), **ratios},)


def _level(name: str, demand: str, errors: _Errors, most: float, headline: Sequence[str]) -> Level:
    """A level whose figures are taken over the rows `headline`."""
    rows = tuple(_row(each, errors, most) for each in errors.ours)
    ours = [error for each in headline for error in errors.ours[each]]
    torch32 = [error for each in headline for error in errors.torch32[each]]
    ratio, above, _ = sign_test(ours, torch32, most)
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
