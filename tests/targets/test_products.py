"""W1A1 and W1A4 products against their ONNX functions: exact integers, and the epilogue."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import Case, reference, run_kernels, runs_on_threads, select_case

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.ops.packing import pack_rows, pack_signs
from edgedm.targets import resolve
from edgedm.targets.kernels import TensorSpec, select

# (acc * m) * s + a + r * x has four roundings, fused or not, each of half a unit in the last place
EPILOGUE_ROUNDINGS = 4 * 2**-24
EXAMPLES = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NEUTRAL = {"multiplier": 1.0, "pixel_scale": 1.0, "addend": 0.0, "residual": 0.0, "residual_scale": 1.0}


def signs(rng, *shape):
    """Random bits, zero-padded as packed bits are."""
    return pack_rows(rng.random(shape) < 0.5)


def convolution(rng, op, image, channels, out_channels, kernel, strides, pads, x=None, weight=None, terms=()):
    """A case with random float terms where named, neutral constants elsewhere."""
    height, width = ((n + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i, n in enumerate(image))
    out = (1, height, width, out_channels)
    shapes = {"multiplier": (out_channels,), "pixel_scale": (1, height, width, 1), "addend": (out_channels,)}
    shapes |= {"residual": out, "residual_scale": (1,)}
    neutral = {"pixel_scale": (1, 1, 1, 1), "residual": (1, 1, 1, 1)}
    names = [name for name in NEUTRAL if op == "BinaryConv" or name != "pixel_scale"]
    operands = []
    for name in names:
        if name in terms:
            operands.append(rng.standard_normal(shapes[name]).astype(np.float32))
        else:
            operands.append(np.full(neutral.get(name, shapes[name]), NEUTRAL[name], np.float32))
    if x is None and op == "BinaryConv":
        x = signs(rng, 1, *image, channels)
    elif x is None:
        x = rng.integers(-8, 8, (1, *image, channels)).astype(np.int8)
    if weight is None:
        weight = signs(rng, out_channels, *kernel, channels)
    attrs = {"strides": list(strides), "pads": list(pads)}
    if op == "BinaryConv":
        attrs["channels"] = channels
    given_late = {index + 2 for index, name in enumerate(names) if name in ("residual", "pixel_scale")}
    runtime = {0, *(index for index in given_late if names[index - 2] in terms)}
    return Case(op, [x, weight, *operands], attrs, frozenset(runtime))


def gemm(rng, op, rows, channels, out_channels, terms=()):
    """The same for a matrix product of [rows..., channels]."""
    x = signs(rng, *rows, channels) if op == "BinaryGemm" else rng.integers(-8, 8, (*rows, channels)).astype(np.int8)
    values = {
        name: np.full(shape, NEUTRAL[name], np.float32)
        for name, shape in {
            "multiplier": (out_channels,),
            "addend": (out_channels,),
            "residual": (1,),
            "residual_scale": (1,),
        }.items()
    }
    for name in terms:
        shape = (*rows, out_channels) if name == "residual" else values[name].shape
        values[name] = rng.standard_normal(shape).astype(np.float32)
    attrs = {"channels": channels} if op == "BinaryGemm" else {}
    runtime = {0, 4} if "residual" in terms else {0}
    return Case(op, [x, signs(rng, out_channels, channels), *values.values()], attrs, frozenset(runtime))


def check(cases, target):
    """Integers must be equal (all terms neutral); with terms, the epilogue's roundings are allowed."""
    for case, (got,) in zip(cases, run_kernels(cases, target), strict=True):
        (expected,) = reference(case)
        if all(np.all(x == x.flat[0]) and x.flat[0] in (0, 1) for x in case.inputs[2:]):
            np.testing.assert_array_equal(got, expected)
        else:
            size = magnitude(case)
            assert np.all(np.abs(got - expected) <= EPILOGUE_ROUNDINGS * size), case.attrs


def magnitude(case):
    """Sum of the magnitudes of the epilogue's terms, per output."""
    bare = [np.full_like(x, n) for x, n in zip(case.inputs[2:], neutral_of(case.op), strict=True)]
    (acc,) = reference(Case(case.op, [*case.inputs[:2], *bare], case.attrs))
    *scales, addend, residual, scale = (np.abs(x) for x in case.inputs[2:])
    total = np.abs(acc)
    for each in scales:
        total = total * each
    return total + addend + residual * scale


def neutral_of(op):
    return [value for name, value in NEUTRAL.items() if op == "BinaryConv" or name != "pixel_scale"]


