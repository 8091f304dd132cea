"""BinaryDM (arXiv 2404.05662): 1-bit weights with learned scales, activations on a signed LSQ grid.

Two published variants. EBB (v5, the default) trains two bases on the first and last blocks, is regularised and
drops to one basis on the way, and ships one; LMB (v1 to v3, the release) ships both. `bases="none"` is the vanilla
baseline.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from edgedm.errors import UnsupportedError
from edgedm.models.attention import OPERANDS
from edgedm.quant import inference
from edgedm.quant.blocks import head_and_tail
from edgedm.quant.functions import lsq, lsq_initial_step, sign_ste
from edgedm.quant.geometry import Geometry, Layer, bias_of, pair
from edgedm.quant.inference import UNQUANTIZED
from edgedm.quant.methods.method import Method, Options, Site
from edgedm.quant.uniform_layer import UniformLayer

SMALLEST_STEP = 1e-3  # keeps the step positive and representable in float16

Second = Literal["sign", "float"]


class BinaryDMOptions(Options):
    """BinaryDM's named options; defaults are the paper's (v5).

    "dynamic" activations are what the release computes, because its guard against a second initialisation tests the
    wrong name.
    """

    bases: Literal["ebb", "lmb", "none"] = Field(
        "ebb",
        description="two bases on head and tail: until `transition` (ebb), for good (lmb); one everywhere (none)",
    )
    scope: int | None = Field(
        None, ge=0, description="blocks at each end that are head and tail; None: those of half the resolution or more"
    )
    second_basis: Second = Field(
        "sign", description="float leaves the second sign out, an ablation that only ebb can train"
    )
    ebb_weight: float = Field(9e-2, ge=0, description="weight of the mean second scale in the loss (tau)")
    transition: float = Field(0.5, ge=0, le=1, description="share of the iterations after which one basis is left")
    activation: Literal["lsq", "dynamic"] = Field(
        "lsq", description="step: learned (paper), or 2 mean|x| / sqrt(Qp) in every pass (release)"
    )
    lrm: bool = Field(True, description="mimic the teacher's features in a low-rank space")
    lrm_axis: Literal["channel", "width"] = Field(
        "channel", description="of its directions: channels (paper), image width (release)"
    )
    lrm_rank_divisor: int = Field(4, ge=1, description="1 / share of the directions that are kept (K)")
    lrm_weight: float = Field(1e-4, ge=0, description="its weight in the loss")
    warm_up: bool = Field(
        False, description="binarise the middle first, then level by level outwards, one an iteration (release)"
    )
    distill: float = Field(0.0, ge=0, description="weight of the error to the teacher's output; not in the paper")

    @model_validator(mode="after")
    def _float_basis_does_not_ship(self) -> "BinaryDMOptions":
        if self.second_basis == "float" and self.bases != "ebb":
            raise ValueError("second_basis='float' cannot ship as bits: it needs bases='ebb'")
        return self


class LSQActivation(nn.Module):
    """A signed grid with a learned step, which takes LSQ's initial value from the first tensor that it sees.

    `dynamic`: no parameter; the step follows from every tensor anew, without a gradient. `enabled` is off while the
    warm-up has not come to it: then the input passes.
    """

    def __init__(self, bits: int = 4, dynamic: bool = False) -> None:
        super().__init__()
        self.bits, self.low, self.high = bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.step = None if dynamic else nn.Parameter(torch.ones(1))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("enabled", torch.ones((), dtype=torch.bool))
        self.started: Tensor
        self.enabled: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid of 2^bits codes, same shape."""
        if not self.enabled:
            return x
        if self.step is None:
            step = lsq_initial_step(x, self.high).clamp(min=inference.SMALLEST_DYNAMIC_STEP)
            return lsq(x, step, self.low, self.high)
        if not self.started:
            self.step.data.copy_(lsq_initial_step(x, self.high).clamp(min=SMALLEST_STEP))
            self.started.fill_(True)
        return lsq(x, self.step.clamp(min=SMALLEST_STEP), self.low, self.high)

    def final_step(self) -> Tensor | None:
        """Return the step that ships, f32[1]; None if it is dynamic."""
        return None if self.step is None else self.step.detach().clamp(min=SMALLEST_STEP).clone()

    def to_inference(self) -> inference.ActivationQuantizer:
        """Return the quantiser with the learned step."""
        return inference.ActivationQuantizer(self.final_step(), self.bits)


