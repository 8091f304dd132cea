import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pass_testing import apply, graph, signs
from uniform_graphs import quantised, weight

from edgedm.passes.fold_weight_dilation import FoldWeightDilation
from edgedm.passes.fuse_binary_weight_conv import FuseBinaryWeightConv
from edgedm.passes.fuse_padding import FusePadding
from edgedm.passes.fuse_quant_conv import FuseQuantConv

RNG = np.random.default_rng(17)
SETTINGS = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def padded(
    amounts=(0, 0, 0, 0, 0, 0, 1, 1), pads=(0, 0, 0, 0), zero=7, pad="Pad(x, p)", tail="", outputs="", **constants
):
    """x [1,3,6,6], padded, divided, quantised and convolved by 2x3 with strides 2 and 1."""
    shape = [6 + amounts[2] + amounts[6] + pads[0] + pads[2], 6 + amounts[3] + amounts[7] + pads[1] + pads[3]]
    size = f"1,4,{(shape[0] - 2) // 2 + 1},{shape[1] - 2}"
    names = {
        **{"p": np.array(amounts), "d": np.array([2, 0.7, 1], np.float32).reshape(3, 1, 1)},
        **{"s": np.array(0.2, np.float32), "z": np.array(zero, ml_dtypes.uint4)},
        **weight(RNG, 4, 4, 3, 2, 3),
        **constants,
    }
    text = f"""g (float[1,3,6,6] x) => (float[{size}] y{outputs}) {{
        b = {pad} v = Div(b, d) {quantised("q", "v", "s", "z", 4)} u = DequantizeLinear<axis=0>(w, ws, wz)
        y = Conv<strides=[2,1], pads={list(pads)}>(q, u) {tail}
    }}"""
    return apply(FoldWeightDilation(), apply(FuseQuantConv(), graph(text, **names)).model).model


@SETTINGS
@given(st.tuples(*[st.integers(0, 2)] * 4), st.tuples(*[st.integers(0, 2)] * 4), st.sampled_from([0, 7, 15]))
def test_padding_around_the_image_becomes_the_convolutions(around, own, zero):
    top, left, bottom, right = around
    result = apply(FusePadding(), padded((0, 0, top, left, 0, 0, bottom, right), own, zero))
    assert "Pad" not in result.ops
    pads = result.one("QuantConv").attributes["pads"].value
    assert list(pads) == [more + mine for more, mine in zip(around, own, strict=True)]
    result.assert_same_bits()


def test_codes_of_signs_by_4_bits_are_padded_alike():
    model = graph(
        """g (float[1,3,6,6] x) => (float[1,2,6,6] y) {
            b = Pad(x, p) q = QuantizeLinear(b, s, z) d = DequantizeLinear(q, s, z)
            u = edgedm.UnpackBits<channels=3>(w) y = Conv(d, u)
        }""",
        p=np.array([0, 0, 0, 1, 0, 0, 2, 1]),
        s=np.array(0.2, np.float32),
        z=np.zeros((), ml_dtypes.int4),
        w=signs(RNG, 2, 3, 3, 3),
    )
    result = apply(FusePadding(), apply(FuseBinaryWeightConv(), model).model)
    assert "Pad" not in result.ops and list(result.one("BinaryWeightConv").attributes["pads"].value) == [0, 1, 2, 1]
    result.assert_same_bits()


def test_what_is_padded_stays_for_other_readers():
    result = apply(FusePadding(), padded(tail="o = Neg(b)", outputs=", float[1,3,7,7] o"))
    assert "Pad" in result.ops and list(result.one("QuantConv").attributes["pads"].value) == [0, 0, 1, 1]
    result.assert_same_bits()


@pytest.mark.parametrize(
    "changes",
    [
        {"pad": "Pad(x, p, one)", "one": np.array(1, np.float32)},
        {"pad": 'Pad<mode="edge">(x, p)'},
        {"d": np.array([2, 0, 1], np.float32).reshape(3, 1, 1)},
    ],
    ids=["ones", "the edge", "divided by 0"],
)
def test_other_padding_is_refused(changes):
    result = apply(FusePadding(), padded(**changes))
    assert "Pad" in result.ops
    assert "not padded with zeros" in result.report.refusals[0].reason
    result.assert_same_bits()
