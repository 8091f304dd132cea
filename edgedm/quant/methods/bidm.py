"""BiDM's training layers (arXiv 2412.05926, methods.md 2.2): W1A1. XNOR-Net is the same with a fixed filter k."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.models.roles import output_blocks
from edgedm.quant import inference
from edgedm.quant.functions import scaled_sign_ste, sign_polynomial
from edgedm.quant.geometry import Layer
from edgedm.quant.methods.method import Method, Options, Site

INITIAL_GAIN = 0.3
BINS = 100  # rows of the table of mix coefficients


class BinaryConv2d(nn.Module):
    """Training form of `inference.BinaryConv2d`; starts from a float convolution, whose bias it drops.

    The filter k starts as the box 1 / (kh kw) of XNOR-Net (arXiv 1603.05279) with bias 0 (the release draws the
    bias at random; a deviation on purpose). `learn_filter=False` keeps the box: the baseline. The shortcut is the
    identity, a 2x2 mean for stride 2, or a float 1x1 convolution where the channel counts differ.
    """

    def __init__(self, layer: nn.Conv2d, learn_filter: bool = True) -> None:
        super().__init__()
        self.in_channels = layer.in_channels
        self.stride, self.padding = _pair(layer.stride), _pair(layer.padding)
        height, width = _pair(layer.kernel_size)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.threshold = nn.Parameter(torch.zeros(layer.in_channels))
        box = torch.full((1, 1, height, width), 1 / (height * width))
        self.mean_filter = nn.Parameter(box, requires_grad=learn_filter)
        self.mean_bias = nn.Parameter(torch.zeros(1), requires_grad=learn_filter)
        self.shortcut_gain = nn.Parameter(torch.full((1,), INITIAL_GAIN))
        self.shortcut: nn.Module
        if layer.in_channels != layer.out_channels:
            self.shortcut = nn.Conv2d(layer.in_channels, layer.out_channels, 1, self.stride)
        else:
            self.shortcut = nn.Identity() if self.stride == (1, 1) else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return conv(sign(x + theta), alpha sign(W)) K + |g| S(x): [N, I, H, W] -> [N, O, OH, OW]."""
        mean = x.abs().mean(1, keepdim=True)
        pixel_scale = F.conv2d(mean, self.mean_filter, self.mean_bias, self.stride, self.padding)
        signs = sign_polynomial(x + self.threshold.to(x.dtype)[None, :, None, None])
        alpha = self.weight.detach().abs().mean((1, 2, 3), keepdim=True)
        y = F.conv2d(signs, scaled_sign_ste(self.weight, alpha), None, self.stride, self.padding)
        shortcut: Tensor = self.shortcut(x)
        return y * pixel_scale + self.shortcut_gain.abs().to(y.dtype) * shortcut.to(y.dtype)

    def to_inference(self) -> inference.BinaryConv2d:
        """Return the packed layer."""
        shortcut: inference.Shortcut = "identity"
        if isinstance(self.shortcut, nn.AvgPool2d):
            shortcut = "avgpool"
        elif isinstance(self.shortcut, nn.Conv2d):
            shortcut = nn.Conv2d(self.in_channels, self.weight.shape[0], 1, self.stride)
            shortcut.load_state_dict(self.shortcut.state_dict())
        return inference.BinaryConv2d(
            inference.pack_signs(self.weight),
            self.in_channels,
            self.weight.detach().abs().mean((1, 2, 3)),
            self.threshold.detach().clone(),
            self.mean_filter.detach().clone(),
            self.mean_bias.detach().clone(),
            self.shortcut_gain.detach().abs(),
            shortcut,
            self.stride,
            self.padding,
        )


class BinaryLinear(nn.Module):
    """Training form of `inference.BinaryLinear`: BiDM's 1-d convolution of attention, without K and shortcut.

    `learn_threshold=False` is the form of the time projections: the release's linear layer ignores its threshold.
    """

    def __init__(self, layer: nn.Linear, learn_threshold: bool = True) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.threshold = nn.Parameter(torch.zeros(layer.in_features), requires_grad=learn_threshold)

    def forward(self, x: Tensor) -> Tensor:
        """Return sign(x + theta) @ (alpha sign(W))^T: [..., I] -> [..., O]."""
        alpha = self.weight.detach().abs().mean(1, keepdim=True)
        return F.linear(sign_polynomial(x + self.threshold.to(x.dtype)), scaled_sign_ste(self.weight, alpha))

    def to_inference(self) -> inference.BinaryLinear:
        """Return the packed layer."""
        return inference.BinaryLinear(
            inference.pack_signs(self.weight),
            self.in_features,
            self.weight.detach().abs().mean(1),
            self.threshold.detach().clone(),
        )


def _pair(value: object) -> tuple[int, int]:
    assert isinstance(value, tuple) and len(value) == 2
    return value


class BiDMOptions(Options):
    """BiDM's named options; defaults are the paper's."""

    learn_filter: bool = True
    tbs: bool = True
    spd: bool = True


class XNOROptions(Options):
    """XNOR-Net has none: the box filter, no connection, no distillation."""


def _layer(layer: Layer, site: Site, options: BiDMOptions | XNOROptions) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return BinaryConv2d(layer, isinstance(options, BiDMOptions) and options.learn_filter)
    assert isinstance(layer, nn.Linear)
    return BinaryLinear(layer, learn_threshold=site.role != "res_time")


def _bins(options: BiDMOptions) -> int:
    return BINS if options.tbs else 1


def _taps(unet: nn.Module, options: BiDMOptions) -> list[str]:
    """Return the ends of the last two thirds of the output blocks (the last 8 of LDM-4's 12)."""
    ends = output_blocks(unet)
    return ends[len(ends) - 2 * len(ends) // 3 :] if options.tbs else []


BIDM = Method("bidm", BiDMOptions, _layer, bins=_bins, taps=_taps)
XNOR = Method("xnor", XNOROptions, _layer)
