"""Quantisation-aware training: the eps error, the error to the teacher's, further terms, BiDM's unroll."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.models.denoiser import Denoiser
from edgedm.models.roles import block_ends
from edgedm.training.data import Batch, Batches
from edgedm.training.noising import add_noise
from edgedm.training.objective import Frozen, Losses, Objective
from edgedm.training.trajectory import predictor

FeatureLoss = Callable[[list[Tensor], list[Tensor]], Tensor]
Schedule = Callable[[int], None]


@dataclass(frozen=True)
class Seen:
    """What an iteration shows its terms: its number, the student, and the block outputs of student and teacher.

    The block outputs are empty where no term asks for them.
    """

    iteration: int
    student: Denoiser
    ours: list[Tensor]
    theirs: list[Tensor]


class Term(nn.Module):
    """A further loss with a name and a weight; what must survive a kill is a buffer or a parameter of it."""

    wants_features = False

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        self.name, self.weight = name, weight

    def forward(self, seen: Seen) -> Tensor:
        """Return the loss without its weight, a scalar; it may depend on the iteration by its number alone."""
        raise NotImplementedError


class FeatureTerm(Term):
    """A loss of the block outputs of student and teacher, in float32."""

    wants_features = True

    def __init__(self, name: str, weight: float, loss: FeatureLoss) -> None:
        super().__init__(name, weight)
        self.loss = loss

    def forward(self, seen: Seen) -> Tensor:
        """Return the loss of the block outputs."""
        return self.loss(seen.ours, seen.theirs)


class QuantizationAware(Objective):
    """eps error + `distill` times the error to the teacher's eps + the weighted `terms`.

    `schedule` is called with the number of each iteration before its forward pass; it sets what changes on the way
    (how far layers are binarised) as a function of that number alone, so that a resumed run is the same. `gap` > 0
    trains the cross-timestep connection: the student's features at timestep t + gap are mixed in.
    """

    def __init__(
        self,
        student: Denoiser,
        teacher: nn.Module,
        batches: Batches,
        distill: float = 0.0,
        terms: Sequence[Term] = (),
        gap: int = 0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(student)
        self.teacher, self.batches = Frozen(teacher), batches
        self.distill, self.gap, self.schedule = distill, gap if student.taps else 0, schedule
        self.terms = nn.ModuleList(terms)
        self.wants_features = any(term.wants_features for term in terms)
        if self.wants_features:
            self.ours, self.theirs = Features(student.unet), Features(teacher)

    def forward(self, iteration: int, generator: torch.Generator) -> Losses:
        """Return "eps", "distill" where the teacher ran, every term by its name, and their weighted sum "loss"."""
        if self.schedule is not None:
            self.schedule(iteration)
        batch = self.batches.draw(generator)
        mix = self._unroll(batch) if self.gap else None
        if self.wants_features:
            self.ours.start()
            self.theirs.start()
        eps = self._eps(batch, mix)
        losses = {"eps": F.mse_loss(eps.float(), batch.noise)}
        total = losses["eps"]
        if self.distill or self.wants_features:
            with torch.no_grad():
                target = predictor(self.teacher.module)(batch.noisy, batch.timesteps, batch.labels).float()
            losses["distill"] = F.mse_loss(eps.float(), target)
            total = total + self.distill * losses["distill"]
        seen = self._seen(iteration)
        with torch.autocast(eps.device.type, enabled=False):
            for term in self.terms:
                assert isinstance(term, Term)
                losses[term.name] = term(seen)
                total = total + term.weight * losses[term.name]
        return {"loss": total, **losses}

    def _eps(self, batch: Batch, mix: tuple[list[Tensor], list[Tensor]] | None) -> Tensor:
        if mix is None:
            return self.student.record(batch.noisy, batch.timesteps, batch.labels)
        return self.student.mix(batch.noisy, batch.timesteps, batch.labels, *mix)[0]

    def _seen(self, iteration: int) -> Seen:
        if not self.wants_features:
            return Seen(iteration, self.student, [], [])
        return Seen(iteration, self.student, self.ours.finish(), self.theirs.finish())

    def _unroll(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Return the mix coefficients [N, 1, 1, 1] of each tap and the detached features of timestep t + gap.

        A trajectory has no state at its first step, so nothing is mixed where t + gap leaves the schedule (the
        release clamps t + gap instead, and mixes a step with itself).
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
    """Outputs of the blocks of a UNet (input, middle and output blocks) in passes between `start` and `finish`."""

    def __init__(self, unet: nn.Module) -> None:
        self.kept: list[Tensor] | None = None
        self.handles = [unet.get_submodule(path).register_forward_hook(self._hook) for path in block_ends(unet)]

    def start(self) -> None:
        """Keep the features of the next pass."""
        self.kept = []

    def finish(self) -> list[Tensor]:
        """Return the features, float32, and keep no more."""
        kept, self.kept = self.kept, None
        assert kept is not None
        return [feature.float() for feature in kept]

    def remove(self) -> None:
        """Take the hooks off the UNet."""
        for handle in self.handles:
            handle.remove()

    def _hook(self, _module: nn.Module, _inputs: object, feature: Tensor) -> None:
        if self.kept is not None:
            self.kept.append(feature)


@torch.no_grad()
def block_outputs(unet: nn.Module, batch: Batch) -> list[Tensor]:
    """Return the outputs f32[N, C, H, W] of the blocks of a float UNet for a batch."""
    features = Features(unet)
    features.start()
    predictor(unet)(batch.noisy, batch.timesteps, batch.labels)
    features.remove()
    return features.finish()
