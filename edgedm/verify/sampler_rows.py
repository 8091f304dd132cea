"""The sampler that ships, on its own: its loop, noise, guidance and starts against numpy's over the same kernels.

The kernels are the same on both sides, so every bit of the images must be too. Short schedules of every sampler do:
what a sampler can get wrong (coefficients, the noise of a step, the order of the two predictions, what one image
leaves behind for the next) is wrong in the first steps or the last. Where DPM-Solver++ does not end at sigma 0, it ends
with the first order if its schedule is short: there are two more of it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.bundle import Bundle
from edgedm.diffusion import SAMPLERS, NoiseSchedule, normals, step_coefficients
from edgedm.diffusion import sample as numpy_sample
from edgedm.errors import UnsupportedError
from edgedm.runtime import Runner as BundleRunner
from edgedm.runtime import open_runner
from edgedm.runtime.choice import is_local
from edgedm.targets import resolve
from edgedm.verify.by_labels import ByLabels
from edgedm.verify.report import Row
from edgedm.verify.torch_reference import TorchReference

Floats = NDArray[np.float32]

STEPS = 4
"""Enough for the first step, the last, and the second order of DPM-Solver++ between them."""

IMAGES = 3
"""In one call, after each other in one lane."""

LONG = (14, 15)
"""The longest schedule whose last step is of the first order, and the shortest whose last is of the second."""

GUIDANCE = 2.5
ETA = 0.5
STRENGTH = 0.5
SEED = 20240229  # not that of the trajectories: a seed that is ignored shows

NOISE = ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (2**63 + 1, 2**31 + 5, 7))
"""Seeds, images and draws: each counter on its own, and words above 32 bits."""


class Labelled(Protocol):
    """What `ByLabels` and the runners share."""

    def prepare(
        self,
        steps: int = ...,
        sampler: str = ...,
        *,
        eta: float = ...,
        label: int | None = ...,
        guidance: float = ...,
    ) -> object:
        """Choose a schedule and start a trajectory."""

    def step(
        self, timestep: int, x: Floats, label: int | None = ..., state: Mapping[str, Any] | None = ...
    ) -> tuple[Floats, dict[str, Any]]:
        """The output at a timestep from a given state, and the next state."""


@dataclass(frozen=True)
class _Case:
    """A run of the sampler; `starts`: from images."""

    name: str
    sampler: str = "ddim"
    steps: int = STEPS
    images: int = IMAGES
    eta: float = 0.0
    guidance: float = 1.0
    starts: bool = False


def _cases(labelled: bool, schedule: NoiseSchedule) -> list[_Case]:
    cases = [_Case(f"edm_sample, {each}", each) for each in SAMPLERS]
    if schedule.final_sigmas_type != "zero":
        cases += [_Case(f"edm_sample, dpm-solver++ of {steps} steps", "dpm-solver++", steps, 1) for steps in LONG]
    cases.append(_Case(f"edm_sample, eta {ETA:g}", eta=ETA))
    if labelled:
        cases.append(_Case(f"edm_sample, guidance {GUIDANCE:g}", guidance=GUIDANCE))
    return [*cases, _Case(f"edm_sample, from images at strength {STRENGTH:g}", starts=True)]


def sampler_rows(runner: Labelled, bundle: BundleRunner, reference: TorchReference) -> list[Row]:
    """Rows for the noise, every sampler, guidance and image-to-image; `runner` draws by labels what `bundle` draws."""
    label = 0 if reference.null_class else None
    rows = [_noise(bundle)]
    cases = _cases(label is not None, reference.schedule)
    for case in progress.track(cases, "samplers", len(cases)):
        if not _holds(reference, case):
            continue
        try:
            runner.prepare(case.steps, case.sampler, eta=case.eta, label=label, guidance=case.guidance)
        except UnsupportedError as error:
            note = f"expected {case.steps} steps of {case.sampler}, which the trained timesteps hold; refused: {error}"
            rows.append(Row(case.name, False, note=note))
            continue
        rows.append(_compared(runner, bundle, reference, case, label))
    return rows


def lanes_rows(bundle: Bundle, runner: Labelled, alone: BundleRunner, reference: TorchReference) -> list[Row]:
    """A row for images that threads draw at once, each in a lane of its own: those that are drawn one by one.

    None where the target has one thread. `runner` draws by labels what `alone` draws, which has one lane.
    """
    case = _Case("edm_sample, two images at a time", "ddpm")
    if not (_holds(reference, case) and resolve(bundle.manifest.target.name).has_threads):
        return []
    label, shape, count = 0 if reference.null_class else None, reference.condition_shape, IMAGES + 1
    wait = _for_other_lanes if is_local(bundle) else None  # with progress an emulated program draws one by one
    drawn = []
    with open_runner(bundle, threads=2, lanes=2) as pair:
        by_labels = pair if shape is None else ByLabels(pair, reference.null_class, shape)
        for labelled, drawing in ((runner, alone), (by_labels, pair)):
            labelled.prepare(case.steps, case.sampler, label=label)
            drawn.append(drawing.sample(count, SEED, 1, wait))
    unlike = [image + 1 for image in range(count) if drawn[0][image].tobytes() != drawn[1][image].tobytes()]
    note = f"images {unlike} of {count} are not those of one lane" if unlike else ""
    return [Row(case.name, not note, {"runs": float(count), "steps": float(case.steps)}, note)]


def _for_other_lanes(_done: int, _total: int) -> bool:
    """After a step of the caller's lane: else it may have drawn all images before another thread is awake."""
    time.sleep(0.002)
    return True


