"""The noise schedule of a checkpoint: alphas_cumprod and the choice of timesteps.

Field names and formulas are those of diffusers' DDPMScheduler, DDIMScheduler and DPMSolverMultistepScheduler, so that
a checkpoint's `noise_schedule` dict is such a scheduler's config. Betas and alphas_cumprod are rounded as
diffusers rounds them: float32 changes alphas_cumprod by 1e-6 of its value, and a step at the noisy end by a thousand
times as much.
"""

import itertools
import math
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgedm.diffusion.logarithm import natural_log
from edgedm.errors import InvalidModelError, UnsupportedError, short
from edgedm.files import first_fault

SAMPLERS = ("ddim", "ddpm", "dpm-solver++")
LEAST_SIGNAL = 1e-30  # of alphas_cumprod, in float32; diffusers' own schedules end above 1e-9
LEAST_CLIP, MOST_CLIP = 1e-6, 1e6  # a range of images is about 1, of latents some tens

# What a scheduler config may also hold: True where any value is fine, else the one value that means "off".
_IGNORED: dict[str, Any] = {"use_clipped_model_output": False}
_IGNORED |= {"dynamic_thresholding_ratio": True, "sample_max_value": True, "thresholding": False}
_IGNORED |= {"skip_prk_steps": True, "timestep_values": None}  # of PNDM and CompVis, which from_config keeps
_IGNORED |= {"trained_betas": None, "rescale_betas_zero_snr": False}
_IGNORED |= {"algorithm_type": "dpmsolver++", "flow_shift": True, "time_shift_type": True}
_IGNORED |= {f"use_{name}_sigmas": False for name in ("karras", "exponential", "beta", "flow")}
_IGNORED |= {"use_lu_lambdas": False, "use_dynamic_shifting": False}
# Other spellings of what there is; the logarithm of fixed_small_log is taken and undone again.
_SPELLINGS: dict[str, dict[Any, Any]] = {
    "beta_schedule": {"cosine": "squaredcos_cap_v2"},
    "variance_type": {None: "fixed_small", "fixed_small_log": "fixed_small"},
    "lambda_min_clipped": {-math.inf: None},
}


