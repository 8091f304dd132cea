"""Runs one `edgedm` op under ONNX Runtime, optimisation off, on given arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgedm.ops import DOMAIN, IR_VERSION, ONNX_OPSET, attach_functions, infer_shapes

RunOp = Callable[..., list[np.ndarray]]


def one_op_model(op: str, inputs: Sequence[np.ndarray], attributes: dict[str, Any], outputs: int) -> ir.Model:
    values = [
        ir.Value(name=f"in{i}", shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        for i, array in enumerate(inputs)
    ]
    node = ir.node(op, values, attributes, domain=DOMAIN, num_outputs=outputs, name=op)
    for i, value in enumerate(node.outputs):
        value.name = f"out{i}"
    constants = []
    for value, array in zip(values, inputs, strict=True):
        if array.dtype == ml_dtypes.uint4:  # numpy cannot hand them to ONNX Runtime
            value.const_value = ir.tensor(array, name=value.name)
            constants.append(value)
    fed = [value for value in values if value.const_value is None]
    graph = ir.Graph(fed, node.outputs, nodes=[node], initializers=constants, opset_imports={"": ONNX_OPSET}, name=op)
    model = ir.Model(graph, ir_version=IR_VERSION)
    attach_functions(model)
    infer_shapes(model)
    return model


@pytest.fixture(scope="session")
def run_op() -> RunOp:
    """run_op(op, *inputs, outputs=1, **attributes) -> outputs; the inferred types are checked against them."""

    def run(op: str, *inputs: np.ndarray, outputs: int = 1, **attributes: Any) -> list[np.ndarray]:
        model = one_op_model(op, inputs, attributes, outputs)
        proto = ir.serde.serialize_model(model)
        onnx.checker.check_model(proto, full_check=True)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        fed = {value.name for value in session.get_inputs()}
        results = session.run(None, {f"in{i}": array for i, array in enumerate(inputs) if f"in{i}" in fed})
        for value, result in zip(model.graph.outputs, results, strict=True):
            assert value.shape is not None and value.dtype is not None
            assert (tuple(value.shape), value.dtype.numpy()) == (result.shape, result.dtype)
        return results

    return run
