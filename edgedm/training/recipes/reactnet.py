"""ReActNet (arXiv 2003.03488) at W1A1: the eps error and the error to the teacher's eps.

The paper distils the full-precision network's distribution over classes (section 4.3); eps takes its place.
"""

from collections.abc import Iterator

from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.qat import QuantizationAware


def stages(run: Run) -> Iterator[Stage]:
    """Train on both errors."""
    assert run.batches is not None
    yield Stage("reactnet", QuantizationAware(run.student, run.teacher, run.batches, distill=1.0), run.loop)


RECIPE = Recipe(LoopOptions(1300, 1e-3, ema_decay=0.998), stages)
