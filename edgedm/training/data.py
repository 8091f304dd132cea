"""The 1,797 scanned digits of scikit-learn, as the zoo sees them: 16x16, values in [-1, 1]."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

HELD_OUT_EVERY = 5
IMAGE_SIZE = 16
SCAN_MAX = 16.0


@dataclass(frozen=True)
class Digits:
    """Images f32[N, 1, 16, 16] in [-1, 1] and labels int64[N], split once and for all."""

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor

    @property
    def images(self) -> Tensor:
        """All images, f32[1797, 1, 16, 16], the training part first."""
        return torch.cat([self.train_images, self.held_out_images])


def load_digits() -> Digits:
    """Read the digits, scale 0..16 to [-1, 1], resize 8x8 to 16x16 bilinearly; every fifth image is held out."""
    from sklearn.datasets import load_digits as read

    bunch = read()
    images = torch.from_numpy(bunch.images).float()[:, None] / (SCAN_MAX / 2) - 1
    images = F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    held_out = torch.arange(len(labels)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return Digits(images[~held_out], labels[~held_out], images[held_out], labels[held_out])
