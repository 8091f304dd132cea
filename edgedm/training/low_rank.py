"""Low-rank representation mimicking, BinaryDM's distillation (arXiv 2404.05662)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Axis = Literal["channel", "width"]
SMALLEST_WIDTH_RANK = 2  # of the release


class LowRankMimicking(nn.Module):
    """Mean over blocks of the mean squared error between projections of the student's and the teacher's output.

    The projections are principal axes of the teacher's outputs for one batch, and stay as they are: the paper finds
    frozen axes better than renewed ones. They are buffers, `basis0` and so on.

    "channel", the paper's: outputs as rows of C values, one a pixel; C_i = F F^T, not centred as printed; the first
    round(C / divisor) eigenvectors. "width", the release's: outputs as rows of W values; centred; the first
    max(2, W // divisor). Both project features that are not centred. The release's randomised decomposition is
    replaced by the exact one.
    """

    def __init__(self, teacher: list[Tensor], axis: Axis = "channel", divisor: int = 4) -> None:
        super().__init__()
        self.axis = axis
        for index, feature in enumerate(teacher):
            self.register_buffer(f"basis{index}", principal_axes(feature, axis, divisor))

    def forward(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """Return the loss, a scalar, of features f32[N, C, H, W]."""
        errors = []
        for index, (student, teacher) in enumerate(zip(ours, theirs, strict=True)):
            projected = rows(student - teacher, self.axis) @ self.get_buffer(f"basis{index}")
            errors.append(F.mse_loss(projected, torch.zeros_like(projected)))
        return torch.stack(errors).mean()


def rows(feature: Tensor, axis: Axis) -> Tensor:
    """Return f32[N, C, H, W] as rows along an axis: f32[N H W, C] or f32[N C H, W]."""
    return feature.movedim(1, 3).flatten(0, 2) if axis == "channel" else feature.flatten(0, 2)


@torch.no_grad()
def principal_axes(feature: Tensor, axis: Axis, divisor: int) -> Tensor:
    """Return the leading axes of a feature's rows as columns, f32[C, q] or f32[W, q]."""
    values = rows(feature, axis).double()
    size = values.shape[1]
    if axis == "channel":
        rank = max(1, round(size / divisor))
    else:
        rank = min(size, max(SMALLEST_WIDTH_RANK, size // divisor))
        values = values - values.mean(0)
    _, vectors = torch.linalg.eigh(values.T @ values)
    leading: Tensor = vectors.flip(1)[:, :rank].float().contiguous()
    return leading