OPS = st.sampled_from(["BinaryConv", "BinaryWeightConv"])
SHAPES = st.fixed_dictionaries(
    {
        "image": st.tuples(st.integers(1, 9), st.integers(1, 11)),
        "channels": st.sampled_from([1, 7, 16, 33, 64, 70, 130]),
        "out_channels": st.sampled_from([1, 5, 16, 21, 64, 67]),
        "kernel": st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3)]),
        "strides": st.sampled_from([(1, 1), (2, 2), (2, 1)]),
        "pads": st.tuples(*[st.integers(0, 2)] * 4),
        "terms": st.sets(st.sampled_from(sorted(NEUTRAL))).map(sorted),
    }
).filter(lambda s: all(s["image"][i] + s["pads"][i] + s["pads"][i + 2] >= s["kernel"][i] for i in range(2)))


@given(shapes=st.lists(st.tuples(OPS, SHAPES), min_size=4, max_size=4), seed=st.integers(0, 2**32 - 1))
@EXAMPLES
def test_convolutions_of_any_shape_equal_their_functions(target, shapes, seed):
    rng = np.random.default_rng(seed)
    check([convolution(rng, op, **shape) for op, shape in shapes], target)


def test_products_equal_their_functions(target):
    rng = np.random.default_rng(1)
    sizes = [((1,), 64, 128), ((3,), 70, 21), ((1, 16), 128, 64), ((2, 3), 65, 130)]
    cases = [gemm(rng, op, *size) for op in ("BinaryGemm", "BinaryWeightGemm") for size in sizes]
    terms = ["multiplier", "addend", "residual", "residual_scale"]
    cases += [gemm(rng, op, (5,), 70, 21, terms) for op in ("BinaryGemm", "BinaryWeightGemm")]
    check(cases, target)


