"""Hostile and broken files: each is refused with an error of ours that names what is wrong."""

import contextlib
import copy
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgedm.errors import InvalidModelError, UnsupportedError
from edgedm.export.graph_io import GraphInfo, graph_info, load_graph, noise_schedule, save_graph, set_graph_info
from edgedm.ops import DOMAIN, FUNCTIONS

GRAPH = """
<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>
step (float[1,65,9,9] x, float[65] t) => (float[1,4,5,5] y)
<uint8[4,3,3,16] w, float[4] one = {1.0, 1.0, 1.0, 1.0}, float[1,1,1,1] neutral = {1.0}, float[1] scale = {1.0}>
{
   nhwc = Transpose <perm = [0,2,3,1]> (x)
   bits, mean = edgedm.PackBitsMeanAbs (nhwc, t)
   conv = edgedm.BinaryConv <channels: int = 65, strides: ints = [2,2], pads: ints = [1,1,1,1]>
       (bits, w, one, neutral, one, neutral, scale)
   y = Transpose <perm = [0,3,1,2]> (conv)
}
"""
INFO = GraphInfo("deployed", {"method": "bidm"}, {"x": "x", "t": "row"})


def _model() -> ir.Model:
    proto = onnx.parser.parse_model(GRAPH.replace("uint8[4,3,3,16] w, ", ""))
    weight = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 16)).astype(np.uint8)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = ir.serde.deserialize_model(proto)
    set_graph_info(model, INFO)
    return model


@pytest.fixture
def saved(tmp_path):
    save_graph(_model(), tmp_path / "good.onnx")
    return tmp_path / "good.onnx"


def _rewritten(path, change: Callable[[onnx.ModelProto], None]):
    proto = onnx.load(path)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_saved_graph_loads_with_shapes_functions_and_metadata(saved) -> None:
    model = load_graph(saved)
    assert {key[1] for key in model.functions} == {"PackBitsMeanAbs", "BinaryConv"}
    assert graph_info(model) == INFO
    assert all(value.shape is not None for node in model.graph for value in node.outputs)
    again = saved.with_name("again.onnx")
    save_graph(model, again)
    save_graph(load_graph(again), saved)
    assert again.read_bytes() == saved.read_bytes()


def test_the_noise_schedule_takes_the_models_prediction_type_and_a_bad_one_names_the_file(saved) -> None:
    model = load_graph(saved)

    def stands_in(config: dict) -> None:
        set_graph_info(model, GraphInfo("deployed", config, INFO.inputs))

    stands_in({"noise_schedule": {"num_train_timesteps": 50}, "prediction_type": "sample"})
    found = noise_schedule(model)
    assert (found.num_train_timesteps, found.prediction_type) == (50, "sample")
    stands_in({})
    with pytest.raises(InvalidModelError, match=r"good\.onnx: the config has no noise_schedule"):
        noise_schedule(model)
    stands_in({"noise_schedule": {"beta_end": 2.0}})
    with pytest.raises(InvalidModelError, match=r"good\.onnx: .*beta_end"):
        noise_schedule(model)
    stands_in({"noise_schedule": {"thresholding": True}})
    with pytest.raises(UnsupportedError, match=r"good\.onnx: .*thresholding"):
        noise_schedule(model)


def test_altered_function_bodies_are_replaced_by_ours(saved) -> None:
    def sabotage(proto: onnx.ModelProto) -> None:
        for function in proto.functions:
            for node in function.node:
                if node.op_type == "GreaterOrEqual":
                    node.op_type = "Greater"

    model = load_graph(_rewritten(saved, sabotage))
    for key, function in model.functions.items():
        assert ir.serde.serialize_function(function) == ir.serde.serialize_function(FUNCTIONS[key[1]])


