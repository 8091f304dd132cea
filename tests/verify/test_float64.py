"""The float64 reference: right values, and bounds that float32 keeps and faults do not."""

import numpy as np
import onnx
import onnxruntime
import pytest

from edgedm.errors import UnsupportedError
from edgedm.verify.float64 import evaluate

SLACK = 1.0
"""ONNX Runtime's float32 must lie within the bound itself."""

GRAPHS = {
    "gemm": ("float[4,32] x, float[8,32] w, float[8] b", "float[4,8] y", "y = Gemm <transB=1> (x, w, b)"),
    "convolution": (
        "float[1,3,7,9] x, float[5,3,3,3] w, float[5] b",
        "float[1,5,4,5] y",
        "y = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w, b)",
    ),
    "grouped convolution": ("float[1,4,5,5] x, float[6,2,3,3] w", "float[1,6,3,3] y", "y = Conv <group=2> (x, w)"),
    "silu": ("float[200] x", "float[200] y", "s = Sigmoid (x) y = Mul (x, s)"),
    "softmax": ("float[2,5,16] x", "float[2,5,16] y", "y = Softmax (x)"),
    "norm": (
        "float[4,64] x",
        "float[4,64] y",
        """a = Constant <value_ints=[1]> ()
        m = ReduceMean (x, a)
        c = Sub (x, m)
        q = Mul (c, c)
        v = ReduceMean (q, a)
        e = Constant <value_float=0.00001> ()
        s = Add (v, e)
        r = Sqrt (s)
        y = Div (c, r)""",
    ),
    "pool": ("float[1,4,6,6] x", "float[1,4,3,3] y", "y = AveragePool <kernel_shape=[2,2], strides=[2,2]> (x)"),
    "moves": (
        "float[2,3,4] x",
        "float[12,2] y",
        """s = Constant <value_ints=[2,12]> ()
        r = Reshape (x, s)
        e = Exp (r)
        y = Transpose <perm=[1,0]> (e)""",
    ),
    "waves": ("float[64] x", "float[64] y", "a = Sin (x) b = Cos (a) c = Tanh (b) y = Clip (c)"),
}


def parse(inputs: str, outputs: str, body: str, functions: str = "") -> onnx.ModelProto:
    opsets = '"" : 21, "edgedm" : 1'
    return onnx.parser.parse_model(
        f"<ir_version: 10, opset_import: [{opsets}]> g ({inputs}) => ({outputs}) {{ {body} }} {functions}"
    )


def random_inputs(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        item.name: rng.standard_normal([d.dim_value for d in item.type.tensor_type.shape.dim]).astype(np.float32)
        for item in model.graph.input
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_float32_stays_within_the_bound(name: str) -> None:
    model = parse(*GRAPHS[name])
    feeds = random_inputs(model)
    actual = onnxruntime.InferenceSession(model.SerializeToString()).run(["y"], feeds)[0]
    result = evaluate(model, feeds)["y"]
    assert result.value.dtype == np.float64 and result.value.shape == actual.shape
    assert result.operations > 0
    error = np.abs(actual.astype(np.float64) - result.value)
    assert np.all(error <= SLACK * result.bound)
    assert result.bound.max() < 1e-3  # and the bound says something


def test_a_bound_grows_with_the_errors_that_enter() -> None:
    model = parse("float[1,1000] x", "float[1,1] y", "a = Constant <value_ints=[1]> () y = ReduceSum (x, a)")
    ones = {"x": np.ones((1, 1000), np.float32)}
    result = evaluate(model, ones)["y"]
    assert result.operations == 1000
    assert result.bound[0, 0] == pytest.approx(1000 * 1000 * 2.0**-24, rel=1e-3)


def test_integer_products_are_exact_beyond_float32() -> None:
    model = parse("uint8[1,70000] x, uint8[70000,1] w", "int32[1,1] y", "y = MatMulInteger (x, w)")
    feeds = {"x": np.full((1, 70000), 255, np.uint8), "w": np.full((70000, 1), 251, np.uint8)}
    result = evaluate(model, feeds)["y"]
    assert result.error is None
    assert result.value[0, 0] == 70000 * 255 * 251


def test_functions_are_walked_into_with_their_attributes() -> None:
    function = """<domain: "edgedm", opset_import: ["" : 21]>
    Scaled <factor> (x) => (y) { f = Constant <value_float: float = @factor> () y = Mul (x, f) }"""
    model = parse("float[3] x", "float[3] y", "y = edgedm.Scaled <factor=2.5> (x)", function)
    result = evaluate(model, {"x": np.array([1, 2, 3], np.float32)})["y"]
    assert result.value.tolist() == [2.5, 5.0, 7.5]


def test_decisions_lean_to_either_end_of_the_bound() -> None:
    body = """one = Constant <value_float=1.0> ()
    e = Exp (x) p = GreaterOrEqual (e, one) q = Round (e) l = Less (one, e)"""
    model = parse("float[4] x", "bool[4] p", body)
    feeds = {"x": np.array([-1e-8, 1e-3, -0.1, np.log(1.5)], np.float32)}
    low, middle, high = (evaluate(model, feeds, lean) for lean in (-1, 0, 1))
    assert low["p"].value.tolist() == [False, True, False, True]
    assert middle["p"].value.tolist() == [False, True, False, True]
    assert high["p"].value.tolist() == [True, True, False, True]
    assert [low["q"].value[3], high["q"].value[3]] == [1.0, 2.0]
    assert [low["l"].value[0], high["l"].value[0]] == [False, True]
    assert middle["p"].error is None


def test_one_operation_on_integers_is_exact() -> None:
    model = parse("float[2] x", "float[2] y", "two = Constant <value_float=2.0> () d = Mul (x, two) y = Sub (d, x)")
    assert evaluate(model, {"x": np.array([1, -3], np.float32)})["y"].error is None
    assert evaluate(model, {"x": np.array([0.1, 1e30], np.float32)})["y"].error is None
    third = parse("float[2] x", "float[2] y", "y = Mul (x, x)")
    assert evaluate(third, {"x": np.array([0.1, 3], np.float32)})["y"].error is not None


def test_an_inexact_value_that_cannot_be_followed_is_refused() -> None:
    model = parse("float[3] x", "float[3] y", "a = Exp (x) y = Asinh (a)")
    with pytest.raises(UnsupportedError, match="no rounding rule for Asinh"):
        evaluate(model, {"x": np.ones(3, np.float32)})
