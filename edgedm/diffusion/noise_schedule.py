"""The noise schedule of a checkpoint: alphas_cumprod and the choice of timesteps.

Field names and formulas are those of diffusers' DDPMScheduler and DDIMScheduler, so that a checkpoint's
`noise_schedule` dict is such a scheduler's config. Everything is float64 here; diffusers computes betas in
float32, which changes alphas_cumprod by about 1e-6 of its value.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgedm.errors import InvalidModelError, UnsupportedError

# What a scheduler config may also hold: True where any value is fine, else the one value that means "off".
_IGNORED: dict[str, Any] = {"_class_name": True, "_diffusers_version": True, "use_clipped_model_output": False}
_IGNORED |= {"dynamic_thresholding_ratio": True, "sample_max_value": True, "thresholding": False}
_IGNORED |= {"trained_betas": None, "rescale_betas_zero_snr": False}


class NoiseSchedule(BaseModel):
    """Config of a noise schedule; immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_train_timesteps: int = Field(1000, ge=1, le=1_000_000)
    beta_start: float = Field(0.0001, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    clip_sample: bool = True
    clip_sample_range: float = Field(1.0, gt=0)
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = Field(0, ge=0)
    set_alpha_to_one: bool = True
    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Read a scheduler config; `UnsupportedError` for an option that the C sampler lacks."""
        kept: dict[str, Any] = {}
        for key, value in config.items():
            if key not in _IGNORED:
                kept[key] = value
            elif _IGNORED[key] is not True and value != _IGNORED[key]:
                raise UnsupportedError(
                    f"noise schedule: {key} = {value!r} is not supported; expected {_IGNORED[key]!r}"
                )
        if kept.get("beta_schedule") == "cosine":
            kept["beta_schedule"] = "squaredcos_cap_v2"
        try:
            return cls(**kept)
        except ValidationError as error:
            raise InvalidModelError(f"noise schedule: {error}") from error

    def betas(self) -> NDArray[np.float64]:
        """Variance added at every training timestep, [num_train_timesteps]."""
        count = self.num_train_timesteps
        if self.beta_schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, count)
        if self.beta_schedule == "scaled_linear":
            return np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), count) ** 2
        bar = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return np.array([min(1 - after / before, 0.999) for before, after in itertools.pairwise(bar)])

    def alphas_cumprod(self) -> NDArray[np.float64]:
        """Product of (1 - beta) up to and with every timestep, [num_train_timesteps]."""
        return np.cumprod(1.0 - self.betas(), dtype=np.float64)

    def timesteps(self, steps: int) -> NDArray[np.int64]:
        """Timesteps of a run, [steps], noisiest first, as diffusers' `set_timesteps` chooses them.

        Plain float64 arithmetic and round-half-even: the C runtime repeats it operation by operation.
        Raises `UnsupportedError` if `steps` is not in 1..num_train_timesteps or a timestep falls outside.
        """
        train = self.num_train_timesteps
        if not 1 <= steps <= train:
            raise UnsupportedError(f"steps: expected 1..{train} (num_train_timesteps), got {steps}")
        index = np.arange(steps, dtype=np.float64)
        if self.timestep_spacing == "leading":
            chosen = index[::-1] * float(train // steps) + float(self.steps_offset)
        elif self.timestep_spacing == "trailing":
            stride = float(train) - (float(train) - float(train) / float(steps))  # numpy.arange's own stride
            chosen = np.rint(float(train) - index * stride) - 1.0
        else:
            stride = float(train - 1) / float(steps - 1) if steps > 1 else 0.0
            chosen = np.rint(index[::-1] * stride)
        timesteps = chosen.astype(np.int64)
        if timesteps.min() < 0 or timesteps.max() >= train:
            raise UnsupportedError(
                f"{steps} steps, spacing {self.timestep_spacing!r}, offset {self.steps_offset}: timesteps "
                f"{timesteps.min()}..{timesteps.max()} leave 0..{train - 1}; choose fewer steps"
            )
        return timesteps
