import ml_dtypes
import numpy as np
import pytest
from pass_testing import apply, graph
from uniform_graphs import STORED, limits, looked_up, lookup_constants, quantised, table, weight

from edgedm.passes.fuse_epilogue import FuseEpilogue
from edgedm.passes.fuse_quant_conv import FuseQuantConv
from edgedm.passes.fuse_row_addend import FuseRowAddend
from edgedm.passes.lookup_timestep_parameters import LookupTimestepParameters
from edgedm.passes.merge_scales import MergeScales
from edgedm.passes.merge_tables import MergeTables

RNG = np.random.default_rng(5)
STEP = np.array(0.15, np.float32)
BIAS = RNG.standard_normal(3).astype(np.float32)
CONV = "u = DequantizeLinear<axis=0>(w, ws, wz) y = Conv<{}>(d, u, b)"


def conv_graph(
    bits=4, weight_bits=4, zero=7, attributes="pads=[1,1,1,1]", out="1,3,6,6", tail="", inputs="", **constants
):
    """x [1,5,6,6] quantised by one grid, convolved by a 3x3 weight."""
    constants = {
        "s": STEP,
        "z": np.array(zero).astype(STORED[bits]),
        "b": BIAS,
        **weight(np.random.default_rng(0), weight_bits, 3, 5, 3, 3),
        **limits(bits),
        **constants,
    }
    conv = CONV.format(attributes)
    if tail:
        conv = conv.replace("y = ", "c = ")
    text = f"g (float[1,5,6,6] x{inputs}) => (float[{out}] y) {{ {quantised('d', 'x', 's', 'z', bits)} {conv} {tail} }}"
    given = {part.split()[-1] for part in inputs.split(", ") if part}
    return graph(text, **{name: array for name, array in constants.items() if name not in given})


@pytest.mark.parametrize(
    ("bits", "weight_bits", "zero"), [(4, 4, 0), (4, 4, 15), (8, 8, 255), (6, 6, 33), (2, 4, 3), (8, 2, 0)]
)
def test_a_convolution_of_codes_becomes_a_quant_conv_of_its_widths(bits, weight_bits, zero):
    result = apply(FuseQuantConv(), conv_graph(bits, weight_bits, zero))
    assert sorted(result.ops) == ["QuantConv", "QuantizeUniform", "Transpose", "Transpose"]
    product, quantise = result.one("QuantConv"), result.one("QuantizeUniform")
    assert quantise.attributes["bits"].value == product.attributes["bits"].value == bits
    assert product.attributes["weight_bits"].value == max(4, weight_bits)
    codes, zeros = (product.inputs[index].const_value.numpy() for index in (2, 3))
    given = weight(np.random.default_rng(0), weight_bits, 3, 5, 3, 3)
    assert codes.dtype == given["w"].dtype and np.array_equal(codes, np.moveaxis(given["w"], 1, -1))
    assert zeros.dtype == np.uint8 and np.array_equal(zeros, given["wz"])
    assert product.inputs[6].const_value.numpy().tolist() == BIAS.tolist()
    result.assert_within_rounding()


@pytest.mark.parametrize(
    ("attributes", "out"),
    [
        ("strides=[2,2], pads=[0,0,1,1]", "1,3,3,3"),
        ("strides=[2,1], pads=[2,0,0,1]", "1,3,3,5"),
        ("pads=[0,0,0,0]", "1,3,4,4"),
    ],
)
@pytest.mark.parametrize("zero", [0, 15])
def test_strides_and_asymmetric_padding_are_kept(attributes, out, zero):
    result = apply(FuseQuantConv(), conv_graph(zero=zero, attributes=attributes, out=out))
    assert "Conv" not in result.ops
    result.assert_within_rounding()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_grid_looked_up_for_the_timestep_is_read_before_its_cast_to_4_bits(bits):
    text = f"""g (float[1,5,6,6] x, int64[1] timestep) => (float[1,3,4,4] y) {{
        {looked_up("a", bits)} {quantised("d", "x", "a_step", "a_zero", bits)} {CONV.format("group=1")}
    }}"""
    constants = weight(RNG, 4, 3, 5, 3, 3) | lookup_constants(0) | limits(bits) | {"b": BIAS}
    model = apply(LookupTimestepParameters(), graph(text, a_table=table(RNG, bits), **constants)).model
    result = apply(FuseQuantConv(), model)
    product = result.one("QuantConv")
    assert product.inputs[1].producer().op_type in ("Cast", "Identity") and product.inputs[1].name != "a_zf"
    assert product.inputs[5].name == "a_step" and tuple(product.inputs[5].shape) == ()
    assert "UINT4" not in {str(value.dtype) for node in result.model.graph for value in node.outputs}
    result.assert_within_rounding()


