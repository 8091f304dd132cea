"""Every family that can multiply codes of some widths, asked for by name, is exact; the fastest is what is chosen."""

import numpy as np
import pytest
import test_products as signs
import test_quant_products as uniform
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import run_kernels, select_case
from tools import need_emulator

from edgedm.errors import UnsupportedError
from edgedm.targets import resolve
from edgedm.targets.kernels import select
from edgedm.targets.kernels.product_families import able
from edgedm.targets.tuning.crossover import BITSERIAL, DOT, GENERIC, LOOKUP

FULL = "x86-64-v4+vnni+vbmi+vpopcntdq"
WIDTHS = st.sampled_from([(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 4), (3, 3), (4, 4)])
FAMILIES = st.sampled_from([BITSERIAL, LOOKUP, DOT])
SHAPES = st.fixed_dictionaries(
    {
        "image": st.tuples(st.integers(1, 7), st.integers(1, 9)),
        "channels": st.sampled_from([1, 7, 16, 33, 64, 70, 130]),
        "out_channels": st.sampled_from([1, 5, 16, 21, 64, 67]),
        "kernel": st.sampled_from([(1, 1), (3, 3), (2, 2), (1, 3)]),
        "strides": st.sampled_from([(1, 1), (2, 2), (2, 1)]),
        "pads": st.tuples(*[st.integers(0, 2)] * 4),
    }
).filter(lambda s: all(s["image"][i] + s["pads"][i] + s["pads"][i + 2] >= s["kernel"][i] for i in range(2)))


def product(rng, widths, shape, fill=None, family=None):
    """A case of the op for these widths with neutral terms; `fill` makes all codes and weights as large as can be."""
    weight_bits, bits = widths
    if weight_bits > 1:
        case = uniform.convolution(rng, bits=bits, weight_bits=weight_bits, **shape)
        case.inputs[2].flat[0] = 2**weight_bits - 1  # a weight is as wide as its largest code
        if fill is not None:
            case.inputs[0][:], case.inputs[2][:] = 2**bits - 1, 2**weight_bits - 1
            case.inputs[1][...], case.inputs[3][:] = fill * (2**bits - 1), fill * (2**weight_bits - 1)
        case.family = family
        return case
    op = "BinaryConv" if bits == 1 else "BinaryWeightConv"
    case = signs.convolution(rng, op, **shape)
    if bits > 1:
        case.inputs[0] = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), case.inputs[0].shape).astype(np.int8)
        case.attrs["code_bits"] = bits
    if fill is not None:
        ones = signs.pack_signs(np.ones((1, shape["channels"])))
        case.inputs[1][:] = ones if fill else 0
        case.inputs[0][:] = -(2 ** (bits - 1)) if bits > 1 else ones
    case.family = family
    return case


def exact(case):
    """The int64 accumulator."""
    if case.op == "QuantConv":
        return uniform.exact(case)
    codes, weight = case.inputs[:2]
    channels = case.attrs.get("channels", codes.shape[-1])
    if case.op == "BinaryConv":
        codes = np.unpackbits(codes, axis=-1, count=channels, bitorder="little").astype(np.int64) * 2 - 1
    weight = np.unpackbits(weight, axis=-1, count=channels, bitorder="little").astype(np.int64) * 2 - 1
    inputs = [codes, np.int64(0), weight, np.zeros(len(weight), np.int64)]
    return uniform.exact(uniform.Case("QuantConv", inputs, case.attrs))


def check(cases, target):
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        described = f"{select_case(case, target).family} {case.attrs} {case.inputs[0].shape}"
        np.testing.assert_array_equal(got, exact(case).astype(np.float32), err_msg=described)


def can(target, widths, family):
    return family in able(target, *widths)


@given(choices=st.lists(st.tuples(WIDTHS, FAMILIES, SHAPES), min_size=6, max_size=6), seed=st.integers(0, 2**32 - 1))
@uniform.EXAMPLES
def test_every_family_is_exact_on_any_shape(target, choices, seed):
    rng = np.random.default_rng(seed)
    cases = [product(rng, widths, shape, None, name) for widths, name, shape in choices if can(target, widths, name)]
    check(cases, target)


