"""Rounding bounds of layer normalisation, GELU and the choice of the least, against float32 itself."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from edgedm.verify.composed_rules import least
from edgedm.verify.float64 import evaluate
from edgedm.verify.rounding import Bounded


def one_op(op: str, shapes: list[tuple[int, ...]], **attributes: object) -> onnx.ModelProto:
    names = ["x", "scale", "bias"][: len(shapes)]
    types = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shapes[0])
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attributes)], op, types, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def both(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, Bounded]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, feeds)[0], evaluate(model, feeds)["y"]


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_layer_normalisation_stays_within_its_bound(offset: float) -> None:
    """Far from zero the variance is a small difference of large numbers, and the bound says so."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 7, 24)) + offset).astype(np.float32)
    feeds = {"x": x, "scale": rng.standard_normal(24).astype("f4"), "bias": rng.standard_normal(24).astype("f4")}
    got, exact = both(one_op("LayerNormalization", [x.shape, (24,), (24,)], axis=-1, epsilon=1e-5), feeds)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * feeds["scale"] + feeds["bias"]
    assert np.allclose(exact.value, expected, rtol=1e-9, atol=1e-9)
    assert np.all(np.abs(got - exact.value) <= exact.bound)
    assert offset or exact.bound.max() < 1e-3


def test_gelu_stays_within_its_bound() -> None:
    x = np.linspace(-9, 9, 4001, dtype=np.float32).reshape(1, -1)
    got, exact = both(one_op("Gelu", [x.shape]), {"x": x})
    assert np.all(np.abs(got - exact.value) <= exact.bound) and exact.bound.max() < 1e-4
    assert exact.value[0, 2000] == 0 and abs(exact.value[0, -1] - 9) < 1e-12


def test_the_least_leans_to_the_first_and_the_last_place_that_rounding_can_reach() -> None:
    node = helper.make_node("ArgMin", ["a"], ["b"], axis=-1, keepdims=0)
    close = Bounded(np.array([[3.0, 1.0, 1.0 + 1e-9, 0.9999], [1.0, 5.0, 7.0, 9.0]]), np.full((2, 4), 1e-6))
    assert [least(node, lean, close).value.tolist() for lean in (-1, 0, 1)] == [[3, 0], [3, 0], [3, 0]]
    tied = Bounded(np.array([[3.0, 1.0, 1.0 + 1e-9, 1.0 - 1e-9]]), np.full((1, 4), 1e-6))
    assert [least(node, lean, tied).value.tolist() for lean in (-1, 0, 1)] == [[1], [3], [3]]
    kept = helper.make_node("ArgMin", ["a"], ["b"], axis=1)
    assert least(kept, 1, tied).value.tolist() == [[3]]