class NoiseSchedule(BaseModel):
    """Config of a noise schedule; immutable. Fields from `solver_order` on are those of DPM-Solver++ alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    num_train_timesteps: int = Field(1000, ge=1, le=1_000_000)
    beta_start: float = Field(0.0001, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    clip_sample: bool = True
    clip_sample_range: float = Field(1.0, ge=LEAST_CLIP, le=MOST_CLIP)
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = Field(0, ge=0)
    set_alpha_to_one: bool = True
    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"
    solver_order: Literal[1, 2] = 2
    solver_type: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    lambda_min_clipped: float | None = None

    @model_validator(mode="after")
    def _some_signal_is_left(self) -> "NoiseSchedule":
        """At alphas_cumprod 0 there is nothing to predict x0 from: the samplers divide by its root."""
        least = float(self.alphas_cumprod()[-1])
        if least < LEAST_SIGNAL:
            raise ValueError(f"alphas_cumprod ends at {least:.3g}, expected at least {LEAST_SIGNAL}: lower beta_end")
        return self

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Read a scheduler config; `UnsupportedError` for an option that the C sampler lacks."""
        kept: dict[str, Any] = {}
        for key, value in config.items():
            if key not in _IGNORED and not key.startswith("_"):  # which diffusers notes for itself
                kept[key] = value
            elif _IGNORED.get(key, True) is not True and value != _IGNORED[key]:
                raise UnsupportedError(
                    f"noise schedule: {key} = {short(value)} is not supported; expected {_IGNORED[key]!r}"
                )
        for key, others in _SPELLINGS.items():
            if key in kept and isinstance(kept[key], Hashable):
                kept[key] = others.get(kept[key], kept[key])
        try:
            return cls(**kept)
        except ValidationError as error:
            raise InvalidModelError(f"noise schedule: {first_fault(error)}") from error

    def betas(self) -> NDArray[np.float32]:
        """Variance added at every training timestep, f32[num_train_timesteps]."""
        count = self.num_train_timesteps
        if self.beta_schedule == "linear":
            return _line(self.beta_start, self.beta_end, count)
        if self.beta_schedule == "scaled_linear":
            roots = _line(math.sqrt(self.beta_start), math.sqrt(self.beta_end), count)
            return roots * roots
        bar = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(bar)]
        return np.array(betas, dtype=np.float32)

    def alphas_cumprod(self) -> NDArray[np.float64]:
        """Product of (1 - beta) up to and with every timestep, [num_train_timesteps]; each is a float32 number.

        The product is carried in float64, as PyTorch does on a CPU.
        """
        alphas = np.float32(1.0) - self.betas()
        return np.cumprod(alphas, dtype=np.float64).astype(np.float32).astype(np.float64)

    def clip(self, sampler: str) -> float | None:
        """The range that a sampler clips x0 to, or None; diffusers' DPM-Solver++ never clips."""
        return self.clip_sample_range if self.clip_sample and sampler != "dpm-solver++" else None

    def solver_timesteps(self) -> int:
        """How many timesteps DPM-Solver++ may use: there log(alpha / sigma) is `lambda_min_clipped` or more."""
        if self.lambda_min_clipped is None:
            return self.num_train_timesteps
        ratios = self.alphas_cumprod()
        return sum(natural_log(bar / (1.0 - bar)) / 2.0 >= self.lambda_min_clipped for bar in ratios.tolist())

    def timesteps(self, steps: int, sampler: str = "ddim") -> NDArray[np.int64]:
        """Timesteps of a run, [steps], noisiest first, as diffusers' `set_timesteps` chooses them.

        Plain float64 arithmetic and round-half-even: the C runtime repeats it operation by operation.
        Raises `UnsupportedError` if `steps` is not in 1..num_train_timesteps or a timestep falls outside.
        """
        train, solver = self.num_train_timesteps, sampler == "dpm-solver++"
        if not 1 <= steps <= train:
            raise UnsupportedError(f"steps: expected 1..{train} (num_train_timesteps), got {steps}")
        used = self.solver_timesteps() if solver else train
        # DPM-Solver++ spaces one timestep more, from 0 on, and leaves out that of the end
        intervals, lowest = (steps + 1, 1.0) if solver else (steps, 0.0)
        upwards = np.arange(steps, dtype=np.float64)[::-1] + lowest
        if self.timestep_spacing == "leading":
            chosen = upwards * float(used // intervals) + float(self.steps_offset)
        elif self.timestep_spacing == "trailing":
            stride = float(used) - (float(used) - float(train) / float(steps))  # numpy.arange's own stride
            chosen = np.rint(float(used) - np.arange(steps, dtype=np.float64) * stride) - 1.0
        else:
            stride = float(used - 1) / float(intervals - 1) if intervals > 1 else 0.0
            chosen = np.rint(upwards * stride)
        timesteps = chosen.astype(np.int64)
        if timesteps.min() < 0 or timesteps.max() >= train or len(set(timesteps.tolist())) < steps:
            raise UnsupportedError(
                f"{steps} steps, spacing {self.timestep_spacing!r}, offset {self.steps_offset}: timesteps "
                f"{timesteps.min()}..{timesteps.max()} leave 0..{train - 1} or repeat; choose fewer steps"
            )
        return timesteps


def _line(start: float, end: float, count: int) -> NDArray[np.float32]:
    """`count` numbers from start to end, as torch.linspace makes them: each half from its own end, rounded once."""
    first, last = np.float32(start), np.float32(end)
    stride = np.float64((last - first) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    upwards, downwards = first + stride * index, last - stride * index[::-1]
    return np.where(index < max(count // 2, 1), upwards, downwards).astype(np.float32)
