import numpy as np
import pytest
from pass_testing import apply, graph, signs

from edgedm.errors import InvalidModelError
from edgedm.passes.fuse_binary_conv import FuseBinaryConv

RNG = np.random.default_rng(1)


def conv_graph(**changes):
    constants = {
        "w": signs(RNG, 3, 3, 3, 5),
        "t": RNG.standard_normal((1, 5, 1, 1)).astype(np.float32),
    } | changes
    return graph(
        """g (float[1,5,6,7] x) => (float[1,3,3,4] y) {
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBits<channels=5>(w)
            y = Conv<pads=[1,1,1,1], strides=[2,2]>(b, u)
        }""",
        **constants,
    )


def test_a_convolution_of_signs_becomes_a_binary_convolution_on_packed_bits():
    result = apply(FuseBinaryConv(), conv_graph())
    assert result.ops == ["Transpose", "PackBits", "BinaryConv", "Transpose"]
    conv = result.one("BinaryConv")
    assert conv.metadata_props["edgedm.module"] == "m.y"
    assert conv.attributes["channels"].value == 5
    assert list(conv.attributes["strides"].value) == [2, 2]
    assert list(conv.attributes["pads"].value) == [1, 1, 1, 1]
    result.assert_same_bits()


def test_the_bias_of_a_convolution_becomes_the_addend():
    bias = RNG.standard_normal(3).astype(np.float32)
    model = graph(
        """g (float[1,5,6,7] x) => (float[1,3,6,7] y) {
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBits<channels=5>(w)
            y = Conv<pads=[1,1,1,1]>(b, u, o)
        }""",
        w=signs(RNG, 3, 3, 3, 5),
        t=np.zeros((1, 5, 1, 1), np.float32),
        o=bias,
    )
    result = apply(FuseBinaryConv(), model)
    assert result.one("BinaryConv").inputs[4].const_value.numpy().tolist() == bias.tolist()
    result.assert_same_bits()


def test_a_threshold_for_all_channels_becomes_one_per_channel():
    result = apply(FuseBinaryConv(), conv_graph(t=np.array([-0.5], np.float32)))
    assert result.one("PackBits").inputs[1].const_value.numpy().tolist() == [-0.5] * 5
    result.assert_same_bits()


def test_one_activation_for_two_convolutions_is_packed_once():
    model = graph(
        """g (float[1,5,6,6] x) => (float[1,3,6,6] y, float[1,2,6,6] z) {
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBits<channels=5>(w)
            y = Conv<pads=[1,1,1,1]>(b, u)
            v = edgedm.UnpackBits<channels=5>(w2)
            z = Conv(b, v)
        }""",
        w=signs(RNG, 3, 3, 3, 5),
        w2=signs(RNG, 2, 1, 1, 5),
        t=RNG.standard_normal((1, 5, 1, 1)).astype(np.float32),
    )
    result = apply(FuseBinaryConv(), model)
    assert sorted(result.ops) == sorted(["Transpose", "PackBits", "BinaryConv", "Transpose", "BinaryConv", "Transpose"])
    result.assert_same_bits()


def test_a_weight_that_two_convolutions_share_is_kept_once():
    model = graph(
        """g (float[1,5,6,6] x, float[1,5,6,6] x2) => (float[1,3,6,6] y, float[1,3,6,6] z) {
            b = edgedm.Binarize(x, t)
            c = edgedm.Binarize(x2, t)
            u = edgedm.UnpackBits<channels=5>(w)
            y = Conv<pads=[1,1,1,1]>(b, u)
            z = Conv<pads=[1,1,1,1]>(c, u)
        }""",
        w=signs(RNG, 3, 3, 3, 5),
        t=np.zeros((1, 5, 1, 1), np.float32),
    )
    result = apply(FuseBinaryConv(), model)
    first, second = [node for node in result.model.graph if node.op_type == "BinaryConv"]
    assert first.inputs[1] is second.inputs[1]
    result.assert_same_bits()


@pytest.mark.parametrize(
    "product",
    [
        "ut = Transpose<perm=[1,0]>(u) y = MatMul(b, ut)",
        "y = Gemm<transB=1>(b, u)",
        "ut = Transpose<perm=[1,0]>(u) y = Gemm(b, ut)",
    ],
)
def test_every_form_of_a_linear_layer_becomes_a_binary_gemm(product):
    model = graph(
        f"""g (float[6,70] x) => (float[6,3] y) {{
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBitsLinear<channels=70>(w)
            {product}
        }}""",
        w=signs(RNG, 3, 70),
        t=RNG.standard_normal(70).astype(np.float32),
    )
    result = apply(FuseBinaryConv(), model)
    assert result.ops == ["PackBits", "BinaryGemm"]
    result.assert_same_bits()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[1,4,6,6] x, uint8[2,3,3,8] w) => (float[1,2,4,4] y)", "its weight is not a constant"),
        ("g (float[1,4,6,6] x, float[1,4,1,1] t) => (float[1,2,4,4] y)", "threshold is not a constant"),
    ],
)
def test_inputs_in_the_place_of_constants_are_refused(text, reason):
    body = """ {
        b = edgedm.Binarize(x, t)
        u = edgedm.UnpackBits<channels=4>(w)
        y = Conv(b, u)
    }"""
    constants = {"w": signs(RNG, 2, 3, 3, 4), "t": np.zeros((1, 4, 1, 1), np.float32)}
    used = {name: array for name, array in constants.items() if f"] {name}" not in text}
    result = apply(FuseBinaryConv(), graph(text + body, **used))
    assert "Conv" in result.ops
    (refusal,) = result.report.refusals
    assert reason in refusal.reason
    assert "'y'" in refusal.node and "m.y" in refusal.node


@pytest.mark.parametrize(
    ("attributes", "reason"), [("dilations=[2,2]", "dilated"), ('auto_pad="SAME_UPPER"', "auto_pad")]
)
def test_convolutions_without_a_kernel_are_refused(attributes, reason):
    size = 2 if "dil" in attributes else 6
    model = graph(
        f"""g (float[1,4,6,6] x) => (float[1,2,{size},{size}] y) {{
            b = edgedm.Binarize(x, t)
            u = edgedm.UnpackBits<channels=4>(w)
            y = Conv<{attributes}>(b, u)
        }}""",
        w=signs(RNG, 2, 3, 3, 4),
        t=np.zeros((1, 4, 1, 1), np.float32),
    )
    result = apply(FuseBinaryConv(), model)
    assert reason in result.report.refusals[0].reason


def test_a_threshold_per_pixel_is_refused():
    result = apply(FuseBinaryConv(), conv_graph(t=np.zeros((1, 1, 6, 7), np.float32)))
    assert "varies along more than the channels" in result.report.refusals[0].reason


def test_padding_bits_that_are_set_are_an_error_that_names_pass_and_node():
    bits = signs(RNG, 3, 3, 3, 5)
    bits[0, 0, 0, 7] = 128
    with pytest.raises(InvalidModelError, match=r"FuseBinaryConv: node 'y' .*padding bits"):
        FuseBinaryConv()(conv_graph(w=bits))
