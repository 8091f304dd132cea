"""BiDM (arXiv 2412.05926): W1A1. XNOR-Net (arXiv 1603.05279) is the same with a fixed filter k.

Not built: in the release for CIFAR-10 the connection mixes into the outputs of attention the previous step's output
of another module, the upsampler before them. The paper's connection, and this one, mixes a block's own output.
"""

import copy
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedm.errors import UnsupportedError
from edgedm.models.bits import Bits, parse_bits
from edgedm.models.roles import output_blocks
from edgedm.quant import inference
from edgedm.quant.clock import Clock
from edgedm.quant.functions import scaled_sign_ste, sign_polynomial
from edgedm.quant.geometry import Geometry, Layer
from edgedm.quant.methods.binarydm import BinaryWeightLayer, LSQActivation, packable
from edgedm.quant.methods.method import Method, Options, Site
from edgedm.quant.uniform_layer import UniformLayer

Filter = Literal["learned", "fixed", "none"]
Gain = Literal["abs", "raw"]

ATTENTION = ("attn_qkv", "attn_out")


class XNOROptions(Options):
    """What BiDM's layers have besides the filter: XNOR-Net's options, whose defaults are BiDM's.

    Whether the paper's baseline has thresholds and shortcuts isn't known; BiDM says that all its layers have
    ReActNet's shortcuts.
    """

    threshold: bool = Field(True, description="learn the thresholds theta")
    shortcut: bool = Field(True, description="add the float shortcut")
    gain: Gain = Field("abs", description="of the shortcut: its magnitude (LDM), or itself (CIFAR-10)")
    gain_init: float = Field(0.3, description="where the gain starts (LDM; CIFAR-10: 0)")
    shortcut_bits: Literal["float", "W8A8", "W4A4", "W1A4"] = Field(
        "float",
        description="of the shortcuts that are 1x1 layers; the published ones are float, which costs most; "
        "policies int8, int4 and binary imply W8A8, W4A4 and W1A4",
    )
    attention: Literal["linear", "conv2d"] = Field(
        "linear", description="projections: without K and shortcut (LDM), or with both (CIFAR-10)"
    )
    linear_threshold: Literal["ignored", "used"] = Field(
        "ignored", description="time projections take sign(x), theta only shapes the gradient (release); or use it"
    )
    distill: float = Field(0.0, ge=0, description="weight of the error to the teacher's output; not in the paper")


class BiDMOptions(XNOROptions):
    """BiDM's named options; defaults are the paper's.

    The zero filter bias is a deviation on purpose: the release's random one rescales whole layers.
    """

    filter: Filter = Field("learned", description="of K: learned, the fixed box, or no K at all")
    filter_bias: Literal["zero", "uniform"] = Field(
        "zero", description="where its bias starts: 0, or U(-1/k, 1/k) (release)"
    )
    tbs: bool = Field(True, description="carry features from step to step")
    connections: int | None = Field(
        None, ge=0, description="output blocks that do, from the end; None: two thirds (8 of LDM-4's 12)"
    )
    bins: int = Field(100, ge=2, description="rows of the table of mix coefficients")
    mix_init: float = Field(0.3, description="where they start")
    gap: int = Field(
        1, ge=1, description="timesteps that training carries features over (paper: 1; 50 sampling steps: 20)"
    )
    distillation: Literal["spd", "l2", "none"] = Field("spd", description="of block outputs: BiDM's patches, plain L2")
    spd_weight: float = Field(1e-2, ge=0, description="its weight in the loss")


