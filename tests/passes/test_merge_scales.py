import ml_dtypes
import numpy as np
import pytest
from pass_testing import apply, graph, signs

from edgedm.passes.fuse_binary_conv import FuseBinaryConv
from edgedm.passes.fuse_binary_weight_conv import FuseBinaryWeightConv
from edgedm.passes.merge_scales import MergeScales

RNG = np.random.default_rng(3)
SCALE = RNG.standard_normal((1, 3, 1, 1)).astype(np.float32)
BIAS = RNG.standard_normal((1, 3, 1, 1)).astype(np.float32)


def fused(tail, inputs="", outputs="float[1,3,6,6] y", **constants):
    """A W1A1 convolution `c`, fused, followed by `tail`."""
    model = graph(
        f"""g (float[1,5,6,6] x{inputs}) => ({outputs}) {{
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBits<channels=5>(w)
            c = Conv<pads=[1,1,1,1]>(b, u)
            {tail}
        }}""",
        w=signs(RNG, 3, 3, 3, 5),
        t=np.zeros((1, 5, 1, 1), np.float32),
        **constants,
    )
    return apply(FuseBinaryConv(), model).model


def operand(result, index):
    return result.one("BinaryConv").inputs[index].const_value.numpy()


def test_scale_pixel_scale_and_bias_become_one_epilogue_without_changing_a_bit():
    tail = "d = Mul(c, s) e = Mul(d, k) y = Add(e, o)"
    model = fused(tail, ", float[1,1,6,6] k", s=SCALE, o=BIAS)
    result = apply(MergeScales(), model)
    assert sorted(result.ops) == ["BinaryConv", "PackBits", "Transpose", "Transpose", "Transpose"]
    assert operand(result, 2).tolist() == SCALE.ravel().tolist()
    assert operand(result, 4).tolist() == BIAS.ravel().tolist()
    assert tuple(result.one("BinaryConv").inputs[3].shape) == (1, 6, 6, 1)
    result.assert_same_bits()


def test_a_negative_scale_is_merged_exactly():
    model = fused("y = Mul(s, c)", s=-np.abs(SCALE))
    result = apply(MergeScales(), model)
    assert (operand(result, 2) < 0).all()
    result.assert_same_bits()


def test_activation_step_and_weight_scale_are_multiplied_first_for_w1a4():
    model = graph(
        """g (float[1,5,6,6] x) => (float[1,3,6,6] y) {
            q = QuantizeLinear(x, a, zero)
            d = DequantizeLinear(q, a, zero)
            u = edgedm.UnpackBits<channels=5>(w)
            c = Conv<pads=[1,1,1,1]>(d, u)
            e = Mul(c, s)
            y = Add(e, o)
        }""",
        w=signs(RNG, 3, 3, 3, 5),
        a=np.array(0.3, np.float32),
        zero=np.zeros((), ml_dtypes.int4),
        s=SCALE,
        o=BIAS,
    )
    model = apply(FuseBinaryWeightConv(), model).model
    result = apply(MergeScales(), model)
    multiplier = result.one("BinaryWeightConv").inputs[2].const_value.numpy()
    assert multiplier.tolist() == (np.float32(0.3) * SCALE.ravel()).tolist()
    result.assert_within_rounding()


def test_scale_and_bias_of_a_linear_layer_are_merged():
    model = graph(
        """g (float[6,70] x) => (float[6,3] y) {
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBitsLinear<channels=70>(w)
            c = Gemm<transB=1>(b, u)
            d = Mul(c, s)
            y = Add(o, d)
        }""",
        w=signs(RNG, 3, 70),
        t=np.zeros(70, np.float32),
        s=SCALE.ravel(),
        o=BIAS.ravel(),
    )
    result = apply(MergeScales(), apply(FuseBinaryConv(), model).model)
    assert result.ops == ["PackBits", "BinaryGemm"]
    result.assert_same_bits()


@pytest.mark.parametrize(
    ("tail", "inputs", "outputs"),
    [
        ("y = Mul(c, s) z = Neg(c)", ", float[1,3,1,1] s", "float[1,3,6,6] y, float[1,3,6,6] z"),
        ("y = Mul(c, s)", ", float[1,3,6,6] s", "float[1,3,6,6] y"),
        ("y = Mul(c, s)", ", float[2,3,6,6] s", "float[2,3,6,6] y"),
        ("y = Mul(c, c)", "", "float[1,3,6,6] y"),
        ("y = Mul(c, s)", ", float[1,3,1,1] s", "float[1,3,6,6] y, float[1,3,6,6] c"),
    ],
    ids=["read elsewhere", "per element", "broadcasts the result", "a square", "the product is an output"],
)
def test_what_is_no_epilogue_stays(tail, inputs, outputs):
    result = apply(MergeScales(), fused(tail, inputs, outputs))
    assert "Mul" in result.ops
    result.assert_same_bits()


def test_a_scale_behind_a_bias_is_refused_with_its_reason():
    result = apply(MergeScales(), fused("d = Add(c, o) y = Mul(d, s)", s=SCALE, o=BIAS))
    assert "scales a sum" in result.report.refusals[0].reason
    result.assert_same_bits()


def test_a_multiplier_that_would_underflow_is_refused():
    tiny = np.full((1, 3, 1, 1), 1e-30, np.float32)
    result = apply(MergeScales(), fused("d = Mul(c, s) y = Mul(d, s)", s=tiny))
    assert "normal range" in result.report.refusals[0].reason
    assert result.ops.count("Mul") == 1
    result.assert_same_bits()
