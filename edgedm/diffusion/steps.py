"""One step of DDIM, DDPM or DPM-Solver++ 2M as one linear form.

DDIM: J. Song et al., arXiv 2010.02502, eq. 12 and 16; DDPM: J. Ho et al., arXiv 2006.11239, eq. 6 and 7;
DPM-Solver++: C. Lu et al., arXiv 2211.01095, algorithm 2. The conventions (previous timestep, clipping, last step)
are those of diffusers. A step is

    x0    = clip((x0_sample * x + x0_output * output) / x0_divisor)
    eps   = (eps_sample * x + eps_output * output) / eps_divisor
    trend = trend_scale * (x0 - x0_of_the_step_before)
    x'    = (((to_x0 * x0 + to_eps * eps) + to_sample * x) + to_trend * trend) + to_noise * noise

Coefficients and steps are computed in float32 in the very order of diffusers, because at the noisy end rounding is
divided by an alpha of 0.006 or less, and at the other end 1 - alphas_cumprod cancels: another order differs from
diffusers by 1e-3. A term whose coefficient is 0 is left out where it comes last. IEEE 754 fixes + - * / and sqrt, and
the logarithm and the exponential are made of them and then rounded, so the generated C
(`runtime/templates/sampler.c`), without fused multiply-adds, gives the same bits.
"""

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from edgedm.diffusion.logarithm import natural_exp, natural_log
from edgedm.diffusion.noise_schedule import SAMPLERS, NoiseSchedule
from edgedm.errors import UnsupportedError

_SMALLEST_VARIANCE = np.float32(1e-20)  # diffusers' clamp in DDPMScheduler._get_variance
_FEW_STEPS = 15  # below this lower_order_final counts
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class StepCoefficients:
    """The twelve float32 coefficients of one step (see the module)."""

    x0_sample: np.float32
    x0_output: np.float32
    x0_divisor: np.float32
    eps_sample: np.float32
    eps_output: np.float32
    eps_divisor: np.float32
    to_x0: np.float32
    to_eps: np.float32
    to_sample: np.float32
    to_noise: np.float32
    trend_scale: np.float32
    to_trend: np.float32


def step_coefficients(
    schedule: NoiseSchedule, steps: int, sampler: str = "ddim", eta: float = 0.0, first: int = 0
) -> list[StepCoefficients]:
    """Coefficients of every step of a run; `eta` is DDIM's share of fresh noise (0 none, 1 as DDPM).

    `first` is the first step that is executed (DPM-Solver++ knows no step before it); rows before it are unused.
    """
    if sampler not in SAMPLERS:
        raise UnsupportedError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if not 0.0 <= eta <= 1.0:
        raise UnsupportedError(f"eta: expected 0..1, got {eta}")
    if eta > 0 and sampler != "ddim":
        raise UnsupportedError(f"eta: expected 0 where the sampler is not ddim, got {eta}")
    timesteps = [int(t) for t in schedule.timesteps(steps, sampler)]
    alphas = list(schedule.alphas_cumprod().astype(np.float32))
    rows = []
    for step, timestep in enumerate(timesteps):
        now = alphas[timestep]
        level, deviation = level_and_deviation(sampler, now)
        if sampler == "ddim":
            before = timestep - schedule.num_train_timesteps // steps
            last = _ONE if schedule.set_alpha_to_one else alphas[0]
            tail = _ddim(now, alphas[before] if before >= 0 else last, np.float32(eta))
        elif sampler == "ddpm":
            following = alphas[timesteps[step + 1]] if step + 1 < steps else _ONE
            tail = _ddpm(now, following, schedule.variance_type, noise=timestep > 0)
        else:
            tail = _solver(schedule, alphas, timesteps, step, first)
        rows.append(StepCoefficients(*_prediction(schedule.prediction_type, level, deviation), *tail))
    return rows


def level_and_deviation(sampler: str, bar: np.float32) -> tuple[np.float32, np.float32]:
    """sqrt(bar) and sqrt(1 - bar), the shares of image and noise at an alphas_cumprod, as the sampler computes them.

    DPM-Solver++ goes through sigma: the last bits differ.
    """
    if sampler == "dpm-solver++":
        return _of_sigma(_sigma(bar))
    return np.sqrt(bar), np.sqrt(_ONE - bar)


_Head = tuple[np.float32, np.float32, np.float32, np.float32, np.float32, np.float32]
"""x0_sample, x0_output, x0_divisor, eps_sample, eps_output, eps_divisor"""


def _prediction(kind: str, level: np.float32, deviation: np.float32) -> _Head:
    if kind == "epsilon":
        return _ONE, -deviation, level, _ZERO, _ONE, _ONE
    if kind == "v_prediction":
        return level, -deviation, _ONE, deviation, level, _ONE
    return _ZERO, _ONE, _ONE, _ONE, -level, deviation


_Tail = tuple[np.float32, np.float32, np.float32, np.float32, np.float32, np.float32]
"""to_x0, to_eps, to_sample, to_noise, trend_scale, to_trend"""


