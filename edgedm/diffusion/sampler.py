"""DDIM and DDPM steps as one linear form, and the sampling loop.

DDIM: J. Song et al., arXiv 2010.02502, eq. 12 and 16; DDPM: J. Ho et al., arXiv 2006.11239, eq. 6 and 7; the
conventions (previous timestep, clipping, last step) are diffusers'. A step is

    x0    = clip(x0_sample * x + x0_output * output)
    eps   = eps_sample * x + eps_output * output
    x'    = ((to_x0 * x0 + to_eps * eps) + to_sample * x) + to_noise * noise

Its eight coefficients are computed in float64 with + - * / and sqrt alone, rounded to float32 once, and applied
in float32 in the order written, without fused multiply-adds. IEEE 754 fixes every one of these operations, so
the generated C (`runtime/templates/sampler.c`) gives the same bits.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from edgedm.diffusion.noise_schedule import NoiseSchedule
from edgedm.diffusion.philox import normals
from edgedm.errors import UnsupportedError

SAMPLERS = ("ddim", "ddpm")
_SMALLEST_VARIANCE = 1e-20  # diffusers' clamp in DDPMScheduler._get_variance

Array = NDArray[np.float32]
Predict = Callable[[Array, int, int], Array]
"""(x f32[C,H,W], timestep, step) -> the model's output f32[C,H,W]; carried state is the callee's."""


@dataclass(frozen=True)
class StepCoefficients:
    """The eight float32 coefficients of one step (see the module)."""

    x0_sample: np.float32
    x0_output: np.float32
    eps_sample: np.float32
    eps_output: np.float32
    to_x0: np.float32
    to_eps: np.float32
    to_sample: np.float32
    to_noise: np.float32


def step_coefficients(
    schedule: NoiseSchedule, steps: int, sampler: str = "ddim", eta: float = 0.0
) -> list[StepCoefficients]:
    """Coefficients of every step of a run; `eta` is DDIM's share of fresh noise (0 none, 1 as DDPM)."""
    if sampler not in SAMPLERS:
        raise UnsupportedError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if not 0.0 <= eta <= 1.0:
        raise UnsupportedError(f"eta: expected 0..1, got {eta}")
    timesteps = [int(t) for t in schedule.timesteps(steps)]
    alphas = [float(a) for a in schedule.alphas_cumprod()]
    rows = []
    for step, timestep in enumerate(timesteps):
        now = alphas[timestep]
        if sampler == "ddim":
            before = timestep - schedule.num_train_timesteps // steps
            last = 1.0 if schedule.set_alpha_to_one else alphas[0]
            tail = _ddim(now, alphas[before] if before >= 0 else last, eta)
        else:
            following = alphas[timesteps[step + 1]] if step + 1 < steps else 1.0
            tail = _ddpm(now, following, schedule.variance_type, noise=timestep > 0)
        rows.append(StepCoefficients(*(np.float32(c) for c in (*_prediction(schedule, now), *tail))))
    return rows


def _prediction(schedule: NoiseSchedule, now: float) -> tuple[float, float, float, float]:
    signal, noise = math.sqrt(now), math.sqrt(1.0 - now)
    if schedule.prediction_type == "epsilon":
        return 1.0 / signal, -(noise / signal), 0.0, 1.0
    if schedule.prediction_type == "v_prediction":
        return signal, -noise, noise, signal
    return 0.0, 1.0, 1.0 / noise, -(signal / noise)


def _ddim(now: float, before: float, eta: float) -> tuple[float, float, float, float]:
    variance = (1.0 - before) / (1.0 - now) * (1.0 - now / before)
    deviation = eta * math.sqrt(max(variance, 0.0))
    direction = max(1.0 - before - deviation * deviation, 0.0)
    return math.sqrt(before), math.sqrt(direction), 0.0, deviation


def _ddpm(now: float, before: float, variance_type: str, noise: bool) -> tuple[float, float, float, float]:
    alpha = now / before
    beta = 1.0 - alpha
    left = 1.0 - before
    to_x0 = math.sqrt(before) * beta / (1.0 - now)
    to_sample = math.sqrt(alpha) * left / (1.0 - now)
    variance = beta if variance_type == "fixed_large" else max(left / (1.0 - now) * beta, _SMALLEST_VARIANCE)
    return to_x0, 0.0, to_sample, math.sqrt(variance) if noise else 0.0


def advance(row: StepCoefficients, clip: float | None, x: Array, output: Array, noise: Array | None) -> Array:
    """Apply one step: x and output f32[...] -> the next x; `noise` may be None where `to_noise` is 0."""
    x0 = row.x0_sample * x + row.x0_output * output
    if clip is not None:
        limit = np.float32(clip)
        x0 = np.where(x0 < -limit, -limit, np.where(x0 > limit, limit, x0))
    eps = row.eps_sample * x + row.eps_output * output
    following: Array = (row.to_x0 * x0 + row.to_eps * eps) + row.to_sample * x
    if noise is None:
        return following
    return following + row.to_noise * noise


def guide(conditional: Array, unconditional: Array, guidance: float) -> Array:
    """Classifier-free guidance: unconditional + guidance * (conditional - unconditional), in float32."""
    return unconditional + np.float32(guidance) * (conditional - unconditional)


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
) -> Array:
    """Draw one image f32[shape], as the C runtime draws image number `image` under `seed`.

    `predict` is called once per step, noisiest first. With `guidance` other than 1, `predict_unconditional` is
    called too and keeps its own carried state.
    """
    *_, x = trajectory(predict, schedule, shape, steps, sampler, eta, seed, image, predict_unconditional, guidance)
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
) -> Iterator[Array]:
    """Yield x before every step and after the last one: steps + 1 arrays f32[shape]."""
    rows = step_coefficients(schedule, steps, sampler, eta)
    clip = schedule.clip_sample_range if schedule.clip_sample else None
    count = math.prod(shape)
    x = normals(seed, image, 0, count).reshape(shape)
    yield x
    for step, (row, timestep) in enumerate(zip(rows, schedule.timesteps(steps), strict=True)):
        output = predict(x, int(timestep), step)
        if guidance != 1.0 and predict_unconditional is not None:
            output = guide(output, predict_unconditional(x, int(timestep), step), guidance)
        noise = normals(seed, image, step + 1, count).reshape(shape) if row.to_noise else None
        x = advance(row, clip, x, output, noise)
        yield x


def coefficient_table(rows: list[StepCoefficients]) -> Array:
    """The rows as one f32[steps, 8] array, in the order of the C struct."""
    return np.array([astuple(row) for row in rows], dtype=np.float32)
