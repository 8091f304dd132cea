"""BinaryDM (arXiv 2404.05662): eps error and the error to the teacher's eps."""

from collections.abc import Iterator

import torch

from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.qat import QuantizationAware


def stages(run: Run) -> Iterator[Stage]:
    """Start the activation steps from one batch, then train."""
    assert run.batches is not None
    batch = run.batches.draw(torch.Generator().manual_seed(0))
    with torch.no_grad():
        run.student.record(batch.noisy, batch.timesteps, batch.labels)
    objective = QuantizationAware(run.student, run.teacher, run.batches, distill=1.0)
    yield Stage("binarydm", objective, run.loop)


RECIPE = Recipe(LoopOptions(1000, 5e-4, ema_decay=0.998, bf16=True), stages)
