import ml_dtypes
import numpy as np
import pytest
from pass_testing import apply, graph, signs

from edgedm.passes.fuse_binary_weight_conv import FuseBinaryWeightConv

RNG = np.random.default_rng(2)
ZERO = np.zeros((), ml_dtypes.int4)
STEP = np.array(0.3, np.float32)


def conv_graph(conv="y = Conv<pads=[0,1,2,1]>(d, u, bias)", **changes):
    constants = {
        "w": signs(RNG, 3, 3, 3, 5),
        "s": STEP,
        "zero": ZERO,
        "bias": RNG.standard_normal(3).astype(np.float32),
    }
    return graph(
        f"""g (float[1,5,6,7] x) => (float[1,3,6,7] y) {{
            q = QuantizeLinear(x, s, zero)
            d = DequantizeLinear(q, s, zero)
            u = edgedm.UnpackBits<channels=5>(w)
            {conv}
        }}""",
        **(constants | changes),
    )


def test_a_convolution_of_int4_activations_becomes_one_of_codes():
    result = apply(FuseBinaryWeightConv(), conv_graph())
    assert result.ops == ["Transpose", "QuantizeCodes", "BinaryWeightConv", "Transpose"]
    conv = result.one("BinaryWeightConv")
    assert conv.inputs[2].const_value.numpy().tolist() == [STEP] * 3
    assert list(conv.attributes["pads"].value) == [0, 1, 2, 1]
    quantize = result.one("QuantizeCodes")
    assert (quantize.attributes["low"].value, quantize.attributes["high"].value) == (-8, 7)
    result.assert_within_rounding()


def test_quantise_codes_are_those_of_quantize_linear_for_ties_and_out_of_range():
    x = np.arange(-10, 10.5, 0.5, dtype=np.float32) * STEP
    values = np.resize(x, (1, 5, 6, 7))
    result = apply(FuseBinaryWeightConv(), conv_graph())
    from edgedm.passes.regions import Side

    old = Side(result.before).all_values().run({"x": values})["d"]
    new = Side(result.model).all_values().run({"x": values})
    codes = new[result.one("QuantizeCodes").outputs[0].name]
    assert (codes.transpose(0, 3, 1, 2).astype(np.float32) * STEP == old).all()


@pytest.mark.parametrize(
    "product", ["ut = Transpose<perm=[1,0]>(u) y = MatMul(d, ut)", "y = Gemm<transB=1>(d, u, bias)"]
)
def test_a_linear_layer_of_int4_activations_becomes_a_gemm_of_codes(product):
    model = graph(
        f"""g (float[6,70] x) => (float[6,3] y) {{
            q = QuantizeLinear(x, s, zero)
            d = DequantizeLinear(q, s, zero)
            u = edgedm.UnpackBitsLinear<channels=70>(w)
            {product}
        }}""",
        w=signs(RNG, 3, 70),
        s=STEP,
        zero=ZERO,
        **({"bias": RNG.standard_normal(3).astype(np.float32)} if "bias" in product else {}),
    )
    result = apply(FuseBinaryWeightConv(), model)
    assert result.ops == ["QuantizeCodes", "BinaryWeightGemm"]
    result.assert_within_rounding()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"zero": np.zeros((), np.int8)}, "int4 zero point of 0"),
        ({"zero": np.array(1, ml_dtypes.int4)}, "int4 zero point of 0"),
        ({"s": np.full(5, 0.5, np.float32), "zero": np.zeros(5, ml_dtypes.int4)}, "per channel"),
    ],
)
def test_other_quantisers_are_refused(changes, reason):
    result = apply(FuseBinaryWeightConv(), conv_graph(**changes))
    assert reason in result.report.refusals[0].reason
    assert "Conv" in result.ops
