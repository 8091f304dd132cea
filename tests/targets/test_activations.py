"""Signs, codes and norms against their ONNX functions; decisions follow from the very floats that are written."""

import numpy as np
import pytest
import tvm
from kernel_cases import Case, launches, reference, run_kernels

from edgedm.errors import InvalidModelError
from edgedm.ops.packing import pack_rows
from edgedm.targets import resolve
from edgedm.targets.kernels import TensorSpec, mathematics, select
from edgedm.targets.kernels.builder import build, load, loop, store

ULP = 2.0**-23
EXP_ULPS, EXP_ULPS_NEAR_0 = 6, 3  # stated in `mathematics`
# normalising divides by sqrt(variance): a mean and a variance over n values carry about sqrt(n) roundings, n <= 4096
NORM_BOUND = 64 * ULP
MEAN_BOUND = 16 * ULP  # a mean over a few hundred magnitudes, in another order
MEAN_ULPS = 2
SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)


def rows(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3"])
def test_inverse_exp_is_within_some_units_in_the_last_place(name):
    x = np.concatenate([np.linspace(-89.5, 104, 1 << 16), SPECIAL]).astype(np.float32)
    x = np.pad(x, (0, -x.size % 16))
    target = resolve(name)

    def body(source, out):
        for lanes in (1, 16):
            with_lanes(source, out, lanes)

    def with_lanes(source, out, lanes):
        with loop(x.size // lanes) as index:
            value = mathematics.inverse_exp(load(source, index * lanes, lanes), lanes, target.fused)
            store(out, value, index * lanes + (0 if lanes == 1 else x.size), lanes)

    parameters = [("x", TensorSpec((x.size,), "float32")), ("y", TensorSpec((2 * x.size,), "float32"))]
    library = tvm.compile(tvm.IRModule({"exp": build("exp", parameters, body)}), target.tvm())
    y = tvm.runtime.tensor(np.zeros(2 * x.size, np.float32))
    library["exp"](tvm.runtime.tensor(x), y)
    scalar, vector = y.numpy().reshape(2, -1)
    np.testing.assert_array_equal(scalar, vector)
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp(-x.astype(np.float64))
        expected = exact.astype(np.float32)
    within = (x >= -88) & (x <= 87)
    error = np.abs(scalar[within] - exact[within]) / np.spacing(expected[within])
    assert error.max() <= EXP_ULPS
    assert error[np.abs(x[within]) <= 30].max() <= EXP_ULPS_NEAR_0
    np.testing.assert_array_equal(np.isnan(scalar), np.isnan(x))
    assert np.all(scalar[x == 0] == 1)
    assert np.all(scalar[x < -88.73] == np.inf)
    assert np.all(scalar[x > 88] == 0)
    assert np.all(scalar[x > 87] < 2 * np.finfo(np.float32).tiny)


@pytest.mark.parametrize("channels", [1, 16, 64, 70, 131])
def test_signs_equal_the_functions_for_ties_signed_zeros_and_nan(target, channels):
    rng = np.random.default_rng(channels)
    threshold = rows(rng, channels)
    threshold[::3] = 0
    x = rows(rng, 1, 3, 5, channels)
    x[0, 0] = -threshold  # exact ties
    x[0, 1, :, 0] = SPECIAL[:5]
    x[0, 2, :4, -1] = SPECIAL[5:]
    x[0, 2, 4] = np.float32(-0.0)
    finite = np.where(np.isfinite(x), x, 0)
    cases = [Case("PackBits", [x, threshold]), Case("PackBitsMeanAbs", [finite, threshold])]
    (bits,), (others, mean_abs) = run_kernels(cases, target)
    np.testing.assert_array_equal(bits, reference(cases[0])[0])
    expected, mean = reference(cases[1])
    np.testing.assert_array_equal(others, expected)
    np.testing.assert_allclose(mean_abs, mean, rtol=MEAN_BOUND)


def test_codes_equal_the_function_for_ties_and_special_values(target):
    step = np.array(0.3, np.float32)
    halves = (np.arange(-20, 21) / 2).astype(np.float32) * step
    x = np.concatenate([halves, SPECIAL, rows(np.random.default_rng(0), 400) * 3]).astype(np.float32)
    cases = [Case("QuantizeCodes", [x[None], step], {"low": low, "high": high}) for low, high in [(-8, 7), (-128, 127)]]
    cases += [Case("QuantizeCodes", [x[None, :, None], np.array(-0.7, np.float32)])]
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        np.testing.assert_array_equal(got, reference(case)[0])


# beyond the threshold of `parallel`: rows in unequal parts, fewer rows than parts
LARGE_NORMS = [((1, 13, 27, 70), 7), ((1, 5, 3360), 32)]
NORMS = ("GroupNorm", "GroupNormSilu", "GroupNormSiluPack", "GroupNormSiluQuantize")


def norm_case(rng, op, shape, groups):
    channels = shape[-1]
    x = rows(rng, *shape) * 3 + 5  # a mean that a one-pass variance would cancel against
    operands = [x, rows(rng, channels), rows(rng, channels)]
    if op == "GroupNormSiluPack":
        operands.append(rows(rng, channels) * np.float32(0.3))
    if op == "GroupNormSiluQuantize":
        operands.append(np.array(0.17, np.float32))
    return Case(op, operands, {"groups": groups, "epsilon": 1e-5})


def test_norms_equal_their_functions(target):
    """Whole vectors, several strips, groups of odd size, channels that fill no vector, rows in unequal parts."""
    rng = np.random.default_rng(1)
    shapes = [((1, 4, 4, 64), 8), ((1, 3, 5, 256), 32), ((1, 9, 224), 32), ((1, 2, 3, 70), 7), ((1, 13, 27, 70), 7)]
    cases = [norm_case(rng, op, *shape) for shape in shapes for op in NORMS]
    for case, got in zip(cases, run_kernels(cases, target), strict=True):
        expected = reference(case)
        if case.op == "GroupNormSiluQuantize":
            continue  # see the test of its decisions
        np.testing.assert_allclose(got[0], expected[0], rtol=NORM_BOUND, atol=NORM_BOUND)
        if case.op == "GroupNormSiluPack":
            (bits, mean_abs) = reference(Case("PackBitsMeanAbs", [got[0], case.inputs[3]]))
            np.testing.assert_array_equal(got[1], bits)
            np.testing.assert_allclose(got[2], mean_abs, rtol=MEAN_BOUND)


def test_codes_of_a_norm_are_the_codes_of_the_norm_that_is_written(target):
    """GroupNormSilu and GroupNormSiluQuantize compute the same y, so the codes must follow from it."""
    rng = np.random.default_rng(2)
    cases = []
    for shape, groups in [((1, 4, 4, 64), 8), ((1, 3, 7, 40), 4), *LARGE_NORMS]:
        quantize = norm_case(rng, "GroupNormSiluQuantize", shape, groups)
        cases += [quantize, Case("GroupNormSilu", quantize.inputs[:3], quantize.attrs)]
    results = run_kernels(cases, target)
    for index in range(0, len(cases), 2):
        (codes,), (y,) = results[index : index + 2]
        expected = reference(Case("QuantizeCodes", [y, cases[index].inputs[3]]))
        np.testing.assert_array_equal(codes, expected[0])


def test_large_norms_share_both_sums_and_what_is_written(target):
    rng = np.random.default_rng(6)
    cases = [norm_case(rng, op, *shape) for shape in LARGE_NORMS for op in NORMS]
    assert launches(cases, target) == 2 * len(cases)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (1, 3, 5, 70), (1, 40, 40, 24)])
