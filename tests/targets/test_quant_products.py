"""QuantConv, QuantGemm, QuantMatMul against exact integers and their ONNX functions, at every level of x86."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import (
    Case,
    arguments_of,
    call,
    compile_kernels,
    launches,
    reference,
    run_kernels,
    runs_on_threads,
    select_case,
    symbol,
)

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.targets import resolve, runs_natively
from edgedm.targets.kernels import TensorSpec, select
from edgedm.targets.kernels.dot_tiles import VnniDot
from edgedm.targets.tuning import tiling

# ((acc * m) * s + a) + r * x has five roundings, fused or not, each of half a unit in the last place
EPILOGUE_ROUNDINGS = 5 * 2**-24
STEP_ROUNDINGS = 3 * 2**-24  # acc * (a_step * b_step): the sum's own, and two products'
EXAMPLES = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TERMS = {"multiplier": 1.0, "step": 1.0, "addend": 0.0, "residual": 0.0, "residual_scale": 1.0}
ZERO, STEP = 1, 5  # inputs that change with the timestep


def uniform(rng, bits, *shape):
    return rng.integers(0, 2**bits, shape).astype(np.uint8)


def quant(rng, codes, weight, bits, weight_bits, out, terms=(), zero=None, weight_zero=None, **attrs):
    """A case of QuantConv or, for a weight of rank 2, QuantGemm, whose output's shape is `out`."""
    o = weight.shape[0]
    zero = rng.integers(0, 2**bits) if zero is None else zero
    weight_zero = uniform(rng, weight_bits, o) if weight_zero is None else np.full(o, weight_zero, np.uint8)
    shapes = {"multiplier": (o,), "step": (), "addend": (o,), "residual": out, "residual_scale": (1,)}
    neutral = {"residual": (1,) * len(out)}
    values = [
        np.float32(rng.standard_normal(shapes[name]))
        if name in terms
        else np.full(neutral.get(name, shapes[name]), plain, np.float32)
        for name, plain in TERMS.items()
    ]
    attrs = {"bits": bits, "weight_bits": weight_bits, **attrs}
    op = "QuantConv" if weight.ndim == 4 else "QuantGemm"
    runtime = {0, ZERO} | ({STEP} if "step" in terms else set()) | ({7} if "residual" in terms else set())
    inputs = [codes, np.array(zero, np.uint8), weight, weight_zero, *(np.asarray(value) for value in values)]
    return Case(op, inputs, attrs, frozenset(runtime))


