"""The step that is timed: one in the middle of the bundle's default schedule, on seeded noise, batch 1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedm.runtime.local import LocalRunner


def middle_step(runner: LocalRunner) -> tuple[int, NDArray[Any]]:
    """Prepare the bundle's default schedule; return a step's number and x f32[C, H, W].

    Any step would do: its work does not depend on the timestep.
    """
    schedule = runner.manifest.schedule
    runner.prepare(schedule.steps, schedule.sampler)
    x = np.random.default_rng(0).standard_normal(runner.manifest.image_shape, dtype=np.float32)
    return schedule.steps // 2, x
