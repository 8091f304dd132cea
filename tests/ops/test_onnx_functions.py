"""Every op's ONNX function under ONNX Runtime against formulas written in numpy, float64 where rounding matters."""

import numpy as np
import pytest
from op_formulas import CHANNELS, EPILOGUE, GEOMETRIES, INF, NAN, close, convolve, normal, rng_of

from edgedm.ops import packing

# float32 group norm: mean, variance and affine of up to 130 * 35 values, relative to the largest output
NORM = 1e-5


def _signs(x: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return np.where(x + threshold >= 0, 1, -1)


def _with_hard_cases(seed: int, channels: int, *leading: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations and thresholds with exact ties, both zeros and NaN among ordinary numbers."""
    x, threshold = normal(seed, *leading, channels), normal(seed + 1, channels)
    threshold[0] = 0.0
    flat = x.reshape(-1, channels)
    flat[0] = -threshold
    flat[1, 0], flat[2, 0], flat[3, 0] = 0.0, -0.0, NAN
    return x, threshold


@pytest.mark.parametrize("channels", CHANNELS)
def test_binarize_decides_ties_zeros_and_nan(run_op, channels: int) -> None:
    x, threshold = _with_hard_cases(channels, channels, 1, 4, 5)
    (y,) = run_op("Binarize", x, threshold)
    assert np.array_equal(y, _signs(x, threshold))
    assert y[0, 0, 0].tolist() == [1.0] * channels
    assert y.reshape(-1, channels)[1:4, 0].tolist() == [1.0, 1.0, -1.0]


def test_binarize_broadcasts_its_threshold_as_given(run_op) -> None:
    x, threshold = normal(0, 1, 5, 3, 3), normal(1, 1, 5, 1, 1)
    assert np.array_equal(run_op("Binarize", x, threshold)[0], _signs(x, threshold))


@pytest.mark.parametrize("channels", CHANNELS)
def test_unpack_bits_gives_the_signs_that_were_packed(run_op, channels: int) -> None:
    weight = normal(channels, 4, channels, 3, 2)
    (unpacked,) = run_op("UnpackBits", packing.pack_signs(weight), channels=channels)
    assert np.array_equal(unpacked, np.where(weight >= 0, 1, -1))
    rows = weight[:, :, 0, 0]
    (unpacked,) = run_op("UnpackBitsLinear", packing.pack_signs(rows), channels=channels)
    assert np.array_equal(unpacked, np.where(rows >= 0, 1, -1))


@pytest.mark.parametrize(
    ("timestep", "row"), [(0, 0), (9, 0), (10, 1), (11, 1), (499, 1), (500, 2), (999, 2), (5000, 2), (-3, 0)]
)
def test_timestep_lookup_takes_the_last_bin_that_has_begun(run_op, timestep: int, row: int) -> None:
    table, edges = normal(0, 3, 7), np.array([0, 10, 500])
    (found,) = run_op("TimestepLookup", table, edges, np.array([timestep]))
    assert np.array_equal(found, table[row])


@pytest.mark.parametrize("channels", [*CHANNELS, 64, 128])
@pytest.mark.parametrize("leading", [(1, 4, 5), (7,)])
def test_pack_bits_packs_the_signs_and_zero_padding(run_op, channels: int, leading: tuple[int, ...]) -> None:
    x, threshold = _with_hard_cases(channels, channels, *leading)
    (bits,) = run_op("PackBits", x, threshold)
    assert np.array_equal(bits, packing.pack_rows(x + threshold >= 0))
    x = np.nan_to_num(x)
    bits, mean_abs = run_op("PackBitsMeanAbs", x, threshold, outputs=2)
    assert np.array_equal(bits, packing.pack_rows(x + threshold >= 0))
    assert close(mean_abs, np.abs(x.astype(np.float64)).mean(-1, keepdims=True), channels * 2.0**-24)


def test_quantize_codes_rounds_half_to_even_and_clips(run_op) -> None:
    step = np.array(0.5, np.float32)
    x = np.array([0.25, 0.75, -0.25, -0.75, 1.25, 3.75, 99.0, -4.25, -99.0, INF, -INF, 0.0, -0.0, NAN], np.float32)
    (codes,) = run_op("QuantizeCodes", x, step)
    assert codes.tolist() == [0, 2, 0, -2, 2, 7, 7, -8, -8, 7, -8, 0, 0, -8]
    (codes,) = run_op("QuantizeCodes", x, step, low=-128, high=127)
    assert codes.tolist() == [0, 2, 0, -2, 2, 8, 127, -8, -128, 127, -128, 0, 0, -128]


def test_quantize_codes_divides(run_op) -> None:
    step = np.array(0.3, np.float32)
    x = ((rng_of(0).integers(-9, 9, 4096) + 0.5) * 0.3).astype(np.float32)
    (codes,) = run_op("QuantizeCodes", x, step)
    assert np.array_equal(codes, np.clip(np.rint(x / step), -8, 7))
    assert not np.array_equal(codes, np.clip(np.rint(x * (np.float32(1) / step)), -8, 7))


def _epilogue(seed: int, y: np.ndarray, *, pixel: bool, residual: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """Operands (multiplier, [pixel_scale,] addend, residual, residual_scale) and the float64 result."""
    out = y.shape[-1]
    multiplier = -np.abs(normal(seed, out))
    addend = normal(seed + 1, out)
    other = normal(seed + 2, *y.shape) if residual else np.zeros((1,) * y.ndim, np.float32)
    gain = normal(seed + 3, 1)
    scale = normal(seed + 4, *y.shape[:-1], 1) if pixel else np.ones((1,) * y.ndim, np.float32)
    operands = [multiplier, addend, other, gain]
    if y.ndim == 4:
        operands.insert(1, scale)
    doubles = [operand.astype(np.float64) for operand in (multiplier, scale, addend, gain, other)]
    return operands, y * doubles[0] * doubles[1] + doubles[2] + doubles[3] * doubles[4]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("kernel", "strides", "pads"), GEOMETRIES)
def test_binary_conv_is_exact_with_zero_padding_after_the_sign(run_op, channels, kernel, strides, pads) -> None:
    x, weight = normal(channels, 1, 6, 7, channels), normal(1, 5, channels, kernel, kernel)
    bits, filters = packing.pack_rows(x >= 0), packing.pack_signs(weight)
    signs = np.moveaxis(np.where(weight >= 0, 1, -1), 1, -1)
    accumulator = convolve(np.where(x >= 0, 1, -1), signs, strides, pads)
    neutral = [np.ones(5), np.ones((1, 1, 1, 1)), np.zeros(5), np.zeros((1, 1, 1, 1)), np.ones(1)]
    attributes = {"channels": channels, "strides": strides, "pads": pads}
    (y,) = run_op("BinaryConv", bits, filters, *[each.astype(np.float32) for each in neutral], **attributes)
    assert np.array_equal(y, accumulator)
    for pixel, residual in [(True, True), (False, True), (True, False)]:
        operands, expected = _epilogue(channels, accumulator, pixel=pixel, residual=residual)
        (y,) = run_op("BinaryConv", bits, filters, *operands, **attributes)
        assert close(y, expected, EPILOGUE)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("leading", [(1,), (1, 9), (1, 3, 4)])
def test_binary_gemm_is_exact(run_op, channels: int, leading: tuple[int, ...]) -> None:
    x, weight = normal(channels, *leading, channels), normal(1, 6, channels)
    accumulator = np.where(x >= 0, 1, -1) @ np.where(weight >= 0, 1, -1).T
    operands, expected = _epilogue(channels, accumulator, pixel=False, residual=True)
    if accumulator.ndim == 4:
        del operands[1]
    inputs = [packing.pack_rows(x >= 0), packing.pack_signs(weight)]
    (y,) = run_op("BinaryGemm", *inputs, *operands, channels=channels)
    assert close(y, expected, EPILOGUE)
    neutral = [np.ones(6, np.float32), np.zeros(6, np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)]
    assert np.array_equal(run_op("BinaryGemm", *inputs, *neutral, channels=channels)[0], accumulator)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("kernel", "strides", "pads"), GEOMETRIES)
def test_binary_weight_conv_is_exact_with_code_zero_padding(run_op, channels, kernel, strides, pads) -> None:
    codes = rng_of(channels).integers(-8, 8, (1, 6, 7, channels)).astype(np.int8)
    weight = normal(1, 5, channels, kernel, kernel)
    signs = np.moveaxis(np.where(weight >= 0, 1, -1), 1, -1)
    accumulator = convolve(codes, signs, strides, pads)
    operands, expected = _epilogue(channels, accumulator, pixel=False, residual=True)
    del operands[1]
    (y,) = run_op("BinaryWeightConv", codes, packing.pack_signs(weight), *operands, strides=strides, pads=pads)
    assert close(y, expected, EPILOGUE)


def test_binary_weight_ops_are_exact_at_the_limit_of_int8_codes(run_op) -> None:
    """4096 channels of the largest products: a 16-bit accumulator would overflow."""
    for code, sign in [(127, 1.0), (-128, 1.0), (-128, -1.0)]:
        codes = np.full((1, 1, 1, 4096), code, np.int8)
        weight = np.full((2, 4096, 1, 1), sign, np.float32)
        neutral = [np.ones(2, np.float32), np.zeros(2, np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)]
        conv = {"strides": [1, 1], "pads": [0, 0, 0, 0]}
        (y,) = run_op("BinaryWeightConv", codes, packing.pack_signs(weight), *neutral, **conv)
        assert y.ravel().tolist() == [4096 * code * sign] * 2
        (y,) = run_op("BinaryWeightGemm", codes, packing.pack_signs(weight[:, :, 0, 0]), *neutral)
        assert y.ravel().tolist() == [4096 * code * sign] * 2


@pytest.mark.parametrize("channels", CHANNELS)
def test_binary_weight_gemm_is_exact(run_op, channels: int) -> None:
    codes = rng_of(channels).integers(-8, 8, (1, 9, channels)).astype(np.int8)
    weight = normal(1, 6, channels)
    accumulator = codes.astype(np.int64) @ np.where(weight >= 0, 1, -1).T
    operands, expected = _epilogue(channels, accumulator, pixel=False, residual=True)
    (y,) = run_op("BinaryWeightGemm", codes, packing.pack_signs(weight), *operands)
    assert close(y, expected, EPILOGUE)


def _group_norm(x, gamma, beta, groups: int, epsilon: float) -> np.ndarray:
    rows = x.astype(np.float64).reshape(1, -1, groups, x.shape[-1] // groups)
    centred = rows - rows.mean((1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + epsilon)
    return normal.reshape(x.shape) * gamma + beta


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 3), (65, 5), (130, 13), (64, 8)])
@pytest.mark.parametrize("leading", [(1, 5, 7), (1, 35)])
def test_group_norms_normalise_over_all_axes_but_channels(run_op, channels, groups, leading) -> None:
    x = normal(channels, *leading, channels) * 3 + 1
    gamma, beta, threshold = normal(1, channels), normal(2, channels), normal(3, channels)
    attributes = {"groups": groups, "epsilon": 1e-5}
    normed = _group_norm(x, gamma, beta, groups, 1e-5)
    silu = normed / (1 + np.exp(-normed))
    assert close(run_op("GroupNorm", x, gamma, beta, **attributes)[0], normed, NORM)
    (activated,) = run_op("GroupNormSilu", x, gamma, beta, **attributes)
    assert close(activated, silu, NORM)

    y, bits, mean_abs = run_op("GroupNormSiluPack", x, gamma, beta, threshold, outputs=3, **attributes)
    assert np.array_equal(y, activated)
    assert np.array_equal(bits, packing.pack_rows(y + threshold >= 0))
    assert close(mean_abs, np.abs(y.astype(np.float64)).mean(-1, keepdims=True), channels * 2.0**-24)

    step = np.array(0.07, np.float32)
    (codes,) = run_op("GroupNormSiluQuantize", x, gamma, beta, step, **attributes)
    assert np.array_equal(codes, np.clip(np.rint(y / step), -8, 7))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("kernel", "strides", "pads"), GEOMETRIES)
def test_float_conv_is_a_channels_last_convolution(run_op, channels, kernel, strides, pads) -> None:
    """On small integers, which float32 adds exactly, so the result must be equal."""
    x = rng_of(channels).integers(-9, 10, (1, 6, 7, channels))
    weight, bias = rng_of(1).integers(-9, 10, (5, channels, kernel, kernel)), rng_of(2).integers(-9, 10, 5)
    inputs = [each.astype(np.float32) for each in (x, weight, bias)]
    (y,) = run_op("FloatConv", *inputs, strides=strides, pads=pads)
    assert np.array_equal(y, convolve(x, np.moveaxis(weight, 1, -1), strides, pads) + bias)


@pytest.mark.parametrize("channels", CHANNELS)
def test_resampling_repeats_and_averages_pixels(run_op, channels: int) -> None:
    x = normal(channels, 1, 4, 6, channels)
    for factor in (2, 3):
        (y,) = run_op("UpsampleNearest", x, factor=factor)
        assert np.array_equal(y, x.repeat(factor, 1).repeat(factor, 2))
    (y,) = run_op("AveragePool2d", x, kernel=[2, 3])
    expected = x.astype(np.float64).reshape(1, 2, 2, 2, 3, channels).mean((2, 4))
    assert close(y, expected, 6 * 2.0**-24)