@pytest.mark.parametrize("product", ["ut = Transpose<perm=[1,0]>(u) y = MatMul(d, ut)", "y = Gemm<transB=1>(d, u, b)"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_form_of_a_linear_layer_becomes_a_quant_gemm(product, per_channel):
    constants = {"s": STEP, "z": np.array(9, ml_dtypes.uint4)} | weight(RNG, 4, 3, 70)
    if not per_channel:
        constants |= {"ws": np.array(0.04, np.float32), "wz": np.array(8, ml_dtypes.uint4)}
    if "b)" in product:
        constants["b"] = BIAS
    text = f"""g (float[6,70] x) => (float[6,3] y) {{
        {quantised("d", "x", "s", "z", 4)} u = DequantizeLinear<axis=0>(w, ws, wz) {product}
    }}"""
    result = apply(FuseQuantConv(), graph(text, **constants))
    assert result.ops == ["QuantizeUniform", "QuantGemm"]
    result.assert_within_rounding()


def test_a_quantiser_and_a_weight_that_two_products_share_are_stored_once():
    text = f"""g (float[1,5,6,6] x, float[1,5,6,6] x2) => (float[1,3,4,4] y, float[1,3,4,4] y2, float[1,3,4,4] y3) {{
        {quantised("d", "x", "s", "z", 4)} {quantised("d2", "x2", "s", "z", 4)}
        u = DequantizeLinear<axis=0>(w, ws, wz) u2 = DequantizeLinear<axis=0>(w2, ws, wz)
        y = Conv(d, u, b) y2 = Conv(d, u2) y3 = Conv(d2, u)
    }}"""
    constants = weight(RNG, 4, 3, 5, 3, 3)
    other = weight(RNG, 4, 3, 5, 3, 3)["w"]
    model = graph(text, s=STEP, z=np.array(3, ml_dtypes.uint4), b=BIAS, w2=other, **constants)
    result = apply(FuseQuantConv(), model)
    assert result.ops.count("QuantConv") == 3 and result.ops.count("QuantizeUniform") == 2
    weights = {node.inputs[2].name for node in result.model.graph if node.op_type == "QuantConv"}
    assert len(weights) == 2
    result.assert_within_rounding()


def test_a_quantised_value_that_is_read_elsewhere_stays_for_its_reader():
    model = conv_graph(tail="n = Neg(d) m = ReduceMean<keepdims=1>(n) y = Add(c, m)")
    result = apply(FuseQuantConv(), model)
    assert {"QuantConv", "DequantizeLinear", "QuantizeLinear"} <= set(result.ops)
    result.assert_within_rounding()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": ", uint4[3,5,3,3] w"}, "its weight is not a constant"),
        ({"inputs": ", float[3] ws"}, "step or zero point of its weight is not a constant"),
        ({"w": np.zeros((3, 5, 3, 3), np.int8), "wz": np.zeros(3, np.int8)}, "its weight is int8"),
        ({"z": np.array(3, np.uint16)}, "its codes are UINT16"),
        ({"s": np.array(-0.5, np.float32)}, "is not positive"),
        ({"s": np.array(0, np.float32)}, "is not positive"),
        ({"s": np.full(5, 0.5, np.float32), "z": np.full(5, 3, ml_dtypes.uint4)}, "5 steps along axis 1"),
        ({"attributes": "dilations=[2,2]", "out": "1,3,2,2"}, "dilated"),
        ({"attributes": 'auto_pad="SAME_UPPER"'}, "auto_pad"),
        ({"inputs": ", float[3] b"}, "bias is not a constant"),
    ],
)
def test_what_has_no_kernel_is_refused_with_its_reason(changes, reason):
    result = apply(FuseQuantConv(), conv_graph(**changes))
    assert "Conv" in result.ops
    (refusal,) = result.report.refusals
    assert reason in refusal.reason and "'y'" in refusal.node


