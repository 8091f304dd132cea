"""BiDM (arXiv 2412.05926) and XNOR-Net, its baseline."""

from collections.abc import Iterator

from edgedm.quant.methods.bidm import BiDMOptions
from edgedm.training.losses import spd_loss
from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.qat import QuantizationAware

SPD_WEIGHT = 1e-2
GAP = 20  # sampling with 50 steps carries the state over 20 timesteps


def stages(run: Run) -> Iterator[Stage]:
    """Train with patch distillation and the cross-timestep connection, as the options say."""
    options = run.options
    assert run.batches is not None and isinstance(options, BiDMOptions)
    spd = spd_loss if options.spd else None
    objective = QuantizationAware(run.student, run.teacher, run.batches, 1.0, spd, SPD_WEIGHT, GAP)
    yield Stage("bidm", objective, run.loop)


def baseline(run: Run) -> Iterator[Stage]:
    """Train on the eps error alone."""
    assert run.batches is not None
    yield Stage("xnor", QuantizationAware(run.student, run.teacher, run.batches), run.loop)


_LOOP = LoopOptions(1300, 1e-3, ema_decay=0.998, bf16=True)
RECIPE = Recipe(_LOOP, stages)
XNOR = Recipe(_LOOP, baseline)
