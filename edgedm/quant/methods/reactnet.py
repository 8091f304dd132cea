"""ReActNet (Liu et al., arXiv 2003.03488) at W1A1, a baseline of BiDM.

    y = RPReLU(conv(sign(x + theta[i]), alpha[o] sign(W)) + bias + S(x)),    alpha[o] = mean|W[o, ...]|
    RPReLU(v) = v - gamma + zeta where v > gamma, else slope (v - gamma) + zeta, each one value a channel (eq. 4)

`theta` is RSign's threshold with the sign of this project (the paper subtracts it, eq. 3). alpha is recomputed from
the latent weight and has no gradient; gradients of the signs are those of the release (Bi-Real polynomial for
activations, a clipped pass for weights). The shortcut S is the identity, a 2x2 mean for stride 2, or, where channel
counts differ, a float 1x1 convolution: the paper repeats channels there, which needs counts that divide each other.
Linear layers have neither S nor RPReLU, as BiDM treats its 1-d convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.errors import UnsupportedError
from edgedm.quant import inference
from edgedm.quant.functions import scaled_sign_ste, sign_polynomial
from edgedm.quant.geometry import Geometry, Layer, bias_of, pair
from edgedm.quant.methods.method import Method, Options, Site

INITIAL_SLOPE = 0.25  # torch's PReLU starts there


def rprelu(v: Tensor, shift: Tensor, slope: Tensor, lift: Tensor) -> Tensor:
    """Return RPReLU of f32[N, O, H, W]; `shift`, `slope` and `lift` are gamma, beta and zeta, f32[O]."""
    moved = v - shift[:, None, None]
    return F.relu(moved) - slope[:, None, None] * F.relu(-moved) + lift[:, None, None]


class ReActConv2d(nn.Module):
    """Training form of `ReActInference`; starts from a float convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.geometry = Geometry.of(layer)
        self.stride, self.padding = pair(self.geometry.stride), pair(self.geometry.padding)
        inputs, outputs = layer.in_channels, layer.out_channels
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(bias_of(layer))
        self.threshold = nn.Parameter(torch.zeros(inputs))
        self.shift = nn.Parameter(torch.zeros(outputs))
        self.slope = nn.Parameter(torch.full((outputs,), INITIAL_SLOPE))
        self.lift = nn.Parameter(torch.zeros(outputs))
        self.shortcut: nn.Module
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, self.stride, bias=False)
        else:
            self.shortcut = nn.Identity() if self.stride == (1, 1) else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: [N, I, H, W] -> [N, O, OH, OW]."""
        signs = sign_polynomial(x + self.threshold[:, None, None])
        alpha = self.weight.detach().abs().mean((1, 2, 3), keepdim=True)
        y = self.geometry.apply(signs, scaled_sign_ste(self.weight, alpha), self.bias)
        return rprelu(y + self.shortcut(x), self.shift, self.slope, self.lift)

    def to_inference(self) -> "ReActInference":
        """Return the packed layer; the bias becomes a part of RPReLU's shift."""
        shortcut: inference.Shortcut = "identity"
        if isinstance(self.shortcut, nn.AvgPool2d):
            shortcut = "avgpool"
        elif isinstance(self.shortcut, nn.Conv2d):
            inputs, outputs = self.shortcut.in_channels, self.shortcut.out_channels
            shortcut = nn.Conv2d(inputs, outputs, 1, self.stride, bias=False)
            shortcut.load_state_dict(self.shortcut.state_dict())
        signs = inference.BinaryConv2d(
            inference.pack_signs(self.weight),
            self.geometry.in_channels,
            self.weight.detach().abs().mean((1, 2, 3)),
            self.threshold.detach().clone(),
            shortcut_gain=torch.ones(1),
            shortcut=shortcut,
            stride=self.stride,
            padding=self.padding,
        )
        shift = (self.shift - self.bias).detach()
        return ReActInference(signs, shift, self.slope.detach().clone(), self.lift.detach().clone())


class ReActInference(nn.Module):
    """RPReLU(signs(x)), where `signs` is the binary convolution with its shortcut."""

    def __init__(self, signs: inference.BinaryConv2d, shift: Tensor, slope: Tensor, lift: Tensor) -> None:
        super().__init__()
        self.signs = signs
        self.register_buffer("shift", shift)
        self.register_buffer("slope", slope)
        self.register_buffer("lift", lift)
        self.shift: Tensor
        self.slope: Tensor
        self.lift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: f32[N, I, H, W] -> f32[N, O, OH, OW]."""
        return rprelu(self.signs(x), self.shift, self.slope, self.lift)


class ReActLinear(nn.Module):
    """sign(x + theta) @ (alpha sign(W))^T + bias: [..., I] -> [..., O]; starts from a float linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(bias_of(layer))
        self.threshold = nn.Parameter(torch.zeros(layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        alpha = self.weight.detach().abs().mean(1, keepdim=True)
        return F.linear(sign_polynomial(x + self.threshold), scaled_sign_ste(self.weight, alpha), self.bias)

    def to_inference(self) -> "ReActLinearInference":
        """Return the packed layer."""
        signs = inference.BinaryLinear(
            inference.pack_signs(self.weight),
            self.weight.shape[1],
            self.weight.detach().abs().mean(1),
            self.threshold.detach().clone(),
        )
        return ReActLinearInference(signs, self.bias.detach().clone())


class ReActLinearInference(nn.Module):
    """signs(x) + bias, where `signs` is the binary linear layer."""

    def __init__(self, signs: inference.BinaryLinear, bias: Tensor) -> None:
        super().__init__()
        self.signs = signs
        self.register_buffer("bias", bias)
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: f32[..., I] -> f32[..., O]."""
        y: Tensor = self.signs(x) + self.bias
        return y


class ReActNetOptions(Options):
    """ReActNet has none."""


def _layer(layer: Layer, site: Site, options: ReActNetOptions) -> nn.Module:
    del options
    if site.bits != "W1A1":
        raise UnsupportedError(f"reactnet: layer '{site.path}': expected W1A1, got {site.bits}")
    if isinstance(layer, nn.Linear):
        return ReActLinear(layer)
    if isinstance(layer, nn.Conv2d) and (layer.groups, layer.dilation) == (1, (1, 1)):
        return ReActConv2d(layer)
    raise UnsupportedError(f"reactnet: layer '{site.path}': expected Conv2d without groups or dilation, or Linear")


REACTNET = Method("reactnet", ReActNetOptions, _layer)
