"""A runner of a model with text conditions behind the interface of one with labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.runtime import Runner as BundleRunner
from edgedm.verify.conditions import text_condition

Array = NDArray[Any]


class ByLabels:
    """Runs a bundle by the conditions that labels stand for (`conditions`); a model with classes gets the label too."""

    def __init__(self, runner: BundleRunner, null: int, shape: tuple[int, int]) -> None:
        self.runner, self.null, self.shape = runner, null, shape
        self._classes = runner.manifest.classes > 0

    def prepare(
        self,
        steps: int = 50,
        sampler: str = "ddim",
        eta: float = 0.0,
        label: int | None = None,
        guidance: float = 1.0,
    ) -> object:
        """Choose a schedule and start a trajectory; guided away from the condition that stands for no label."""
        given = label if self._classes else None
        negative = self._text(None) if guidance != 1.0 else None
        return self.runner.prepare(steps, sampler, eta, given, guidance, condition=self._text(label), negative=negative)

    def run_step(self, step: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output at one step of the schedule; carried state moves on."""
        return self.runner.run_step(step, x)

    def step(
        self, timestep: int, x: NDArray[np.float32], label: int | None = None, state: Mapping[str, Array] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The output at a timestep from a given state, and the next state."""
        given = label if self._classes else None
        return self.runner.step(timestep, x, given, state, self._text(label))

    def _text(self, label: int | None) -> NDArray[np.float32]:
        return text_condition(self.null if label is None else label, self.null, self.shape)