def test_a_zero_point_beyond_clipped_codes_is_refused():
    inside, beyond = (apply(FuseQuantConv(), conv_graph(6, zero=zero)) for zero in (63, 64))
    assert "QuantConv" in inside.ops and not inside.report.refusals
    assert "zero point 64" in beyond.report.refusals[0].reason and "0..63" in beyond.report.refusals[0].reason


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("largest", [63, 64])
def test_a_zero_point_beyond_clipped_codes_in_one_bin_of_a_table_is_refused(joined, largest):
    other = f"{looked_up('o', 8)} {quantised('e', 'x', 'o_step', 'o_zero', 8)}" if joined else ""
    text = f"""g (float[1,5,6,6] x, int64[1] timestep) => (float[1,3,4,4] y) {{ {other}
        {looked_up("a", 6)} {quantised("d", "e" if joined else "x", "a_step", "a_zero", 6)} {CONV.format("group=1")}
    }}"""
    constants = weight(RNG, 4, 3, 5, 3, 3) | lookup_constants(0) | limits(6) | {"b": BIAS}
    constants |= {"o_table": table(RNG, 8)} if joined else {}
    rows = np.array([[0.1, 0], [0.2, largest], [0.3, 30]], np.float32)
    model = graph(text, a_table=rows, **constants)
    model = apply(MergeTables(), apply(LookupTimestepParameters(), model).model).model
    result = apply(FuseQuantConv(), model)
    assert [each.reason for each in result.report.refusals] == (
        [] if largest == 63 else ["its zero point 64 lies beyond its codes 0..63"]
    )


def test_signed_codes_of_the_activation_become_unsigned_ones():
    result = apply(FuseQuantConv(), conv_graph(z=np.array(-3, np.int8)))
    assert result.one("QuantConv").inputs[1].const_value.numpy() == 125
    result.assert_within_rounding()


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize(("first", "second"), [("s, z", "s"), ("s", "s, z"), ("s", "s")])
def test_a_zero_point_that_is_left_out_is_0(first, second, kind):
    constants = weight(RNG, 4, 3, 5, 3, 3) | {"s": STEP, "b": BIAS, "z": np.array(0, kind)}
    quantise = "q = QuantizeLinear" + ("" if "z" in first else f"<output_dtype={2 if kind is np.uint8 else 3}>")
    text = f"""g (float[1,5,6,6] x) => (float[1,3,4,4] y) {{
        {quantise}(x, {first}) d = DequantizeLinear(q, {second}) {CONV.format("group=1")}
    }}"""
    used = {name: array for name, array in constants.items() if name != "z" or "z" in first + second}
    result = apply(FuseQuantConv(), graph(text, **used))
    assert result.one("QuantConv").inputs[1].const_value.numpy() == (0 if kind is np.uint8 else 128)
    result.assert_within_rounding()


def test_a_convolution_along_one_axis_is_refused():
    text = f"""g (float[1,5,6] x) => (float[1,3,4] y) {{
        {quantised("d", "x", "s", "z", 4)} u = DequantizeLinear<axis=0>(w, ws, wz) y = Conv(d, u)
    }}"""
    result = apply(FuseQuantConv(), graph(text, s=STEP, z=np.array(3, ml_dtypes.uint4), **weight(RNG, 4, 3, 5, 3)))
    (refusal,) = result.report.refusals
    assert "(3, 5, 3)" in refusal.reason and "kernel" in refusal.reason


def test_a_weight_with_inputs_on_the_rows_is_refused():
    text = f"""g (float[6,5] x) => (float[6,3] y) {{
        {quantised("d", "x", "s", "z", 4)} u = DequantizeLinear<axis=0>(w, ws, wz) y = MatMul(d, u)
    }}"""
    result = apply(FuseQuantConv(), graph(text, s=STEP, z=np.array(3, ml_dtypes.uint4), **weight(RNG, 4, 5, 3)))
    assert result.report.refusals[0].reason == "its weight is not transposed: inputs stand on the rows"


