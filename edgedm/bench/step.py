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
    rng, text = np.random.default_rng(0), runner.manifest.condition_shape
    x = rng.standard_normal(runner.manifest.image_shape, dtype=np.float32)
    condition = None if text is None else rng.standard_normal(text, dtype=np.float32)
    runner.prepare(schedule.steps, schedule.sampler, condition=condition)
    return schedule.steps // 2, x
