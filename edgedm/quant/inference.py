"""The low-bit layers as they run: packed bits, scales, no latent weights, no training state.

Their `forward`, operation by operation, is the specification of the exported graph (BinaryDM with one or two
bases, BiDM). Everything a layer needs is a buffer or a parameter, so `state_dict`
is what a checkpoint stores. O and I are output and input channels, Cb = 8 * ceil(I / 64) packed bytes.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.ops import binarize, packing, quantize4, quantize_uniform, unpack_bits

Shortcut = Literal["identity", "avgpool"] | nn.Module | None
Pair = int | tuple[int, int]

UNQUANTIZED = 32  # activation bits that mean float32
SMALLEST_DYNAMIC_STEP = 1e-8  # an activation of zeros has codes of zero


def pack_signs(weight: Tensor) -> Tensor:
    """Pack the signs of a weight, [O, I] or [O, I, kh, kw], into uint8[O, Cb] or [O, kh, kw, Cb]; sign(0) = +1."""
    return torch.from_numpy(packing.pack_signs(weight.detach().float().cpu().numpy()))


def unpack_signs(bits: Tensor, channels: int) -> Tensor:
    """Undo `pack_signs`: float32 of +1 and -1 in torch's weight layout."""
    return unpack_bits(bits, channels)


class BinaryConv2d(nn.Module):
    """W1A1 convolution of BiDM: x f32[N, I, H, W] -> f32[N, O, OH, OW].

    y = (sign(x + threshold) * signs) scale[o] K[h, w] + shortcut_gain S(x), where K convolves the channel mean of
    |x| with `mean_filter` f32[1, 1, kh, kw] and adds `mean_bias` f32[1]. Padding follows the sign, so a padded tap
    contributes 0. Without `mean_filter` K is 1; without `shortcut` the last term is absent. `shortcut` is
    "identity", "avgpool" (2x2, stride 2), or a float 1x1 convolution.
    """

    def __init__(
        self,
        bits: Tensor,
        in_channels: int,
        scale: Tensor,
        threshold: Tensor,
        mean_filter: Tensor | None = None,
        mean_bias: Tensor | None = None,
        shortcut_gain: Tensor | None = None,
        shortcut: Shortcut = None,
        stride: Pair = 1,
        padding: Pair = 0,
    ) -> None:
        super().__init__()
        _check_bits(bits, in_channels, 4)
        self.in_channels, self.out_channels = in_channels, bits.shape[0]
        self.kernel_size = (bits.shape[1], bits.shape[2])
        self.stride, self.padding = _pair(stride), _pair(padding)
        self.register_buffer("bits", bits)
        self.register_buffer("scale", scale)
        self.register_buffer("threshold", threshold)
        self.register_buffer("mean_filter", mean_filter)
        self.register_buffer("mean_bias", mean_bias)
        self.register_buffer("shortcut_gain", shortcut_gain)
        self.shortcut = _shortcut_module(shortcut)
        self.bits: Tensor
        self.scale: Tensor
        self.threshold: Tensor
        self.mean_filter: Tensor | None
        self.mean_bias: Tensor | None
        self.shortcut_gain: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the class."""
        pixel_scale = None
        if self.mean_filter is not None:
            mean = x.abs().mean(1, keepdim=True)
            pixel_scale = F.conv2d(mean, self.mean_filter, self.mean_bias, self.stride, self.padding)
        signs = binarize(x, self.threshold[None, :, None, None])
        weight = unpack_bits(self.bits, self.in_channels)
        y = F.conv2d(signs, weight, None, self.stride, self.padding) * self.scale[None, :, None, None]
        if pixel_scale is not None:
            y = y * pixel_scale
        if self.shortcut is not None:
            y = y + self.shortcut_gain * self.shortcut(x)
        return y

    def extra_repr(self) -> str:
        """Return the shape of the layer for `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, W1A1"


class BinaryLinear(nn.Module):
    """W1A1 linear layer of BiDM: x f32[..., I] -> f32[..., O] = (sign(x + threshold) @ signs^T) scale[o].

    With `mean_filter` f32[1, 1] and `mean_bias` f32[1] the product is multiplied by mean|x| mean_filter + mean_bias,
    and with `shortcut`, "identity" or a float linear layer, `shortcut_gain` S(x) is added: BiDM's attention as 1x1
    convolutions.
    """

    def __init__(
        self,
        bits: Tensor,
        in_features: int,
        scale: Tensor,
        threshold: Tensor,
        mean_filter: Tensor | None = None,
        mean_bias: Tensor | None = None,
        shortcut_gain: Tensor | None = None,
        shortcut: Shortcut = None,
    ) -> None:
        super().__init__()
        _check_bits(bits, in_features, 2)
        self.in_features, self.out_features = in_features, bits.shape[0]
        self.register_buffer("bits", bits)
        self.register_buffer("scale", scale)
        self.register_buffer("threshold", threshold)
        self.register_buffer("mean_filter", mean_filter)
        self.register_buffer("mean_bias", mean_bias)
        self.register_buffer("shortcut_gain", shortcut_gain)
        self.shortcut = _shortcut_module(shortcut)
        self.bits: Tensor
        self.scale: Tensor
        self.threshold: Tensor
        self.mean_filter: Tensor | None
        self.mean_bias: Tensor | None
        self.shortcut_gain: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the class."""
        signs = binarize(x, self.threshold)
        y = torch.matmul(signs, unpack_bits(self.bits, self.in_features).T) * self.scale
        if self.mean_filter is not None:
            y = y * F.linear(x.abs().mean(-1, keepdim=True), self.mean_filter, self.mean_bias)
        if self.shortcut is not None:
            y = y + self.shortcut_gain * self.shortcut(x)
        return y

    def extra_repr(self) -> str:
        """Return the shape of the layer for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, W1A1"


class ActivationQuantizer(nn.Module):
    """Signed quantiser of `bits` bits: clamp(round_half_even(x / step), -2^(bits - 1), 2^(bits - 1) - 1) step.

    `step` is a tensor of one value, here and in the layers below; it is kept as f32[]. None: a dynamic step.
    """

    def __init__(self, step: Tensor | None, bits: int = 4) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("step", None if step is None else step.reshape(()))
        self.step: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid of the codes, same shape."""
        return quantize_signed(x, self.step, self.bits)

    def extra_repr(self) -> str:
        """Return the width for `print(model)`."""
        return f"A{self.bits}"


def quantize_signed(x: Tensor, step: Tensor | None, bits: int) -> Tensor:
    """Return `x` on the signed grid of `bits` bits, or as it is for 32; without a step, with that of `x` itself.

    The dynamic step 2 mean|x| / sqrt(2^(bits - 1) - 1) is what BinaryDM's release computes; its
    mean runs over the whole tensor, the batch included.
    """
    if bits == UNQUANTIZED:
        return x
    half = 2 ** (bits - 1)
    if step is None:
        step = (x.abs().mean() * (2 / (half - 1) ** 0.5)).clamp(min=SMALLEST_DYNAMIC_STEP)
    if bits == 4:
        return quantize4(x, step)
    return quantize_uniform(x, step, torch.full((), float(half)), bits)


class BinaryWeightConv2d(nn.Module):
    """Convolution of BinaryDM with 1-bit weights: x f32[N, I, H, W] -> f32[N, O, OH, OW].

    y = (a * signs) scale[o] + (a * signs2) scale2[o] + bias[o] with a = `quantize_signed`(x, step, activation_bits);
    the second basis, `bits2` and `scale2`, may be absent. The padding is code 0.
    """

    def __init__(
        self,
        bits: Tensor,
        in_channels: int,
        scale: Tensor,
        bias: Tensor | None,
        step: Tensor | None,
        stride: Pair = 1,
        padding: Pair = 0,
        *,
        bits2: Tensor | None = None,
        scale2: Tensor | None = None,
        activation_bits: int = 4,
    ) -> None:
        super().__init__()
        _check_bits(bits, in_channels, 4)
        self.in_channels, self.out_channels = in_channels, bits.shape[0]
        self.kernel_size = (bits.shape[1], bits.shape[2])
        self.stride, self.padding = _pair(stride), _pair(padding)
        self.activation_bits = activation_bits
        _register_bases(self, bits, scale, bias, step, bits2, scale2)
        self.bits: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.step: Tensor | None
        self.bits2: Tensor | None
        self.scale2: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the class."""
        weight = unpack_bits(self.bits, self.in_channels)
        x = quantize_signed(x, self.step, self.activation_bits)
        y = F.conv2d(x, weight, None, self.stride, self.padding)
        y = y * self.scale[None, :, None, None]
        if self.bits2 is not None and self.scale2 is not None:
            weight = unpack_bits(self.bits2, self.in_channels)
            y = y + F.conv2d(x, weight, None, self.stride, self.padding) * self.scale2[None, :, None, None]
        return y if self.bias is None else y + self.bias[None, :, None, None]

    def extra_repr(self) -> str:
        """Return the shape of the layer for `print(model)`."""
        bases = "" if self.bits2 is None else ", two bases"
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, W1A{self.activation_bits}{bases}"


class BinaryWeightLinear(nn.Module):
    """Linear layer of BinaryDM with 1-bit weights: x f32[..., I] -> f32[..., O], as `BinaryWeightConv2d`."""

    def __init__(
        self,
        bits: Tensor,
        in_features: int,
        scale: Tensor,
        bias: Tensor | None,
        step: Tensor | None,
        *,
        bits2: Tensor | None = None,
        scale2: Tensor | None = None,
        activation_bits: int = 4,
    ) -> None:
        super().__init__()
        _check_bits(bits, in_features, 2)
        self.in_features, self.out_features = in_features, bits.shape[0]
        self.activation_bits = activation_bits
        _register_bases(self, bits, scale, bias, step, bits2, scale2)
        self.bits: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.step: Tensor | None
        self.bits2: Tensor | None
        self.scale2: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the class of the convolution."""
        x = quantize_signed(x, self.step, self.activation_bits)
        y = torch.matmul(x, unpack_bits(self.bits, self.in_features).T) * self.scale
        if self.bits2 is not None and self.scale2 is not None:
            y = y + torch.matmul(x, unpack_bits(self.bits2, self.in_features).T) * self.scale2
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Return the shape of the layer for `print(model)`."""
        bases = "" if self.bits2 is None else ", two bases"
        return f"{self.in_features}, {self.out_features}, W1A{self.activation_bits}{bases}"


LOW_BIT_LAYERS = (BinaryConv2d, BinaryLinear, BinaryWeightConv2d, BinaryWeightLinear)


def _register_bases(
    layer: nn.Module,
    bits: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    step: Tensor | None,
    bits2: Tensor | None,
    scale2: Tensor | None,
) -> None:
    if (bits2 is None) != (scale2 is None) or (bits2 is not None and bits2.shape != bits.shape):
        raise ValueError(f"second basis: expected bits2 of shape {tuple(bits.shape)} and scale2, or neither")
    layer.register_buffer("bits", bits)
    layer.register_buffer("scale", scale)
    layer.register_buffer("bias", bias)
    layer.register_buffer("step", None if step is None else step.reshape(()))
    layer.register_buffer("bits2", bits2)
    layer.register_buffer("scale2", scale2)


def _check_bits(bits: Tensor, channels: int, rank: int) -> None:
    expected = packing.packed_bytes(channels)
    if bits.dtype != torch.uint8 or bits.ndim != rank or bits.shape[-1] != expected:
        raise ValueError(
            f"packed weight of {channels} input channels: expected uint8 of rank {rank} with {expected} bytes in "
            f"the last axis, got {bits.dtype} {tuple(bits.shape)}"
        )


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _shortcut_module(shortcut: Shortcut) -> nn.Module | None:
    if shortcut == "identity":
        return nn.Identity()
    if shortcut == "avgpool":
        return nn.AvgPool2d(2)
    if shortcut is None or isinstance(shortcut, nn.Module):
        return shortcut
    raise ValueError(f"shortcut: expected None, 'identity', 'avgpool' or a module, got {shortcut!r}")
