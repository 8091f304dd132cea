"""Denoising trajectories in torch, for batches: sampling, and the data of data-free training."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgedm.diffusion import NoiseSchedule, StepCoefficients, step_coefficients


class Steps:
    """The DDIM steps of a schedule, applied to batches f32[N, C, H, W]."""

    def __init__(self, schedule: NoiseSchedule, steps: int, eta: float = 0.0) -> None:
        self.rows: list[StepCoefficients] = step_coefficients(schedule, steps, eta=eta)
        self.timesteps = [int(t) for t in schedule.timesteps(steps)]
        self.limit = schedule.clip_sample_range if schedule.clip_sample else float("inf")

    def __len__(self) -> int:
        return len(self.rows)

    def advance(self, step: int, x: Tensor, output: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the next x; `noise` is needed where the step adds some (eta > 0)."""
        row = self.rows[step]
        x0 = (float(row.x0_sample) * x + float(row.x0_output) * output) / float(row.x0_divisor)
        x0 = x0.clamp(-self.limit, self.limit)
        eps = (float(row.eps_sample) * x + float(row.eps_output) * output) / float(row.eps_divisor)
        x = float(row.to_x0) * x0 + float(row.to_eps) * eps + float(row.to_sample) * x
        return x if noise is None else x + float(row.to_noise) * noise


@dataclass(frozen=True)
class Samples:
    """What a denoiser meets while it samples: x_t f32[M, C, H, W], t int64[M], labels int64[M]."""

    noisy: Tensor
    timesteps: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.noisy)

    def take(self, rows: Tensor | slice) -> "Samples":
        """Return some of them."""
        return Samples(self.noisy[rows], self.timesteps[rows], self.labels[rows])

    def spread(self, count: int, turn: bool = False) -> Tensor:
        """Return the rows of at most `count` samples, evenly over the timesteps.

        `turn` begins each timestep one trajectory later: otherwise a distance that has a divisor in common with the
        number of trajectories meets the same few of them at every timestep.
        """
        rows = torch.arange(0, len(self), -(-len(self) // count))
        if not turn:
            return rows
        images = int((self.timesteps == self.timesteps[0]).sum())
        step = rows // images
        return step * images + (rows + step) % images


def calibration_labels(images: int, null_class: int | None, prompts: bool = False) -> Tensor:
    """Return int64[images], the class of each trajectory: all in turn, the null class last; zeros if it is None.

    Of `prompts` too many for that, the first tenth of the trajectories, at least one of two, is the negative one's:
    no other has the range of its keys.
    """
    null = null_class or 0
    reserved = min(images - 1, max(1, images // 10)) if prompts and null >= images else 0
    classes = torch.arange(-reserved, images - reserved)
    return torch.where(classes < 0, null, classes % (null + 1))


@torch.no_grad()
def calibration_samples(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    labels: Tensor,
    steps: int = 50,
    eta: float = 1.0,
    seed: int = 0,
) -> Samples:
    """Sample one image a label with the full-precision `predict(x, t, labels)` and return every x_t on the way.

    M = steps * len(labels), noisiest timestep first; data-free (EfficientDM, DilateQuant and PTQ calibrate on it).
    """
    generator = torch.Generator().manual_seed(seed)
    walk = Steps(schedule, steps, eta)
    x = torch.randn((len(labels), *shape), generator=generator)
    kept, times = [], []
    for step, timestep in enumerate(walk.timesteps):
        t = torch.full((len(labels),), timestep)
        kept.append(x)
        times.append(t)
        noise = torch.randn(x.shape, generator=generator) if eta else None
        x = walk.advance(step, x, predict(x, t, labels), noise)
    return Samples(torch.cat(kept), torch.cat(times), labels.repeat(len(walk)))


def predictor(unet: nn.Module, prompts: Tensor | None = None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a diffusers UNet as a function (x, t, labels) -> output.

    Labels are classes, or rows of `prompts` f32[N, T, D], or ignored where the UNet has neither.
    The output is where x is, wherever the UNet lives.
    """
    conditional = getattr(unet, "class_embedding", None) is not None
    reads_context = "encoder_hidden_states" in inspect.signature(unet.forward).parameters
    device = next(unet.parameters()).device

    def predict(x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        labels = labels.to(device)
        named = {"class_labels": labels if conditional else None}
        if reads_context:
            named["encoder_hidden_states"] = None if prompts is None else prompts.to(device)[labels]
        output: Tensor = unet(x.to(device), timesteps.to(device), return_dict=False, **named)[0]
        return output.to(x.device)

    return predict
