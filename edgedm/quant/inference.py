"""The low-bit layers as they run: packed bits, scales, no latent weights, no training state.

Their `forward`, operation by operation, is the specification of the exported graph (methods.md's inference
graphs: BinaryDM single basis, BiDM). Everything a layer needs is a buffer or a parameter, so `state_dict` is what
a checkpoint stores. O and I are output and input channels, Cb = 8 * ceil(I / 64) packed bytes.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedm.ops import binarize, packing, quantize4, unpack_bits

Shortcut = Literal["identity", "avgpool"] | nn.Module | None
Pair = int | tuple[int, int]


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
    """W1A1 linear layer of BiDM: x f32[..., I] -> f32[..., O] = (sign(x + threshold) @ signs^T) scale[o]."""

    def __init__(self, bits: Tensor, in_features: int, scale: Tensor, threshold: Tensor) -> None:
        super().__init__()
        _check_bits(bits, in_features, 2)
        self.in_features, self.out_features = in_features, bits.shape[0]
        self.register_buffer("bits", bits)
        self.register_buffer("scale", scale)
        self.register_buffer("threshold", threshold)
        self.bits: Tensor
        self.scale: Tensor
        self.threshold: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the class."""
        signs = binarize(x, self.threshold)
        return torch.matmul(signs, unpack_bits(self.bits, self.in_features).T) * self.scale

    def extra_repr(self) -> str:
        """Return the shape of the layer for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, W1A1"


class ActivationQuantizer4(nn.Module):
    """Signed 4-bit quantiser with one learned step: clamp(round_half_even(x / step), -8, 7) * step.

    `step` is a tensor of one value, here and in the layers below; it is kept as f32[].
    """

    def __init__(self, step: Tensor) -> None:
        super().__init__()
        self.register_buffer("step", step.reshape(()))
        self.step: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid of the 16 codes, same shape."""
        return quantize4(x, self.step)


class BinaryWeightConv2d(nn.Module):
    """W1A4 convolution of BinaryDM (one basis): x f32[N, I, H, W] -> f32[N, O, OH, OW].

    y = (quantize4(x) * signs) scale[o] + bias[o]; the padding is code 0.
    """

    def __init__(
        self,
        bits: Tensor,
        in_channels: int,
        scale: Tensor,
        bias: Tensor | None,
        step: Tensor,
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
        self.register_buffer("bias", bias)
        self.register_buffer("step", step.reshape(()))
        self.bits: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.step: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the class."""
        weight = unpack_bits(self.bits, self.in_channels)
        y = F.conv2d(quantize4(x, self.step), weight, None, self.stride, self.padding)
        y = y * self.scale[None, :, None, None]
        return y if self.bias is None else y + self.bias[None, :, None, None]

    def extra_repr(self) -> str:
        """Return the shape of the layer for `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, W1A4"


class BinaryWeightLinear(nn.Module):
    """W1A4 linear layer of BinaryDM: x f32[..., I] -> f32[..., O] = (quantize4(x) @ signs^T) scale[o] + bias[o]."""

    def __init__(self, bits: Tensor, in_features: int, scale: Tensor, bias: Tensor | None, step: Tensor) -> None:
        super().__init__()
        _check_bits(bits, in_features, 2)
        self.in_features, self.out_features = in_features, bits.shape[0]
        self.register_buffer("bits", bits)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.register_buffer("step", step.reshape(()))
        self.bits: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.step: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; see the class."""
        y = torch.matmul(quantize4(x, self.step), unpack_bits(self.bits, self.in_features).T) * self.scale
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Return the shape of the layer for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, W1A4"


LOW_BIT_LAYERS = (BinaryConv2d, BinaryLinear, BinaryWeightConv2d, BinaryWeightLinear)


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
