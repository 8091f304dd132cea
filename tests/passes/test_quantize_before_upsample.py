import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pass_testing import apply, graph, signs
from uniform_graphs import quantised, weight

from edgedm.passes.base import Report
from edgedm.passes.fold_weight_dilation import FoldWeightDilation
from edgedm.passes.fuse_binary_conv import FuseBinaryConv
from edgedm.passes.fuse_binary_weight_conv import FuseBinaryWeightConv
from edgedm.passes.fuse_mean_abs import FuseMeanAbs
from edgedm.passes.fuse_quant_conv import FuseQuantConv
from edgedm.passes.quantize_before_upsample import QuantizeBeforeUpsample

SETTINGS = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
BEFORE = (FuseBinaryConv(), FuseBinaryWeightConv(), FuseQuantConv(), FuseMeanAbs(), FoldWeightDilation())
NEAREST = '<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'


def swapped(model):
    for each in BEFORE:
        model = apply(each, model).model
    return apply(QuantizeBeforeUpsample(), model)


def upsampled(low_bit, channels, height, width, factor, resize=NEAREST, elsewhere=False, seed=0):
    """x [1, C, height, width], repeated, put into codes or signs and convolved by 2x1."""
    rng = np.random.default_rng(seed)
    high, wide = factor * height, factor * width
    constants = {"scales": np.array([1, 1, factor, factor], np.float32)}
    extra = ""
    if low_bit == "W4A4":
        constants |= weight(rng, 4, 3, channels, 2, 1)
        constants |= {"s": np.array(0.2, np.float32), "z": np.array(rng.integers(16), ml_dtypes.uint4)}
        constants["d"] = rng.uniform(-2, -0.5, (channels, 1, 1)).astype(np.float32)
        body = f"v = Div(r, d) {quantised('a', 'v', 's', 'z', 4)} u = DequantizeLinear<axis=0>(w, ws, wz)"
    elif low_bit == "W1A4":
        constants |= {"w": signs(rng, 3, 2, 1, channels), "s": np.array(0.2, np.float32)}
        constants["z"] = np.zeros((), ml_dtypes.int4)
        body = (
            f"q = QuantizeLinear(r, s, z) a = DequantizeLinear(q, s, z) u = edgedm.UnpackBits<channels={channels}>(w)"
        )
    else:
        constants |= {"w": signs(rng, 3, 2, 1, channels), "axes": np.array([1])}
        constants["t"] = rng.standard_normal((1, channels, 1, 1)).astype(np.float32)
        body = f"a = edgedm.Binarize(r, t) u = edgedm.UnpackBits<channels={channels}>(w) p = Abs(r)"
        body, extra = body + " m = ReduceMean(p, axes)", f", float[1,1,{high},{wide}] m"
    if elsewhere:
        body, extra = body + " n = Neg(r)", f"{extra}, float[1,{channels},{high},{wide}] n"
    return graph(
        f"""g (float[1,{channels},{height},{width}] x) => (float[1,3,{high - 1},{wide}] y{extra}) {{
            r = Resize{resize}(x, , scales) {body} y = Conv(a, u) }}""",
        **constants,
    )


@SETTINGS
@given(
    st.sampled_from(["W1A1", "W1A4", "W4A4"]),
    st.sampled_from([1, 3, 16, 63, 65]),
    *[st.integers(1, 4)] * 2,
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_codes_and_bits_are_made_of_the_small_image(low_bit, channels, height, width, factor, elsewhere, seed):
    height += factor == 1
    result = swapped(upsampled(low_bit, channels, height, width, factor, elsewhere=elsewhere, seed=seed))
    assert result.ops.count("UpsampleNearest") == (2 if low_bit == "W1A1" else 1)
    assert ("Resize" in result.ops) == elsewhere
    quantiser = next(node for node in result.model.graph if node.op_type.startswith(("Quantize", "Pack")))
    assert tuple(quantiser.inputs[0].shape) == (1, height, width, channels)
    if low_bit == "W1A1":
        assert not result.assert_within_rounding().flips
    else:
        result.assert_same_bits()


@pytest.mark.parametrize(
    "resize",
    [
        '<mode="linear">',
        '<mode="nearest", coordinate_transformation_mode="align_corners">',
        '<mode="nearest", nearest_mode="ceil">',
    ],
)
def test_other_ways_to_resize_are_refused(resize):
    result = swapped(upsampled("W4A4", 3, 4, 4, 2, resize))
    assert isinstance(result.report, Report) and "repeating every pixel" in result.report.refusals[0].reason
    assert "UpsampleNearest" not in result.ops


def test_scales_that_repeat_pixels_unevenly_are_refused():
    """4 rows by 2.2 are 8 rows, the first of them three times."""
    model = upsampled("W4A4", 3, 4, 4, 2)
    model.graph.initializers["scales"].const_value = ir.tensor(np.array([1, 1, 2.2, 2.2], np.float32))
    assert "repeating every pixel" in swapped(model).report.refusals[0].reason


def test_axes_that_grow_differently_are_refused():
    model = graph(
        f"""g (float[1,3,4,4] x) => (float[1,3,7,12] y) {{
            r = Resize{NEAREST}(x, , scales) q = QuantizeLinear(r, s, z) a = DequantizeLinear(q, s, z)
            u = edgedm.UnpackBits<channels=3>(w) y = Conv(a, u) }}""",
        scales=np.array([1, 1, 2, 3], np.float32),
        w=signs(np.random.default_rng(0), 3, 2, 1, 3),
        s=np.array(0.2, np.float32),
        z=np.zeros((), ml_dtypes.int4),
    )
    assert "repeating every pixel" in swapped(model).report.refusals[0].reason