def test_the_largest_sums_do_not_overflow(target):
    """All signs equal, all codes extreme; more look-ups than one 16-bit sum holds, in one kernel row and in three."""
    rng = np.random.default_rng(2)
    cases = []
    for channels, kernel, image in [(1472, (3, 3), (3, 3)), (4480, (1, 1), (1, 2))]:
        for fill in (0, 255):
            weight = np.full((3, *kernel, channels // 8), fill, np.uint8)
            for code in (-8, 7):
                x = np.full((1, *image, channels), code, np.int8)
                arguments = (image, channels, 3, kernel, (1, 1), (0, 0, 0, 0))
                cases.append(convolution(rng, "BinaryWeightConv", *arguments, x=x, weight=weight))
            for other in (0, 255):
                x = np.full((1, *image, channels // 8), other, np.uint8)
                cases.append(convolution(rng, "BinaryConv", *arguments, x=x, weight=weight))
    unique = {}
    for case in cases:  # equal shapes share a kernel
        unique.setdefault((case.op, case.inputs[0].shape), []).append(case)
    for group in unique.values():
        check(group, target)


@pytest.mark.parametrize(("channels", "family"), [(32752, "lookup-narrow"), (32768, "lookup-shuffle")])
def test_sums_of_signs_stay_within_sixteen_bits(channels, family):
    """The most channels that look-ups of signs add up in 16 bits, and more, which spill into 32."""
    target = resolve("x86-64-v3")
    rng = np.random.default_rng(9)
    cases = []
    for fill in (0, 255):
        case = convolution(rng, "BinaryConv", (1, 2), channels, 3, (1, 1), (1, 1), (0,) * 4)
        case.inputs[0][:] = pack_signs(np.full((1, channels), 1.0 if fill else -1.0))
        case.inputs[1][:] = pack_signs(np.ones((1, channels)))
        case.family = "lookup"
        cases.append(case)
    assert select_case(cases[0], target).family.startswith(family)
    for case in cases:  # equal shapes share a kernel
        check([case], target)


@pytest.mark.parametrize(
    ("size", "channels", "stride", "pads"),
    [
        ((16, 16), 128, 1, (1, 1, 1, 1)),
        ((3, 2), 640, 1, (1, 1, 1, 1)),  # fewer rows than blocks of channels
        ((16, 16), 200, 2, (0, 0, 1, 1)),
    ],
)
def test_large_convolutions_share_their_work_among_threads(target, size, channels, stride, pads):
    """Shapes beyond the thresholds of `parallel`: 22 million MACs or more."""
    rng = np.random.default_rng(8)
    arguments = (size, channels, channels, (3, 3), (stride, stride), pads)
    cases = [convolution(rng, op, *arguments) for op in ("BinaryConv", "BinaryWeightConv")]
    assert target.name == "x86-64" or runs_on_threads(cases[0], target)  # which has no fast kernel
    check(cases, target)


def test_padding_adds_nothing_at_any_border(target):
    """All signs +1: each output counts the valid taps of its window."""
    rng = np.random.default_rng(3)
    bits = pack_signs(np.ones((1, 70)))
    x, weight = np.tile(bits, (1, 4, 5, 1)), np.tile(bits, (6, 3, 3, 1))
    case = convolution(rng, "BinaryConv", (4, 5), 70, 6, (3, 3), (1, 1), (1, 1, 1, 1), x=x, weight=weight)
    ((got,),) = run_kernels([case], target)
    rows, columns = np.array([2, 3, 3, 2]), np.array([2, 3, 3, 3, 2])
    np.testing.assert_array_equal(got[0, :, :, 0], np.outer(rows, columns) * 70)


def test_codes_beyond_four_bits_take_the_plain_kernel_where_nothing_multiplies_bytes():
    rng = np.random.default_rng(4)
    case = convolution(rng, "BinaryWeightConv", (3, 3), 64, 8, (3, 3), (1, 1), (1, 1, 1, 1))
    operands = [TensorSpec((1, 3, 3, 64), "int8"), *case.inputs[1:]]
    assert select("BinaryWeightConv", operands, {**case.attrs, "code_bits": 8}, resolve("x86-64")).family == "generic"


def test_neutral_operands_are_no_parameters():
    rng = np.random.default_rng(5)
    case = convolution(rng, "BinaryConv", (3, 3), 64, 8, (3, 3), (1, 1), (1, 1, 1, 1), terms=["residual_scale"])
    operands = [TensorSpec((1, 3, 3, 8), "uint8"), *case.inputs[1:]]
    kernel = select("BinaryConv", operands, case.attrs, resolve("x86-64-v3"))
    assert kernel.dropped == {2, 3, 4, 5, 6}
    assert kernel.kept == (0, 1)
    assert kernel.inputs[0] == TensorSpec((1, 3, 3, 1), "uint64")


def test_equal_requests_share_a_key_and_others_do_not():
    target = resolve("x86-64-v3")
    rng = np.random.default_rng(6)

    def key(target=target, **changes):
        shape = {"channels": 64, "out_channels": 8, "kernel": (3, 3), "pads": (1, 1, 1, 1), "terms": ()}
        shape |= changes
        case = convolution(rng, "BinaryConv", (9, 9), strides=(1, 1), **shape)
        operands = [TensorSpec(case.inputs[0].shape, "uint8"), *case.inputs[1:]]
        return select("BinaryConv", operands, case.attrs, target).key

    others = [{"channels": 63}, {"out_channels": 9}, {"out_channels": 7}, {"kernel": (1, 9)}]
    others += [{"pads": (0, 1, 1, 1)}, {"terms": ("addend",)}]
    keys = [key(), *(key(**other) for other in others), key(resolve("x86-64-v4"))]
    assert key() == keys[0]
    assert len(set(keys)) == len(keys)


def test_a_weight_that_is_no_constant_is_refused():
    operands = [TensorSpec((4, 8), "uint8"), TensorSpec((8, 8), "uint8"), *[TensorSpec((1,), "float32")] * 4]
    with pytest.raises(UnsupportedError, match="constant"):
        select("BinaryGemm", operands, {"channels": 64}, resolve("x86-64-v3"))


@pytest.mark.parametrize(
    ("operands", "attrs", "message"),
    [
        ([TensorSpec((1, 4, 4, 8), "float32")], {"channels": 64}, "uint8"),
        ([TensorSpec((1, 4, 4, 9), "uint8")], {"channels": 64}, "uint8"),
        ([TensorSpec((1, 4, 4, 16), "uint8")], {"channels": 64}, "words"),
        ([TensorSpec((2, 4, 4, 8), "uint8")], {"channels": 64}, "one image"),
    ],
)
def test_operands_that_do_not_fit_are_refused(operands, attrs, message):
    constants = convolution(np.random.default_rng(7), "BinaryConv", (4, 4), 64, 8, (3, 3), (1, 1), (1,) * 4).inputs[1:]
    with pytest.raises(InvalidModelError, match=message):
        select("BinaryConv", [*operands, *constants], attrs, resolve("x86-64-v3"))