class BinaryWeightLayer(nn.Module):
    """Training form of `inference.BinaryWeightConv2d` and `BinaryWeightLinear`; starts from a float layer.

    The weight is s1 sign(W), or with a second basis s1 sign(W) + s2 sign(R), R = W - s1 sign(W), one scale an
    output channel, which start at mean|W| and mean|R|. `order` says how many bases take part: 2, 1, or 0 for the
    float layer, which the warm-up begins with; the scales start anew when it ends. `ships` is how many bases the
    layer has at inference. R is a function of W and s1, so both get gradients through it.
    """

    def __init__(
        self,
        layer: Layer,
        activation: LSQActivation | None = None,
        second: Second | None = None,
        ships: int = 1,
        path: str = "",
    ) -> None:
        super().__init__()
        self.path, self.second, self.ships = path, second, ships
        self.geometry = Geometry.of(layer)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(bias_of(layer))
        self.scale = nn.Parameter(torch.empty_like(self.bias))
        self.scale2 = None if second is None else nn.Parameter(torch.empty_like(self.bias))
        self.activation = activation
        self.register_buffer("order", torch.tensor(self.bases))
        self.order: Tensor
        self.start_scales()

    @property
    def bases(self) -> int:
        """How many bases the layer can train."""
        return 1 if self.second is None else 2

    @torch.no_grad()
    def start_scales(self) -> None:
        """Set the scales to mean|W| and mean|R| of every output channel."""
        self.scale.copy_(self.weight.abs().flatten(1).mean(1))
        if self.scale2 is not None:
            self.scale2.copy_(self.residual().abs().flatten(1).mean(1))

    @torch.no_grad()
    def set_order(self, order: int) -> None:
        """Let `order` bases take part, at most those that there are; 0 is the float layer."""
        if not self.order and order:
            self.start_scales()
        self.order.fill_(min(order, self.bases))

    def residual(self) -> Tensor:
        """Return R, the weight's shape."""
        return self.weight - sign_ste(self.weight) * self.geometry.along_out(self.scale)

    def quantized_weight(self) -> Tensor:
        """Return the weight that takes part, with gradients."""
        if not self.order:
            return self.weight
        weight = sign_ste(self.weight) * self.geometry.along_out(self.scale)
        if self.order == 1 or self.scale2 is None:
            return weight
        second = self.residual() if self.second == "float" else sign_ste(self.residual())
        return weight + second * self.geometry.along_out(self.scale2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, shaped as the float layer's."""
        if self.order and self.activation is not None:
            x = self.activation(x)
        return self.geometry.apply(x, self.quantized_weight(), self.bias)

    def to_inference(self) -> inference.BinaryWeightConv2d | inference.BinaryWeightLinear:
        """Return the packed layer. Raises `UnsupportedError` for a geometry that packed layers don't have."""
        bits, geometry = inference.pack_signs(self.weight), packable(self.geometry, self.path)
        shared = (bits, geometry.in_channels, self.scale.detach().clone(), self.bias.detach().clone())
        step = None if self.activation is None else self.activation.final_step()
        width = UNQUANTIZED if self.activation is None else self.activation.bits
        bits2 = scale2 = None
        if self.ships == 2 and self.scale2 is not None:
            bits2, scale2 = inference.pack_signs(self.residual()), self.scale2.detach().clone()
        if geometry.stride:
            stride, padding = pair(geometry.stride), pair(geometry.padding)
            return inference.BinaryWeightConv2d(
                *shared, step, stride, padding, bits2=bits2, scale2=scale2, activation_bits=width
            )
        return inference.BinaryWeightLinear(*shared, step, bits2=bits2, scale2=scale2, activation_bits=width)


def packable(geometry: Geometry, path: str) -> Geometry:
    """Return `geometry`. Raises `UnsupportedError` naming the layer unless it is linear or a plain 2-d convolution."""
    if geometry.spatial == 1 or geometry.groups != 1 or any(size != 1 for size in geometry.dilation):
        raise UnsupportedError(
            f"layer '{path}': {geometry.spatial}-d convolution with groups {geometry.groups} and dilation "
            f"{geometry.dilation} trains but has no packed form; expected a Linear or a Conv2d with groups 1 and "
            "dilation 1; leave its role 'float' in the policy"
        )
    return geometry


def _layer(layer: Layer, site: Site, options: BinaryDMOptions) -> nn.Module:
    """Return a binary layer for 1-bit weights, and the symmetric uniform one for the edges' 8 bits."""
    if site.weight_bits == UNQUANTIZED:
        raise UnsupportedError(f"layer '{site.path}': {site.bits} leaves the weight float; BinaryDM takes W1 to W8")
    if site.weight_bits != 1:
        return UniformLayer(layer, site.weight_bits, site.activation_bits, site.clock, symmetric=True)
    second = options.second_basis if options.bases != "none" and site.head_or_tail else None
    ships = 2 if options.bases == "lmb" else 1
    return BinaryWeightLayer(layer, _activation(site, options), second, ships, site.path)


def _activation(site: Site, options: BinaryDMOptions) -> LSQActivation | None:
    if site.activation_bits == 1:
        raise UnsupportedError(
            f"layer '{site.path}': {site.bits}: BinaryDM's activations take 2, 4, 6, 8 or 32 bits; one bit is BiDM's"
        )
    if site.activation_bits == UNQUANTIZED:
        return None
    return LSQActivation(site.activation_bits, options.activation == "dynamic")


def _operands(site: Site, options: BinaryDMOptions) -> dict[str, nn.Module]:
    made = {name: _activation(site, options) for name in OPERANDS}
    return {name: quantizer for name, quantizer in made.items() if quantizer is not None}


def _ends(model: nn.Module, options: BinaryDMOptions) -> list[str]:
    return head_and_tail(model, options.scope)


BINARYDM = Method("binarydm", BinaryDMOptions, _layer, _operands, ends=_ends)
