"""DoReFa-Net at W1A1 (Zhou et al., arXiv 1606.06160), a baseline of BiDM.

Weights sign(W) E|W| with one scale a layer; the gradient passes unchanged (eq. 7). Activations
quantize_k(clip(x, 0, 1)) with k = 1, so 0 or 1; the gradient passes inside [0, 1] (section 2.5). The paper's inputs
are never negative; a UNet's are. The two treatments are an option: "unit" is the paper's formula as it stands, which
maps everything negative to 0; "signed" maps [-1, 1] to the unit interval and back, which is sign(x) and what
BiDM's timings of DoReFa count.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedm.errors import UnsupportedError
from edgedm.quant import inference
from edgedm.quant.geometry import Geometry, Layer, bias_of
from edgedm.quant.methods.method import Method, Options, Site

Inputs = Literal["unit", "signed"]
THRESHOLD = 0.5  # of the unit interval; an input on it becomes 1, as sign(0) = +1


def unit_bit(x: Tensor) -> Tensor:
    """Return quantize_1(clip(x, 0, 1)), 0 or 1; 0.5 becomes 1. The gradient passes inside [0, 1]."""
    inside = x.clamp(0, 1)
    return inside + ((inside >= THRESHOLD).to(x.dtype) - inside).detach()


def signed_bit(x: Tensor) -> Tensor:
    """Return 2 quantize_1(clip((x + 1) / 2, 0, 1)) - 1, which is sign(x); the gradient passes inside [-1, 1]."""
    return 2 * unit_bit((x + 1) / 2) - 1


def layer_sign(weight: Tensor) -> Tensor:
    """Return sign(W) mean|W|, one mean for the whole layer; the gradient passes unchanged."""
    signs = torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean()
    return weight + (signs - weight).detach()


class DoReFaLayer(nn.Module):
    """conv(bit(x), sign(W) E|W|) + bias: the training form of `DoReFaInference`; starts from a float layer."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, inputs: Inputs) -> None:
        super().__init__()
        self.geometry, self.inputs = Geometry.of(layer), inputs
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(bias_of(layer))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, shaped as the float layer's."""
        bits = unit_bit(x) if self.inputs == "unit" else signed_bit(x)
        return self.geometry.apply(bits, layer_sign(self.weight), self.bias)

    def to_inference(self) -> "DoReFaInference":
        """Return the packed layer."""
        unit = self.inputs == "unit"
        outputs = self.weight.shape[0]
        scale = self.weight.detach().abs().mean() * (0.5 if unit else 1.0)
        threshold = torch.full((self.geometry.in_channels,), -THRESHOLD if unit else 0.0)
        packed = inference.pack_signs(self.weight)
        signs: nn.Module
        if self.geometry.spatial:
            (sh, sw), (ph, pw) = self.geometry.stride, self.geometry.padding
            signs = inference.BinaryConv2d(
                packed,
                self.geometry.in_channels,
                scale.repeat(outputs),
                threshold,
                stride=(sh, sw),
                padding=(ph, pw),
            )
        else:
            signs = inference.BinaryLinear(packed, self.geometry.in_channels, scale.repeat(outputs), threshold)
        return DoReFaInference(signs, self.bias.detach().clone(), unit)


class DoReFaInference(nn.Module):
    """signs(x) + bias, or with `unit` signs(x) + signs(1) + bias, where `signs` is a binary layer without bias.

    A bit b in {0, 1} is (s + 1) / 2 for a sign s, so W b = W s / 2 + W 1 / 2 with the factor in the layer's scale.
    The second term is the same layer on an image of ones: padding adds nothing to either.
    """

    def __init__(self, signs: nn.Module, bias: Tensor, unit: bool) -> None:
        super().__init__()
        self.signs, self.unit = signs, unit
        self.register_buffer("bias", bias)
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: x f32[N, I, H, W] or f32[..., I]."""
        y: Tensor = self.signs(x)
        if self.unit:
            y = y + self.signs(torch.ones_like(x[:1]))
        convolution = isinstance(self.signs, inference.BinaryConv2d)
        return y + (self.bias[:, None, None] if convolution else self.bias)


class DoReFaOptions(Options):
    """How signed activations are treated."""

    inputs: Inputs = Field("unit", description="1-bit codes of clip(x, 0, 1) (paper), or sign(x)")


def _layer(layer: Layer, site: Site, options: DoReFaOptions) -> nn.Module:
    if site.bits != "W1A1":
        raise UnsupportedError(f"dorefa: layer '{site.path}': expected W1A1, got {site.bits}")
    if isinstance(layer, nn.Conv1d) or (isinstance(layer, nn.Conv2d) and (layer.groups, layer.dilation) != (1, (1, 1))):
        raise UnsupportedError(f"dorefa: layer '{site.path}': expected Conv2d without groups or dilation, or Linear")
    return DoReFaLayer(layer, options.inputs)


DOREFA = Method("dorefa", DoReFaOptions, _layer)
