"""Figures of a low-bit model beside the float one: eps errors on fixed noise, quality of samples, dilation."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.diffusion import NoiseSchedule
from edgedm.models import Checkpoint
from edgedm.models.denoiser import Denoiser
from edgedm.quant.dilation import dilate
from edgedm.quant.uniform_layer import UniformLayer, weight_grid
from edgedm.training.classifier import CLASSES, load_classifier
from edgedm.training.data import IMAGE_SIZE, load_digits
from edgedm.training.noising import add_noise
from edgedm.training.quality import measure
from edgedm.training.sampling import draw
from edgedm.training.trajectory import Steps

PER_TIMESTEP = 8  # held-out images at each timestep of the sampler
FIXED = 20261  # seed of everything that is the same for all cells


class Judge:
    """Measures denoisers trained from the float checkpoint `base` on what is the same for all."""

    def __init__(self, base: Checkpoint, steps: int) -> None:
        self.base, self.steps = base, steps
        self.schedule = NoiseSchedule.from_config(base.config.noise_schedule)
        self.size = base.config.image_shape[1]
        self.alphas = torch.from_numpy(self.schedule.alphas_cumprod())
        self.timesteps = Steps(self.schedule, steps).timesteps  # noisiest first
        digits = load_digits(self.size)
        generator = torch.Generator().manual_seed(FIXED)
        self.rows = []
        for _ in self.timesteps:
            chosen = torch.randint(len(digits.held_out_images), (PER_TIMESTEP,), generator=generator)
            images, labels = digits.held_out_images[chosen], digits.held_out_labels[chosen]
            self.rows.append((images, labels, torch.randn(images.shape, generator=generator)))

    @torch.no_grad()
    def eps(self, module: Denoiser) -> dict[str, float]:
        """Return "eps_mse" to the float model's eps and "eps_error" to the noise, means over the sampler's timesteps.

        A model with a cross-timestep connection first sees the same image and noise at the timestep before.
        """
        to_float, to_noise = [], []
        for step, timestep in enumerate(self.timesteps):
            _, labels, noise = self.rows[step]
            x, t = self._at(step, timestep)
            ours = module.record(x, t, labels)
            if module.taps and step > 0:
                module.record(*self._at(step, self.timesteps[step - 1]), labels)
                state = list(module.carry.next)
                row = max(int((module.edges <= timestep).sum()) - 1, 0)
                ours = module.mix(x, t, labels, list(module.cache_coefficients[row]), state)[0]
            theirs = self.base.module.record(x, t, labels)
            to_float.append(F.mse_loss(ours, theirs).item())
            to_noise.append(F.mse_loss(ours, noise).item())
        return {"eps_mse": sum(to_float) / len(to_float), "eps_error": sum(to_noise) / len(to_noise)}

    def _at(self, step: int, timestep: int) -> tuple[Tensor, Tensor]:
        images, _, noise = self.rows[step]
        t = torch.full((len(images),), timestep)
        return add_noise(images, noise, t, self.alphas), t

    def quality(self, module: Denoiser, samples: int, steps: int | None = None, seed: int = 0) -> dict[str, float]:
        """Return the figures of `samples` labelled images, evenly over the digits, and no class shares.

        The classifier knows 16x16 images; smaller ones are resized as the data are.
        """
        labels = torch.arange(samples) % CLASSES
        images = draw(module, self.schedule, labels, self.size, steps or self.steps, seed)
        found = measure(_resized(images), load_digits().images, load_classifier(), labels)
        return {name: value for name, value in asdict(found).items() if name != "class_shares"}


def _resized(images: Tensor) -> Tensor:
    if images.shape[-1] == IMAGE_SIZE:
        return images
    return F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)


@torch.no_grad()
def dilation_figures(base: nn.Module, student: nn.Module, forward: Callable[[nn.Module], Tensor]) -> dict[str, Any]:
    """Return what dilation does to `student`, an untrained DilateQuant model of the float `base`.

    "layers": {path: [share of dilatable channels, mean s]}; "difference": the largest difference that dilating
    inputs and weights makes to the float model's output `forward(model)`, over the output's largest magnitude;
    "steps_changed": the largest change of any weight step and zero point.
    """
    layers = {path: m for path, m in student.named_modules() if isinstance(m, UniformLayer) and m.dilation is not None}
    grids = {path: weight_grid(m.weight, m.weight_bits, m.symmetric) for path, m in layers.items()}
    done = dilate(student)
    changed = 0.0
    for path, layer in layers.items():
        after = weight_grid(layer.weight, layer.weight_bits, layer.symmetric)
        pairs = zip(grids[path], after, strict=True)
        changed = max(changed, *(float((a - b).abs().max()) for a, b in pairs))
    dilated = copy.deepcopy(base)
    for path, layer in layers.items():
        target = dilated.get_submodule(path)
        target.get_parameter("weight").copy_(layer.weight)
        assert layer.dilation is not None
        target.register_forward_pre_hook(_Divide(layer.geometry.along_in(layer.dilation)))
    expected = forward(base)
    return {
        "layers": {path: [result.share, result.mean] for path, result in done.items()},
        "difference": float((forward(dilated) - expected).abs().max() / expected.abs().max()),
        "steps_changed": changed,
    }


class _Divide:
    """Forward pre-hook that divides the first input."""

    def __init__(self, divisor: Tensor) -> None:
        self.divisor = divisor

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] / self.divisor, *inputs[1:])
