"""EfficientDM's training layers (arXiv 2310.03270): integer weights corrected by a low-rank update
(QALoRA), activation quantisers with a row a timestep (TALSQ).

    W^ = Q(W0 + B A; step, zero)        y = conv(Q(x; step_x[t], zero_x[t]), W^) + bias

W0 is frozen. B A ends up in the integers: the layer that runs is an ordinary `QuantLayer`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedm.errors import UnsupportedError
from edgedm.models.attention import OPERANDS
from edgedm.models.roles import Role
from edgedm.ops import dequantize_weight, pack_codes
from edgedm.quant import integer
from edgedm.quant.clock import Clock
from edgedm.quant.geometry import Geometry, Layer
from edgedm.quant.inference import UNQUANTIZED
from edgedm.quant.methods.method import Method, Options, Site
from edgedm.quant.uniform import SMALLEST_STEP, ActivationTable, fake_quantize
from edgedm.quant.uniform_layer import UniformLayer, weight_grid

EDGES: tuple[Role, ...] = ("conv_in", "time_mlp", "conv_out")  # calibrated only: no update, no table

Base = Literal["quantized", "float"]

RELEASED_RATES = {"lora_divisor": 2500.0, "step_rate": 1e-6, "activation_rate": 5e-4}  # for 16,000 updates


class EfficientDMOptions(Options):
    """EfficientDM's named options; defaults are the release's, except `guidance` and the three rates.

    The release trains 16,000 updates. The recipe here trains 2,000 and the integers would hardly move at its rates;
    ours are larger. `EfficientDMOptions(**RELEASED_RATES)` are the release's.
    """

    qalora: bool = Field(True, description="train the low-rank update; else the quantisers alone")
    rank: int = Field(32, ge=1, description="of the update, at most min(O, I / groups * kernel)")
    base: Base = Field(
        "quantized", description="W0: the packed integers times the trained step (release), or float (eq. 6)"
    )
    scale_aware: bool = Field(True, description="the update's rate follows the layer's mean weight step")
    talsq: bool = Field(True, description="an activation row for each timestep bin; else one")
    bins: int = Field(100, ge=1, description="timestep bins")
    trajectory_steps: int = Field(100, ge=1, description="denoising steps of a training trajectory")
    eta: float = Field(1.0, ge=0.0, le=1.0, description="DDIM's eta on it")
    guidance: float = Field(
        1.0, ge=1.0, description="classifier-free guidance on it and in the loss; 1: none (the release: 1.5)"
    )
    lora_divisor: float = Field(
        25.0, gt=0.0, description="the update's rate is the mean weight step divided by it (the release: 2500)"
    )
    step_rate: float = Field(1e-5, ge=0.0, description="learning rate of the weight steps (the release: 1e-6)")
    activation_rate: float = Field(1e-3, ge=0.0, description="learning rate of the activation rows (the release: 5e-4)")
    zero_learning: bool = Field(True, description="train the activations' zero points too")
    balance: bool = Field(
        False,
        description="divide each step's loss by its size, so that all timesteps count alike (ours, not the paper's)",
    )


class TimestepTable(ActivationTable):
    """TALSQ: an `ActivationTable` that knows which rows were trained.

    A trajectory of fewer steps than rows skips some. In evaluation, and in the quantiser that runs, a skipped row
    is a copy of the nearest trained one, so a sampler with other steps never meets an untrained row (the release
    takes every n-th row for fewer steps; the paper says that it interpolates).
    """

    def __init__(self, bits: int, edges: Sequence[int], clock: Clock) -> None:
        super().__init__(bits, edges, clock)
        self.register_buffer("visited", torch.zeros(len(edges), dtype=torch.bool))
        self.visited: Tensor

    def row(self) -> Tensor:
        """Return the row int64[N] (or [1]) of the current timestep, noting it in training."""
        row = super().row()
        if not self.training:
            return self.nearest()[row]
        self.visited[row] = True
        return row

    def nearest(self) -> Tensor:
        """Return the nearest trained row of each row, int64[bins]; the row itself where none was trained."""
        rows = torch.arange(len(self.visited), device=self.visited.device)
        trained = rows[self.visited]
        return trained[(rows[:, None] - trained).abs().argmin(1)] if len(trained) else rows

    def to_inference(self) -> integer.UniformQuantizer:
        """Return the quantiser that runs: skipped rows filled, zero points rounded and clamped to the grid."""
        quantizer = super().to_inference()
        return integer.UniformQuantizer(quantizer.table[self.nearest()], quantizer.edges, self.bits, self.clock)


class QALoRALayer(nn.Module):
    """conv(quantise(x), quantise(W0 + B A)) + bias; starts from a float layer, with B = 0.

    A f32[r, I / groups, k...] is a convolution like the layer's own and B f32[O, r] a pointwise one; merged,
    dW = sum_r B[o, r] A[r]. `rank` is clipped to min(O, I / groups * kernel); 0: no update. `step` f32[O] is
    trained, `zero` f32[O] are frozen integers. W0 is the buffer `base`: with "quantized", uint8 codes as
    `pack_codes` packs them, and W0 = (codes - zero) step moves with the trained step; with "float", the weight.
    """

    def __init__(
        self,
        layer: Layer,
        weight_bits: int,
        activation_bits: int,
        clock: Clock,
        edges: Sequence[int] = (0,),
        rank: int = 32,
        base: Base = "quantized",
    ) -> None:
        super().__init__()
        self.weight_bits, self.geometry = weight_bits, Geometry.of(layer)
        weight = layer.weight.detach().clone()
        self.shape = tuple(weight.shape)
        step, zero = weight_grid(weight, weight_bits, symmetric=False)
        self.step = nn.Parameter(step)
        self.register_buffer("zero", zero)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.register_buffer("base", pack_codes(self._codes(weight), weight_bits) if base == "quantized" else weight)
        self.zero: Tensor
        self.bias: Tensor | None
        self.base: Tensor
        self.rank = min(rank, self.shape[0], math.prod(self.shape[1:]))
        if self.rank:
            self.lora_a = nn.Parameter(torch.empty(self.rank, *self.shape[1:]))
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
            self.lora_b = nn.Parameter(torch.zeros(self.shape[0], self.rank))
        quantised = activation_bits != UNQUANTIZED
        self.activation = TimestepTable(activation_bits, edges, clock) if quantised else None

    def merged_weight(self) -> Tensor:
        """Return W0 + B A before it is quantised, f32 in the weight's shape, with gradients."""
        weight = self.base
        if weight.dtype == torch.uint8:
            weight = dequantize_weight(self.base, self._step(), self.zero, self.weight_bits, self.shape)
        if not self.rank:
            return weight
        return weight + (self.lora_b @ self.lora_a.flatten(1)).reshape(self.shape)

    def quantized_weight(self) -> Tensor:
        """Return W^, with gradients to A, B and the step."""
        along = self.geometry.along_out
        return fake_quantize(self.merged_weight(), along(self._step()), along(self.zero), self.weight_bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, shaped as the float layer's."""
        x = x if self.activation is None else self.activation(x)
        return self.geometry.apply(x, self.quantized_weight(), self.bias)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the integer weight, float tensor of 0 .. 2^bits - 1 in the weight's shape."""
        return self._codes(self.merged_weight())

    def to_inference(self) -> integer.QuantLayer:
        """Return the layer that runs: the update is in its integers."""
        return integer.QuantLayer(
            pack_codes(self.codes(), self.weight_bits),
            self.shape,
            self.weight_bits,
            self._step().detach().clone(),
            self.zero.to(torch.uint8),
            None if self.bias is None else self.bias.clone(),
            None if self.activation is None else self.activation.to_inference(),
            self.geometry,
        )

    def _step(self) -> Tensor:
        return self.step.clamp(min=SMALLEST_STEP)

    def _codes(self, weight: Tensor) -> Tensor:
        step, zero = self.geometry.along_out(self._step().detach()), self.geometry.along_out(self.zero)
        codes: Tensor = (weight / step).round().add(zero).clamp(0, 2**self.weight_bits - 1)
        return codes


def _layer(layer: Layer, site: Site, options: EfficientDMOptions) -> nn.Module:
    if site.weight_bits in (1, UNQUANTIZED):
        raise UnsupportedError(
            f"layer '{site.path}', role {site.role}: EfficientDM has weights of 2, 4, 6 or 8 bits, the policy says "
            f"{site.bits!r}; choose one of them or 'float'"
        )
    bits = (site.weight_bits, site.activation_bits, site.clock)
    if site.role in EDGES:
        return UniformLayer(layer, *bits)
    return QALoRALayer(layer, *bits, site.edges, options.rank if options.qalora else 0, options.base)


def _operands(site: Site, options: EfficientDMOptions) -> Mapping[str, nn.Module]:
    """Return per-tensor tables; no published policy of EfficientDM asks for them."""
    del options
    return {name: TimestepTable(site.activation_bits, site.edges, site.clock) for name in OPERANDS}


def _bins(options: EfficientDMOptions) -> int:
    return options.bins if options.talsq else 1


EFFICIENTDM = Method("efficientdm", EfficientDMOptions, _layer, _operands, _bins)
