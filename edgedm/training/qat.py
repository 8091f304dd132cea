"""Quantisation-aware training: the eps error, distillation from the teacher, BiDM's cross-timestep unroll."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.models.denoiser import Denoiser
from edgedm.models.roles import block_ends
from edgedm.training.data import Batch, Batches
from edgedm.training.noising import add_noise
from edgedm.training.objective import Frozen, Losses, Objective

FeatureLoss = Callable[[list[Tensor], list[Tensor]], Tensor]


class QuantizationAware(Objective):
    """eps error + `distill` times the error to the teacher's eps + `feature_weight` times a loss of block outputs.

    `gap` > 0 trains the cross-timestep connection: the student's features at timestep t + gap are mixed in.
    """

    def __init__(
        self,
        student: Denoiser,
        teacher: nn.Module,
        batches: Batches,
        distill: float = 0.0,
        feature_loss: FeatureLoss | None = None,
        feature_weight: float = 0.0,
        gap: int = 0,
    ) -> None:
        super().__init__(student)
        self.teacher, self.batches = Frozen(teacher), batches
        self.distill, self.gap = distill, gap if student.taps else 0
        self.feature_loss, self.feature_weight = feature_loss, feature_weight
        self.ours, self.theirs = Features(student.unet), Features(teacher)

    def forward(self, iteration: int, generator: torch.Generator) -> Losses:
        """Return "eps", "distill" and "feature", and their weighted sum "loss"."""
        del iteration
        batch = self.batches.draw(generator)
        mix = self._unroll(batch) if self.gap else None
        self.ours.start(self.feature_loss is not None)
        arguments = (batch.noisy, batch.timesteps, batch.labels)
        eps = self.student.record(*arguments) if mix is None else self.student.mix(*arguments, *mix)[0]
        terms = {"eps": F.mse_loss(eps.float(), batch.noise)}
        total = terms["eps"]
        if self.distill or self.feature_loss is not None:
            self.theirs.start(self.feature_loss is not None)
            with torch.no_grad():
                target = self.teacher.module(batch.noisy, batch.timesteps, class_labels=batch.labels)[0].float()
            terms["distill"] = F.mse_loss(eps.float(), target)
            total = total + self.distill * terms["distill"]
        if self.feature_loss is not None:
            with torch.autocast(eps.device.type, enabled=False):
                terms["feature"] = self.feature_loss(self.ours.kept, self.theirs.kept)
            total = total + self.feature_weight * terms["feature"]
        return {"loss": total, **terms}

    def _unroll(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Return the mix coefficients [N, 1, 1, 1] of each tap and the detached features of timestep t + gap.

        A trajectory has no state at its first step, so nothing is mixed where t + gap leaves the schedule.
        """
        student, alphas = self.student, self.batches.alphas
        before = (batch.timesteps + self.gap).clamp(max=len(alphas) - 1)
        with torch.no_grad():
            student.record(add_noise(batch.images, batch.noise, before, alphas), before, batch.labels)
        state = [feature.detach() for feature in student.carry.next]
        has_state = (batch.timesteps + self.gap < len(alphas)).float()[:, None]
        row = (torch.bucketize(batch.timesteps, student.edges, right=True) - 1).clamp(min=0)
        rows = student.cache_coefficients[row] * has_state
        mixes = [rows[:, j, None, None, None].to(feature.dtype) for j, feature in enumerate(state)]
        return mixes, state


class Features:
    """Outputs of the blocks of a UNet (input, middle and output blocks), for distillation."""

    def __init__(self, unet: nn.Module) -> None:
        self.kept: list[Tensor] = []
        self.keep = False
        for path in block_ends(unet):
            unet.get_submodule(path).register_forward_hook(self._hook)

    def start(self, keep: bool) -> None:
        """Forget the features of the last pass; keep those of the next one if `keep`."""
        self.kept, self.keep = [], keep

    def _hook(self, _module: nn.Module, _inputs: object, feature: Tensor) -> None:
        if self.keep:
            self.kept.append(feature)
