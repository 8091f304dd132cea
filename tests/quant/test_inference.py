"""The inference layers against formulas written out in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from edgedm.ops import packing
from edgedm.quant.inference import (
    ActivationQuantizer,
    BinaryConv2d,
    BinaryLinear,
    BinaryWeightConv2d,
    BinaryWeightLinear,
    pack_signs,
    unpack_signs,
)

RELATIVE = 2e-6  # float32 sums of at most 1,200 terms, in another order than numpy's float64


def _signs(weight: np.ndarray) -> np.ndarray:
    return np.where(weight >= 0, 1.0, -1.0)


def _convolve(x: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """Direct float64 convolution, [N, I, H, W] by [O, I, kh, kw], zero padding."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    kh, kw = weight.shape[2:]
    rows, columns = (x.shape[2] - kh) // stride + 1, (x.shape[3] - kw) // stride + 1
    y = np.zeros((x.shape[0], weight.shape[0], rows, columns))
    for i in range(kh):
        for j in range(kw):
            window = x[:, :, i : i + rows * stride : stride, j : j + columns * stride : stride]
            y += np.einsum("nchw,oc->nohw", window, weight[:, :, i, j])
    return y


@pytest.mark.parametrize("channels", [1, 3, 63, 64, 65, 130])
def test_packing_is_lossless_and_little_endian(channels: int) -> None:
    generator = np.random.default_rng(channels)
    weight = generator.standard_normal((5, channels, 3, 2)).astype(np.float32)
    weight[0, 0] = 0.0
    bits = pack_signs(torch.from_numpy(weight))
    assert bits.shape == (5, 3, 2, packing.packed_bytes(channels))
    assert np.array_equal(unpack_signs(bits, channels).numpy(), _signs(weight))
    byte, bit = (channels - 1) // 8, (channels - 1) % 8
    assert np.array_equal((bits.numpy()[..., byte] >> bit) & 1, (weight[:, channels - 1] >= 0))


@pytest.mark.parametrize(
    ("channels", "out", "stride", "padding", "shortcut"),
    [(3, 3, 1, 1, "identity"), (65, 65, 2, 1, "avgpool"), (130, 4, 2, 1, "conv"), (1, 2, 1, 0, None)],
)
def test_binary_conv_follows_the_inference_graph(channels, out, stride, padding, shortcut) -> None:
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(out, channels, 3, 3, generator=generator)
    scale, threshold = torch.randn(out, generator=generator), torch.randn(channels, generator=generator)
    mean_filter = torch.randn(1, 1, 3, 3, generator=generator)
    mean_bias, gain = torch.randn(1, generator=generator), torch.randn(1, generator=generator)
    side = nn.Conv2d(channels, out, 1, stride=stride) if shortcut == "conv" else shortcut
    layer = BinaryConv2d(
        pack_signs(weight), channels, scale, threshold, mean_filter, mean_bias, gain, side, stride, padding
    )
    x = torch.randn(2, channels, 8, 8, generator=generator)
    x[0, 0, 0] = -threshold[0]  # x + threshold == 0 counts as +1
    with torch.no_grad():
        y = layer(x).numpy()

    signs = np.where(x.numpy() + threshold.numpy()[None, :, None, None] >= 0, 1.0, -1.0)
    accumulator = _convolve(signs, _signs(weight.numpy()), stride, padding)
    mean = np.abs(x.numpy()).mean(1, keepdims=True)
    pixel_scale = _convolve(mean, mean_filter.numpy(), stride, padding) + mean_bias.numpy()
    expected = accumulator * scale.numpy()[None, :, None, None] * pixel_scale
    if shortcut == "identity":
        expected += gain.numpy() * x.numpy()
    elif shortcut == "avgpool":
        expected += gain.numpy() * x.numpy().reshape(2, channels, 4, 2, 4, 2).mean((3, 5))
    elif shortcut == "conv":
        with torch.no_grad():
            expected += gain.numpy() * side(x).numpy()
    assert np.abs(y - expected).max() <= RELATIVE * np.abs(expected).max()


def test_binary_linear_follows_the_inference_graph() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(7, 130, generator=generator)
    scale, threshold = torch.randn(7, generator=generator), torch.randn(130, generator=generator)
    x = torch.randn(2, 3, 130, generator=generator)
    y = BinaryLinear(pack_signs(weight), 130, scale, threshold)(x).numpy()
    signs = np.where(x.numpy() + threshold.numpy() >= 0, 1.0, -1.0)
    assert np.array_equal(y, (signs @ _signs(weight.numpy()).T).astype(np.float32) * scale.numpy())


def test_four_bit_layers_follow_the_inference_graph() -> None:
    generator = torch.Generator().manual_seed(2)
    step = torch.tensor(0.3)
    scale, bias = torch.randn(5, generator=generator), torch.randn(5, generator=generator)
    conv, linear = torch.randn(5, 65, 3, 3, generator=generator), torch.randn(5, 65, generator=generator)
    x = torch.randn(1, 65, 6, 6, generator=generator) * 2
    codes = np.clip(np.rint(x.numpy() / np.float32(0.3)), -8, 7)
    assert set(np.unique(codes)) == set(range(-8, 8))
    assert np.array_equal(ActivationQuantizer(step)(x).numpy(), codes.astype(np.float32) * np.float32(0.3))

    y = BinaryWeightConv2d(pack_signs(conv), 65, scale, bias, step, 2, 1)(x).numpy()
    expected = _convolve(codes * 0.3, _signs(conv.numpy()), 2, 1)
    expected = expected * scale.numpy()[None, :, None, None] + bias.numpy()[None, :, None, None]
    assert np.abs(y - expected).max() <= RELATIVE * np.abs(expected).max()

    rows = x.permute(0, 2, 3, 1)
    y = BinaryWeightLinear(pack_signs(linear), 65, scale, bias, step)(rows).numpy()
    expected = np.moveaxis(codes * 0.3, 1, -1) @ _signs(linear.numpy()).T * scale.numpy() + bias.numpy()
    assert np.abs(y - expected).max() <= RELATIVE * np.abs(expected).max()


def test_state_dict_holds_exactly_what_a_checkpoint_stores() -> None:
    bits = pack_signs(torch.randn(4, 8, 3, 3))
    one = torch.ones(1)
    layer = BinaryConv2d(
        bits, 8, torch.ones(4), torch.zeros(8), torch.ones(1, 1, 3, 3), one, one, nn.Conv2d(8, 4, 1), 1, 1
    )
    names = {"bits", "scale", "threshold", "mean_filter", "mean_bias", "shortcut_gain"}
    assert set(layer.state_dict()) == names | {"shortcut.weight", "shortcut.bias"}
    assert layer.state_dict()["bits"].dtype == torch.uint8


def test_bits_of_a_wrong_width_are_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8 of rank 2 with 16 bytes"):
        BinaryLinear(torch.zeros(4, 8, dtype=torch.uint8), 65, torch.ones(4), torch.zeros(65))
