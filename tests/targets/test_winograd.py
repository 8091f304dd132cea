"""Winograd's convolution of 4-bit codes against exact integers, and when it is taken."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import assembly, runs_on_threads, select_case
from test_quant_products import TERMS, check, convolution

from edgedm.targets import resolve, runs_natively
from edgedm.targets.kernels import winograd
from edgedm.targets.tuning import tiling

NARROW = "x86-64-v3+avxvnni"
SHAPES = st.fixed_dictionaries(
    {
        "image": st.tuples(st.integers(5, 11), st.integers(5, 13)),
        "channels": st.sampled_from([1, 3, 8, 12, 33, 64, 70, 130]),
        "out_channels": st.sampled_from([1, 5, 16, 21, 32, 67, 100]),
        "pads": st.tuples(*[st.integers(0, 2)] * 4),
        "terms": st.sets(st.sampled_from(sorted(TERMS))).map(sorted),
        "zero": st.sampled_from([None, 0, 15]),
        "weight_zero": st.sampled_from([None, 8]),
    }
)


@pytest.fixture(params=["wide", "narrow"])
def vnni(request, monkeypatch):
    """AVX-512 VNNI, and AVX-VNNI's tiles with the instruction that AVX-512 VL has for them."""
    found = resolve("x86-64-v4+vnni")
    if not runs_natively(found):
        pytest.skip("this machine has no VNNI")
    if request.param == "narrow":
        choose = tiling.dot
        monkeypatch.setattr(tiling, "dot", lambda _, *product, **named: choose(resolve(NARROW), *product, **named))
    return found


def family(case, target):
    return select_case(case, target).family.partition(" ")[0]


@given(shapes=st.lists(SHAPES, min_size=4, max_size=4), seed=st.integers(0, 2**32 - 1))
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_shape_is_exact(vnni, shapes, seed):
    rng = np.random.default_rng(seed)
    cases = [convolution(rng, kernel=(3, 3), strides=(1, 1), bits=4, weight_bits=4, **shape) for shape in shapes]
    outputs = [case.inputs[0].shape[1:3] + np.add(case.attrs["pads"][:2], case.attrs["pads"][2:]) - 2 for case in cases]
    for case, (height, width) in zip(cases, outputs, strict=True):
        many = -(-height // 2) * -(-width // 2) >= 9
        assert (family(case, vnni) == "winograd-vnni") == many
    check(cases, vnni)


@pytest.mark.parametrize("zero", [0, 15])
def test_codes_and_weights_at_their_ends_over_the_most_channels_are_exact(vnni, zero):
    """Each of the 16 products at its largest: patches and filters of both ends, in the pattern of each."""
    rng = np.random.default_rng(3)
    case = convolution(rng, (8, 8), 1024, 17, (3, 3), (1, 1), (1, 1, 1, 1), 4, 4, zero=zero, weight_zero=8)
    case.inputs[0][:] = 15 * (rng.integers(0, 2, (1, 8, 8, 1)) > 0)
    case.inputs[2][:] = 15 * (rng.integers(0, 2, (17, 3, 3, 1)) > 0)
    case.inputs[2][0], case.inputs[2][1] = 0, 15

    assert family(case, vnni) == "winograd-vnni"
    check([case], vnni)


def test_strips_of_a_large_image_join_without_a_seam(vnni):
    rng = np.random.default_rng(4)
    case = convolution(rng, (33, 48), 256, 40, (3, 3), (1, 1), (1, 1, 1, 1), 4, 4, ["multiplier"], weight_zero=8)

    assert family(case, vnni) == "winograd-vnni"
    check([case], vnni)


def test_groups_of_output_channels_share_the_work_among_threads(vnni):
    rng = np.random.default_rng(5)
    case = convolution(rng, (16, 16), 64, 640, (3, 3), (1, 1), (1, 1, 1, 1), 4, 4, weight_zero=8)

    assert runs_on_threads(case, vnni)
    check([case], vnni)


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": (1, 1)},
        {"kernel": (2, 2)},
        {"strides": (2, 2)},
        {"bits": 8},
        {"weight_bits": 8},
        {"image": (4, 4)},
        {"channels": 1032},
    ],
)
def test_what_it_cannot_do_or_not_faster_goes_to_dot_products(change):
    plain = {"image": (8, 8), "channels": 8, "kernel": (3, 3), "strides": (1, 1), "bits": 4, "weight_bits": 4}
    shape = {"out_channels": 8, "pads": (1, 1, 1, 1), "weight_zero": 8}
    target = resolve("x86-64-v4+vnni")
    rng = np.random.default_rng(6)

    assert family(convolution(rng, **plain, **shape), target) == "winograd-vnni"
    assert family(convolution(rng, **{**plain, **change}, **shape), target) == "dot-vnni"


def test_zero_points_beyond_four_bits_go_to_dot_products():
    """Small weights of an 8-bit grid: a missing channel holds the zero point, which four bits cannot."""
    rng, target = np.random.default_rng(10), resolve("x86-64-v4+vnni")
    case = convolution(rng, (8, 8), 12, 8, (3, 3), (1, 1), (1, 1, 1, 1), 4, 8, weight_zero=20)
    case.inputs[2][...] = 15
    assert family(case, target) == "dot-vnni"
    if runs_natively(target):
        check([case], target)


def test_a_filter_whose_turned_weights_leave_a_byte_goes_to_dot_products():
    """All nine weights at the far end from their zero point: 9 * 15 = 135."""
    case = convolution(np.random.default_rng(7), (8, 8), 8, 8, (3, 3), (1, 1), (1, 1, 1, 1), 4, 4, weight_zero=0)
    target = resolve("x86-64-v4+vnni")
    case.inputs[2][...] = 7
    assert family(case, target) == "winograd-vnni"
    case.inputs[2][3, :, :, 5] = 15
    assert family(case, target) == "dot-vnni"


def test_targets_without_a_byte_product_in_32_bits_go_without():
    case = convolution(np.random.default_rng(8), (8, 8), 8, 8, (3, 3), (1, 1), (1, 1, 1, 1), 4, 4, weight_zero=8)
    for name in ("x86-64-v4", "x86-64-v3", "x86-64"):
        assert not family(case, resolve(name)).startswith("winograd")


def test_the_products_stay_in_registers():
    case = convolution(np.random.default_rng(9), (16, 16), 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), 4, 4, weight_zero=8)
    target = resolve("x86-64-v4+vnni")
    text = assembly(select_case(case, target), target)
    inner = max(text.split("\n.LBB"), key=lambda each: each.count("vpdpbusd"))

    assert inner.count("vpdpbusd") >= 16
    assert not [line for line in inner.split("\tj")[0].splitlines() if "zmm" in line and "(%rsp" in line]


def test_turned_weights_follow_the_matrices_of_the_module():
    """G g G' by hand for a filter that is 1 at one corner: [2, 1, 1, 0] in both directions."""
    weight = np.zeros((1, 3, 3, 1), np.uint8)
    weight[0, 0, 0, 0] = 1
    turned = winograd._turn(weight, np.zeros(1, np.uint8))
    np.testing.assert_array_equal(turned[0, :, :, 0], np.outer([2, 1, 1, 0], [2, 1, 1, 0]))
