"""Quantisers without a fusion, as codes of one byte: the same numbers, ties, saturation and NaN included."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgedm.errors import UnsupportedError
from edgedm.export.graph_io import serialize_graph
from edgedm.lower.widen_codes import WidenCodes
from edgedm.ops import infer_shapes

HEAD = '<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>\n'
ROUND_TRIP = """g (float[1,4,10,10] x) => (float[1,4,10,10] y) {
  q = QuantizeLinear <axis = 1> (x, step, zero)
  y = DequantizeLinear <axis = 1> (q, step, zero)
}"""
CLIPPED = """g (float[1,4,10,10] x) => (float[1,4,10,10] y) {
  q = QuantizeLinear (x, step, zero)
  c = Clip (q, low, high)
  y = DequantizeLinear (c, step, zero)
}"""
ROWS = """g (float[1,4,10,10] x, float step, uint8 row) => (float[1,4,10,10] y) {
  zero = Cast <to = 21> (row)
  q = QuantizeLinear (x, step, zero)
  y = DequantizeLinear (q, step, zero)
}"""
WEIGHT = """g (float[1,4,10,10] x) => (float[1,3,10,10] y) {
  weight = DequantizeLinear <axis = 0> (codes, step, zero)
  turned = Transpose <perm = [0, 2, 3, 1]> (weight)
  back = Transpose <perm = [0, 3, 1, 2]> (turned)
  y = Conv (x, back)
}"""
BITS = {"int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "uint8": (0, 255)}
STEPS = np.array([0.3, 0.1, 0.7, 0.02], np.float32)


def _model(text: str, **constants: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(HEAD + text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.serde.deserialize_model(proto)
    infer_shapes(model)
    return model


def _inputs(step: np.ndarray) -> np.ndarray:
    x = (np.random.default_rng(0).standard_normal((1, 4, 10, 10)) * 2).astype(np.float32)
    x[:, :, 0] = (np.arange(10) - 5) * np.float32(0.5) * step.reshape(-1, 1)  # ties
    x[:, :, 1, :4] = [1e30, -1e30, 0.0, -0.0]
    return x


def _run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(serialize_graph(model), options).run(None, feeds)[0]


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _same(model: ir.Model, **feeds: np.ndarray) -> WidenCodes:
    """The rewrite changes no bit of the output but the sign of zeros, which codes don't hold; returns the pass."""
    want = _run(model, **feeds)
    rewrite = WidenCodes()
    rewrite(model)
    assert (_run(model, **feeds) + np.float32(0)).tobytes() == (want + np.float32(0)).tobytes()
    four_bits = (ir.DataType.INT4, ir.DataType.UINT4)
    assert not any(value.dtype in four_bits for node in model.graph for value in node.outputs)
    return rewrite


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("per_axis", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_the_numbers_are_the_same_to_the_bit(kind, per_axis, centred):
    step = STEPS if per_axis else np.array(0.3, np.float32)
    points = np.zeros(4) if centred else np.array([1, 7, 0, 3])
    zero = (points if per_axis else points[1]).astype(getattr(ml_dtypes, kind) if kind.endswith("4") else kind)
    model = _model(ROUND_TRIP, step=step, zero=np.asarray(zero))
    rewrite = _same(model, x=_inputs(step))
    assert len(rewrite.slow) == 1 and "float32" in rewrite.slow[0]
    if kind.startswith("u"):
        assert _ops(model)[0] == ("QuantizeHeads" if per_axis else "QuantizeUniform")
    elif centred and not per_axis:
        assert _ops(model) == ["QuantizeCodes", "Cast", "Mul"]
    else:
        assert _ops(model)[0] == "Div"


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_a_clip_becomes_the_width_of_the_quantiser(bits):
    limits = {"low": np.array(0, np.uint8), "high": np.array(2**bits - 1, np.uint8)}
    step = np.array(0.3, np.float32)
    model = _model(CLIPPED, step=step, zero=np.array(2, np.uint8), **limits)
    _same(model, x=_inputs(step))
    assert "Clip" not in _ops(model)
    assert model.graph[0].attributes["bits"].as_int() == bits


def test_a_clip_to_another_range_stays():
    limits = {"low": np.array(1, np.uint8), "high": np.array(6, np.uint8)}
    step = np.array(0.3, np.float32)
    model = _model(CLIPPED, step=step, zero=np.array(2, np.uint8), **limits)
    _same(model, x=_inputs(step))
    assert "Clip" in _ops(model)


def test_rows_of_a_table_are_read_in_bytes():
    model = _model(ROWS)
    step = np.array(0.3, np.float32)
    _same(model, x=_inputs(step), step=step, row=np.array(9, np.uint8))
    assert _ops(model)[0] == "QuantizeUniform"


def test_a_weight_becomes_its_values():
    codes = np.arange(12).reshape(3, 4, 1, 1).astype(ml_dtypes.uint4)
    zero = np.array([0, 5, 15]).astype(ml_dtypes.uint4)
    model = _model(WEIGHT, codes=codes, step=STEPS[:3], zero=zero)
    rewrite = _same(model, x=_inputs(STEPS))
    assert _ops(model) == ["Conv"]
    assert rewrite.slow and "weight" in rewrite.slow[0]


def test_steps_by_block_are_refused():
    model = _model(ROUND_TRIP, step=STEPS, zero=np.zeros(4, np.uint8))
    for node in model.graph:
        node.attributes["block_size"] = ir.AttrInt64("block_size", 2)
    with pytest.raises(UnsupportedError, match="block"):
        WidenCodes()(model)
