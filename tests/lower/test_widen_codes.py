"""4-bit codes as int8: the same numbers, ties, saturation and NaN included."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgedm.export.graph_io import serialize_graph
from edgedm.lower.widen_codes import WidenCodes
from edgedm.ops import infer_shapes

GRAPH = """<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>
g (float[4,100] x) => (float[4,100] y) {
  q = QuantizeLinear (x, step, zero)
  y = DequantizeLinear (q, step, zero)
}"""


def _model(step: np.ndarray, zero: int) -> ir.Model:
    proto = onnx.parser.parse_model(GRAPH)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(step, "step"))
    shape = list(step.shape)
    proto.graph.initializer.append(onnx.helper.make_tensor("zero", onnx.TensorProto.INT4, shape, [zero] * step.size))
    model = ir.serde.deserialize_model(proto)
    infer_shapes(model)
    return model


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(serialize_graph(model), options).run(None, {"x": x})[0]


def test_the_numbers_are_the_same_to_the_bit():
    step = np.float32(0.3)
    model = _model(np.array(step), 0)
    x = (np.random.default_rng(0).standard_normal((4, 100)) * 2).astype(np.float32)
    x[0, :40] = (np.arange(40) - 20) * np.float32(0.5) * step  # ties
    x[1, :4] = [1e30, -1e30, 0.0, -0.0]
    want = _run(model, x)
    WidenCodes()(model)
    assert [node.op_type for node in model.graph] == ["QuantizeCodes", "Cast", "Mul"]
    assert _run(model, x).tobytes() == (want + np.float32(0)).tobytes()


@pytest.mark.parametrize(("step", "zero"), [(np.array(0.3, np.float32), 1), (np.full(100, 0.3, np.float32), 0)])
def test_other_quantisers_are_refused_with_a_reason(step, zero):
    model = _model(step, zero)
    report = WidenCodes()(model)
    assert [node.op_type for node in model.graph] == ["QuantizeLinear", "DequantizeLinear"]
    assert "per-tensor" in str(report.refusals[0])