def _foreign_op(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    proto.graph.node.append(helper.make_node("Steal", ["x"], ["z"], name="thief", domain="com.example"))


def _unknown_own_op(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Frobnicate", ["x"], ["z"], name="odd", domain=DOMAIN))


def _unknown_standard_op(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("NoSuchOp", ["x"], ["z"], name="odd"))


def _subgraph(proto: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("If", ["x"], ["z"], name="choice", then_branch=inner, else_branch=inner)
    proto.graph.node.append(node)


def _external_data(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _external_attribute(proto: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    proto.graph.node.append(helper.make_node("Constant", [], ["z"], name="leak", value=tensor))


def _short_tensor(proto: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    weight.raw_data = weight.raw_data[:-1]


def _huge_tensor(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 2**60


def _negative_dimension(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = -4


def _double(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(2), "doubles"))


def _sparse(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add()


def _dynamic_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def _half_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT16


def _wrong_bytes_per_row(proto: onnx.ModelProto) -> None:
    _attribute(proto, "channels").i = 129


def _negative_pads(proto: onnx.ModelProto) -> None:
    _attribute(proto, "pads").ints[:] = [-9, -9, 1, 1]


def _zero_stride(proto: onnx.ModelProto) -> None:
    _attribute(proto, "strides").ints[:] = [0, 0]


def _missing_attribute(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "BinaryConv")
    del node.attribute[:]


def _missing_operand(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "BinaryConv")
    del node.input[3:]


def _huge_activation(proto: onnx.ModelProto) -> None:
    for value in (proto.graph.input[0], proto.graph.output[0]):
        for dim in value.type.tensor_type.shape.dim[2:]:
            dim.dim_value = 2**20


def _wrong_output_shape(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


def _undefined_input(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "nowhere"


def _cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "y"


def _recursive_function(proto: onnx.ModelProto) -> None:
    function = proto.functions.add(name="Loop", domain="local", input=["a"], output=["b"])
    function.node.append(helper.make_node("Loop", ["a"], ["b"], domain="local"))


def _lost_functions(proto: onnx.ModelProto) -> None:
    del proto.functions[:]


def _later_opset(proto: onnx.ModelProto) -> None:
    next(entry for entry in proto.opset_import if entry.domain == "").version = 99


def _later_domain(proto: onnx.ModelProto) -> None:
    next(entry for entry in proto.opset_import if entry.domain == DOMAIN).version = 2


def _later_format(proto: onnx.ModelProto) -> None:
    proto.ir_version = 99


def _attribute(proto: onnx.ModelProto, name: str) -> onnx.AttributeProto:
    return next(entry for node in proto.graph.node for entry in node.attribute if entry.name == name)


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        (_foreign_op, UnsupportedError, "node 'thief': unknown op com.example.Steal"),
        (_unknown_own_op, UnsupportedError, "node 'odd': unknown op edgedm.Frobnicate"),
        (_unknown_standard_op, InvalidModelError, "NoSuchOp"),
        (_subgraph, UnsupportedError, "node 'choice': If holds a subgraph"),
        (_external_data, UnsupportedError, "outside the file"),
        (_external_attribute, UnsupportedError, r"leak\.value.*outside the file"),
        (_short_tensor, InvalidModelError, "tensor 'w': .* asks for 576 bytes, the file holds 575"),
        (_huge_tensor, InvalidModelError, "asks for"),
        (_negative_dimension, InvalidModelError, "negative dimension"),
        (_double, UnsupportedError, "tensor 'doubles'"),
        (_sparse, UnsupportedError, "sparse"),
        (_dynamic_input, UnsupportedError, "input 'x': .*static shape"),
        (_half_input, UnsupportedError, "input 't'"),
        (_wrong_bytes_per_row, InvalidModelError, "BinaryConv.*bytes in a row of bits: expected 24, got 16"),
        (_negative_pads, InvalidModelError, "BinaryConv"),
        (_zero_stride, InvalidModelError, "BinaryConv"),
        (_missing_attribute, InvalidModelError, "BinaryConv"),
        (_missing_operand, InvalidModelError, "BinaryConv"),
        (_huge_activation, UnsupportedError, "value 'x'"),
        (_wrong_output_shape, InvalidModelError, r"output 'y'|mismatch"),
        (_undefined_input, InvalidModelError, "nowhere"),
        (_cycle, InvalidModelError, r"topological|sorted"),
        (_recursive_function, UnsupportedError, "function local.Loop"),
        (_lost_functions, InvalidModelError, "missing: a truncated file"),
        (_later_opset, UnsupportedError, "expected 21"),
        (_later_domain, UnsupportedError, "'edgedm' version 2: expected 1"),
        (_later_format, UnsupportedError, "IR version 99"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_hostile_file_is_refused_by_name(saved, attack, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        load_graph(_rewritten(saved, attack))
    assert str(saved) in str(caught.value)


def test_missing_empty_and_foreign_files_are_refused(tmp_path) -> None:
    with pytest.raises(InvalidModelError, match="no such file"):
        load_graph(tmp_path / "none.onnx")
    for content in (b"", b"not protobuf at all", b"\x08\x0a", bytes(4096)):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(InvalidModelError, match=r"bad\.onnx"):
            load_graph(tmp_path / "bad.onnx")
    with pytest.raises(InvalidModelError, match="expected a file, got a folder"):
        load_graph(tmp_path)


def test_every_truncation_is_refused(saved) -> None:
    """Only the functions' own bodies, which are replaced anyway, may lose their tail."""
    content = saved.read_bytes()
    for length in range(0, len(content), 23):
        saved.write_bytes(content[:length])
        with pytest.raises((InvalidModelError, UnsupportedError)):
            load_graph(saved)


def test_no_flipped_bit_escapes_as_another_exception(saved) -> None:
    content, generator = saved.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(content)
        broken[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        saved.write_bytes(broken)
        with contextlib.suppress(InvalidModelError, UnsupportedError):
            load_graph(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"edgedm.level": None},
        {"edgedm.level": "finished"},
        {"edgedm.config": "{"},
        {"edgedm.config": "[]"},
        {"edgedm.inputs": "[1]"},
        {"edgedm.inputs": '[{"name": "x", "role": "x"}]'},
    ],
)
def test_missing_or_broken_metadata_is_refused(change) -> None:
    model = _model()
    for key, value in change.items():
        if value is None:
            del model.metadata_props[key]
        else:
            model.metadata_props[key] = value
    with pytest.raises(InvalidModelError, match=r"metadata|expected a level"):
        graph_info(model)


def test_a_failed_save_leaves_the_old_file(saved) -> None:
    before, model = saved.read_bytes(), copy.copy(_model())
    model.graph[0].op_type = "NoSuchOp"
    with pytest.raises(onnx.checker.ValidationError):
        save_graph(model, saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == ["good.onnx"]
