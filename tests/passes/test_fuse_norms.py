import ml_dtypes
import numpy as np
import pytest
from pass_testing import apply, graph, signs
from uniform_graphs import quantised, weight

from edgedm.passes.fold_weight_dilation import FoldWeightDilation
from edgedm.passes.fuse_binary_conv import FuseBinaryConv
from edgedm.passes.fuse_binary_weight_conv import FuseBinaryWeightConv
from edgedm.passes.fuse_group_norm import FuseGroupNorm
from edgedm.passes.fuse_mean_abs import FuseMeanAbs
from edgedm.passes.fuse_norm_act_pack import FuseNormActPack
from edgedm.passes.fuse_quant_conv import FuseQuantConv

RNG = np.random.default_rng(5)
AFFINE = {
    "gamma": RNG.standard_normal(6).astype(np.float32),
    "beta": RNG.standard_normal(6).astype(np.float32),
}
NORM = """n = GroupNormalization<num_groups=3, epsilon=0.00001>(x, gamma, beta)
          s = Sigmoid(n)
          a = Mul(n, s)"""
SIGNS = {"w": signs(RNG, 4, 3, 3, 6), "t": RNG.standard_normal((1, 6, 1, 1)).astype(np.float32)}


def w1a1(tail="", outputs="float[1,4,5,5] y, float[1,1,5,5] m", before=NORM):
    return graph(
        f"""g (float[1,6,5,5] x) => ({outputs}) {{
            {before}
            b = edgedm.Binarize(a, t)
            u = edgedm.UnpackBits<channels=6>(w)
            y = Conv<pads=[1,1,1,1]>(b, u)
            p = Abs(a)
            m = ReduceMean<keepdims=1>(p, axes)
            {tail}
        }}""",
        axes=np.array([1], np.int64),
        **AFFINE,
        **SIGNS,
    )


def run_all(model, *passes):
    for each in passes[:-1]:
        model = apply(each, model).model
    return apply(passes[-1], model)


def test_the_mean_of_absolute_values_is_computed_where_the_tensor_is_packed():
    result = run_all(w1a1(), FuseBinaryConv(), FuseMeanAbs())
    assert "ReduceMean" not in result.ops and "Abs" not in result.ops
    pack = result.one("PackBitsMeanAbs")
    assert tuple(pack.outputs[1].shape) == (1, 5, 5, 1)
    result.assert_within_rounding()


def test_a_mean_over_pixels_is_refused():
    model = graph(
        """g (float[1,6,5,5] x) => (float[1,4,5,5] y, float[1,6,1,1] m) {
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBits<channels=6>(w)
            y = Conv<pads=[1,1,1,1]>(b, u)
            p = Abs(x)
            m = ReduceMean<keepdims=1>(p, axes)
        }""",
        axes=np.array([2, 3], np.int64),
        **SIGNS,
    )
    result = run_all(model, FuseBinaryConv(), FuseMeanAbs())
    assert "axis 1" in result.report.refusals[0].reason


def test_norm_and_silu_become_one_channels_last_op():
    model = graph(f"g (float[1,6,5,4] x) => (float[1,6,5,4] a) {{ {NORM} }}", **AFFINE)
    result = apply(FuseGroupNorm(), model)
    assert result.ops == ["Transpose", "GroupNormSilu", "Transpose"]
    assert result.one("GroupNormSilu").attributes["groups"].value == 3
    result.assert_within_rounding()


@pytest.mark.parametrize("silu", ["a = Mul(s, n)", "a = Mul(n, s) z = Neg(n)", "a = Mul(n, s) z = Neg(s)"])
def test_a_norm_that_is_read_elsewhere_keeps_its_silu_apart(silu):
    body = NORM.rpartition("a = ")[0] + silu
    outputs = "float[1,6,20] a" + (", float[1,6,20] z" if "z" in silu else "")
    result = apply(FuseGroupNorm(), graph(f"g (float[1,6,20] x) => ({outputs}) {{ {body} }}", **AFFINE))
    assert ("GroupNorm" in result.ops) == ("z" in silu)
    result.assert_within_rounding()


def test_a_norm_with_an_input_as_scale_is_refused():
    text = "g (float[1,6,20] x, float[6] gamma) => (float[1,6,20] n) {"
    text += "n = GroupNormalization<num_groups=3>(x, gamma, beta) }"
    result = apply(FuseGroupNorm(), graph(text, beta=AFFINE["beta"]))
    assert "not a constant" in result.report.refusals[0].reason


