"""Float convolutions, products, softmax and resizing against their ONNX functions."""

import numpy as np
import pytest
from kernel_cases import Case, reference, run_kernels

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.targets import resolve
from edgedm.targets.kernels import TensorSpec, select

UNIT = 2.0**-24
SOFTMAX_BOUND = 32 * UNIT  # e^x within 4 units, the sum and the division


def rows(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def conv(rng, height, width, channels, out_channels, kernel=3, stride=1, pads=(1, 1, 1, 1), bias=True):
    offsets = rows(rng, out_channels) if bias else np.zeros(out_channels, np.float32)
    weight = rows(rng, out_channels, channels, kernel, kernel)
    attrs = {"strides": [stride, stride], "pads": list(pads)}
    return Case("FloatConv", [rows(rng, 1, height, width, channels), weight, offsets], attrs)


def gamma(case, count):
    """Bound of a sum of `count` products in any order, fused or not (Higham's gamma_n), times their magnitudes."""
    (magnitudes,) = reference(Case(case.op, [np.abs(x) for x in case.inputs], case.attrs))
    return 2 * count * UNIT * magnitudes


def test_convolutions_equal_their_functions(target):
    """First and last convolutions, the filter over mean magnitudes, strides, tails, asymmetric padding, 1x1."""
    rng = np.random.default_rng(0)
    cases = [
        conv(rng, 16, 16, 1, 64),
        conv(rng, 13, 16, 64, 70),  # enough for threads
        conv(rng, 9, 7, 64, 1),
        conv(rng, 6, 5, 70, 3),
        conv(rng, 16, 16, 1, 1),
        conv(rng, 5, 7, 1, 1, bias=False),
        conv(rng, 9, 8, 1, 1, stride=2, pads=(0, 0, 1, 1)),
        conv(rng, 6, 7, 5, 67, kernel=1, pads=(0, 0, 0, 0), bias=False),
        conv(rng, 7, 9, 3, 21, kernel=5, stride=2, pads=(2, 1, 0, 2)),
        conv(rng, 4, 4, 3, 3),
        conv(rng, 1, 1, 40, 40),
        conv(rng, 9, 11, 320, 70, kernel=1, pads=(0, 0, 0, 0)),  # weights that L1 does not hold: sums in parts
        conv(rng, 7, 6, 128, 64),
        conv(rng, 6, 7, 257, 64, kernel=1, pads=(0, 0, 0, 0)),  # a prime has no parts
    ]
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        weight = case.inputs[1]
        assert np.all(np.abs(got - reference(case)[0]) <= gamma(case, weight[0].size + 1)), weight.shape


def test_products_equal_matmul(target):
    rng = np.random.default_rng(1)
    shapes = [
        ((4, 16, 32), (4, 32, 16)),
        ((1, 3, 7, 5), (1, 3, 5, 21)),
        ((2, 5, 64), (64, 70)),
        ((1, 64), (64, 130)),
        ((5, 9), (2, 9, 3)),
    ]
    cases = [Case("MatMul", [rows(rng, *a), rows(rng, *b)], runtime=frozenset({0, 1})) for a, b in shapes]
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        assert got.shape == reference(case)[0].shape
        assert np.all(np.abs(got - reference(case)[0]) <= gamma(case, case.inputs[0].shape[-1]))


def test_softmax_equals_the_function(target):
    rng = np.random.default_rng(2)
    shapes = [(1, 4, 16, 16), (3, 1), (2, 37), (5, 200)]
    cases = [Case("Softmax", [rows(rng, *shape) * 20], {"axis": -1}) for shape in shapes]
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        np.testing.assert_allclose(got, reference(case)[0], rtol=SOFTMAX_BOUND, atol=UNIT)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 63, 64, 65, 79, 80, 81, 257])
def test_softmax_finds_the_largest_number_wherever_it_stands(target, size):
    """The others are so far below that e^(x - any of them) overflows, in rows below and above 0."""
    low = np.random.default_rng(size).uniform(-300, -200, (2, size, size)).astype(np.float32)
    low[:, np.arange(size), np.arange(size)] = 0
    x = low + np.array([-50, 500], np.float32)[:, None, None]
    got = run_kernels([Case("Softmax", [x], {"axis": -1})], target)[0][0]
    np.testing.assert_allclose(got, np.broadcast_to(np.eye(size, dtype=np.float32), x.shape), atol=1e-30)


