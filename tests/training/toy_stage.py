"""A linear student that learns from random inputs: the loop's objective where no denoiser is needed.

Run as a program (`python toy_stage.py FOLDER ITERATIONS`) it trains in a process of its own.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from edgedm.training.loop import train
from edgedm.training.objective import Objective, Stage
from edgedm.training.options import LoopOptions


class Toy(Objective):
    """Fit a line; `x` is state of its own, `idle` never gets a gradient, and the student has dropout."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        student = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2))
        student[0].weight.data = torch.randn(3, 4, generator=generator)
        student[0].bias.data = torch.randn(3, generator=generator)
        super().__init__(student)
        self.idle = nn.Parameter(torch.ones(2))
        self.register_buffer("x", torch.zeros(4))
        self.x: Tensor

    def forward(self, iteration: int, generator: torch.Generator) -> dict[str, Tensor]:
        inputs = torch.randn(5, 4, generator=generator)
        self.x = 0.5 * self.x + inputs[0]
        return {"loss": (self.student(inputs + self.x) - inputs[:, :3]).square().mean(), "idle": self.idle.sum()}


def stage(objective: Objective | None = None, iterations: int = 6, **changes) -> Stage:
    options = LoopOptions(iterations, 1e-2, **{"batch": 5, "warm_up": 2, "save_every": 2, **changes})
    return Stage("toy", objective or Toy(), options)


def states(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the state that a loop left in `folder`."""
    state = torch.load(folder / "state.pt", weights_only=True)
    return {f"{part}.{name}": value for part in ("objective", "ema") for name, value in state[part].items()}


if __name__ == "__main__":
    train(stage(iterations=int(sys.argv[2]), save_every=1), Path(sys.argv[1]))
