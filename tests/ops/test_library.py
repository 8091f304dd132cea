"""Attaching functions to models, their bodies, and shape inference through whole graphs."""

import onnx
import onnx_ir as ir
import pytest

from edgedm.errors import InvalidModelError
from edgedm.ops import DOMAIN, FUNCTIONS, ONNX_OPSET, attach_functions, infer_shapes

GRAPH = """
<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>
step (float[1,65,9,9] x, float[65] t, uint8[4,3,3,16] w) => (float y)
{
   nhwc = Transpose <perm = [0,2,3,1]> (x)
   bits, mean = edgedm.PackBitsMeanAbs (nhwc, t)
   one = Constant <value_floats: floats = [1.0]> ()
   many = Constant <value: tensor = float[4] {1.0, 1.0, 1.0, 1.0}> ()
   shape = Constant <value_ints: ints = [1, 1, 1, 1]> ()
   neutral = Reshape (one, shape)
   conv = edgedm.BinaryConv <channels: int = 65, strides: ints = [2,2], pads: ints = [1,1,1,1]>
       (bits, w, many, neutral, many, neutral, one)
   y = Transpose <perm = [0,3,1,2]> (conv)
}
"""


def _model(text: str = GRAPH) -> ir.Model:
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def test_exactly_the_functions_in_use_are_attached() -> None:
    model = _model()
    attach_functions(model)
    assert {key[1] for key in model.functions} == {"PackBitsMeanAbs", "BinaryConv"}
    for node in list(model.graph):
        if node.op_type == "BinaryConv":
            node.domain, node.op_type = DOMAIN, "BinaryWeightConv"
    attach_functions(model)
    assert {key[1] for key in model.functions} == {"PackBitsMeanAbs", "BinaryWeightConv"}


def test_a_graph_of_standard_ops_keeps_no_trace_of_the_domain() -> None:
    model = _model('<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Relu (x) }')
    attach_functions(model)
    assert not model.functions and DOMAIN not in model.opset_imports


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_stands_alone_on_standard_ops(name: str) -> None:
    function = FUNCTIONS[name]
    assert {node.domain for node in function} == {""}
    assert dict(function.opset_imports) == {"": ONNX_OPSET}
    onnx.checker.check_function(ir.serde.serialize_function(function), _context())


def test_shapes_flow_through_our_ops_and_standard_ones() -> None:
    model = _model()
    infer_shapes(model)
    shapes = {value.name: tuple(value.shape) for node in model.graph for value in node.outputs if value.shape}
    assert shapes["bits"] == (1, 9, 9, 16) and shapes["mean"] == (1, 9, 9, 1)
    assert shapes["neutral"] == (1, 1, 1, 1)
    assert shapes["conv"] == (1, 5, 5, 4) and shapes["y"] == (1, 4, 5, 5)


def test_inputs_that_do_not_fit_name_the_node() -> None:
    model = _model(GRAPH.replace("nhwc = Transpose <perm = [0,2,3,1]> (x)", "nhwc = MatMul (x, t)"))
    with pytest.raises(InvalidModelError, match="MatMul"):
        infer_shapes(model)
    model = _model(GRAPH.replace("pads: ints = [1,1,1,1]", "pads: ints = [-9,-9,1,1]"))
    with pytest.raises(InvalidModelError, match="BinaryConv"):
        infer_shapes(model)


def _context() -> onnx.checker.C.CheckerContext:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = 10
    context.opset_imports = {"": ONNX_OPSET}
    return context