@pytest.mark.parametrize("widths", [(1, 2), (1, 4), (2, 2), (2, 4), (4, 4)], ids=lambda w: f"W{w[0]}A{w[1]}")
def test_no_family_overflows_at_the_largest_sums(target, widths):
    check_largest(target, widths)


@pytest.mark.parametrize("widths", [(1, 4), (2, 4), (4, 4)], ids=lambda w: f"W{w[0]}A{w[1]}")
def test_planes_do_not_overflow_at_the_largest_sums_where_there_are_no_vectors(widths):
    """Codes cut by shifts, of W2A4 and W4A4 in a loop over their planes."""
    target = resolve("riscv64")
    need_emulator(target)
    check_largest(target, widths)


def check_largest(target, widths):
    """All codes and weights at their ends, over more terms than bytes and 16 bits hold, in one kernel row and three."""
    rng = np.random.default_rng(1)
    cases = []
    for channels, kernel, image in [(1472, (3, 3), (3, 3)), (22016, (1, 1), (1, 2))]:
        shape = {"image": image, "channels": channels, "out_channels": 3, "kernel": kernel}
        shape |= {"strides": (1, 1), "pads": (0, 0, 0, 0)}
        for family in (BITSERIAL, LOOKUP, DOT):
            if can(target, widths, family):
                cases.append(product(rng, widths, shape, len(cases) % 2, family))
    assert cases
    check(cases, target)


def test_zero_points_at_both_ends_are_exact_with_weights_of_two_bits(target):
    rng = np.random.default_rng(2)
    shape = {"image": (5, 6), "channels": 20, "out_channels": 18, "kernel": (3, 3), "strides": (1, 1)}
    cases = []
    for family in (BITSERIAL, LOOKUP):
        for zero, weight_zero in [(0, 0), (15, 0), (0, 3), (15, 3), (7, 2)] if can(target, (2, 4), family) else []:
            case = product(rng, (2, 4), {**shape, "pads": (1, 0, 2, 1)}, None, family)
            case.inputs[1][...], case.inputs[3][:] = zero, weight_zero
            cases.append(case)
    check(cases, target)


def test_codes_of_eight_bits_with_signs_for_weights_are_dot_products():
    target = resolve("x86-64-v3")
    rng = np.random.default_rng(3)
    shape = {"image": (4, 5), "channels": 37, "out_channels": 21, "kernel": (3, 3), "strides": (1, 1)}
    cases = [product(rng, (1, 8), {**shape, "pads": (1, 1, 1, 1)}, fill) for fill in (None, 0, 1)]
    assert all(select_case(case, target).family.startswith("dot") for case in cases)
    for case in cases:  # equal shapes share a kernel
        check([case], target)


def test_a_weight_of_two_bits_takes_a_quarter_of_a_byte_wherever_its_planes_are_read():
    """Also in a graph that knows it as uint4, which has no narrower type."""
    case = uniform.convolution(np.random.default_rng(4), (4, 4), 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), 4, 4)
    case.inputs[2][:] &= 3
    for name in ("x86-64-v3", FULL):
        kernel = select_case(case, resolve(name))
        assert kernel.family.startswith("lookup")
        assert kernel.inputs[kernel.kept.index(2)].nbytes == case.inputs[2].size // 4


@pytest.mark.parametrize(
    ("widths", "family"), [((1, 1), DOT), ((1, 8), LOOKUP), ((4, 8), BITSERIAL), ((1, 1), GENERIC)], ids=str
)
def test_a_family_that_cannot_multiply_such_codes_is_refused(widths, family):
    shape = {"image": (3, 3), "channels": 8, "out_channels": 8, "kernel": (1, 1), "strides": (1, 1)}
    case = product(np.random.default_rng(5), widths, {**shape, "pads": (0, 0, 0, 0)})
    with pytest.raises(UnsupportedError, match=f"no {family} of W{widths[0]}A{widths[1]}.*expected one of"):
        select(case.op, case.inputs, case.attrs, resolve("x86-64-v3"), family)
