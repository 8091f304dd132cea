"""DoReFa-Net (arXiv 1606.06160) at W1A1: the eps error alone."""

from collections.abc import Iterator

from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.qat import QuantizationAware


def stages(run: Run) -> Iterator[Stage]:
    """Train on the eps error."""
    assert run.batches is not None
    yield Stage("dorefa", QuantizationAware(run.student, run.teacher, run.batches), run.loop)


RECIPE = Recipe(LoopOptions(1300, 1e-3, ema_decay=0.998), stages)
