"""BinaryDM's training layers, one basis (arXiv 2404.05662, methods.md 1.2): W1A4.

Weights s1[o] sign(W) with learned s1, activations through a per-tensor signed 4-bit LSQ quantiser, bias kept.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.models.attention import OPERANDS
from edgedm.quant import inference
from edgedm.quant.functions import lsq, lsq_initial_step, sign_ste
from edgedm.quant.geometry import Layer
from edgedm.quant.methods.method import Method, Options, Site

SMALLEST_STEP = 1e-3  # keeps the step positive and representable in float16


class LSQActivation(nn.Module):
    """A learned 4-bit step; it takes LSQ's initial value from the first tensor that it sees in training."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.ones(1))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.started: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid of 16 codes, same shape."""
        if not self.started:
            self.step.data.copy_(lsq_initial_step(x).clamp(min=SMALLEST_STEP))
            self.started.fill_(True)
        return lsq(x, self.step.clamp(min=SMALLEST_STEP))

    def to_inference(self) -> inference.ActivationQuantizer4:
        """Return the quantiser with the learned step."""
        return inference.ActivationQuantizer4(self.step.detach().clamp(min=SMALLEST_STEP).clone())


class BinaryWeightConv2d(nn.Module):
    """Training form of `inference.BinaryWeightConv2d`; starts from a float convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels = layer.in_channels
        self.stride, self.padding = _pair(layer.stride), _pair(layer.padding)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(_bias(layer))
        self.scale = nn.Parameter(self.weight.detach().abs().mean((1, 2, 3)))
        self.activation = LSQActivation()

    def forward(self, x: Tensor) -> Tensor:
        """Return conv(lsq(x), s1 sign(W)) + bias: f32[N, I, H, W] -> [N, O, OH, OW]."""
        weight = sign_ste(self.weight) * self.scale[:, None, None, None]
        return F.conv2d(self.activation(x), weight, self.bias, self.stride, self.padding)

    def to_inference(self) -> inference.BinaryWeightConv2d:
        """Return the packed layer."""
        return inference.BinaryWeightConv2d(
            inference.pack_signs(self.weight),
            self.in_channels,
            self.scale.detach().clone(),
            self.bias.detach().clone(),
            self.activation.to_inference().step,
            self.stride,
            self.padding,
        )


class BinaryWeightLinear(nn.Module):
    """Training form of `inference.BinaryWeightLinear`; starts from a float linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(_bias(layer))
        self.scale = nn.Parameter(self.weight.detach().abs().mean(1))
        self.activation = LSQActivation()

    def forward(self, x: Tensor) -> Tensor:
        """Return lsq(x) @ (s1 sign(W))^T + bias: f32[..., I] -> [..., O]."""
        return F.linear(self.activation(x), sign_ste(self.weight) * self.scale[:, None], self.bias)

    def to_inference(self) -> inference.BinaryWeightLinear:
        """Return the packed layer."""
        return inference.BinaryWeightLinear(
            inference.pack_signs(self.weight),
            self.in_features,
            self.scale.detach().clone(),
            self.bias.detach().clone(),
            self.activation.to_inference().step,
        )


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    return torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach().clone()


def _pair(value: object) -> tuple[int, int]:
    assert isinstance(value, tuple) and len(value) == 2
    return value


class BinaryDMOptions(Options):
    """BinaryDM's named options; defaults are the paper's (v5)."""


def _layer(layer: Layer, site: Site, options: BinaryDMOptions) -> nn.Module:
    del site, options
    if isinstance(layer, nn.Conv2d):
        return BinaryWeightConv2d(layer)
    assert isinstance(layer, nn.Linear)
    return BinaryWeightLinear(layer)


def _operands(site: Site, options: BinaryDMOptions) -> dict[str, nn.Module]:
    del site, options
    return {name: LSQActivation() for name in OPERANDS}


BINARYDM = Method("binarydm", BinaryDMOptions, _layer, _operands)
