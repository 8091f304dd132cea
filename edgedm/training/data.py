"""Training images: values in [-1, 1], labels, and noisy batches of them."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedm.diffusion import NoiseSchedule
from edgedm.training.noising import add_noise

HELD_OUT_EVERY = 5
IMAGE_SIZE = 16
SCAN_SIZE = 8
SCAN_MAX = 16.0
DIGIT_CLASSES = 10


class Images(Protocol):
    """A data set of the size and channels of a model's images; anything with these members will do.

    `classes` counts the labels, 0 where there are none. `identity` changes if the images do: a kept training state
    is only resumed with the same data.
    """

    @property
    def classes(self) -> int:
        """Number of labels."""
        ...

    @property
    def identity(self) -> str:
        """What this is, in a few words, hash included."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images f32[N, C, H, W] in [-1, 1] and labels int64[N] (0 without classes) of `rows` int64[N]."""
        ...


@dataclass(frozen=True)
class TensorImages:
    """Images that are in memory: f32[N, C, H, W] in [-1, 1], labels int64[N]."""

    images: Tensor
    labels: Tensor
    classes: int
    identity: str

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels of `rows`."""
        return self.images[rows], self.labels[rows]


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

    def training(self) -> TensorImages:
        """Return the training part as a data set."""
        return TensorImages(self.train_images, self.train_labels, DIGIT_CLASSES, "digits")


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
    """Draws noisy training images onto `device`; a share `label_dropout` of the labels becomes the null class.

    Of images without classes every label is the null class; for a model without classes (`null_class` None) all are
    zeros, which nobody reads. `alphas` f64[T] are the schedule's, on `device`.
    """

    def __init__(
        self,
        data: Images,
        schedule: NoiseSchedule,
        batch: int,
        null_class: int | None,
        label_dropout: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data, self.batch, self.device = data, batch, torch.device(device)
        self.alphas = torch.from_numpy(schedule.alphas_cumprod()).to(device)
        self.null_class = null_class or 0
        self.label_dropout = label_dropout if data.classes and null_class is not None else 1.0

    def draw(self, generator: torch.Generator) -> Batch:
        """Return a batch that depends on `generator` alone, which is a CPU's whatever the device."""
        rows = torch.randint(len(self.data), (self.batch,), generator=generator)
        images, labels = self.data.take(rows)
        drop = torch.rand(self.batch, generator=generator) < self.label_dropout
        labels = torch.where(drop, self.null_class, labels)
        # Stratified: one timestep from each of N equal slices, in random order, for a steadier loss.
        within = torch.rand(self.batch, generator=generator)
        slices = (torch.randperm(self.batch, generator=generator) + within) / self.batch
        t = (slices * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise = torch.randn(images.shape, generator=generator)
        images, noise, t, labels = (part.to(self.device) for part in (images, noise, t, labels))
        return Batch(images, noise, t, labels, add_noise(images, noise, t, self.alphas))
