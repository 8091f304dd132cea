"""Every op of uniform codes under ONNX Runtime against formulas written in numpy, any shape and zero point."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_formulas import CHANNELS, EPILOGUE, GEOMETRIES, INF, NAN, close, convolve, normal, rng_of

SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)
# products of two steps and an integer: three roundings
SCALED = 3 * 2.0**-24


def _byte(value: int) -> np.ndarray:
    return np.array(value, np.uint8)


def _codes(x: np.ndarray, step: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """On float32 quotients, as ONNX's QuantizeLinear takes them."""
    return np.clip(np.rint(x / step) + zero.astype(np.float32), 0, 2**bits - 1).astype(np.uint8)


@pytest.mark.parametrize(
    ("bits", "zero", "expected"),
    [
        (4, 6, [6, 8, 6, 4, 8, 14, 15, 0, 0, 15, 0, 6, 6, 0]),
        (4, 0, [0, 2, 0, 0, 2, 8, 15, 0, 0, 15, 0, 0, 0, 0]),
        (4, 15, [15, 15, 15, 13, 15, 15, 15, 7, 0, 15, 0, 15, 15, 0]),
        (8, 255, [255, 255, 255, 253, 255, 255, 255, 247, 57, 255, 0, 255, 255, 0]),
        (2, 1, [1, 3, 1, 0, 3, 3, 3, 0, 0, 3, 0, 1, 1, 0]),
    ],
)
def test_quantize_uniform_rounds_half_to_even_shifts_and_clips(run_op, bits, zero, expected) -> None:
    x = np.array([0.25, 0.75, -0.25, -0.75, 1.25, 3.75, 99.0, -4.25, -99.0, INF, -INF, 0.0, -0.0, NAN], np.float32)
    neutral, step = np.ones(1, np.float32), np.array(0.5, np.float32)
    assert run_op("QuantizeUniform", x, neutral, step, _byte(zero), bits=bits)[0].tolist() == expected


def test_quantize_uniform_divides_by_the_dilation_and_then_by_the_step(run_op) -> None:
    step = np.array(0.3, np.float32)
    divisor = np.array([3.0, 0.7, 1.0], np.float32)
    x = ((rng_of(0).integers(-9, 9, (4096, 3)) + 0.5) * 0.3 * divisor).astype(np.float32)
    (codes,) = run_op("QuantizeUniform", x, divisor, step, _byte(8))
    assert np.array_equal(codes, _codes(x / divisor, step, _byte(8), 4))
    assert not np.array_equal(codes, _codes(x, step * divisor, _byte(8), 4))


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_quantize_heads_has_one_grid_a_head(run_op, bits: int) -> None:
    x = normal(bits, 1, 3, 5, 7)
    step, zero = np.array([0.1, 0.03, 1.0], np.float32), np.array([0, 1, 2**bits - 1], np.uint8)
    (codes,) = run_op("QuantizeHeads", x, step, zero, bits=bits)
    assert np.array_equal(codes, _codes(x, step[:, None, None], zero[:, None, None], bits))


def test_group_norm_silu_quantize_uniform_is_its_parts_in_a_row(run_op) -> None:
    x, gamma, beta = normal(0, 1, 5, 6, 65) * 3 + 1, normal(1, 65), normal(2, 65)
    norm = {"groups": 5, "epsilon": 1e-5}
    (y,) = run_op("GroupNormSilu", x, gamma, beta, **norm)
    for grid in (
        (np.ones(1, np.float32), np.array(0.07, np.float32), _byte(3)),
        (np.abs(normal(3, 65)) + 0.1, np.array(0.3, np.float32), _byte(15)),
    ):
        (codes,) = run_op("GroupNormSiluQuantizeUniform", x, gamma, beta, *grid, **norm, bits=4)
        assert np.array_equal(codes, run_op("QuantizeUniform", y, *grid, bits=4)[0])


