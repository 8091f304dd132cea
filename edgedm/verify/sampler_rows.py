"""The sampler that ships, on its own: its loop, noise, guidance and starts against numpy's over the same kernels.

The kernels are the same on both sides, so every bit of the images must be too. Short schedules of every sampler do:
what a sampler can get wrong (coefficients, the noise of a step, the order of the two predictions, what one image
leaves behind for the next) is wrong in the first steps or the last.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgedm import progress
from edgedm.diffusion import SAMPLERS, normals, step_coefficients
from edgedm.diffusion import sample as numpy_sample
from edgedm.errors import UnsupportedError
from edgedm.runtime import Runner as BundleRunner
from edgedm.verify.report import Row
from edgedm.verify.torch_reference import TorchReference

Floats = NDArray[np.float32]

STEPS = 4
"""Enough for the first step, the last, and the second order of DPM-Solver++ between them."""

IMAGES = 3
"""In one call, after each other in one lane."""

GUIDANCE = 2.5
STRENGTH = 0.5
SEED = 20240229  # not that of the trajectories: a seed that is ignored shows

NOISE = ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (2**63 + 1, 2**31 + 5, 7))
"""Seeds, images and draws: each counter on its own, and words above 32 bits."""


class Labelled(Protocol):
    """What `ByLabels` and the runners share."""

    def prepare(
        self, steps: int = ..., sampler: str = ..., *, label: int | None = ..., guidance: float = ...
    ) -> object:
        """Choose a schedule and start a trajectory."""

    def step(
        self, timestep: int, x: Floats, label: int | None = ..., state: Mapping[str, Any] | None = ...
    ) -> tuple[Floats, dict[str, Any]]:
        """The output at a timestep from a given state, and the next state."""


def sampler_rows(runner: Labelled, bundle: BundleRunner, reference: TorchReference) -> list[Row]:
    """Rows for the noise, every sampler, guidance and image-to-image; `runner` draws by labels what `bundle` draws."""
    label = 0 if reference.null_class else None
    rows = [_noise(bundle)]
    cases: list[tuple[str, str, float, bool]] = [(f"edm_sample, {each}", each, 1.0, False) for each in SAMPLERS]
    if label is not None:
        cases.append((f"edm_sample, guidance {GUIDANCE:g}", "ddim", GUIDANCE, False))
    cases.append((f"edm_sample, from images at strength {STRENGTH:g}", "ddim", 1.0, True))
    for name, sampler, guidance, starts in progress.track(cases, "samplers", len(cases)):
        if not _holds(reference, sampler):
            continue
        try:
            runner.prepare(STEPS, sampler, label=label, guidance=guidance)
        except UnsupportedError as error:
            note = f"expected {STEPS} steps of {sampler}, which the trained timesteps hold; refused: {error}"
            rows.append(Row(name, False, note=note))
            continue
        rows.append(_compared(name, runner, bundle, reference, (sampler, label, guidance, starts)))
    return rows


def _holds(reference: TorchReference, sampler: str) -> bool:
    """Whether the trained timesteps hold the schedule: by the checkpoint's word, not by that of what is examined."""
    try:
        step_coefficients(reference.schedule, STEPS, sampler)
    except UnsupportedError:
        return False
    return True


def _compared(
    name: str,
    runner: Labelled,
    bundle: BundleRunner,
    reference: TorchReference,
    case: tuple[str, int | None, float, bool],
) -> Row:
    sampler, label, guidance, starts = case
    start = _start(reference.shape) if starts else None
    strength = STRENGTH if starts else 1.0
    got = bundle.sample(IMAGES, SEED, first_image=1, start=start, strength=strength)
    note = ""
    for image in range(IMAGES):
        expected = numpy_sample(
            _predict(runner, label),
            reference.schedule,
            reference.shape,
            STEPS,
            sampler,
            seed=SEED,
            image=1 + image,
            predict_unconditional=_predict(runner, None),
            guidance=guidance,
            start=None if start is None else start[image],
            strength=strength,
        )
        off = np.flatnonzero(got[image].view(np.uint32) != expected.view(np.uint32))
        if off.size and not note:
            place, wanted = int(off[0]), expected.reshape(-1)
            note = (
                f"image {image + 1} of {IMAGES}: {off.size} of {expected.size} values are not those of numpy's sampler "
                f"over the same kernels, first at {place}: expected {wanted[place]:.9g}, "
                f"got {got[image].reshape(-1)[place]:.9g}"
            )
    return Row(name, not note, {"runs": float(IMAGES), "steps": float(STEPS)}, note)


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