def convolution(rng, image, channels, out_channels, kernel, strides, pads, bits, weight_bits, terms=(), **zeros):
    out = [(n + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i, n in enumerate(image)]
    codes, weight = uniform(rng, bits, 1, *image, channels), uniform(rng, weight_bits, out_channels, *kernel, channels)
    return quant(
        rng,
        codes,
        weight,
        bits,
        weight_bits,
        (1, *out, out_channels),
        terms,
        strides=list(strides),
        pads=list(pads),
        **zeros,
    )


def gemm(rng, rows, channels, out_channels, bits, weight_bits, terms=(), **zeros):
    codes, weight = uniform(rng, bits, *rows, channels), uniform(rng, weight_bits, out_channels, channels)
    return quant(rng, codes, weight, bits, weight_bits, (*rows, out_channels), terms, **zeros)


def matmul(rng, heads, m, n, k, transposed, bits=4, other_bits=4):
    b = (1, heads, n, k) if transposed else (1, heads, k, n)
    inputs = [
        uniform(rng, bits, 1, heads, m, k),
        uniform(rng, bits, heads),
        rng.uniform(0.01, 1, heads).astype(np.float32),
        uniform(rng, other_bits, *b),
        uniform(rng, other_bits, heads),
        rng.uniform(0.01, 1, heads).astype(np.float32),
    ]
    attrs = {"transposed": int(transposed), "bits": bits, "other_bits": other_bits}
    return Case("QuantMatMul", inputs, attrs, frozenset(range(6)))


def exact(case):
    """The int64 accumulator of QuantConv and QuantGemm."""
    codes, zero, weight, weight_zero = (x.astype(np.int64) for x in case.inputs[:4])
    if weight.ndim == 2:
        return (codes - zero) @ (weight - weight_zero[:, None]).T
    top, left, bottom, right = case.attrs["pads"]
    image = np.pad(codes - zero, [(0, 0), (top, bottom), (left, right), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(image, weight.shape[1:3], axis=(1, 2))
    windows = windows[:, :: case.attrs["strides"][0], :: case.attrs["strides"][1]]
    return np.einsum("nhwcij,oijc->nhwo", windows, weight - weight_zero[:, None, None, None], optimize=True)


def exact_matmul(case):
    a, za, _, b, zb, _ = (x.astype(np.int64) for x in case.inputs)
    b = b - zb[:, None, None]
    return (a - za[:, None, None]) @ (b.swapaxes(-1, -2) if case.attrs["transposed"] else b)


def check(cases, target):
    """Accumulators equal the integers; the epilogue stays within its roundings; the ONNX functions agree."""
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        if case.op == "QuantMatMul":
            acc = exact_matmul(case).astype(np.float64)
            size = acc * (case.inputs[2].astype(np.float64) * case.inputs[5])[:, None, None]
            assert np.all(np.abs(got - size) <= STEP_ROUNDINGS * np.abs(size)), case.attrs
            np.testing.assert_allclose(got, reference(case)[0], rtol=STEP_ROUNDINGS)
            continue
        acc = exact(case)
        if all(np.all(x == plain) for x, plain in zip(case.inputs[4:], TERMS.values(), strict=True)):
            np.testing.assert_array_equal(got, acc.astype(np.float32), err_msg=str(case.attrs))
            np.testing.assert_array_equal(got, reference(case)[0])
        else:
            multiplier, step, addend, residual, scale = (x.astype(np.float64) for x in case.inputs[4:])
            expected = acc * multiplier * step + addend + scale * residual
            size = np.abs(acc * multiplier * step) + np.abs(addend) + np.abs(scale * residual)
            assert np.all(np.abs(got - expected) <= EPILOGUE_ROUNDINGS * size), case.attrs
            assert np.all(np.abs(got - reference(case)[0]) <= 2 * EPILOGUE_ROUNDINGS * size), case.attrs


BITS = st.sampled_from([(4, 4), (4, 4), (8, 8), (4, 8), (8, 4), (2, 3), (6, 2), (7, 8), (8, 6)])
SHAPES = st.fixed_dictionaries(
    {
        "image": st.tuples(st.integers(1, 9), st.integers(1, 11)),
        "channels": st.sampled_from([1, 3, 7, 8, 12, 16, 33, 64, 70, 130]),
        "out_channels": st.sampled_from([1, 5, 8, 16, 21, 32, 64, 67]),
        "kernel": st.sampled_from([(1, 1), (3, 3), (2, 2), (1, 3)]),
        "strides": st.sampled_from([(1, 1), (2, 2), (2, 1)]),
        "pads": st.tuples(*[st.integers(0, 2)] * 4),
        "terms": st.sets(st.sampled_from(sorted(TERMS))).map(sorted),
        "zero": st.sampled_from([None, 0]),
        "weight_zero": st.sampled_from([None, 0]),
    }
).filter(lambda s: all(s["image"][i] + s["pads"][i] + s["pads"][i + 2] >= s["kernel"][i] for i in range(2)))


@given(shapes=st.lists(st.tuples(BITS, SHAPES), min_size=5, max_size=5), seed=st.integers(0, 2**32 - 1))
@EXAMPLES
def test_convolutions_of_any_shape_and_width_are_exact(target, shapes, seed):
    rng = np.random.default_rng(seed)
    check([convolution(rng, bits=a, weight_bits=w, **shape) for (a, w), shape in shapes], target)


def test_products_of_any_width_are_exact(target):
    rng = np.random.default_rng(1)
    sizes = [((1,), 64, 128), ((3,), 70, 21), ((1, 16), 128, 64), ((2, 3), 65, 130), ((9,), 1, 1)]
    cases = [gemm(rng, *size, *bits) for size in sizes for bits in [(4, 4), (8, 8)]]
    cases += [gemm(rng, (5,), 70, 21, 4, 4, list(TERMS)), gemm(rng, (1, 13), 24, 40, 8, 8, list(TERMS))]
    check(cases, target)


@pytest.mark.parametrize(("zero", "weight_zero"), [(0, 0), (15, 0), (0, 15), (15, 15), (7, 8)])
def test_zero_points_at_both_ends_are_exact(target, zero, weight_zero):
    rng = np.random.default_rng(2)
    zeros = {"zero": zero, "weight_zero": weight_zero}
    cases = [convolution(rng, (5, 6), 20, 18, (3, 3), (1, 1), (1, 0, 2, 1), 4, 4, **zeros)]
    zeros = {"zero": zero * 17, "weight_zero": weight_zero * 17}
    cases += [convolution(rng, (5, 6), 20, 18, (3, 3), (1, 1), (1, 0, 2, 1), 8, 8, **zeros)]
    check(cases, target)


@pytest.mark.parametrize(("bits", "weight_bits"), [(4, 4), (8, 8), (8, 4), (4, 8), (3, 2), (7, 7)])
def test_the_largest_sums_do_not_overflow(target, bits, weight_bits):
    """All codes at their ends over more terms than any 16-bit sum holds, in one kernel row and in three."""
    rng = np.random.default_rng(3)
    cases = []
    for channels, kernel, image in [(1472, (3, 3), (3, 3)), (4484, (1, 1), (1, 9))]:
        for flip in range(2):
            case = convolution(
                rng, image, channels, 17, kernel, (1, 1), (0,) * 4, bits, weight_bits, zero=0, weight_zero=0
            )
            case.inputs[0][:] = 2**bits - 1
            case.inputs[2][:] = 2**weight_bits - 1
            case.inputs[1][...] = flip * (2**bits - 1)
            case.inputs[3][:] = flip * (2**weight_bits - 1)
            case.inputs[0][..., ::2] = 0 if flip else case.inputs[0][..., ::2]
            case.inputs[2][:, :, :, ::2] = 0 if flip else case.inputs[2][:, :, :, ::2]
            cases.append(case)
    check(cases, target)


def test_sums_beyond_int32_are_refused():
    channels = 2**31 // 255**2 + 1
    case = gemm(np.random.default_rng(4), (1,), channels, 1, 8, 8, weight_zero=0)
    for weight, weight_zero in [(255, 0), (255, 255)]:  # the second sum is 0, but what it is the difference of is not
        case.inputs[2][:], case.inputs[3][:] = weight, weight_zero
        with pytest.raises(UnsupportedError, match=r"QuantGemm.*int32"):
            select("QuantGemm", case.inputs, case.attrs, resolve("host"))
    operands = [*matmul(np.random.default_rng(4), 1, 1, 1, channels, True, 8, 8).inputs]
    with pytest.raises(UnsupportedError, match=r"QuantMatMul.*int32"):
        select("QuantMatMul", operands, {"bits": 8, "other_bits": 8}, resolve("host"))


def test_products_of_two_activations_are_exact(target):
    rng = np.random.default_rng(5)
    sizes = [(1, 1, 1, 1), (2, 5, 7, 3), (3, 16, 16, 32), (2, 9, 33, 70), (1, 64, 20, 257), (4, 17, 40, 16)]
    cases = [matmul(rng, *size, transposed) for size in sizes for transposed in (True, False)]
    cases += [matmul(rng, 2, 9, 18, 23, flag, *bits) for flag in (True, False) for bits in [(8, 8), (8, 4), (4, 8)]]
    check(cases, target)


def test_large_products_share_their_work_among_threads(target):
    rng = np.random.default_rng(6)
    if target.level == "x86-64":
        pytest.skip("plain loops are never shared")
    cases = [convolution(rng, (16, 16), 128, 128, (3, 3), (1, 1), (1, 1, 1, 1), 4, 4)]
    cases += [matmul(rng, heads, 256, 256, 64, flag) for heads in (4, 1) for flag in (True, False)]
    assert all(runs_on_threads(case, target) for case in cases)
    check(cases, target)


@pytest.mark.parametrize("transposed", [True, False])
def test_the_only_head_of_a_product_shares_rows_columns_and_tiles(target, transposed):
    """Sizes that fill no tile."""
    if target.level == "x86-64":
        pytest.skip("plain loops are never shared")
    case = matmul(np.random.default_rng(11), 1, 200, 257, 70, transposed)
    assert launches([case], target) == 3  # the left side's sums, the right side's layout, the product
    check([case], target)


@pytest.mark.parametrize("level", ["host", "x86-64-v3"])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("size", [(1, 5, 40, 32), (2, 9, 33, 70), (1, 3, 16, 257)])
def test_a_right_operand_laid_out_once_serves_left_operands_after_it(level, transposed, size):
    target, rng = resolve(level), np.random.default_rng(12)
    if not runs_natively(target):
        pytest.skip("this machine has no AVX2")
    case, other = (matmul(rng, *size, transposed) for _ in range(2))
    kernel = select_case(case, target)
    layout, product = kernel.apart()
    whole, layout, product = (replace(kernel, function=each) for each in (kernel.function, layout, product))
    library = compile_kernels([whole, layout, product], target)
    arguments = [tvm.runtime.tensor(each) for each in arguments_of(kernel, case.inputs)]
    library[symbol(layout)](*arguments)
    for left in (case.inputs[0], other.inputs[0], case.inputs[0]):
        arguments[0] = tvm.runtime.tensor(left)
        library[symbol(product)](*arguments)
        expected = call(library, whole, [left, *case.inputs[1:]])[0]
        assert arguments[len(kernel.kept)].numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("codes", [(4, 4), (8, 8), (8, 4)])
def test_narrow_vnni_vectors_are_exact(monkeypatch, codes):
    """AVX-VNNI's tiles, with the instruction that AVX-512 VL has for it."""
    here = resolve("host")
    if "vnni" not in here.features:
        pytest.skip("this machine has no VNNI")

    choose, narrower = tiling.dot, resolve("x86-64-v3+avxvnni")

    def narrow(_, *product, **named):
        tile = choose(narrower, *product, **named)
        assert isinstance(tile, VnniDot)
        assert tile.lanes == 8
        return tile

    monkeypatch.setattr(tiling, "dot", narrow)
    rng = np.random.default_rng(10)
    cases = [convolution(rng, (5, 7), 20, 21, (3, 3), (1, 1), (1, 0, 2, 1), *codes)]
    cases += [gemm(rng, (rows,), 70, 45, *codes) for rows in (1, 2, 3, 5)]
    cases += [matmul(rng, 2, 9, 18, 23, True, *codes)]
    check(cases, here)


def test_a_weight_of_four_bits_takes_half_a_byte(target):
    import ml_dtypes

    rng = np.random.default_rng(7)
    case = convolution(rng, (4, 4), 64, 32, (3, 3), (1, 1), (1, 1, 1, 1), 4, 4)
    narrow = case.inputs[2].astype(ml_dtypes.uint4)
    operands = [TensorSpec((1, 4, 4, 64), "uint8"), TensorSpec((), "uint8"), narrow, *case.inputs[3:]]
    kernel = select("QuantConv", operands, case.attrs, target)
    assert kernel.inputs[kernel.kept.index(2)].nbytes == narrow.size // 2
    np.testing.assert_array_equal(kernel.packed(2, narrow), kernel.packed(2, case.inputs[2]))


def test_neutral_terms_are_no_parameters():
    case = gemm(np.random.default_rng(8), (3,), 64, 32, 4, 4)
    operands = [TensorSpec((3, 64), "uint8"), TensorSpec((), "uint8"), *case.inputs[2:]]
    kernel = select("QuantGemm", operands, case.attrs, resolve("x86-64-v3"))
    assert kernel.kept == (0, 1, 2, 3)
    assert kernel.dropped == {4, 5, 6, 7, 8}


def test_operands_that_do_not_fit_are_refused():
    case = gemm(np.random.default_rng(9), (3,), 64, 32, 4, 4)
    here = resolve("x86-64-v3")

    def attempt(index, value, **attrs):
        inputs = [*case.inputs]
        inputs[index] = value
        return select("QuantGemm", inputs, {**case.attrs, **attrs}, here)

    with pytest.raises(UnsupportedError, match="weight is computed"):
        attempt(2, TensorSpec((32, 64), "uint8"))
    with pytest.raises(UnsupportedError, match="weight_zero is computed"):
        attempt(3, TensorSpec((32,), "uint8"))
    with pytest.raises(InvalidModelError, match="does not fit"):
        attempt(0, TensorSpec((3, 65), "uint8"))
    with pytest.raises(InvalidModelError, match="uint8"):
        attempt(0, TensorSpec((3, 64), "float32"))
    with pytest.raises(InvalidModelError, match="beyond 4 bits"):
        attempt(2, np.full((32, 64), 16, np.uint8))
    with pytest.raises(InvalidModelError, match="weight_zero: a code is 16, beyond 4 bits"):
        attempt(3, np.full(32, 16, np.uint8))
    with pytest.raises(InvalidModelError, match="weight_zero: expected 32"):
        attempt(3, np.zeros(31, np.uint8))
    with pytest.raises(InvalidModelError, match="weight_bits"):
        attempt(3, case.inputs[3], weight_bits=9)
    with pytest.raises(InvalidModelError, match="QuantMatMul"):
        select("QuantMatMul", matmul(np.random.default_rng(0), 1, 2, 3, 4, True).inputs, {"transposed": 0}, here)
