"""The samplers' loop: DDIM, DDPM and DPM-Solver++ 2M, from noise or from an image, with a preview at every step."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgedm.diffusion.noise_schedule import NoiseSchedule
from edgedm.diffusion.philox import normals
from edgedm.diffusion.steps import advance, estimate, level_and_deviation, step_coefficients
from edgedm.errors import UnsupportedError

Array = NDArray[np.float32]
Predict = Callable[[Array, int, int], Array]
"""(x f32[C,H,W], timestep, step) -> the model's output f32[C,H,W]; carried state is the callee's."""


def guide(conditional: Array, unconditional: Array, guidance: float) -> Array:
    """Classifier-free guidance: unconditional + guidance * (conditional - unconditional), in float32."""
    return unconditional + np.float32(guidance) * (conditional - unconditional)


def first_step(steps: int, strength: float) -> int:
    """The step that an image-to-image run begins with: the last `strength` of `steps` are executed.

    As in diffusers' pipelines; UnsupportedError unless that is one step or more.
    """
    executed = int(steps * strength) if 0.0 < strength <= 1.0 else 0
    if executed < 1:
        raise UnsupportedError(
            f"strength: expected above 0, up to 1, and at least one of {steps} steps: got {strength}"
        )
    return steps - executed


def add_noise(schedule: NoiseSchedule, timestep: int, image: Array, noise: Array, sampler: str) -> Array:
    """The image f32[...] as it is at `timestep` with this noise: sqrt(a) * image + sqrt(1 - a) * noise."""
    level, deviation = level_and_deviation(sampler, np.float32(schedule.alphas_cumprod()[timestep]))
    noisy: Array = level * image + deviation * noise
    return noisy


def sample(
    predict: Predict,
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    steps: int,
    sampler: str = "ddim",
    eta: float = 0.0,
    seed: int = 0,
    image: int = 0,
    predict_unconditional: Predict | None = None,
    guidance: float = 1.0,
    start: Array | None = None,
    strength: float = 1.0,
) -> Array:
    """Draw one image f32[shape], as the C runtime draws image number `image` under `seed`.

    `predict` is called once per step, noisiest first. With `guidance` other than 1, `predict_unconditional` is
    called too and keeps its own carried state. With an image f32[shape] to `start` from, the run begins at
    `first_step(steps, strength)` with that image under noise.
    """
    *_, x = trajectory(
        predict, schedule, shape, steps, sampler, eta, seed, image, predict_unconditional, guidance, start, strength
    )
    return x


def trajectory(
    predict: Predict,
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    steps: int,
    sampler: str = "ddim",
    eta: float = 0.0,
    seed: int = 0,
    image: int = 0,
    predict_unconditional: Predict | None = None,
    guidance: float = 1.0,
    start: Array | None = None,
    strength: float = 1.0,
    previews: list[Array] | None = None,
) -> Iterator[Array]:
    """Yield x before every step and after the last one: steps + 1 arrays f32[shape], fewer with a `start`.

    `previews` receives the estimate of the finished image at every step.
    """
    timesteps = [int(timestep) for timestep in schedule.timesteps(steps, sampler)]
    first = 0 if start is None else first_step(steps, strength)
    rows = step_coefficients(schedule, steps, sampler, eta, first)
    clip, count = schedule.clip(sampler), math.prod(shape)
    x = normals(seed, image, 0, count).reshape(shape)
    if start is not None:
        x = add_noise(schedule, timesteps[first], np.asarray(start, np.float32), x, sampler)
    yield x
    before: Array | None = None
    for step in range(first, steps):
        row, timestep = rows[step], timesteps[step]
        output = predict(x, timestep, step)
        if guidance != 1.0 and predict_unconditional is not None:
            output = guide(output, predict_unconditional(x, timestep, step), guidance)
        noise = normals(seed, image, step + 1, count).reshape(shape) if row.to_noise else None
        x0 = estimate(row, clip, x, output)
        x, before = advance(row, clip, x, output, noise, before), x0
        if previews is not None:
            previews.append(x0)
        yield x