def _holds(reference: TorchReference, case: _Case) -> bool:
    """Whether the trained timesteps hold the schedule: by the checkpoint's word, not by that of what is examined."""
    try:
        step_coefficients(reference.schedule, case.steps, case.sampler)
    except UnsupportedError:
        return False
    return True


def _compared(runner: Labelled, bundle: BundleRunner, reference: TorchReference, case: _Case, label: int | None) -> Row:
    start = _start(reference.shape) if case.starts else None
    strength = STRENGTH if case.starts else 1.0
    got = bundle.sample(case.images, SEED, first_image=1, start=start, strength=strength)
    note = ""
    if (case.eta or case.starts) and hasattr(bundle, "previews"):  # before single steps take the session
        *_, (stepwise, _) = bundle.previews(SEED, 1, None if start is None else start[0], strength)
        if stepwise.tobytes() != got[0].tobytes():
            note = "edm_begin and edm_next, step by step, draw another image than edm_sample"
    for image in range(case.images):
        expected = numpy_sample(
            _predict(runner, label),
            reference.schedule,
            reference.shape,
            case.steps,
            case.sampler,
            case.eta,
            seed=SEED,
            image=1 + image,
            predict_unconditional=_predict(runner, None),
            guidance=case.guidance,
            start=None if start is None else start[image],
            strength=strength,
        )
        off = np.flatnonzero(got[image].view(np.uint32) != expected.view(np.uint32))
        if off.size and not note:
            place, wanted = int(off[0]), expected.reshape(-1)
            note = (
                f"image {image + 1} of {case.images}: {off.size} of {expected.size} values are not those of numpy's "
                f"sampler over the same kernels, first at {place}: expected {wanted[place]:.9g}, "
                f"got {got[image].reshape(-1)[place]:.9g}"
            )
    return Row(case.name, not note, {"runs": float(case.images), "steps": float(case.steps)}, note)


def _predict(runner: Labelled, label: int | None) -> Callable[[Floats, int, int], Floats]:
    """A prediction with carried state of its own, whatever else runs between two calls."""
    state: dict[str, Any] | None = None

    def predict(x: Floats, timestep: int, _step: int) -> Floats:
        nonlocal state
        output, after = runner.step(timestep, x, label, state)
        state = {name.removesuffix(".next"): array for name, array in after.items()} or None
        return output

    return predict


def _start(shape: tuple[int, ...]) -> Floats:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (IMAGES, *shape)).astype(np.float32)


def _noise(bundle: BundleRunner) -> Row:
    """The generator itself, counter by counter."""
    count, note = 1001, ""
    for seed, image, draw in NOISE:
        got, expected = bundle.normals(seed, image, draw, count), normals(seed, image, draw, count)
        off = np.flatnonzero(got.view(np.uint32) != expected.view(np.uint32))
        if off.size and not note:
            note = (
                f"seed {seed}, image {image}, draw {draw}: {off.size} of {count} values differ, first at {off[0]}: "
                f"expected {expected[off[0]]:.9g}, got {got[off[0]]:.9g}"
            )
    return Row("noise", not note, {"runs": float(len(NOISE))}, note)