def test_resizing_equals_the_functions(target):
    rng = np.random.default_rng(3)
    cases = [
        Case("UpsampleNearest", [rows(rng, 1, 3, 5, 70)], {"factor": 2}),
        Case("UpsampleNearest", [rows(rng, 1, 2, 2, 3)], {"factor": 3}),
        Case("AveragePool2d", [rows(rng, 1, 6, 4, 70)], {"kernel": [2, 2]}),
    ]
    results = [result[0] for result in run_kernels(cases, target)]
    for case, got in zip(cases[:2], results[:2], strict=True):
        np.testing.assert_array_equal(got, reference(case)[0])
    assert np.all(np.abs(results[2] - reference(cases[2])[0]) <= gamma(cases[2], 4))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_codes_and_packed_bits_are_repeated_as_floats_are(target, dtype):
    rng = np.random.default_rng(4)
    shapes = [(1, 3, 5, 70), (1, 2, 2, 3), (1, 3, 1, 256), (1, 2, 2, 8)]
    cases = [
        Case("UpsampleNearest", [rng.integers(0, 256, shape).astype(np.uint8).view(dtype)], {"factor": 2})
        for shape in shapes
    ]
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        np.testing.assert_array_equal(got, reference(case)[0])
    words = select("UpsampleNearest", [TensorSpec((1, 2, 2, 4), "uint64")], {"factor": 2}, target)
    assert words.outputs == (TensorSpec((1, 4, 4, 4), "uint64"),)


def test_the_last_two_axes_change_places(target):
    """Whole squares, rows and columns that fill none, several matrices, enough for threads."""
    rng = np.random.default_rng(5)
    shapes = [(1, 1, 64, 64), (3, 33, 18), (2, 5, 40), (40, 3), (1, 7, 1), (512, 576)]
    cases = []
    for shape in shapes:
        swapped = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        cases.append(Case("Transpose", [rows(rng, *shape)], {"perm": swapped}))
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        np.testing.assert_array_equal(got, np.swapaxes(case.inputs[0], -1, -2))


def test_a_transpose_of_other_axes_is_refused():
    with pytest.raises(UnsupportedError, match="last two axes"):
        select("Transpose", [TensorSpec((2, 3, 4), "float32")], {"perm": [1, 0, 2]}, resolve("x86-64"))


def test_a_softmax_over_another_axis_is_refused():
    with pytest.raises(UnsupportedError, match="axis"):
        select("Softmax", [TensorSpec((2, 3), "float32")], {"axis": 0}, resolve("x86-64"))


def test_products_that_do_not_fit_are_refused():
    operands = [TensorSpec((2, 3), "float32"), TensorSpec((4, 2), "float32")]
    with pytest.raises(InvalidModelError, match="MatMul"):
        select("MatMul", operands, {}, resolve("x86-64"))
    operands = [TensorSpec((2, 1, 3, 4), "float32"), TensorSpec((3, 4, 2), "float32")]
    with pytest.raises(UnsupportedError, match="batch"):
        select("MatMul", operands, {}, resolve("x86-64"))


def test_an_op_without_a_kernel_is_refused():
    with pytest.raises(UnsupportedError, match="BinaryConv"):
        select("Erf", [], {}, resolve("x86-64"))
    with pytest.raises(InvalidModelError, match="expected 2 inputs"):
        select("PackBits", [TensorSpec((1, 64), "float32")], {}, resolve("x86-64"))
