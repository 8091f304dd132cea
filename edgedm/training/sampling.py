"""Draw batches of samples in torch with the arithmetic of `edgedm.diffusion`, for quality figures."""

import torch
from torch import Tensor

from edgedm.diffusion import NoiseSchedule
from edgedm.models.denoiser import Denoiser
from edgedm.models.presets import NULL_CLASS
from edgedm.training.trajectory import Steps


@torch.inference_mode()
def draw(
    module: Denoiser,
    schedule: NoiseSchedule,
    labels: Tensor,
    size: int = 16,
    steps: int = 50,
    seed: int = 0,
    guidance: float = 1.0,
) -> Tensor:
    """Return DDIM samples f32[N, C, size, size] for `labels` int64[N] (the null class: unlabelled).

    Each image has noise of its own seed, so a larger N only adds images; every image carries its own state.
    """
    generator = torch.Generator().manual_seed(seed)
    channels: int = module.unet.config["in_channels"]  # type: ignore[index, assignment]  # diffusers is untyped
    x = torch.randn((len(labels), channels, size, size), generator=generator)
    walk = Steps(schedule, steps)
    conditional = _Trajectory(module, labels)
    unconditional = _Trajectory(module, torch.full_like(labels, NULL_CLASS)) if guidance != 1.0 else None
    for step, timestep in enumerate(walk.timesteps):
        output = conditional.step(x, timestep)
        if unconditional is not None:
            free = unconditional.step(x, timestep)
            output = free + guidance * (output - free)
        x = walk.advance(step, x, output)
    return x


class _Trajectory:
    """Calls the model for a whole batch at one timestep and carries its state."""

    def __init__(self, module: Denoiser, labels: Tensor) -> None:
        self.module, self.labels = module, labels
        self.state: list[Tensor] = []

    def step(self, x: Tensor, timestep: int) -> Tensor:
        t = torch.full((len(x),), timestep)
        if not self.module.taps:
            return self.module.record(x, t, self.labels)
        if not self.state:
            eps = self.module.record(x, t, self.labels)
            self.state = list(self.module.carry.next)
            return eps
        row = int((self.module.edges <= timestep).sum()) - 1
        mixes = list(self.module.cache_coefficients[max(row, 0)])
        eps, *self.state = self.module.mix(x, t, self.labels, mixes, self.state)
        return eps
