"""Hostile ONNX files: one small sound graph, changed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GRAPH = """
<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>
step (float[1,3,4,4] x) => (float[1,2,4,4] y)
<float[2,3,1,1] w = {1,2,3,4,5,6}, float[2] b = {1, 1}, float[1] two = {2}>
{ c = Conv (x, w, b)
  y = Mul (c, two) }
"""


def sound() -> onnx.ModelProto:
    """A convolution and a scale."""
    model = onnx.parser.parse_model(GRAPH)
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    for key, value in {
        "edgedm.config": "{}",
        "edgedm.level": "exported",
        "edgedm.inputs": '[{"name": "x", "role": "x"}]',
    }.items():
        model.metadata_props.add(key=key, value=value)
    return model


def write(files: Path) -> None:
    """Write `graph`, and a latent model's decoder that leaves its folder."""
    folder = files / "graph"
    folder.mkdir(parents=True)
    for attack in ATTACKS:
        model = sound()
        attack(model)
        (folder / f"{attack.__name__.strip('_').replace('_', '-')}.onnx").write_bytes(model.SerializeToString())
    data = sound().SerializeToString()
    (folder / "truncated.onnx").write_bytes(data[:-40])
    # a field of length 2**40, and a message of 200 messages within each other
    (folder / "length-beyond-end.onnx").write_bytes(data[:4] + b"\x3a\x80\x80\x80\x80\x80\x20" + data[4:])
    (folder / "deep-message.onnx").write_bytes(_nested(200))


def _nested(levels: int) -> bytes:
    """Graph in attribute in node in graph ..., as protobuf writes it."""
    inner = b""
    for _ in range(levels):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            inner = tag + _varint(len(inner)) + inner
    return b"\x08\x0a\x3a" + _varint(len(inner)) + inner


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _weight(model: onnx.ModelProto, values: list[float]) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(values, np.float32).reshape(2, 3, 1, 1), "w"))


def _external(model: onnx.ModelProto, location: str, **more: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)


def external_parent(model: onnx.ModelProto) -> None:
    _external(model, "../../../etc/passwd")


def external_absolute(model: onnx.ModelProto) -> None:
    _external(model, "/etc/passwd")


def external_here(model: onnx.ModelProto) -> None:
    """Even a plain name: it may be a link."""
    _external(model, "weights.bin", offset="0", length="24")


def external_huge_offset(model: onnx.ModelProto) -> None:
    _external(model, "weights.bin", offset=str(2**64 - 8), length=str(2**63))


def external_in_attribute(model: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["z"], name="leak", value=tensor))


def deep_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    for level in range(20):
        node = helper.make_node("If", ["x"], ["z"], name=f"if{level}", then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "inner", [], []) if level < 5 else inner
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], name="deep", then_branch=inner, else_branch=inner))


def deep_type(model: onnx.ModelProto) -> None:
    kind = model.graph.input[0].type
    kind.Clear()
    for _ in range(40):
        kind = kind.sequence_type.elem_type
    kind.tensor_type.elem_type = TensorProto.FLOAT


def many_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1] * 5000


def product_wraps(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**62, 2**62, 3, 2]


def negative_dimension(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-2, -3, 1, 1]


def zero_dimension(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 0, 1, 1], raw_data=b""))


def zero_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 0


def zero_value(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([4], np.int64), "start"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "axis"))
    model.graph.node.append(helper.make_node("Slice", ["y", "start", "start", "axis"], ["z"], name="none"))


def huge_input(model: onnx.ModelProto) -> None:
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 2**40


def huge_value(model: onnx.ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["z"], name="bomb"))


def huge_repeats(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1 << 30, 1 << 30, 1], np.int64), "times"))
    model.graph.node.append(helper.make_node("Tile", ["y", "times"], ["z"], name="bomb"))


def nan_weight(model: onnx.ModelProto) -> None:
    _weight(model, [1, 2, float("nan"), 4, 5, 6])


def infinite_scale(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].float_data[:] = [float("inf")]


def nan_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("LeakyRelu", ["y"], ["z"], name="nan", alpha=float("nan")))


def tensor_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w"))


def value_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["c"], name="again"))


def input_twice(model: onnx.ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def output_twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def attribute_twice(model: onnx.ModelProto) -> None:
    for strides in ([1, 1], [2, 2]):
        model.graph.node[0].attribute.append(helper.make_attribute("strides", strides))


def metadata_twice(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="edgedm.level", value="deployed")


def metadata_name_twice(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = '{"method": "bidm", "method": "fp32"}'


def metadata_deep(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "[" * 10_000


def opset_twice(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx", 21))


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def foreign_op(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node.append(helper.make_node("Steal", ["x"], ["z"], name="thief", domain="com.example"))


def recursive_function(model: onnx.ModelProto) -> None:
    function = model.functions.add(name="Loop", domain="local", input=["a"], output=["b"])
    function.node.append(helper.make_node("Loop", ["a"], ["b"], domain="local"))


ATTACKS: list[Callable[[onnx.ModelProto], None]] = [
    external_parent,
    external_absolute,
    external_here,
    external_huge_offset,
    external_in_attribute,
    deep_subgraph,
    deep_type,
    many_dims,
    product_wraps,
    negative_dimension,
    zero_dimension,
    zero_input,
    zero_value,
    huge_input,
    huge_value,
    huge_repeats,
    nan_weight,
    infinite_scale,
    nan_attribute,
    tensor_twice,
    value_twice,
    input_twice,
    output_twice,
    attribute_twice,
    metadata_twice,
    metadata_name_twice,
    metadata_deep,
    opset_twice,
    cycle,
    foreign_op,
    recursive_function,
]
