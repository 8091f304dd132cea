import numpy as np
import pytest
from pass_testing import apply, graph, signs

from edgedm.passes.fuse_binary_conv import FuseBinaryConv
from edgedm.passes.fuse_epilogue import FuseEpilogue
from edgedm.passes.fuse_row_addend import FuseRowAddend

RNG = np.random.default_rng(4)
GAIN = np.array([-0.3], np.float32)


def fused(tail, inputs="", outputs="float[1,5,6,6] y", **constants):
    """A W1A1 convolution `c` of five channels, fused, followed by `tail`."""
    model = graph(
        f"""g (float[1,5,6,6] x{inputs}) => ({outputs}) {{
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBits<channels=5>(w)
            c = Conv<pads=[1,1,1,1]>(b, u)
            {tail}
        }}""",
        w=signs(RNG, 5, 3, 3, 5),
        t=np.zeros((1, 5, 1, 1), np.float32),
        **constants,
    )
    return apply(FuseBinaryConv(), model).model


def test_a_shortcut_with_a_gain_becomes_the_residual():
    result = apply(FuseEpilogue(), fused("r = Mul(g, x) y = Add(c, r)", g=GAIN))
    assert result.ops == ["Transpose", "PackBits", "BinaryConv", "Transpose"]
    conv = result.one("BinaryConv")
    assert conv.inputs[5] is result.one("PackBits").inputs[0]  # x, channels last, transposed once
    assert conv.inputs[6].const_value.numpy().tolist() == GAIN.tolist()
    result.assert_same_bits()


def test_a_time_embedding_per_channel_is_reshaped_not_transposed():
    result = apply(FuseEpilogue(), fused("y = Add(r, c)", ", float[1,5,1,1] r"))
    residual = result.one("BinaryConv").inputs[5]
    assert tuple(residual.shape) == (1, 1, 1, 5)
    assert residual.producer().op_type == "Reshape"
    result.assert_same_bits()


def test_a_row_of_lower_rank_is_a_residual_too():
    result = apply(FuseEpilogue(), fused("y = Add(r, c)", ", float[6] r"))
    assert "Add" not in result.ops
    result.assert_same_bits()


def test_two_products_that_are_added_become_one_residual_without_a_cycle():
    tail = """v = edgedm.UnpackBits<channels=5>(w2)
              d = Conv(b, v)
              y = Add(c, d)"""
    result = apply(FuseEpilogue(), fused(tail, w2=signs(RNG, 5, 1, 1, 5)))
    assert "Add" not in result.ops
    assert result.ops.count("BinaryConv") == 2
    result.assert_same_bits()


def test_a_second_residual_is_refused_with_its_reason():
    model = fused("d = Add(c, x) y = Add(d, r)", ", float[1,5,1,1] r")
    result = apply(FuseEpilogue(), model)
    assert result.ops.count("Add") == 1
    assert "has a residual already" in result.report.refusals[0].reason
    result.assert_same_bits()


@pytest.mark.parametrize(
    ("tail", "inputs", "outputs"),
    [
        ("y = Add(c, x) z = Neg(c)", "", "float[1,5,6,6] y, float[1,5,6,6] z"),
        ("y = Add(c, r)", ", float[2,5,6,6] r", "float[2,5,6,6] y"),
        ("y = Add(c, c)", "", "float[1,5,6,6] y"),
    ],
    ids=["read elsewhere", "broadcasts the result", "added to itself"],
)
def test_what_cannot_be_a_residual_stays(tail, inputs, outputs):
    result = apply(FuseEpilogue(), fused(tail, inputs, outputs))
    assert "Add" in result.ops
    result.assert_same_bits()


def test_a_residual_that_depends_on_the_product_itself_makes_no_cycle():
    result = apply(FuseEpilogue(), fused("n = Neg(c) y = Add(c, n)"))
    assert "Add" in result.ops
    result.assert_same_bits()


@pytest.mark.parametrize("shape", ["1,5,2,3", "1,5,1,1", "1,5,1,3", "1,1,2,3"])
def test_the_residual_of_an_attention_block_moves_in_front_of_its_reshape(shape):
    model = graph(
        f"""g (float[1,6,70] tokens, float[{shape}] r) => (float[1,5,2,3] y) {{
            b = edgedm.Binarize(tokens, t)
            u = edgedm.UnpackBitsLinear<channels=70>(w)
            ut = Transpose<perm=[1,0]>(u)
            c = MatMul(b, ut)
            ct = Transpose<perm=[0,2,1]>(c)
            cr = Reshape(ct, shape)
            y = Add(cr, r)
        }}""",
        w=signs(RNG, 5, 70),
        t=np.zeros(70, np.float32),
        shape=np.array([1, 5, 2, 3], np.int64),
    )
    result = apply(FuseEpilogue(), apply(FuseBinaryConv(), model).model)
    assert "Add" not in result.ops
    result.assert_same_bits()


def test_a_time_embedding_behind_a_shortcut_becomes_the_addend():
    model = fused("r = Mul(g, x) d = Add(c, r) y = Add(d, e)", ", float[1,5,1,1] e", g=GAIN)
    result = apply(FuseRowAddend(), apply(FuseEpilogue(), model).model)
    assert "Add" not in result.ops
    assert tuple(result.one("BinaryConv").inputs[4].shape) == (5,)
    result.assert_within_rounding()


@pytest.mark.parametrize("shape", ["1,5,6,6", "1,1,1,1", "6", "1,5,1,6"])
def test_what_is_no_row_per_channel_stays_behind_a_shortcut(shape):
    model = fused("d = Add(c, x) y = Add(d, e)", f", float[{shape}] e")
    result = apply(FuseRowAddend(), apply(FuseEpilogue(), model).model)
    assert result.ops.count("Add") == 1
    result.assert_same_bits()