class BinaryLayer(nn.Module):
    """Training form of `inference.BinaryConv2d` and `inference.BinaryLinear`; starts from a float layer, whose bias
    it drops.

        y = layer(sign(x + theta), alpha sign(W)) K + g S(x),    K = layer(mean_c |x|, k) + b

    alpha, the mean magnitude of an output channel, follows from W in every pass, without a gradient; the gradient
    to W has no factor alpha. K uses the layer's stride and padding; its filter k starts as the box of XNOR-Net.
    S is the identity, a 2x2 mean for stride 2, or a float 1x1 layer where the channel counts differ. `filter`
    "none" has no K, `shortcut` False no second term, `threshold` False theta = 0. `shapes_only`: the sign is that
    of x, and theta only shapes the gradient (a bug of the release's linear layer). With `shortcut_bits` other than
    "float" a 1x1 layer in S is a symmetric `UniformLayer`, which needs the model's `clock`, or at 1 bit BinaryDM's.
    """

    def __init__(
        self,
        layer: Layer,
        filter: Filter = "learned",
        filter_bias: Literal["zero", "uniform"] = "zero",
        shortcut: bool = True,
        threshold: bool = True,
        shapes_only: bool = False,
        gain: Gain = "abs",
        gain_init: float = 0.3,
        path: str = "",
        shortcut_bits: Bits = "float",
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self.path, self.gain, self.shapes_only = path, gain, shapes_only
        self.geometry = Geometry.of(layer)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.threshold = nn.Parameter(self.weight.new_zeros(self.geometry.in_channels), requires_grad=threshold)
        self.mean_filter = self.mean_bias = self.shortcut_gain = self.shortcut = None
        if filter != "none":
            taps = self.weight[0, 0].numel()
            learned = filter == "learned"
            box = torch.full_like(self.weight[:1, :1], 1 / taps)
            bias = self.weight.new_zeros(1)
            if filter_bias == "uniform":
                nn.init.uniform_(bias, -(taps**-0.5), taps**-0.5)
            self.mean_filter = nn.Parameter(box.detach(), requires_grad=learned)
            self.mean_bias = nn.Parameter(bias, requires_grad=learned)
        if shortcut:
            self.shortcut_gain = nn.Parameter(self.weight.new_full((1,), gain_init))
            self.shortcut = shortcut_of(self.geometry, self.weight, path)
            if shortcut_bits != "float" and isinstance(self.shortcut, nn.Conv1d | nn.Conv2d | nn.Linear):
                assert clock is not None
                self.shortcut = _low_bit(self.shortcut, *parse_bits(shortcut_bits), clock, f"{path}.shortcut")

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the class."""
        alpha = self.geometry.along_out(self.weight.detach().abs().flatten(1).mean(1))
        y = self.geometry.apply(self.signs(x), scaled_sign_ste(self.weight, alpha))
        if self.mean_filter is not None:
            mean = x.abs().mean(self._channels, keepdim=True)
            y = y * replace(self.geometry, in_channels=1, groups=1).apply(mean, self.mean_filter, self.mean_bias)
        if self.shortcut is not None:
            shortcut: Tensor = self.shortcut(x)
            y = y + self.final_gain().to(y.dtype) * shortcut.to(y.dtype)
        return y

    def signs(self, x: Tensor) -> Tensor:
        """Return the signs that the weight is applied to, with Bi-Real Net's gradient at x + theta."""
        signs = sign_polynomial(x + self.geometry.along_in(self.threshold).to(x.dtype))
        if not self.shapes_only:
            return signs
        return signs + (torch.where(x >= 0, 1.0, -1.0).to(signs.dtype) - signs).detach()

    def final_gain(self) -> Tensor:
        """Return the factor of the shortcut, f32[1]."""
        assert self.shortcut_gain is not None
        return self.shortcut_gain.abs() if self.gain == "abs" else self.shortcut_gain

    @property
    def _channels(self) -> int:
        return 1 if self.geometry.stride else -1

    def to_inference(self) -> inference.BinaryConv2d | inference.BinaryLinear:
        """Return the packed layer. Raises `UnsupportedError` for a geometry that packed layers don't have."""
        geometry = packable(self.geometry, self.path)
        theta = torch.zeros_like(self.threshold) if self.shapes_only else self.threshold
        parts = (
            inference.pack_signs(self.weight),
            geometry.in_channels,
            self.weight.detach().abs().flatten(1).mean(1),
            theta.detach().clone(),
            None if self.mean_filter is None else self.mean_filter.detach().clone(),
            None if self.mean_bias is None else self.mean_bias.detach().clone(),
            None if self.shortcut is None else self.final_gain().detach().clone(),
            _packed_shortcut(self.shortcut),
        )
        if not geometry.stride:
            return inference.BinaryLinear(*parts)
        (height, width), (above, beside) = geometry.stride, geometry.padding
        return inference.BinaryConv2d(*parts, (height, width), (above, beside))


def shortcut_of(geometry: Geometry, weight: Tensor, path: str) -> nn.Module:
    """Return S of a layer. Raises `UnsupportedError` where no shortcut has the shape of the output."""
    inputs, outputs = geometry.in_channels, len(weight)
    if not geometry.stride:
        return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)
    strides, kernel = set(geometry.stride), tuple(weight.shape[2:])
    reach = [d * (k - 1) - 2 * p for d, k, p in zip(geometry.dilation, kernel, geometry.padding, strict=True)]
    halves = strides == {2} and all(0 <= left <= 2 for left in reach)  # diffusers' downsampler may pad beforehand
    if not (strides == {1} and not any(reach)) and not halves:
        raise UnsupportedError(
            f"layer '{path}': stride {geometry.stride}, padding {geometry.padding} and kernel {kernel}: no shortcut "
            "has the output's shape; expected stride 1 that keeps the size, or stride 2; use shortcut=False"
        )
    flat = geometry.spatial == 1
    if inputs != outputs:
        kind = nn.Conv1d if flat else nn.Conv2d
        return kind(inputs, outputs, 1, geometry.stride)  # type: ignore[arg-type]  # one size an axis
    if strides == {1}:
        return nn.Identity()
    return nn.AvgPool1d(2) if flat else nn.AvgPool2d(2)


