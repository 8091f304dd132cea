"""Transposes meet and vanish, and the graph still computes the same."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgedm.export.graph_io import GraphInfo, serialize_graph, set_graph_info
from edgedm.lower.channels_last import ChannelsLast
from edgedm.lower.split_gemm import SplitGemm

SAME_FLOATS = 1e-5  # the sums inside Conv may be ordered differently; values are of order 1

HEAD = '<ir_version: 10, opset_import: ["" : 21, "edgedm" : 1]>\n'


def _model(text: str, states: tuple[str, ...] = (), **arrays: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(HEAD + text)
    for index, node in enumerate(proto.graph.node):
        node.name = f"node{index}"
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    model = ir.serde.deserialize_model(proto)
    names = [value.name or "" for value in model.graph.inputs]
    set_graph_info(model, GraphInfo("deployed", {}, {n: "state" if n in states else "x" for n in names}))
    return ir.serde.deserialize_model(onnx.load_from_string(serialize_graph(model)))


def _run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(serialize_graph(model), options).run(None, feeds)


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _check(model: ir.Model, expected: dict[str, int], *shapes: tuple[int, ...]) -> None:
    """Run the pass; the ops left are `expected`, and outputs are the same."""
    from edgedm.ops import infer_shapes

    infer_shapes(model)
    names = [value.name or "" for value in model.graph.inputs]
    feeds = {name: _normal(*shape, seed=i) for i, (name, shape) in enumerate(zip(names, shapes, strict=True))}
    want = _run(model, feeds)
    ChannelsLast()(model)
    assert Counter(node.op_type for node in model.graph) == expected
    for ours, theirs in zip(_run(model, feeds), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAME_FLOATS)


def test_convolutions_and_elementwise_ops_keep_one_transpose_at_each_end():
    model = _model(
        """g (float[1,3,6,6] x, float[1,4,1,1] row) => (float[1,3,6,6] y) {
          a = Conv <pads = [1,1,1,1], auto_pad = "NOTSET"> (x, w, b)
          s = Sigmoid (a)
          m = Mul (a, s)
          n = Add (m, row)
          k = Mul (n, c)
          y = Conv <pads = [1,1,1,1]> (k, v)
        }""",
        w=_normal(4, 3, 3, 3),
        b=_normal(4),
        v=_normal(3, 4, 3, 3),
        c=_normal(4, 1, 1),
    )
    expected = {"Transpose": 2, "FloatConv": 2, "Sigmoid": 1, "Mul": 2, "Add": 1, "Reshape": 1}
    _check(model, expected, (1, 3, 6, 6), (1, 4, 1, 1))


def test_a_quantiser_with_one_grid_stands_in_any_layout():
    model = _model(
        """g (float[1,3,6,6] x) => (float[1,3,6,6] y) {
          a = Conv <pads = [1,1,1,1]> (x, w)
          q = edgedm.QuantizeUniform <bits = 4> (a, one, step, zero)
          r = Cast <to = 1> (q)
          y = Conv <pads = [1,1,1,1]> (r, v)
        }""",
        w=_normal(4, 3, 3, 3),
        v=_normal(3, 4, 3, 3),
        one=np.ones(1, np.float32),
        step=np.array(0.75, np.float32),
        zero=np.array(7, np.uint8),
    )
    _check(model, {"Transpose": 2, "FloatConv": 2, "QuantizeUniform": 1, "Cast": 1}, (1, 3, 6, 6))


def test_pooling_resizing_padding_and_concatenation_move_along():
    model = _model(
        """g (float[1,3,4,4] x) => (float[1,6,4,6] y) <float[1,3,4,4] u> {
          a = Conv (x, w)
          p = AveragePool <kernel_shape = [2,2], strides = [2,2]> (a)
          u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
            (p, none, scales)
          j = Concat <axis = 1> (u, a)
          y = Pad (j, amounts)
        }""",
        w=_normal(3, 3, 1, 1),
        none=np.zeros(0, np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
        amounts=np.array([0, 0, 0, 1, 0, 0, 0, 1], np.int64),
    )
    expected = {"Transpose": 2, "FloatConv": 1, "AveragePool2d": 1, "UpsampleNearest": 1, "Concat": 1, "Pad": 1}
    _check(model, expected, (1, 3, 4, 4))


def test_a_pool_does_not_see_the_border_that_it_never_reads():
    model = _model(
        """g (float[1,3,4,4] x) => (float[1,3,2,2] y, float[1,3,5,5] z) {
          a = Conv (x, w)
          z = Pad (a, amounts)
          y = AveragePool <kernel_shape = [2,2], strides = [2,2]> (z)
        }""",
        w=_normal(3, 3, 1, 1),
        amounts=np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64),
    )
    _check(model, {"Transpose": 3, "FloatConv": 1, "AveragePool2d": 1, "Pad": 1}, (1, 3, 4, 4))


def test_flattening_pixels_for_attention_costs_nothing():
    model = _model(
        """g (float[1,3,2,2] x) => (float[1,4,3] y) {
          a = Conv (x, w)
          f = Reshape (a, flat)
          y = Transpose <perm = [0,2,1]> (f)
        }""",
        w=_normal(3, 3, 1, 1),
        flat=np.array([1, 3, 4], np.int64),
    )
    _check(model, {"Transpose": 1, "FloatConv": 1, "Reshape": 1}, (1, 3, 2, 2))


def test_one_channel_needs_no_transpose_at_all():
    model = _model(
        """g (float[1,1,4,4] x) => (float[1,1,4,4] y) {
          a = Conv <pads = [1,1,1,1]> (x, w)
          b = Tanh (a)
          y = Conv <pads = [1,1,1,1]> (b, v)
        }""",
        w=_normal(5, 1, 3, 3),
        v=_normal(1, 5, 3, 3),
    )
    _check(model, {"Reshape": 2, "FloatConv": 2, "Tanh": 1}, (1, 1, 4, 4))


def test_carried_state_becomes_channels_last_outright():
    model = _model(
        """g (float[1,4,2,2] x, float[1,4,2,2] "state.a")
          => (float[1,4,2,2] y, float[1,4,2,2] "state.a.next") {
          a = Conv (x, w)
          "state.a.next" = Add (a, "state.a")
          y = Conv ("state.a.next", w)
        }""",
        states=("state.a",),
        w=_normal(4, 4, 1, 1),
    )
    from edgedm.ops import infer_shapes

    infer_shapes(model)
    x, state = _normal(1, 4, 2, 2), _normal(1, 4, 2, 2, seed=1)
    want = _run(model, {"x": x, "state.a": state})
    ChannelsLast()(model)
    assert [value.name for value in model.graph.outputs] == ["y", "state.a.next"]
    assert Counter(node.op_type for node in model.graph) == {"Transpose": 2, "FloatConv": 2, "Add": 1}
    got = _run(model, {"x": x, "state.a": np.moveaxis(state, 1, -1).copy()})
    np.testing.assert_allclose(got[0], want[0], rtol=0, atol=SAME_FLOATS)
    np.testing.assert_allclose(np.moveaxis(got[1], -1, 1), want[1], rtol=0, atol=SAME_FLOATS)


@pytest.mark.parametrize(
    ("middle", "left"),
    [
        ("b = Conv <group = 2> (a, w)", "Conv"),
        ("b = Conv <dilations = [2,2]> (a, w)", "Conv"),
        ("b = ReduceMean <keepdims = 1> (a, axes)", "ReduceMean"),
    ],
)
def test_an_op_that_stays_channels_first_reads_a_transpose(middle, left):
    model = _model(
        f"""g (float[1,4,5,5] x) => (float[1,4,h,w0] y) {{
          a = Conv (x, v)
          {middle}
          y = Sigmoid (b)
        }}""",
        v=_normal(4, 4, 1, 1),
        w=_normal(4, 2 if "group" in middle else 4, 2, 2),
        axes=np.array([2, 3], np.int64),
    )
    from edgedm.ops import infer_shapes

    infer_shapes(model)
    x = _normal(1, 4, 5, 5)
    want = _run(model, {"x": x})
    ChannelsLast()(model)
    assert left in {node.op_type for node in model.graph}
    np.testing.assert_allclose(_run(model, {"x": x})[0], want[0], rtol=0, atol=SAME_FLOATS)


def test_gemm_becomes_a_product_and_a_sum():
    model = _model(
        "g (float[2,3] x) => (float[2,4] y) { y = Gemm <transB = 1> (x, w, b) }", w=_normal(4, 3), b=_normal(4)
    )
    from edgedm.ops import infer_shapes

    infer_shapes(model)
    x = _normal(2, 3)
    want = _run(model, {"x": x})
    SplitGemm()(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    np.testing.assert_allclose(_run(model, {"x": x})[0], want[0], rtol=0, atol=SAME_FLOATS)
