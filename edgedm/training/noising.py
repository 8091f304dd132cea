"""The forward process and a DDIM loop in torch, for training and for its quality figures.

The reference samplers, which the generated runtime is held against, are those of `edgedm.diffusion`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

EpsModel = Callable[[Tensor, int, Tensor, bool], Tensor]


def alphas_cumprod(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Return prod(1 - beta) for linear betas, f64[steps] (Ho et al. 2020, section 4)."""
    return torch.cumprod(1 - torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), 0)


def add_noise(images: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor) -> Tensor:
    """Return x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise; images f32[N, C, H, W], timesteps int64[N]."""
    a = alphas[timesteps][:, None, None, None]
    return (a.sqrt() * images + (1 - a).sqrt() * noise).float()


def ddim_timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """Return `steps` timesteps, noisiest first, evenly spaced and ending at 0 (diffusers' "leading" spacing)."""
    return [i * (train_steps // steps) for i in range(steps)][::-1]


@torch.no_grad()
def sample_ddim(
    model: EpsModel, noise: Tensor, labels: Tensor, alphas: Tensor, steps: int = 50, clip_sample: bool = True
) -> Tensor:
    """Run DDIM with eta 0 (Song et al. 2021, eq. 12): f32[N, C, H, W] noise to images.

    `model(x, timestep, labels, first)` returns eps; `first` marks the first executed step. With `clip_sample`
    the predicted x_0 is clipped to [-1, 1] and eps recomputed from it, so that both stay consistent.
    """
    x = noise
    schedule = ddim_timesteps(steps, len(alphas))
    for i, t in enumerate(schedule):
        a, before = alphas[t], alphas[schedule[i + 1]] if i + 1 < len(schedule) else torch.tensor(1.0)
        eps = model(x, t, labels, i == 0)
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        if clip_sample:
            x0 = x0.clamp(-1, 1)
            eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        x = (before.sqrt() * x0 + (1 - before).sqrt() * eps).float()
    return x
