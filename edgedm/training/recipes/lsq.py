"""LSQ (arXiv 1902.08153): the eps error on data, weights and steps trained together."""

from collections.abc import Iterator

import torch

from edgedm.training.calibrate import calibrate
from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.qat import QuantizationAware
from edgedm.training.trajectory import Samples

CALIBRATION_BATCHES = 8


def stages(run: Run) -> Iterator[Stage]:
    """Calibrate the activation steps on a few noisy batches, then train."""
    assert run.batches is not None
    generator = torch.Generator().manual_seed(run.loop.seed)
    drawn = [run.batches.draw(generator) for _ in range(CALIBRATION_BATCHES)]
    calibrate(
        run.student,
        Samples(
            torch.cat([batch.noisy for batch in drawn]),
            torch.cat([batch.timesteps for batch in drawn]),
            torch.cat([batch.labels for batch in drawn]),
        ),
    )
    yield Stage("lsq", QuantizationAware(run.student, run.teacher, run.batches), run.loop)


RECIPE = Recipe(LoopOptions(1000, 4e-4, ema_decay=0.998), stages)
