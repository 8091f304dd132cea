"""Training images: values in [-1, 1], labels, and noisy batches of them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedm.diffusion import NoiseSchedule
from edgedm.training.noising import add_noise

HELD_OUT_EVERY = 5
IMAGE_SIZE = 16
SCAN_SIZE = 8
SCAN_MAX = 16.0


@dataclass(frozen=True)
class Digits:
    """Images f32[N, 1, size, size] in [-1, 1] and labels int64[N], split once and for all."""

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor

    @property
    def images(self) -> Tensor:
        """All images, f32[1797, 1, size, size], the training part first."""
        return torch.cat([self.train_images, self.held_out_images])


def load_digits(size: int = IMAGE_SIZE) -> Digits:
    """Read the digits, scale 0..16 to [-1, 1], resize 8x8 bilinearly to `size`; every fifth image is held out."""
    from sklearn.datasets import load_digits as read

    bunch = read()
    images = torch.from_numpy(bunch.images).float()[:, None] / (SCAN_MAX / 2) - 1
    if size != SCAN_SIZE:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    held_out = torch.arange(len(labels)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return Digits(images[~held_out], labels[~held_out], images[held_out], labels[held_out])


@dataclass(frozen=True)
class Batch:
    """x_0, its noise and x_t, f32[N, C, H, W]; timesteps t int64[N]; labels int64[N], the null class included."""

    images: Tensor
    noise: Tensor
    timesteps: Tensor
    labels: Tensor
    noisy: Tensor


class Batches:
    """Draws noisy training images; a share `label_dropout` of the labels becomes the null class."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        schedule: NoiseSchedule,
        batch: int,
        null_class: int,
        label_dropout: float,
    ) -> None:
        self.images, self.labels, self.batch = images, labels, batch
        self.alphas = torch.from_numpy(schedule.alphas_cumprod())
        self.null_class, self.label_dropout = null_class, label_dropout

    def draw(self, generator: torch.Generator) -> Batch:
        """Return a batch that depends on `generator` alone."""
        rows = torch.randint(len(self.images), (self.batch,), generator=generator)
        images, labels = self.images[rows], self.labels[rows]
        drop = torch.rand(self.batch, generator=generator) < self.label_dropout
        labels = torch.where(drop, self.null_class, labels)
        # Stratified: one timestep from each of N equal slices, in random order, for a steadier loss.
        within = torch.rand(self.batch, generator=generator)
        slices = (torch.randperm(self.batch, generator=generator) + within) / self.batch
        t = (slices * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise = torch.randn(images.shape, generator=generator)
        return Batch(images, noise, t, labels, add_noise(images, noise, t, self.alphas))
