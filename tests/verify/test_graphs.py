"""Pieces of a graph compute what the whole does."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgedm.errors import InvalidModelError
from edgedm.verify.graphs import Graph

TEXT = """<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>
g (float[2,64] x) => (float[2,64] z)
<float[64] t, float[64] w = {1.5}>
{
    bits = edgedm.PackBits (x, t)
    s = edgedm.Binarize (x, t)
    y = Mul (s, w)
    z = Add (y, x)
}"""


def graph() -> Graph:
    proto = onnx.parser.parse_model(TEXT.replace("<float[64] t, float[64] w = {1.5}>", ""))
    for name, value in (("t", 0.25), ("w", 1.5)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(64, value, np.float32), name))
    return Graph(ir.serde.deserialize_model(proto))


def test_every_value_is_computed() -> None:
    x = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    values = graph().run({"x": x})
    assert np.array_equal(values["s"], np.where(x + np.float32(0.25) >= 0, 1, -1))
    assert np.array_equal(values["z"], values["s"] * np.float32(1.5) + x)


def test_a_piece_takes_inner_values_as_inputs() -> None:
    part = graph().part(["s", "x"], ["z"])
    assert [node.op_type for node in part.model.graph.node] == ["Mul", "Add"]
    assert [item.name for item in part.model.graph.initializer] == ["w"]
    assert not part.model.functions
    ones = np.ones((2, 64), np.float32)
    assert np.array_equal(part.run({"s": ones, "x": 2 * ones})["z"], 3.5 * ones)


def test_a_piece_that_lacks_an_input_is_refused() -> None:
    with pytest.raises(InvalidModelError, match="needs 'x', which is none of s"):
        graph().part(["s"], ["z"])


def test_a_piece_may_get_other_constants() -> None:
    ones = np.ones((2, 64), np.float32)
    part = graph().part(["s", "x"], ["z"], {"w": np.full(64, 4, np.float32)})
    assert np.array_equal(part.run({"s": ones, "x": ones})["z"], 5 * ones)
    assert np.array_equal(part.evaluate({"s": ones, "x": ones})["z"].value, 5 * ones)