def _operands(rng: np.random.Generator, out: int, residual: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """multiplier, step, addend, residual, residual_scale."""
    shapes = ((out,), (), (out,), residual, (1,))
    return tuple(np.asarray(rng.standard_normal(shape), np.float32) for shape in shapes)


def _neutral(out: int, rank: int) -> tuple[np.ndarray, ...]:
    values = (np.ones(out), np.ones(()), np.zeros(out), np.zeros((1,) * rank), np.ones(1))
    return tuple(value.astype(np.float32) for value in values)


def _epilogue(accumulator: np.ndarray, operands: tuple[np.ndarray, ...]) -> np.ndarray:
    multiplier, step, addend, residual, gain = (each.astype(np.float64) for each in operands)
    return accumulator * multiplier * step + addend + gain * residual


def _weight(rng: np.random.Generator, bits: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes as stored, and zero points, those at both ends among them."""
    codes = rng.integers(0, 2**bits, shape).astype(ml_dtypes.uint4 if bits <= 4 else np.uint8)
    zeros = rng.integers(0, 2**bits, shape[0]).astype(np.uint8)
    zeros[0], zeros[-1] = 0, 2**bits - 1
    return codes, zeros


def _minus(codes: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    return codes.astype(np.int64) - zeros.astype(np.int64).reshape(-1, *[1] * (codes.ndim - 1))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("kernel", "strides", "pads"), GEOMETRIES)
@pytest.mark.parametrize("zero", [0, 7, 15])
def test_quant_conv_is_exact_and_pads_with_the_zero_point(run_op, channels, kernel, strides, pads, zero) -> None:
    rng = rng_of(channels)
    codes = rng.integers(0, 16, (1, 6, 7, channels)).astype(np.uint8)
    weight, weight_zero = _weight(rng, 4, 5, kernel, kernel, channels)
    accumulator = convolve(codes.astype(np.int64) - zero, _minus(weight, weight_zero), strides, pads)
    inputs, geometry = (codes, _byte(zero), weight, weight_zero), {"strides": strides, "pads": pads}
    (y,) = run_op("QuantConv", *inputs, *_neutral(5, 4), **geometry)
    assert np.array_equal(y, accumulator)
    for residual in ((1, 1, 1, 1), (1, 1, 1, 5), accumulator.shape):
        operands = _operands(rng, 5, residual)
        (y,) = run_op("QuantConv", *inputs, *operands, **geometry)
        assert close(y, _epilogue(accumulator, operands), EPILOGUE)


@SETTINGS
@given(st.data())
def test_quant_conv_of_any_shape_and_width(run_op, data) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    height, width = (data.draw(st.integers(size, 9)) for size in kernel)
    channels, out = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))
    strides = list(data.draw(st.tuples(*[st.integers(1, 3)] * 2)))
    pads = list(data.draw(st.tuples(*[st.integers(0, 3)] * 4)))
    bits, weight_bits = (data.draw(st.integers(2, 8)) for _ in range(2))
    zero = data.draw(st.sampled_from([0, 2**bits - 1, 1]))
    rng = rng_of(data.draw(st.integers(0, 99)))
    codes = rng.integers(0, 2**bits, (1, height, width, channels)).astype(np.uint8)
    weight, weight_zero = _weight(rng, weight_bits, out, *kernel, channels)
    expected = convolve(codes.astype(np.int64) - zero, _minus(weight, weight_zero), strides, pads)
    attributes = {"strides": strides, "pads": pads, "bits": bits, "weight_bits": weight_bits}
    (y,) = run_op("QuantConv", codes, _byte(zero), weight, weight_zero, *_neutral(out, 4), **attributes)
    assert np.array_equal(y, expected)


@pytest.mark.parametrize("leading", [(1,), (9,), (1, 9), (1, 3, 4)])
@pytest.mark.parametrize(("bits", "weight_bits", "zero"), [(4, 4, 0), (4, 4, 15), (8, 8, 255), (6, 2, 20), (8, 4, 0)])
def test_quant_gemm_is_exact(run_op, leading, bits, weight_bits, zero) -> None:
    rng = rng_of(bits + zero)
    codes = rng.integers(0, 2**bits, (*leading, 65)).astype(np.uint8)
    weight, weight_zero = _weight(rng, weight_bits, 6, 65)
    accumulator = (codes.astype(np.int64) - zero) @ _minus(weight, weight_zero).T
    inputs, widths = (codes, _byte(zero), weight, weight_zero), {"bits": bits, "weight_bits": weight_bits}
    (y,) = run_op("QuantGemm", *inputs, *_neutral(6, len(leading) + 1), **widths)
    assert np.array_equal(y, accumulator)
    operands = _operands(rng, 6, (*leading, 6))
    (y,) = run_op("QuantGemm", *inputs, *operands, **widths)
    assert close(y, _epilogue(accumulator, operands), EPILOGUE)


@pytest.mark.parametrize(
    ("code", "zero", "weight", "weight_zero"), [(255, 0, 255, 0), (255, 0, 0, 255), (0, 255, 0, 255)]
)
def test_quant_products_are_exact_at_the_limit_of_8_bit_codes(run_op, code, zero, weight, weight_zero) -> None:
    """257 of the largest products reach 2^24: the last sum that float32 holds as it is; 33025 reach 2^31."""
    for channels, exact in ((257, True), (33025, False)):
        codes = np.full((1, 1, 1, channels), code, np.uint8)
        weights, zeros = np.full((2, 1, 1, channels), weight, np.uint8), np.full(2, weight_zero, np.uint8)
        conv = {"strides": [1, 1], "pads": [0, 0, 0, 0]}
        widths = {"bits": 8, "weight_bits": 8}
        expected = channels * (code - zero) * (weight - weight_zero)
        expected = expected if exact else int(np.float32(expected))
        (y,) = run_op("QuantConv", codes, _byte(zero), weights, zeros, *_neutral(2, 4), **conv, **widths)
        assert y.ravel().tolist() == [expected] * 2
        rows = weights[:, 0, 0]
        (y,) = run_op("QuantGemm", codes, _byte(zero), rows, zeros, *_neutral(2, 4), **widths)
        assert y.ravel().tolist() == [expected] * 2


@SETTINGS
@given(st.data())
def test_quant_matmul_is_exact_with_a_grid_a_head(run_op, data) -> None:
    heads, rows, depth, columns = (data.draw(st.integers(1, size)) for size in (4, 9, 33, 7))
    bits, other_bits = (data.draw(st.integers(2, 8)) for _ in range(2))
    transposed = data.draw(st.integers(0, 1))
    rng = rng_of(data.draw(st.integers(0, 99)))
    a = rng.integers(0, 2**bits, (1, heads, rows, depth)).astype(np.uint8)
    b = rng.integers(0, 2**other_bits, (1, heads, columns, depth)).astype(np.uint8)
    zeros = [rng.choice([0, 1, 2**width - 1], heads).astype(np.uint8) for width in (bits, other_bits)]
    left, right = (each.astype(np.int64) - zero[:, None, None] for each, zero in zip((a, b), zeros, strict=True))
    accumulator = left @ right.transpose(0, 1, 3, 2)
    second = b if transposed else np.ascontiguousarray(b.transpose(0, 1, 3, 2))
    attributes = {"transposed": transposed, "bits": bits, "other_bits": other_bits}
    ones = np.ones(heads, np.float32)
    (y,) = run_op("QuantMatMul", a, zeros[0], ones, second, zeros[1], ones, **attributes)
    assert np.array_equal(y, accumulator)
    steps = [np.abs(normal(seed, heads)) + 0.01 for seed in (1, 2)]
    (y,) = run_op("QuantMatMul", a, zeros[0], steps[0], second, zeros[1], steps[1], **attributes)
    expected = accumulator * (steps[0].astype(np.float64) * steps[1])[:, None, None]
    assert np.all(np.abs(y - expected) <= SCALED * np.abs(expected))
