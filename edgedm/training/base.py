"""Train the float base model of the zoo: eps prediction, label dropout, EMA (Ho et al. 2020; Ho, Salimans 2022)."""

import copy
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.models.presets import DIGITS, NULL_CLASS
from edgedm.training.data import load_digits
from edgedm.training.loop import LoopOptions, Losses, train
from edgedm.training.noising import add_noise, alphas_cumprod

LABEL_DROPOUT = 0.1
BATCH = 64


class Batches:
    """Draw noisy training digits; a share `label_dropout` of the labels becomes the null class."""

    def __init__(self, batch: int = BATCH, label_dropout: float = LABEL_DROPOUT) -> None:
        digits = load_digits()
        self.images, self.labels = digits.train_images, digits.train_labels
        self.alphas, self.batch, self.label_dropout = alphas_cumprod(), batch, label_dropout

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return x_0, noise f32[N, 1, 16, 16], t int64[N], labels int64[N] and x_t."""
        rows = torch.randint(len(self.images), (self.batch,), generator=generator)
        images, labels = self.images[rows], self.labels[rows]
        drop = torch.rand(self.batch, generator=generator) < self.label_dropout
        labels = torch.where(drop, NULL_CLASS, labels)
        # Stratified: one timestep from each of N equal slices, in random order, for a steadier loss.
        within = torch.rand(self.batch, generator=generator)
        slices = (torch.randperm(self.batch, generator=generator) + within) / self.batch
        t = (slices * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise = torch.randn(images.shape, generator=generator)
        return images, noise, t, labels, add_noise(images, noise, t, self.alphas)


def train_base(folder: Path, options: LoopOptions) -> nn.Module:
    """Train and return the EMA model; resumes from `folder`."""
    torch.manual_seed(options.seed)
    model: nn.Module = UNet2DModel(**DIGITS)
    ema: nn.Module = copy.deepcopy(model).requires_grad_(False)
    batches = Batches()

    def loss(generator: torch.Generator) -> Losses:
        _, noise, t, labels, noisy = batches.draw(generator)
        eps = model(noisy, t, class_labels=labels, return_dict=False)[0]
        return {"loss": F.mse_loss(eps.float(), noise)}

    train("base", model, ema, loss, options, folder)
    return ema
