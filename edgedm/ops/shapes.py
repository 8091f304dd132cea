"""Static shapes: of the domain's ops by rules, of standard ops by onnx, in one walk through a graph.

onnx's own inference stops at functions whose shapes depend on an attribute (UnpackBits) or on padding to 64
(PackBits), and passes and lowering need every shape.
"""

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from edgedm.errors import InvalidModelError
from edgedm.ops.domain import DOMAIN
from edgedm.ops.rules import KEPT, Shape, TensorType, output_types

_FEW = 8


def infer_shapes(model: ir.Model) -> None:
    """Set dtype and static shape of every value of the main graph that follows from the inputs' static shapes.

    A value whose shape cannot be inferred keeps what it has. Raises InvalidModelError naming the node where the
    inputs of an op don't fit together.
    """
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    for node in model.graph:
        if node.domain == DOMAIN:
            types: list[TensorType | None] = [*_infer_ours(node)]
        else:
            types = _infer_standard(node, model.opset_imports, imports)
        for output, inferred in zip(node.outputs, types, strict=False):
            if inferred is not None:
                output.dtype, output.shape = inferred[0], ir.Shape(inferred[1])


def _infer_ours(node: ir.Node) -> list[TensorType]:
    shapes = [_static(value) for value in node.inputs]
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes):
        return []
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    try:
        types = output_types(node.op_type, known, attributes)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise InvalidModelError(
            f"node {_label(node)} ({DOMAIN}.{node.op_type}): inputs {known} with {attributes} don't fit: {error}"
        ) from error
    first = node.inputs[0].dtype if node.inputs[0] is not None else None
    return [(first or ir.DataType.FLOAT if dtype == KEPT else dtype, shape) for dtype, shape in types]


def _infer_standard(
    node: ir.Node, versions: Mapping[str, int], imports: list[onnx.OperatorSetIdProto]
) -> list[TensorType | None]:
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return []
    input_types, input_data = {}, {}
    for value in node.inputs:
        if value is None or value.name is None:
            continue
        shape = _static(value)
        if shape is None or value.dtype is None:
            return []
        input_types[value.name] = onnx.helper.make_tensor_type_proto(int(value.dtype), shape)
        constant = ir.convenience.get_const_tensor(value)
        if constant is not None and (value.dtype == ir.DataType.INT64 or constant.size <= _FEW):  # shapes and scales
            input_data[value.name] = ir.serde.serialize_tensor(constant)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), input_types, input_data, opset_imports=imports
        )
    except onnx.shape_inference.InferenceError as error:
        raise InvalidModelError(f"node {_label(node)} ({node.op_type}): its inputs don't fit: {error}") from error
    return [_from_proto(found.get(output.name or "")) for output in node.outputs]


def _label(node: ir.Node) -> str:
    return repr(node.name or node.outputs[0].name)


def _from_proto(proto: onnx.TypeProto | None) -> TensorType | None:
    if proto is None or not proto.tensor_type.HasField("shape"):
        return None
    dims = proto.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    return ir.DataType(proto.tensor_type.elem_type), tuple(dim.dim_value for dim in dims)


def _static(value: ir.Value | None) -> Shape | None:
    if value is None or value.shape is None:
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int)]
    return tuple(dims) if len(dims) == len(value.shape) else None
