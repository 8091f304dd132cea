"""BinaryDM (arXiv 2404.05662): two bases and their end (EBB), low-rank mimicking (LRM), progressive warm-up."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgedm.models.attention import ExplicitAttention
from edgedm.quant.blocks import inside, outwards
from edgedm.quant.methods.binarydm import BinaryDMOptions, BinaryWeightLayer, LSQActivation
from edgedm.training.calibrate import calibrating
from edgedm.training.low_rank import LowRankMimicking
from edgedm.training.objective import Recipe, Run, Stage
from edgedm.training.options import LoopOptions
from edgedm.training.qat import FeatureTerm, QuantizationAware, Seen, Term, block_outputs


def stages(run: Run) -> Iterator[Stage]:
    """Start quantisers and the mimicking's axes from one batch, then train."""
    options, batches = run.options, run.batches
    assert batches is not None and isinstance(options, BinaryDMOptions)
    first = batches.draw(torch.Generator().manual_seed(run.loop.seed))
    with torch.no_grad(), calibrating(run.student):
        run.student.record(first.noisy, first.timesteps, first.labels)
    transition = int(options.transition * run.loop.iterations) if options.bases == "ebb" else run.loop.iterations
    terms: list[Term] = []
    if options.bases == "ebb":
        terms.append(SecondScales(options.ebb_weight, transition))
    if options.lrm:
        axes = LowRankMimicking(block_outputs(run.teacher, first), options.lrm_axis, options.lrm_rank_divisor)
        terms.append(FeatureTerm("lrm", options.lrm_weight, axes))
    progress = Progress(run.student.unet, transition, options.warm_up)
    objective = QuantizationAware(run.student, run.teacher, batches, options.distill, terms, schedule=progress)
    yield Stage("binarydm", objective, run.loop)


class SecondScales(Term):
    """L_EBB: the mean over layers of the mean second scale, which draws the second basis to 0 until it is dropped.

    The paper writes 1/N sum s2 for scales a channel; the mean over a layer's channels is this project's reading.
    After the transition, and without such layers, it is 0.
    """

    def __init__(self, weight: float, transition: int) -> None:
        super().__init__("ebb", weight)
        self.transition = transition

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean."""
        layers = [layer for layer in seen.student.modules() if isinstance(layer, BinaryWeightLayer)]
        scales = [layer.scale2.mean() for layer in layers if layer.scale2 is not None]
        if seen.iteration >= self.transition or not scales:
            return next(seen.student.parameters()).new_zeros(())
        return torch.stack(scales).mean()


class Progress:
    """How far a UNet is binarised, from the number of the iteration alone.

    With `warm_up` iteration i binarises the i-th group of `outwards`: the middle block, then level by level, and
    after the last one the products of attention; before that they are float. From `transition` on one basis is left.
    """

    def __init__(self, unet: nn.Module, transition: int, warm_up: bool) -> None:
        self.transition = transition
        groups = outwards(unet) if warm_up else []
        self.layers: list[tuple[BinaryWeightLayer, int]] = []
        self.operands: list[tuple[LSQActivation, int]] = []
        for path, module in unet.named_modules():
            if isinstance(module, BinaryWeightLayer):
                starts = [index for index, group in enumerate(groups) if inside(path, group)]
                self.layers.append((module, min(starts, default=0)))
            if isinstance(module, ExplicitAttention):
                found = [each for each in module.modules() if isinstance(each, LSQActivation)]
                self.operands += [(each, len(groups)) for each in found]

    def __call__(self, iteration: int) -> None:
        """Set what holds in an iteration."""
        for layer, start in self.layers:
            layer.set_order(0 if iteration < start else 1 if iteration >= self.transition else 2)
        for quantizer, start in self.operands:
            quantizer.enabled.fill_(iteration >= start)


RECIPE = Recipe(LoopOptions(1000, 5e-4, ema_decay=0.998, bf16=True), stages)
