"""BiDM (arXiv 2412.05926) and XNOR-Net, its baseline."""

from collections.abc import Iterator

import torch

from edgedm.quant.methods.bidm import BiDMOptions, XNOROptions
from edgedm.training.calibrate import calibrating
from edgedm.training.losses import l2_loss, spd_loss
from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.qat import FeatureTerm, QuantizationAware

_DISTILLATIONS = {"spd": spd_loss, "l2": l2_loss}


def stages(run: Run) -> Iterator[Stage]:
    """Train with the distillation of block outputs and the cross-timestep connection that the options ask for."""
    options = run.options
    assert isinstance(options, BiDMOptions)
    kind, terms = options.distillation, []
    if kind != "none":
        terms.append(FeatureTerm(kind, options.spd_weight, _DISTILLATIONS[kind]))
    yield Stage("bidm", _objective(run, options, terms, options.gap), run.loop)


def baseline(run: Run) -> Iterator[Stage]:
    """Train without either."""
    assert isinstance(run.options, XNOROptions)
    yield Stage("xnor", _objective(run, run.options, [], 0), run.loop)


def _objective(run: Run, options: XNOROptions, terms: list[FeatureTerm], gap: int) -> QuantizationAware:
    """Return the objective, once the quantisers of layers with more than one bit have been set from one batch."""
    assert run.batches is not None
    first = run.batches.draw(torch.Generator().manual_seed(run.loop.seed))
    with torch.no_grad(), calibrating(run.student):
        run.student.record(first.noisy, first.timesteps, first.labels)
    return QuantizationAware(run.student, run.teacher, run.batches, options.distill, terms, gap)


_LOOP = LoopOptions(1300, 1e-3, ema_decay=0.998, bf16=True)
RECIPE = Recipe(_LOOP, stages)
XNOR = Recipe(_LOOP, baseline)