def test_norm_silu_and_packing_become_one_op_that_also_writes_the_float_result():
    model = w1a1("z = Add(a, x)", "float[1,4,5,5] y, float[1,1,5,5] m, float[1,6,5,5] z")
    result = run_all(model, FuseBinaryConv(), FuseMeanAbs(), FuseGroupNorm(), FuseNormActPack())
    fused = result.one("GroupNormSiluPack")
    assert [tuple(value.shape) for value in fused.outputs] == [(1, 5, 5, 6), (1, 5, 5, 8), (1, 5, 5, 1)]
    assert fused.inputs[3].const_value.numpy().tolist() == SIGNS["t"].ravel().tolist()
    assert "PackBitsMeanAbs" not in result.ops and "GroupNormSilu" not in result.ops
    result.assert_same_bits()


def w1a4(tail="", outputs="float[1,4,5,5] y"):
    return graph(
        f"""g (float[1,6,5,5] x) => ({outputs}) {{
            {NORM}
            q = QuantizeLinear(a, step, zero)
            d = DequantizeLinear(q, step, zero)
            u = edgedm.UnpackBits<channels=6>(w)
            y = Conv<pads=[1,1,1,1]>(d, u)
            {tail}
        }}""",
        step=np.array(0.2, np.float32),
        zero=np.zeros((), ml_dtypes.int4),
        w=SIGNS["w"],
        **AFFINE,
    )


def test_norm_silu_and_quantising_become_one_op():
    result = run_all(w1a4(), FuseBinaryWeightConv(), FuseGroupNorm(), FuseNormActPack())
    assert result.ops == ["Transpose", "GroupNormSiluQuantize", "BinaryWeightConv", "Transpose"]
    assert result.one("GroupNormSiluQuantize").attributes["low"].value == -8
    result.assert_same_bits()


def test_a_float_result_that_is_read_elsewhere_is_refused():
    model = w1a4("z = Neg(a)", "float[1,4,5,5] y, float[1,6,5,5] z")
    result = run_all(model, FuseBinaryWeightConv(), FuseGroupNorm(), FuseNormActPack())
    assert "read by other nodes" in result.report.refusals[0].reason
    assert "GroupNormSiluQuantize" not in result.ops


LAST = "last = Transpose<perm=[0,2,3,1]>(a)"


def uniform(divisor="", tail="", outputs="float[1,4,4,4] y", **constants):
    """A norm, perhaps a dilation, an unsigned grid and a convolution."""
    value = "v" if divisor else "a"
    return graph(
        f"""g (float[1,6,5,5] x) => ({outputs}) {{
            {NORM} {divisor}
            {quantised("d", value, "step", "zero", 4)}
            u = DequantizeLinear<axis=0>(w, ws, wz)
            y = Conv(d, u)
            {tail}
        }}""",
        step=np.array(0.2, np.float32),
        zero=np.array(2, ml_dtypes.uint4),
        **({"dilation": np.linspace(0.5, 3, 6, dtype=np.float32).reshape(6, 1, 1)} if divisor else {}),
        **constants,
        **weight(RNG, 4, 4, 6, 2, 2),
        **AFFINE,
    )


UNIFORM = (FuseQuantConv(), FuseGroupNorm(), FoldWeightDilation(), FuseNormActPack())


@pytest.mark.parametrize("divisor", ["", "v = Div(a, dilation)"])
def test_norm_silu_dilation_and_an_unsigned_grid_become_one_op(divisor):
    result = run_all(uniform(divisor), *UNIFORM)
    assert result.ops == ["Transpose", "GroupNormSiluQuantizeUniform", "QuantConv", "Transpose"]
    fused = result.one("GroupNormSiluQuantizeUniform")
    assert fused.attributes["bits"].value == 4
    assert tuple(fused.inputs[3].shape) == ((6,) if divisor else (1,))
    result.assert_same_bits()


def test_a_norm_whose_float_result_is_read_beside_an_unsigned_grid_is_refused():
    result = run_all(uniform(tail="z = Neg(a)", outputs="float[1,4,4,4] y, float[1,6,5,5] z"), *UNIFORM)
    assert "read by other nodes" in result.report.refusals[0].reason
    assert "QuantizeUniform" in result.ops


def test_a_norm_that_is_quantised_on_two_grids_is_refused_in_these_words():
    second = f"{quantised('d2', 'a', 'step2', 'zero', 4)} z = Conv(d2, u)"
    model = uniform(tail=second, outputs="float[1,4,4,4] y, float[1,4,4,4] z", step2=np.array(0.3, np.float32))
    result = run_all(model, *UNIFORM)
    assert [each.reason for each in result.report.refusals] == ["its result is quantised 2 times, on different grids"]


def test_a_norm_whose_float_result_is_an_output_is_refused_in_these_words():
    result = run_all(uniform(outputs="float[1,4,4,4] y, float[1,5,5,6] last", tail=LAST), *UNIFORM)
    assert [each.reason for each in result.report.refusals] == ["its float result is an output of the graph"]
