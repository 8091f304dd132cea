"""The forward process in torch, for training."""

import torch
from torch import Tensor


def alphas_cumprod(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Return prod(1 - beta) for linear betas, f64[steps] (Ho et al. 2020, section 4)."""
    return torch.cumprod(1 - torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), 0)


def add_noise(images: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor) -> Tensor:
    """Return x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise; images f32[N, C, H, W], timesteps int64[N]."""
    a = alphas[timesteps][:, None, None, None]
    return (a.sqrt() * images + (1 - a).sqrt() * noise).float()