def test_a_norm_is_as_exact_far_from_0_and_with_outliers_where_its_anchors_lie(target, shape):
    """Sums about an anchor lose little whatever the pixels hold: about values of 300, and where one pixel rules all."""
    rng = np.random.default_rng(7)
    channels = shape[-1]
    far, spiky = rows(rng, *shape) + 300, rows(rng, *shape) / 1000
    spiky[0, 0, 0] *= 1e6
    gamma, beta = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    cases = [Case("GroupNorm", [x, gamma, beta], {"groups": 2, "epsilon": 1e-5}) for x in (far, spiky)]
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        x = case.inputs[0].astype(np.float64).reshape(-1, 2, channels // 2)
        centred = x - x.mean((0, 2), keepdims=True)
        deviation = np.sqrt(np.square(centred).mean((0, 2)) + 1e-5)
        exact = centred / deviation[:, None]
        of_the_mean = MEAN_ULPS * np.abs(x).max() * ULP / deviation.min()  # a float32 near x is no closer to it
        error = np.abs(got.reshape(exact.shape) - exact)
        assert error.max() <= of_the_mean + NORM_BOUND * np.abs(exact).max()


def test_bits_of_a_norm_follow_from_exact_ties(target):
    """gamma 0 and beta 0 make y exactly 0: a zero threshold gives 1, the smallest negative one 0."""
    channels = 64
    threshold = np.zeros(channels, np.float32)
    threshold[1::2] = -1e-45
    zero = np.zeros(channels, np.float32)
    x = rows(np.random.default_rng(3), 1, 2, 2, channels)
    case = Case("GroupNormSiluPack", [x, zero, zero, threshold], {"groups": 8, "epsilon": 1e-5})
    ((y, bits, _),) = run_kernels([case], target)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(bits, np.broadcast_to(pack_rows(threshold >= 0), bits.shape))


def test_silu_of_a_large_negative_value_is_minus_zero(target):
    """As in PyTorch: e^90 overflows, so SiLU(-90) is -0.0 and a zero threshold gives 1."""
    channels = 16
    x = rows(np.random.default_rng(4), 1, 4, channels)
    gamma, beta = np.zeros(channels, np.float32), np.full(channels, -90, np.float32)
    case = Case("GroupNormSiluPack", [x, gamma, beta, np.zeros(channels, np.float32)], {"groups": 1, "epsilon": 1e-5})
    ((y, bits, _),) = run_kernels([case], target)
    assert np.all(y == 0)
    assert np.all(bits[..., :2] == 255)


def test_an_infinite_threshold_is_refused():
    with pytest.raises(InvalidModelError, match="finite"):
        select("PackBits", [TensorSpec((1, 16), "float32"), np.full(16, np.inf, np.float32)], {}, resolve("x86-64"))


def test_large_tensors_use_all_threads_and_agree(target):
    """Shapes beyond the thresholds of `parallel`."""
    rng = np.random.default_rng(5)
    x = rows(rng, 1, 64, 64, 128)
    cases = [
        Case("PackBits", [x, rows(rng, 128)]),
        Case("QuantizeCodes", [x, np.array(0.3, np.float32)]),
        Case("GroupNormSilu", [x, rows(rng, 128), rows(rng, 128)], {"groups": 32, "epsilon": 1e-5}),
    ]
    assert [launches([case], target) for case in cases] == [1, 1, 2]
    bits, codes, y = (results[0] for results in run_kernels(cases, target))
    np.testing.assert_array_equal(bits, reference(cases[0])[0])
    np.testing.assert_array_equal(codes, reference(cases[1])[0])
    np.testing.assert_allclose(y, reference(cases[2])[0], rtol=NORM_BOUND, atol=NORM_BOUND)