def _packed_shortcut(shortcut: nn.Module | None) -> inference.Shortcut:
    if shortcut is None:
        return None
    if isinstance(shortcut, nn.AvgPool2d):
        return "avgpool"
    if isinstance(shortcut, nn.Identity):
        return "identity"
    if isinstance(shortcut, UniformLayer | BinaryWeightLayer):
        return shortcut.to_inference()
    return copy.deepcopy(shortcut)


def _layer(layer: Layer, site: Site, options: XNOROptions) -> nn.Module:
    """Return a binary layer for W1A1, the symmetric uniform one for 2 bits and more on both sides.

    A block's shortcut may be BinaryDM's layer: no shortcut of its own would have its output's shape.
    """
    mixed = site.role == "shortcut" and site.weight_bits == 1 and site.activation_bits != inference.UNQUANTIZED
    if (site.weight_bits not in (1, inference.UNQUANTIZED) or mixed) and site.activation_bits != 1:
        return _low_bit(layer, site.weight_bits, site.activation_bits, site.clock, site.path)
    if (site.weight_bits, site.activation_bits) != (1, 1):
        raise UnsupportedError(
            f"layer '{site.path}': {site.bits}: BiDM's layers are W1A1, and uniform with W2 or more beside; "
            "1-bit weights with wider activations are BinaryDM's"
        )
    convolutional = isinstance(layer, nn.Conv2d) or (options.attention == "conv2d" and site.role in ATTENTION)
    kind: Filter = options.filter if isinstance(options, BiDMOptions) else "fixed"
    return BinaryLayer(
        layer,
        kind if convolutional else "none",
        options.filter_bias if isinstance(options, BiDMOptions) else "zero",
        options.shortcut and convolutional,
        options.threshold,
        site.role == "res_time" and options.linear_threshold == "ignored",
        options.gain,
        options.gain_init,
        site.path,
        options.shortcut_bits,
        site.clock,
    )


def _low_bit(
    layer: Layer, weight_bits: int, activation_bits: int, clock: Clock, path: str
) -> UniformLayer | BinaryWeightLayer:
    """Return a layer without threshold, filter and shortcut: BinaryDM's for 1-bit weights, else a uniform one."""
    if weight_bits == 1:
        return BinaryWeightLayer(layer, LSQActivation(activation_bits), path=path)
    return UniformLayer(layer, weight_bits, activation_bits, clock, symmetric=True)


def _operands(site: Site, _options: XNOROptions) -> dict[str, nn.Module]:
    raise UnsupportedError(
        f"attention '{site.path}': {site.bits}: BiDM's products of attention stay float; set attn_matmul to 'float'"
    )


def _connected(options: BiDMOptions) -> bool:
    return options.tbs and options.connections != 0


def _bins(options: BiDMOptions) -> int:
    return options.bins if _connected(options) else 1


def _taps(unet: nn.Module, options: BiDMOptions) -> list[str]:
    """Return the ends of the last output blocks. Raises `UnsupportedError` where there are fewer."""
    if not _connected(options):
        return []
    ends = output_blocks(unet)
    count = 2 * len(ends) // 3 if options.connections is None else options.connections
    if count > len(ends):
        raise UnsupportedError(f"option 'connections': the model has {len(ends)} output blocks, got {count}")
    return ends[len(ends) - count :]


def _mix(options: BiDMOptions) -> float:
    return options.mix_init


BIDM = Method("bidm", BiDMOptions, _layer, _operands, bins=_bins, taps=_taps, mix=_mix)
XNOR = Method("xnor", XNOROptions, _layer, _operands)
