"""LSQ (Esser et al., arXiv 1902.08153): quantisation-aware training with learned steps, the baseline of W4A4 and W2A4.

Weights are symmetric, one step an output channel; activations have one step a tensor. A step's gradient is scaled by
1 / sqrt(n Qp), where n values share the step and Qp is the largest code (section 2.2). The paper's activations are
unsigned because a ReLU comes before; here SiLU and norms come before, so the grid has a zero point, set once by
calibration and not learned.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from edgedm.models.attention import OPERANDS
from edgedm.quant.clock import Clock
from edgedm.quant.geometry import Layer
from edgedm.quant.methods.method import Method, Options, Site
from edgedm.quant.uniform import SMALLEST_STEP, ActivationTable, fake_quantize
from edgedm.quant.uniform_layer import UniformLayer


def scale_gradient(v: Tensor, factor: float) -> Tensor:
    """Return `v`; its gradient is multiplied by `factor`."""
    return v.detach() + (v - v.detach()) * factor


class LSQTable(ActivationTable):
    """One learned step a tensor, with LSQ's gradient scale; the zero point stays as calibrated."""

    def __init__(self, bits: int, clock: Clock) -> None:
        super().__init__(bits, (0,), clock)
        self.zero.requires_grad_(False)

    def _now(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step, zero = super()._now(x)
        return scale_gradient(step, (x.numel() * (2**self.bits - 1)) ** -0.5), zero


class LSQLayer(UniformLayer):
    """A `UniformLayer` whose weight steps start at 2 mean|W| / sqrt(Qp) and learn with LSQ's gradient scale."""

    def __init__(self, layer: Layer, weight_bits: int, activation_bits: int, clock: Clock) -> None:
        super().__init__(layer, weight_bits, activation_bits, clock, symmetric=True)
        self.largest = 2 ** (weight_bits - 1) - 1
        mean = self.weight.detach().flatten(1).abs().mean(1)
        self.step.data.copy_((2 * mean / self.largest**0.5).clamp(min=SMALLEST_STEP))
        if self.activation is not None:
            self.activation = LSQTable(activation_bits, clock)

    def quantized_weight(self) -> Tensor:
        """Return the weight on its grid, with gradients."""
        sharing = self.weight[0].numel()
        step = scale_gradient(self.step, (sharing * self.largest) ** -0.5).clamp(min=SMALLEST_STEP)
        along = self.geometry.along_out
        return fake_quantize(self.weight, along(step), along(self.zero), self.weight_bits)


class LSQOptions(Options):
    """LSQ has none: the bits are the policy's."""


def _layer(layer: Layer, site: Site, options: LSQOptions) -> nn.Module:
    del options
    return LSQLayer(layer, site.weight_bits, site.activation_bits, site.clock)


def _operands(site: Site, options: LSQOptions) -> Mapping[str, nn.Module]:
    del options
    return {name: LSQTable(site.activation_bits, site.clock) for name in OPERANDS}


LSQ = Method("lsq", LSQOptions, _layer, _operands)