def _ddim(now: np.float32, before: np.float32, eta: np.float32) -> _Tail:
    variance = (_ONE - before) / (_ONE - now) * (_ONE - now / before)
    deviation = eta * np.sqrt(max(variance, _ZERO))
    direction = max((_ONE - before) - deviation * deviation, _ZERO)
    return np.sqrt(before), np.sqrt(direction), _ZERO, deviation, _ZERO, _ZERO


def _ddpm(now: np.float32, before: np.float32, variance_type: str, noise: bool) -> _Tail:
    alpha = now / before
    beta = _ONE - alpha
    left, right = _ONE - before, _ONE - now
    to_x0 = np.sqrt(before) * beta / right
    to_sample = np.sqrt(alpha) * left / right
    variance = beta if variance_type == "fixed_large" else max(left / right * beta, _SMALLEST_VARIANCE)
    return to_x0, _ZERO, to_sample, np.sqrt(variance) if noise else _ZERO, _ZERO, _ZERO


def _sigma(bar: np.float32) -> np.float32:
    """DPM-Solver++'s measure of noise, sigma / alpha."""
    return np.float32(np.sqrt((_ONE - bar) / bar))


def _of_sigma(sigma: np.float32) -> tuple[np.float32, np.float32]:
    level = _ONE / np.sqrt(sigma * sigma + _ONE)
    return level, sigma * level


def _lambda(sigma: np.float32) -> np.float32:
    level, deviation = _of_sigma(sigma)
    return np.float32(natural_log(float(level))) - np.float32(natural_log(float(deviation)))


def _solver(schedule: NoiseSchedule, alphas: list[np.float32], timesteps: list[int], step: int, first: int) -> _Tail:
    """DPM-Solver++ from timesteps[step] to the next one (the end after the last), of second order where it may.

    With h = lambda' - lambda the first order is x' = (sigma' / sigma) x + alpha' (1 - e^-h) x0; the second adds a
    multiple of the trend (h / h_before) (x0 - x0_before). At an end without noise h is infinite, and e^-h 0. Where h
    is 0 in float32 there is no second order; diffusers then divides by it.
    """
    now, last = _sigma(alphas[timesteps[step]]), step + 1 == len(timesteps)
    end = _ZERO if schedule.final_sigmas_type == "zero" else _sigma(alphas[0])
    following = end if last else _sigma(alphas[timesteps[step + 1]])
    alpha, deviation = _of_sigma(following)
    to_sample = deviation / _of_sigma(now)[1]
    if following == 0.0:
        return alpha, _ZERO, to_sample, _ZERO, _ZERO, _ZERO
    h = _lambda(following) - _lambda(now)
    decay = np.float32(natural_exp(-float(h))) - _ONE
    to_x0 = -(alpha * decay)
    few = schedule.lower_order_final and len(timesteps) < _FEW_STEPS
    if schedule.solver_order == 1 or step <= first or (last and (schedule.euler_at_final or few)):
        return to_x0, _ZERO, to_sample, _ZERO, _ZERO, _ZERO
    h_before = _lambda(now) - _lambda(_sigma(alphas[timesteps[step - 1]]))
    if h == 0.0 or h_before == 0.0:
        return to_x0, _ZERO, to_sample, _ZERO, _ZERO, _ZERO
    to_trend = np.float32(0.5) * to_x0 if schedule.solver_type == "midpoint" else alpha * (decay / h + _ONE)
    return to_x0, _ZERO, to_sample, _ZERO, _ONE / (h_before / h), to_trend


def estimate(row: StepCoefficients, clip: float | None, x: Array, output: Array) -> Array:
    """The finished image as this step sees it, x0: x and output f32[...] -> f32[...]."""
    x0 = ((row.x0_sample * x + row.x0_output * output) / row.x0_divisor).astype(x.dtype, copy=False)
    if clip is None:
        return x0
    limit = np.float32(clip)
    clipped: Array = np.where(x0 < -limit, -limit, np.where(x0 > limit, limit, x0))
    return clipped


def advance(
    row: StepCoefficients,
    clip: float | None,
    x: Array,
    output: Array,
    noise: Array | None,
    before: Array | None = None,
) -> Array:
    """Apply one step: x and output f32[...] -> the next x.

    `noise` may be None where `to_noise` is 0, and `before`, the step before's `estimate`, where `to_trend` is 0.
    """
    x0 = estimate(row, clip, x, output)
    eps = (row.eps_sample * x + row.eps_output * output) / row.eps_divisor
    following: Array = (row.to_x0 * x0 + row.to_eps * eps) + row.to_sample * x
    if row.to_trend:
        if before is None:
            raise ValueError("a step of second order needs the estimate of the step before")
        following = following + row.to_trend * (row.trend_scale * (x0 - before))
    return following if noise is None else following + row.to_noise * noise


def coefficient_table(rows: list[StepCoefficients]) -> Array:
    """The rows as one f32[steps, 12] array, in the order of the C struct."""
    return np.array([astuple(row) for row in rows], dtype=np.float32)
