"""What a stage of training minimises, and the stages that a method's recipe consists of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgedm.diffusion import NoiseSchedule
from edgedm.models.denoiser import Denoiser
from edgedm.quant.methods.method import Options
from edgedm.training.data import Batches
from edgedm.training.options import LoopOptions

Losses = dict[str, Tensor]


class Objective(nn.Module):
    """A loss of the student. `forward` returns scalars by name, of which "loss" is minimised.

    Whatever must survive a kill is a buffer or a parameter here (a trajectory's x_t, a frozen basis); frozen helpers
    such as the teacher are not: hold them in a `Frozen`.
    """

    def __init__(self, student: Denoiser) -> None:
        super().__init__()
        self.student = student

    def forward(self, iteration: int, generator: torch.Generator) -> Losses:
        """Return the losses of an iteration; everything random comes from `generator`."""
        raise NotImplementedError

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups; every parameter that asks for a gradient, at one rate, by default."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": learning_rate}]


class Frozen:
    """Holds a module without making it a part of its owner: no gradients, not saved, not averaged."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)


@dataclass(frozen=True)
class Stage:
    """One training loop of a recipe; its state is kept under its name."""

    name: str
    objective: Objective
    loop: LoopOptions


@dataclass
class Run:
    """All that a recipe needs. `batches` is None for data-free training; `shape` is (C, H, W) of an image.

    `null_class` is None for a model without classes, whose labels are zeros that nobody reads; labels number
    the prompts of a student that has some, and it is the last one. Student and teacher live on `device`. What a recipe
    measures goes to `figures`. `trained` is what the last finished stage ended with, its average if it keeps one.
    """

    student: Denoiser
    teacher: nn.Module
    batches: Batches | None
    schedule: NoiseSchedule
    shape: tuple[int, int, int]
    null_class: int | None
    options: Options
    loop: LoopOptions
    trained: Denoiser | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the student lives."""
        return next(self.student.parameters()).device


@dataclass(frozen=True)
class Recipe:
    """How a method trains: its stages, made lazily, one after the other, on the same student.

    A stage is made when the one before it is done, so calibration may stand between them; it must depend on the
    seed alone. `data_free` recipes never touch `Run.batches`.
    """

    loop: LoopOptions
    stages: Callable[[Run], Iterator[Stage]]
    data_free: bool = False