def test_groups_are_refused_by_name():
    model = graph(
        f"g (float[1,6,6,6] x) => (float[1,4,4,4] y) {{ {quantised('d', 'x', 's', 'z', 4)} "
        "u = DequantizeLinear<axis=0>(w, ws, wz) y = Conv<group=2>(d, u) }",
        s=STEP,
        z=np.array(3, ml_dtypes.uint4),
        **weight(RNG, 4, 4, 3, 3, 3),
    )
    assert "group = 2" in apply(FuseQuantConv(), model).report.refusals[0].reason


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s2, z)", "on another"),
        ("q = QuantizeLinear(x, s, z) k = Clip(q, low, top) d = DequantizeLinear(k, s, z)", "0..9"),
        ("q = QuantizeLinear(x, s, z) k = Clip(q, one, top) d = DequantizeLinear(k, s, z)", "from 0 on"),
        ("d = Relu(x)", "not quantised"),
    ],
)
def test_grids_without_a_quantiser_of_ours_are_refused(lines, reason):
    byte = {"low": np.array(0, np.uint8), "one": np.array(1, np.uint8), "top": np.array(9, np.uint8)}
    constants = {"s": STEP, "s2": STEP * 2, "z": np.array(3, np.uint8), **byte, "b": BIAS}
    used = {
        name: array for name, array in constants.items() if name == "b" or f" {name})" in lines or f" {name}," in lines
    }
    text = f"g (float[1,5,6,6] x) => (float[1,3,4,4] y) {{ {lines} {CONV.format('group=1')} }}"
    result = apply(FuseQuantConv(), graph(text, **used, **weight(RNG, 8, 3, 5, 3, 3)))
    assert reason in result.report.refusals[0].reason


def test_sums_beyond_int32_are_refused():
    text = f"""g (float[1,33026] x) => (float[1,2] y) {{
        {quantised("d", "x", "s", "z", 8)} u = DequantizeLinear<axis=0>(w, ws, wz) y = Gemm<transB=1>(d, u)
    }}"""
    constants = weight(RNG, 8, 2, 33026) | {"s": STEP, "z": np.array(0, np.uint8)}
    assert "int32" in apply(FuseQuantConv(), graph(text, **constants)).report.refusals[0].reason


def test_scale_bias_shortcut_and_time_row_go_into_the_epilogue():
    tail = "k = Mul(c, g) t = Add(k, e) y = Add(t, r)"
    constants = {"g": RNG.standard_normal((1, 3, 1, 1)).astype(np.float32), "b": np.full(3, -0.0, np.float32)}
    model = conv_graph(tail=tail, inputs=", float[1,3,1,1] e, float[1,3,6,6] r", **constants)
    model = apply(FuseQuantConv(), model).model
    merged = apply(MergeScales(), model)
    merged.assert_within_rounding()
    fused = apply(FuseEpilogue(), merged.model)
    assert len(fused.report.refusals) == 1  # of the row and the shortcut one is the residual
    fused.assert_same_bits()
    result = apply(FuseRowAddend(), fused.model)
    result.assert_within_rounding()
    assert not {"Mul", "Conv"} & set(result.ops) and result.ops.count("Add") <= 1


def test_the_tokens_of_an_attention_block_take_its_residual():
    text = f"""g (float[1,16,5] x, float[1,3,4,4] r) => (float[1,3,4,4] y) {{
        {quantised("d", "x", "s", "z", 4)} u = DequantizeLinear<axis=0>(w, ws, wz) ut = Transpose<perm=[1,0]>(u)
        m = MatMul(d, ut) l = Add(m, b) t = Transpose<perm=[0,2,1]>(l) v = Reshape(t, image) y = Add(v, r)
    }}"""
    constants = weight(RNG, 4, 3, 5) | {"s": STEP, "z": np.array(8, ml_dtypes.uint4), "b": BIAS}
    model = graph(text, image=np.array([1, 3, 4, 4]), **constants)
    model = apply(MergeScales(), apply(FuseQuantConv(), model).model).model
    result = apply(FuseEpilogue(), model)
    assert "Add" not in result.ops
    result.assert_same_bits()
