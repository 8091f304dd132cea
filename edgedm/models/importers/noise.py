"""The noise schedule of an imported checkpoint: from the `betas` that LatentDiffusion stores, or as the options say."""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edgedm.errors import UnsupportedError
from edgedm.models.importers.tensors import Tensors

TIMESTEPS = 1000  # of every release; rows of their tables are counted in it
_CLOSE = 1e-4  # relative; betas are stored in float32


class NoiseOptions(BaseModel):
    """Betas, for files that don't store them; diffusers' names ("linear" of LDM's code is "scaled_linear" here)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta_start: float | None = Field(None, gt=0, lt=1, description="for a file without betas")
    beta_end: float | None = Field(None, gt=0, lt=1, description="for a file without betas")
    beta_schedule: Literal["linear", "scaled_linear"] | None = Field(
        None, description="likewise, by diffusers' names: \"linear\" of LDM's code is scaled_linear"
    )


# LSUN models of latent-diffusion; its DDIM sampler takes timesteps 1, 11, ... and ends at alphas_cumprod[0]
LATENT_DIFFUSION = {
    "num_train_timesteps": TIMESTEPS,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
# CIFAR-10 of ddim: timesteps 0, 10, ..., ends at alpha 1
DDIM = {
    "num_train_timesteps": TIMESTEPS,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
    "steps_offset": 0,
    "set_alpha_to_one": True,
}


def noise_schedule(tensors: Tensors, options: NoiseOptions, default: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the noise schedule.

    Stored betas decide; options fill in where there are none. Raises `UnsupportedError` for stored betas that are
    neither linear nor scaled_linear, or that the options contradict.
    """
    given = {name: value for name, value in options.model_dump().items() if name in NoiseOptions.model_fields}
    given = {name: value for name, value in given.items() if value is not None}
    if "betas" not in tensors:
        return {**default, **given}
    found = _fit(tensors)
    for name, value in given.items():
        stored = found[name]
        if stored != value and (isinstance(value, str) or not np.isclose(stored, value, rtol=1e-3)):
            raise UnsupportedError(f"{tensors.file}: option {name}={value}, but the stored betas say {stored}")
    return {**default, **found}


def _fit(tensors: Tensors) -> dict[str, Any]:
    betas = tensors.take("betas").double().numpy()
    if betas.ndim != 1 or len(betas) < 2 or betas.min() <= 0 or betas.max() >= 1:
        raise tensors.error("betas", f"expected one axis of numbers between 0 and 1, got shape {list(betas.shape)}")
    count = len(betas)
    for kind, power in (("linear", 1.0), ("scaled_linear", 0.5)):
        line = np.linspace(betas[0] ** power, betas[-1] ** power, count) ** (1 / power)
        if np.allclose(line, betas, rtol=_CLOSE, atol=0):
            start, end = (float(f"{value:.6g}") for value in (betas[0], betas[-1]))  # undo float32
            return {"num_train_timesteps": count, "beta_start": start, "beta_end": end, "beta_schedule": kind}
    raise UnsupportedError(f"{tensors.file}: stored betas are neither 'linear' nor 'scaled_linear'")
