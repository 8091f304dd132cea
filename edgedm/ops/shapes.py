"""Static shapes: of the domain's ops by rules, of standard ops by onnx, in one walk through a graph.

onnx's own inference stops at functions whose shapes depend on an attribute (UnpackBits) or on padding to 64
(PackBits), and passes and lowering need every shape.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from edgedm.errors import InvalidModelError
from edgedm.ops.domain import DOMAIN
from edgedm.ops.packing import packed_bytes

Shape = tuple[int, ...]
TensorType = tuple[ir.DataType, Shape]
Attributes = Mapping[str, Any]

_F32, _U8, _I8 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT8


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


def output_types(op: str, shapes: Sequence[Shape], attributes: Attributes) -> list[TensorType]:
    """Return dtype and shape of every output of the `edgedm` op `op` for inputs of `shapes`.

    Raises KeyError for an op outside the domain and ValueError where shapes don't fit.
    """
    return _RULES[op](shapes, attributes)


def _infer_ours(node: ir.Node) -> list[TensorType]:
    shapes = [_static(value) for value in node.inputs]
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes) or node.op_type not in _RULES:
        return []
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    try:
        return output_types(node.op_type, known, attributes)
    except (ValueError, IndexError, KeyError) as error:
        raise InvalidModelError(
            f"node {_label(node)} ({DOMAIN}.{node.op_type}): inputs {known} with {attributes} don't fit: {error}"
        ) from error


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
        if constant is not None and value.dtype == ir.DataType.INT64:
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


def _conv(shapes: Sequence[Shape], attributes: Attributes, channels_last_weight: bool) -> list[TensorType]:
    (batch, *image, _), (out, *rest) = shapes[0], shapes[1]
    kernel = rest[:2] if channels_last_weight else rest[1:]
    pads, strides = attributes["pads"], attributes["strides"]
    sides = [
        (size + pads[axis] + pads[axis + 2] - kernel[axis]) // strides[axis] + 1 for axis, size in enumerate(image)
    ]
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"output of {sides} pixels")
    return [(_F32, (batch, *sides, out))]


def _packed(shape: Shape) -> Shape:
    return (*shape[:-1], packed_bytes(shape[-1]))


_RULES: dict[str, Callable[[Sequence[Shape], Attributes], list[TensorType]]] = {
    "Binarize": lambda s, _: [(_F32, s[0])],
    "UnpackBits": lambda s, a: [(_F32, (s[0][0], a["channels"], s[0][1], s[0][2]))],
    "UnpackBitsLinear": lambda s, a: [(_F32, (s[0][0], a["channels"]))],
    "TimestepLookup": lambda s, _: [(_F32, s[0][1:])],
    "PackBits": lambda s, _: [(_U8, _packed(s[0]))],
    "PackBitsMeanAbs": lambda s, _: [(_U8, _packed(s[0])), (_F32, (*s[0][:-1], 1))],
    "QuantizeCodes": lambda s, _: [(_I8, s[0])],
    "BinaryConv": lambda s, a: _conv(s, a, channels_last_weight=True),
    "BinaryGemm": lambda s, _: [(_F32, (*s[0][:-1], s[1][0]))],
    "BinaryWeightConv": lambda s, a: _conv(s, a, channels_last_weight=True),
    "BinaryWeightGemm": lambda s, _: [(_F32, (*s[0][:-1], s[1][0]))],
    "GroupNorm": lambda s, _: [(_F32, s[0])],
    "GroupNormSilu": lambda s, _: [(_F32, s[0])],
    "GroupNormSiluPack": lambda s, _: [(_F32, s[0]), (_U8, _packed(s[0])), (_F32, (*s[0][:-1], 1))],
    "GroupNormSiluQuantize": lambda s, _: [(_I8, s[0])],
    "FloatConv": lambda s, a: _conv(s, a, channels_last_weight=False),
    "UpsampleNearest": lambda s, a: [
        (_F32, (s[0][0], s[0][1] * a["factor"], s[0][2] * a["factor"], s[0][3]))
    ],
    "AveragePool2d": lambda s, a: [
        (_F32, (s[0][0], s[0][1] // a["kernel"][0], s[0][2] // a["kernel"][1], s[0][3]))
    ],
}
